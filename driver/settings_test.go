package driver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandglass/sandglass/core"
)

func TestWhichFilesHoldSettings(t *testing.T) {
	f := settingsOf([]string{"HOME=/home/me", "WINEPREFIX=/games/prefix/", "XDG_CONFIG_HOME=relative"})
	with := map[string]bool{"/srv/pfx/system.reg": true}
	for p, want := range map[string]core.Surface{
		"/home/me/.config/dconf/user":          core.SettingsDconf,
		"/home/me/.config/dconf/user.X1Y2Z3":   core.SettingsDconf, // what a database is made in
		"/root/.config/dconf/other":            core.SettingsDconf,
		"/etc/dconf/db/local":                  core.SettingsDconf,
		"/etc/dconf/db/local.d/00-keys":        core.SettingsDconf,
		"/home/me/.config/dconf":               "",
		"/home/me/dconf/user":                  "",
		"/home/me/.wine/user.reg":              core.SettingsWine,
		"/home/me/.wine/reg1f20001.tmp":        core.SettingsWine,
		"/games/prefix/userdef.reg":            core.SettingsWine,
		"/srv/pfx/user.reg":                    core.SettingsWine,
		"/srv/other/user.reg":                  "",
		"/home/me/.wine/drive_c/windows/x.reg": "",
		"/home/me/.wine/dosdevices":            "",
		"regular.tmp":                          "",
	} {
		if got := f.surface(p, func(p string) bool { return with[p] }); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
	if f := settingsOf([]string{"XDG_CONFIG_HOME=/cfg"}); f.surface("/cfg/dconf/user", nil) != core.SettingsDconf || f.prefix != "" {
		t.Errorf("%+v", f)
	}
}

// settingsIn lists what the ops say of settings.
func settingsIn(ops []core.Operation, sf core.Surface) (lines []string) {
	for _, op := range ops {
		if op.Surface == sf {
			lines = append(lines, fmt.Sprint(op.Action, " ", filepath.Base(op.Target), " ", op.Verdict, " ", op.Errno))
		}
	}
	return lines
}

// A program that sets a key with gsettings has set it in the box, and that is on record.
func TestGSettingsInABox(t *testing.T) {
	for _, p := range []string{"dconf", "gsettings", "dbus-daemon"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatal(err) // make test installs it
		}
	}
	l := newLab(t)
	l.write("keys/all", "[org/sandglass/test]\nkey='outside'\n")
	if err := os.MkdirAll(filepath.Join(l.dir, ".config/dconf"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("dconf", "compile", filepath.Join(l.dir, ".config/dconf/user"), filepath.Join(l.dir, "keys")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	check := unharmed(t, l.dir)
	script := "dconf read /org/sandglass/test/key; dconf write /org/sandglass/test/key \"'boxed'\"; dconf read /org/sandglass/test/key"
	r := l.sh(script)
	if r.out != "'outside'\n'boxed'\n" {
		t.Errorf("%q\n%s", r.out, r.stderr)
	}
	check()
	got := settingsIn(r.ops, core.SettingsDconf)
	if !slices.ContainsFunc(got, func(s string) bool {
		return strings.HasPrefix(s, "rename user.") && strings.HasSuffix(s, " redirected ")
	}) {
		t.Errorf("on settings.dconf: %q", got)
	}
	for _, op := range r.ops {
		if strings.Contains(op.Target, "/.config/dconf/user") && op.Surface == core.FilesWrite {
			t.Errorf("a write of settings on files.write: %+v", op)
		}
	}
	if r := l.sh("dconf read /org/sandglass/test/key"); r.out != "'boxed'\n" {
		t.Errorf("the next session reads %q", r.out)
	}

	block := func(p *core.Policy) {
		if err := p.Set("settings.dconf", "block"); err != nil {
			t.Fatal(err)
		}
	}
	r = l.run(runOpts{box: "blocked", policy: block}, "/bin/sh", "-c", "dconf write /org/sandglass/test/key \"'boxed'\"; dconf read /org/sandglass/test/key; echo x > file; cat file")
	if r.out != "'outside'\nx\n" {
		t.Errorf("where it is blocked: %q", r.out)
	}
	got = settingsIn(r.ops, core.SettingsDconf)
	if len(got) == 0 || !strings.HasSuffix(got[0], " blocked EACCES") {
		t.Errorf("where it is blocked: %q", got)
	}
	check()
}

// The registry of Wine, written as its server does: a new file, put in the old one's place.
func TestTheRegistryOfWineInABox(t *testing.T) {
	l := newLab(t)
	l.write("pfx/system.reg", "WINE REGISTRY Version 2\n")
	l.write("pfx/user.reg", "WINE REGISTRY Version 2\n[A] 1\n\"k\"=\"outside\"\n")
	l.write("elsewhere/user.reg", "x")
	check := unharmed(t, l.dir)
	script := `sed s/outside/boxed/ pfx/user.reg > pfx/reg1000.tmp; mv pfx/reg1000.tmp pfx/user.reg; cat pfx/user.reg; echo x >> elsewhere/user.reg`
	r := l.sh(script)
	if !strings.Contains(r.out, `"k"="boxed"`) {
		t.Errorf("%q", r.out)
	}
	got := slices.Compact(settingsIn(r.ops, core.SettingsWine)) // mv tries a rename that replaces nothing first
	if want := []string{"create reg1000.tmp redirected ", "rename reg1000.tmp redirected "}; !slices.Equal(got, want) {
		t.Errorf("on settings.wine: %q, want %q", got, want)
	}
	r = l.run(runOpts{box: "blocked", policy: func(p *core.Policy) { p.Set("settings.wine", "block") }}, "/bin/sh", "-c", "echo x > pfx/user.reg; cat pfx/user.reg")
	if got := settingsIn(r.ops, core.SettingsWine); !slices.Equal(got, []string{"write user.reg blocked EACCES"}) || !strings.Contains(r.out, "outside") {
		t.Errorf("where it is blocked: %q, %q", got, r.out)
	}
	check()
}
