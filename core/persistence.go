package core

import "strings"

// Persists says of an absolute path what would run it, or trust it, later and outside of a
// box if it were committed: a word or two for people ("autostart"), "" for an ordinary file.
// It is a hint for who reviews changes and no wall: a program can wait in any file. It looks
// at the path alone.
func Persists(path string) string {
	slashed := path + "/"
	for i := range persistenceRules {
		if r := &persistenceRules[i]; r.fits(path, slashed) {
			return r.what
		}
	}
	return ""
}

// persistenceRule is one pattern of the table. One that begins with ~ is of any directory,
// since anyone's home may be anywhere; one that ends in / is of all that is below, and of
// that directory itself.
type persistenceRule struct {
	what, path    string
	dir, anywhere bool
}

func (r *persistenceRule) fits(path, slashed string) bool {
	switch {
	case r.anywhere && r.dir:
		return strings.Contains(slashed, r.path)
	case r.anywhere:
		return strings.HasSuffix(path, r.path)
	case r.dir:
		return strings.HasPrefix(slashed, r.path)
	}
	return path == r.path
}

var persistenceRules = func() (out []persistenceRule) {
	for _, place := range persistence {
		for p := range strings.FieldsSeq(place.patterns) {
			r := persistenceRule{what: place.what, dir: strings.HasSuffix(p, "/")}
			r.path, r.anywhere = strings.CutPrefix(p, "~")
			out = append(out, r)
		}
	}
	return out
}()

// persistence is what is known to be run or trusted by its place. The first that fits counts.
var persistence = []struct{ what, patterns string }{
	{"autostart", "~/.config/autostart/ /etc/xdg/autostart/ ~/.config/autostart-scripts/ ~/.config/plasma-workspace/ ~/.config/openbox/autostart " +
		"~/.config/i3/config ~/.config/sway/config ~/.config/hypr/ ~/.i3/config ~/.fluxbox/startup /etc/xdg/openbox/autostart"},
	{"systemd unit", "~/.config/systemd/ ~/.local/share/systemd/ /etc/systemd/ /usr/lib/systemd/ /lib/systemd/ /usr/local/lib/systemd/ /run/systemd/ ~/.config/environment.d/ /etc/environment.d/"},
	{"D-Bus service", "~/.local/share/dbus-1/ /usr/share/dbus-1/ /usr/local/share/dbus-1/ /etc/dbus-1/"},
	{"cron job", "/etc/crontab /etc/anacrontab /etc/cron.d/ /etc/cron.hourly/ /etc/cron.daily/ /etc/cron.weekly/ /etc/cron.monthly/ /var/spool/cron/ /var/spool/anacron/ /var/spool/at/"},
	{"boot script", "/etc/init.d/ /etc/rc.local /etc/rc.d/ /etc/inittab /etc/init/ /etc/runit/ /etc/sv/ /boot/ /efi/ /etc/grub.d/ /etc/default/ /etc/initramfs-tools/ /etc/dracut.conf.d/"},
	{"shell profile", "~/.profile ~/.bash_profile ~/.bash_login ~/.bash_logout ~/.bashrc ~/.bash_aliases ~/.zshrc ~/.zshenv ~/.zprofile ~/.zlogin ~/.zlogout ~/.kshrc ~/.mkshrc ~/.cshrc " +
		"~/.tcshrc ~/.login ~/.inputrc ~/.config/fish/ ~/.oh-my-zsh/ /etc/profile /etc/profile.d/ /etc/bash.bashrc /etc/bashrc /etc/zsh/ /etc/zshrc /etc/fish/ /etc/environment /etc/shells /etc/skel/ " +
		"~/.bash_completion ~/.local/share/bash-completion/ /etc/bash_completion.d/ ~/.config/nushell/"},
	{"desktop session", "~/.xprofile ~/.xinitrc ~/.xsession ~/.xsessionrc ~/.Xresources ~/.pam_environment /etc/X11/ ~/.dmrc ~/.config/gtk-3.0/ ~/.config/gtk-4.0/ ~/.local/share/gnome-shell/extensions/"},
	{"desktop entry", "~/.local/share/applications/ /usr/share/applications/ /usr/local/share/applications/ ~/.config/mimeapps.list ~/.local/share/kio/ ~/.local/share/nautilus/ ~/Desktop/ /usr/share/xsessions/ /usr/share/wayland-sessions/"},
	{"SSH access", "~/.ssh/ /etc/ssh/"},
	{"git hook", "~/.git/hooks/ ~/.git/config ~/.gitconfig ~/.config/git/ /etc/gitconfig ~/.git/modules/ ~/.husky/ ~/.githooks/ ~/.pre-commit-config.yaml"},
	{"logins", "/etc/passwd /etc/shadow /etc/group /etc/gshadow /etc/sudoers /etc/sudoers.d/ /etc/doas.conf /etc/pam.d/ /etc/pam.conf /etc/security/ /etc/polkit-1/ /usr/share/polkit-1/ /etc/nsswitch.conf /etc/login.defs ~/.rhosts ~/.shosts"},
	{"kernel", "/etc/modprobe.d/ /etc/modules /etc/modules-load.d/ /lib/modules/ /usr/lib/modules/ /etc/sysctl.conf /etc/sysctl.d/ /etc/udev/ /lib/udev/ /usr/lib/udev/ /etc/binfmt.d/ /usr/lib/binfmt.d/ /etc/tmpfiles.d/ /usr/lib/tmpfiles.d/"},
	{"library loading", "/etc/ld.so.preload /etc/ld.so.conf /etc/ld.so.conf.d/ /etc/ld.so.cache"},
	{"trusted keys", "/etc/ssl/ /usr/share/ca-certificates/ /usr/local/share/ca-certificates/ /etc/ca-certificates/ /etc/pki/ /etc/apt/ /etc/yum.repos.d/ /etc/pacman.d/ ~/.gnupg/ ~/.pki/"},
	{"name lookup", "/etc/hosts /etc/resolv.conf /etc/NetworkManager/ /etc/network/ /etc/dhcp/"},
	{"log rotation", "/etc/logrotate.d/ /etc/logrotate.conf /etc/update-motd.d/"},
	{"program in PATH", "~/.local/bin/ ~/bin/ /bin/ /sbin/ /usr/bin/ /usr/sbin/ /usr/local/bin/ /usr/local/sbin/ /usr/games/ /usr/local/games/ /opt/bin/ /snap/bin/ ~/.cargo/bin/ ~/go/bin/ ~/.npm-global/bin/"},
	{"system library", "/lib/ /lib64/ /lib32/ /libx32/ /usr/lib/ /usr/lib64/ /usr/lib32/ /usr/local/lib/ /usr/libexec/"},
	{"editor start-up", "~/.vimrc ~/.vim/ ~/.config/nvim/ ~/.emacs ~/.emacs.d/ ~/.config/emacs/ ~/.nanorc ~/.exrc ~/.vscode/ ~/.config/Code/User/ ~/.vscode-server/ ~/.idea/ ~/.local/share/nvim/ ~/.envrc ~/.lesskey"},
	{"program start-up", "~/.tmux.conf ~/.config/tmux/ ~/.screenrc ~/.gdbinit ~/.lldbinit ~/.wgetrc ~/.curlrc ~/.npmrc ~/.yarnrc ~/.pypirc ~/.config/pip/ ~/.pip/ ~/.pythonrc ~/.python_startup.py ~/.cargo/config " +
		"~/.cargo/config.toml ~/.docker/config.json ~/.m2/settings.xml ~/.gradle/ ~/.irbrc ~/.psqlrc ~/.sqliterc ~/.perldb ~/.Rprofile ~/.config/kitty/ ~/.config/alacritty/ ~/sitecustomize.py ~/usercustomize.py ~/.forward ~/.procmailrc"},
}
