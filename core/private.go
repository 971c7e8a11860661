package core

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// OtherHomes is the private place that stands for the homes of all users but the caller.
const OtherHomes = "~*"

// Bounds of a policy's lists.
const (
	maxPrivate      = 1024
	maxGrants       = 256
	maxPrivatePlace = 4096 // bytes
)

// privatePlaces are the private places of [DefaultPolicy]: what proves to others who a
// person is, what he says to them, and what he did. Globs of [path.Match], ~ for the
// caller's home; what is below a place is of it.
var privatePlaces = strings.Fields(`
	~/.ssh ~/.putty ~/.gnupg ~/.pki ~/.cert ~/.local/share/keyrings ~/.gnome2/keyrings ~/.local/share/kwalletd ~/.kde/share/apps/kwallet
	/etc/shadow /etc/shadow- /etc/gshadow /etc/gshadow- /etc/security/opasswd /etc/ssh/ssh_host_*_key /etc/ssl/private /etc/krb5.keytab
	/etc/wireguard /etc/NetworkManager/system-connections /etc/ppp/chap-secrets /etc/ppp/pap-secrets

	~/.mozilla ~/.librewolf ~/.waterfox ~/.zen ~/.config/mozilla ~/.config/librewolf ~/.config/chromium ~/.config/google-chrome ~/.config/google-chrome-beta ~/.config/google-chrome-unstable
	~/.config/BraveSoftware ~/.config/vivaldi ~/.config/vivaldi-snapshot ~/.config/opera ~/.config/opera-beta ~/.config/microsoft-edge ~/.config/microsoft-edge-dev
	~/.config/epiphany ~/.local/share/epiphany ~/.config/falkon ~/.local/share/falkon ~/.config/qutebrowser ~/.local/share/qutebrowser ~/.local/share/konqueror ~/.tor-browser ~/.local/share/torbrowser
	~/.cache/mozilla ~/.cache/librewolf ~/.cache/chromium ~/.cache/google-chrome ~/.cache/BraveSoftware ~/.cache/vivaldi ~/.cache/opera ~/.cache/microsoft-edge ~/.cache/epiphany
	~/snap/firefox ~/snap/chromium ~/snap/brave ~/snap/opera ~/snap/vivaldi ~/snap/thunderbird ~/snap/bitwarden ~/snap/keepassxc ~/snap/signal-desktop ~/snap/discord ~/snap/slack ~/snap/telegram-desktop
	~/.var/app/org.mozilla.* ~/.var/app/io.gitlab.librewolf-community ~/.var/app/org.chromium.* ~/.var/app/com.google.Chrome* ~/.var/app/com.brave.* ~/.var/app/com.vivaldi.* ~/.var/app/com.opera.* ~/.var/app/com.microsoft.Edge*
	~/.var/app/org.gnome.Epiphany ~/.var/app/org.gnome.Evolution ~/.var/app/org.gnome.Geary ~/.var/app/com.bitwarden.* ~/.var/app/org.keepassxc.* ~/.var/app/org.signal.* ~/.var/app/com.discordapp.* ~/.var/app/com.slack.* ~/.var/app/org.telegram.* ~/.var/app/im.riot.*

	~/.password-store ~/.config/keepassxc ~/.cache/keepassxc ~/.keepass ~/.config/KeePass ~/*.kdbx ~/*.kdb ~/.config/Bitwarden ~/.config/Bitwarden?CLI ~/.config/1Password ~/.config/op ~/.op ~/.lastpass ~/.local/share/lpass
	~/.config/enpass ~/.dashlane ~/.authinfo ~/.authinfo.gpg ~/.config/age ~/.config/sops ~/.local/share/gopass ~/.config/gopass ~/.config/rbw ~/.local/share/rbw ~/.cache/rbw ~/.config/Authenticator ~/.config/Yubico

	~/.aws ~/.config/gcloud ~/.boto ~/.azure ~/.kube ~/.config/helm ~/.docker/config.json ~/.config/containers/auth.json ~/.dockercfg ~/.terraform.d/credentials.tfrc.json ~/.terraformrc ~/.config/terraform ~/.vault-token ~/.config/vault ~/.config/doctl ~/.config/hcloud ~/.config/flyctl ~/.fly
	~/.config/heroku ~/.local/share/heroku ~/.config/rclone ~/.rclone.conf ~/.s3cfg ~/.mc ~/.oci ~/.bluemix ~/.aliyun ~/.ovh.conf ~/.config/openstack ~/.config/linode-cli ~/.config/scw ~/.pulumi/credentials.json ~/.databrickscfg ~/.snowsql ~/.config/configstore ~/.config/vercel ~/.local/share/com.vercel.cli ~/.netlify ~/.config/netlify ~/.wrangler ~/.config/.wrangler
	~/.npmrc ~/.yarnrc.yml ~/.config/pnpm/rc ~/.pypirc ~/.config/pypoetry/auth.toml ~/.cargo/credentials ~/.cargo/credentials.toml ~/.gem/credentials ~/.bundle/config ~/.composer/auth.json ~/.config/composer/auth.json ~/.nuget/NuGet ~/.m2/settings.xml ~/.m2/settings-security.xml ~/.gradle/gradle.properties ~/.hex ~/.huggingface ~/.cache/huggingface/token ~/.cache/huggingface/stored_tokens ~/.kaggle ~/.config/kaggle
	~/.netrc ~/_netrc ~/.git-credentials ~/.config/git/credentials ~/.config/gh ~/.config/hub ~/.config/glab-cli ~/.config/tea ~/.config/github-copilot ~/.subversion/auth ~/.bitcoin ~/.pgpass ~/.my.cnf ~/.mylogin.cnf ~/.smbcredentials ~/.vnc ~/.config/remmina ~/.local/share/remmina ~/.config/FileZilla ~/.filezilla ~/.fetchmailrc ~/.msmtprc ~/.config/msmtp ~/.mbsyncrc ~/.offlineimaprc

	~/.*_history ~/.bash_history-*.tmp ~/.bash_sessions ~/.zsh_sessions ~/.zhistory ~/.histfile ~/.history ~/.local/share/fish/fish_history ~/.config/fish/fish_history ~/.local/share/powershell ~/.local/share/nushell/history.txt ~/.config/nushell/history.txt ~/.config/nushell/history.sqlite3 ~/.local/share/atuin ~/.local/state/bash ~/.local/state/zsh ~/.local/state/python_history
	~/.lesshst ~/.local/state/lesshst ~/.viminfo ~/.local/state/nvim/shada ~/.local/share/nvim/shada ~/.wget-hsts ~/.recently-used ~/.local/share/recently-used.xbel ~/.ipython/profile_*/history.sqlite ~/.local/share/jupyter/runtime ~/.R_history ~/.Rhistory ~/.ghc/ghci_history ~/.units_history ~/.dbshell

	~/.thunderbird ~/.icedove ~/.config/evolution ~/.local/share/evolution ~/.cache/evolution ~/.local/share/geary ~/.cache/thunderbird ~/.claws-mail ~/.sylpheed-2.0 ~/.local/share/kmail2 ~/.local/share/local-mail ~/.local/share/akonadi ~/.config/akonadi ~/.mutt ~/.muttrc ~/.config/mutt ~/.config/neomutt ~/.config/aerc ~/Mail ~/mail ~/Maildir ~/.mail ~/.maildir ~/.mbox ~/mbox ~/.local/share/mail ~/.notmuch-config
	/var/mail /var/spool/mail /var/spool/cron /var/spool/at

	~/.ethereum ~/.electrum ~/.electrum-ltc ~/.monero ~/.litecoin ~/.dogecoin ~/.zcash ~/.config/Exodus ~/.config/atomic ~/.config/solana ~/.config/Ledger?Live ~/.config/@trezor ~/.local/share/bisq ~/.wasabiwallet ~/.walletwasabi ~/.sparrow ~/.config/Daedalus ~/.config/polkadot
	~/.config/Signal ~/.local/share/signal-cli ~/.config/discord ~/.config/discordcanary ~/.config/Slack ~/.config/Element ~/.config/Element-Nightly ~/.local/share/TelegramDesktop ~/.config/Microsoft ~/.config/teams-for-linux ~/.config/skypeforlinux ~/.config/WhatsApp ~/.config/whatsdesk ~/.config/Mattermost ~/.config/zoomus.conf ~/.zoom ~/.purple ~/.config/hexchat ~/.weechat ~/.config/weechat ~/.local/share/weechat ~/.irssi ~/.config/Wire ~/.config/Session ~/.config/Keybase ~/.config/keybase ~/.local/share/keybase ~/.local/share/dino ~/.local/share/gajim ~/.config/gajim ~/.config/nheko ~/.local/share/nheko ~/.config/jami ~/.local/share/jami
	` + OtherHomes)

// Grant says who may read something in a private place.
type Grant struct {
	Stance Stance
	Path   string // in a private place; globs and ~ as there; what is below it is of it
	Exe    string // absolute path of a program, or of a script
}

const grantHint = "as in `allow ~/.ssh from /usr/bin/ssh`, `ask ~/.gnupg from /usr/bin/gpg`"

// ParseGrant reads a grant: allow|ask|block PATH from EXECUTABLE.
func ParseGrant(text string) (g Grant, err error) {
	fail := func(why string) (Grant, error) {
		return Grant{}, Hint(fmt.Errorf("grant %q: %s", Shorten(text, 200), why), grantHint)
	}
	stance, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	if g.Stance, err = ParseStance(stance); err != nil {
		return fail("it begins with allow, ask or block")
	}
	i := strings.LastIndex(rest, " from ")
	if i < 0 {
		return fail("`from` and the absolute path of a program are missing")
	}
	g.Path, g.Exe = strings.TrimSpace(rest[:i]), strings.TrimSpace(rest[i+len(" from "):])
	if why := badPlace(g.Path); why != "" {
		return fail(why)
	}
	if g.Path == OtherHomes {
		return fail("name the home")
	}
	switch {
	case !strings.HasPrefix(g.Exe, "/") || path.Clean(g.Exe) != g.Exe || g.Exe == "/" || strings.ContainsRune(g.Exe, 0):
		return fail("after `from` comes the absolute path of a program")
	case strings.ContainsAny(g.Exe, `*?[\`):
		return fail("a program is named in full, without * ? [ or \\")
	}
	return g, nil
}

// String is the grant as [ParseGrant] reads it.
func (g *Grant) String() string { return g.Stance.String() + " " + g.Path + " from " + g.Exe }

// badPlace says what is wrong with a private place's text; "" when nothing is.
func badPlace(p string) string {
	abs := p
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		abs = "/" + rest
	} else if p == OtherHomes {
		return ""
	}
	switch {
	case len(p) > maxPrivatePlace:
		return "too long"
	case strings.ContainsRune(p, 0):
		return "a path has no NUL"
	case !strings.HasPrefix(abs, "/"):
		return "neither an absolute path nor one that begins with ~/"
	case abs == "/":
		return "a whole home or the root is no private place"
	case path.Clean(abs) != abs:
		return "not a clean path: no . or .., no / at the end"
	}
	if _, err := path.Match(abs, ""); err != nil {
		return "syntax error in pattern; a literal * ? [ or \\ is written with a \\ before it"
	}
	return ""
}

// AddPrivate adds a private place; with a ! before it, takes exactly that one out.
func (p *Policy) AddPrivate(text string) error {
	if out, ok := strings.CutPrefix(text, "!"); ok {
		i := slices.Index(p.Private, out)
		if i < 0 {
			hints := nearPlaces(p.Private, out)
			return Hint(fmt.Errorf("private %q: %q is no private place of this policy: %w", Shorten(text, 200), Shorten(out, 200), ErrNotFound), hints...)
		}
		p.Private = slices.Delete(slices.Clone(p.Private), i, i+1)
		return nil
	}
	if why := badPlace(text); why != "" {
		return Hint(fmt.Errorf("private %q: %s", Shorten(text, 200), why), "as in `~/notes`, `/srv/keys/*.pem`; `!~/.npmrc` takes one out, "+OtherHomes+" is the homes of others")
	}
	if len(p.Private) >= maxPrivate {
		return fmt.Errorf("private: more than %d places", maxPrivate)
	}
	if !slices.Contains(p.Private, text) {
		p.Private = append(slices.Clip(p.Private), text)
	}
	return nil
}

// nearPlaces says which places somebody may have meant.
func nearPlaces(all []string, text string) []string {
	var near []string
	base := strings.TrimPrefix(path.Base(text), ".")
	for _, p := range all {
		if len(near) < 8 && base != "" && (strings.Contains(p, base) || strings.HasPrefix(text, p+"/")) {
			near = append(near, p)
		}
	}
	if near == nil {
		return []string{"a place is taken out as it is written in the list: ~/.ssh, ~/.aws, /etc/shadow, ..."}
	}
	return []string{"there are: " + strings.Join(near, ", ")}
}

// AddGrant adds a grant after those there are; it must be of a private place.
func (p *Policy) AddGrant(text string) error {
	g, err := ParseGrant(text)
	if err != nil {
		return err
	}
	if len(p.Grants) >= maxGrants {
		return fmt.Errorf("grants: more than %d", maxGrants)
	}
	p.Grants = append(slices.Clip(p.Grants), g)
	return nil
}

// CheckGrants says which grant opens nothing, since what it names is not private.
func (p *Policy) CheckGrants() error {
	for i := range p.Grants {
		g := &p.Grants[i]
		in := slices.ContainsFunc(p.Private, func(place string) bool {
			return place != OtherHomes && Within(place, g.Path) || strings.HasPrefix(g.Path, "/") && place == OtherHomes
		})
		if !in {
			return Hint(fmt.Errorf("grant %q: %s is in no private place", Shorten(g.String(), 200), Shorten(g.Path, 200)), "every program reads it; `private:` makes it a private place")
		}
	}
	return nil
}

// Within says whether p is matched by the glob, or below something that is: a glob matches
// each of its components on its own, as [path.Match].
func Within(glob, p string) bool {
	for n := strings.Count(p, "/") - strings.Count(glob, "/"); n >= 0; n-- {
		if ok, err := path.Match(glob, p); ok && err == nil {
			return true
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return false
		}
		p = p[:i]
	}
	return false
}

// AtHome puts a home in the place of a pattern's ~. What is special in a glob is literal
// in the home.
func AtHome(pattern, home string) string {
	rest, ok := strings.CutPrefix(pattern, "~/")
	if !ok {
		return pattern
	}
	return strings.TrimSuffix(globQuote.Replace(home), "/") + "/" + rest
}

var globQuote = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// PrivateDecision is what the grants say.
type PrivateDecision struct {
	Stance Stance
	Rule   string
}

// DecidePrivate decides whether a process may read a private file: the first grant decides
// that names both, see names. Where none does, nobody may.
func (p *Policy) DecidePrivate(names func(i int, g *Grant) bool) PrivateDecision {
	for i := range p.Grants {
		if g := &p.Grants[i]; names(i, g) {
			return PrivateDecision{g.Stance, p.Name + ": " + g.String()}
		}
	}
	return PrivateDecision{Block, p.Name + ": " + string(FilesPrivate)}
}

// PrivateView is by which two policies that hide and open the same are told to do so.
func (p *Policy) PrivateView() string {
	places := slices.Sorted(slices.Values(p.Private))
	var b strings.Builder
	b.WriteString(strings.Join(slices.Compact(places), "\n"))
	for i := range p.Grants {
		b.WriteString("\n" + p.Grants[i].String())
	}
	return b.String()
}

// privateChanges says in what the private places and grants differ from those of base.
func (p *Policy) privateChanges(base *Policy) (out []string) {
	for _, x := range p.Private {
		if !slices.Contains(base.Private, x) {
			out = append(out, "private="+x)
		}
	}
	for _, x := range base.Private {
		if !slices.Contains(p.Private, x) {
			out = append(out, "private=!"+x)
		}
	}
	for i := range p.Grants {
		out = append(out, "grant="+p.Grants[i].String())
	}
	return out
}
