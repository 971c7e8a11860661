package core

import "testing"

func TestPersists(t *testing.T) {
	for path, want := range map[string]string{
		"/home/ada/.config/autostart/x.desktop":         "autostart",
		"/home/ada/.config/autostart":                   "autostart",
		"/home/ada/.config/autostart.txt":               "",
		"/home/ada/.config":                             "",
		"/home/ada/.config/systemd/user/x.service":      "systemd unit",
		"/usr/lib/systemd/system/x.timer":               "systemd unit",
		"/etc/cron.d/x":                                 "cron job",
		"/etc/crontab":                                  "cron job",
		"/etc/crontab.bak":                              "",
		"/srv/etc/crontab":                              "",
		"/var/spool/cron/crontabs/ada":                  "cron job",
		"/home/ada/.bashrc":                             "shell profile",
		"/root/.zshenv":                                 "shell profile",
		"/home/ada/.bashrc.d":                           "",
		"/home/ada/my.bashrc":                           "",
		"/etc/profile.d/x.sh":                           "shell profile",
		"/home/ada/src/x/.git/hooks/post-checkout":      "git hook",
		"/home/ada/src/x/.git/config":                   "git hook",
		"/home/ada/src/x/.git/index":                    "",
		"/home/ada/.ssh/authorized_keys":                "SSH access",
		"/home/ada/.ssh/config":                         "SSH access",
		"/home/ada/.local/share/applications/x.desktop": "desktop entry",
		"/home/ada/.local/bin/ls":                       "program in PATH",
		"/usr/local/bin/sudo":                           "program in PATH",
		"/usr/binary":                                   "",
		"/etc/ld.so.preload":                            "library loading",
		"/usr/lib/x86_64-linux-gnu/libc.so.6":           "system library",
		"/etc/sudoers.d/x":                              "logins",
		"/etc/udev/rules.d/1.rules":                     "kernel",
		"/home/ada/.vimrc":                              "editor start-up",
		"/home/ada/notes.txt":                           "",
		"/":                                             "",
		"":                                              "",
		"/home/ada/\xff/.profile":                       "shell profile",
		"/home/ada/.local/share/dbus-1/services/org.x.service": "D-Bus service",
	} {
		if got := Persists(path); got != want {
			t.Errorf("Persists(%q) is %q, want %q", path, got, want)
		}
	}
}

func BenchmarkPersists(b *testing.B) {
	for b.Loop() {
		Persists("/home/ada/src/project/internal/package/file.go")
	}
}
