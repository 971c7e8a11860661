package core

import (
	"path"
	"slices"
	"strings"
	"testing"
)

func TestPrivatePlacesOfAPolicy(t *testing.T) {
	p, err := ParsePolicy("mine", []byte("private:\n  - ~/notes\n  - /srv/keys/*.pem\n  - '!~/.npmrc'\ngrants:\n  - allow ~/.ssh/config from /usr/bin/ssh\n  - block ~/.ssh from /usr/bin/ssh\n  - ask ~/notes from /usr/bin/less\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"~/notes", "/srv/keys/*.pem", "~/.ssh", OtherHomes} {
		if !slices.Contains(p.Private, want) {
			t.Errorf("%s is not private", want)
		}
	}
	if slices.Contains(p.Private, "~/.npmrc") {
		t.Error("what was taken out is still there")
	}
	if base, _ := BuiltinPolicy(""); !slices.Contains(base.Private, "~/.npmrc") || slices.Contains(base.Private, "~/notes") {
		t.Error("a policy changed the built-in one")
	}
	want := "private=~/notes, private=/srv/keys/*.pem, private=!~/.npmrc, grant=allow ~/.ssh/config from /usr/bin/ssh, grant=block ~/.ssh from /usr/bin/ssh, grant=ask ~/notes from /usr/bin/less"
	if c := p.Changes(); c != want {
		t.Errorf("changes %q, want %q", c, want)
	}
	c := p.Clone()
	c.Grants[0].Stance, c.Private[0] = Block, "/x"
	if p.Grants[0].Stance != Allow || p.Private[0] == "/x" {
		t.Error("a clone shares something")
	}
	for _, c := range []struct {
		file, exe string
		want      Stance
	}{
		{"/home/me/.ssh/config", "/usr/bin/ssh", Allow}, {"/home/me/.ssh/id_rsa", "/usr/bin/ssh", Block},
		{"/home/me/.ssh/config", "/usr/bin/scp", Block}, {"/home/other/.ssh/config", "/usr/bin/ssh", Block},
		{"/home/me/notes/a/b", "/usr/bin/less", Ask}, {"/home/me/notes", "/usr/bin/less", Ask}, {"/home/me/notes2", "/usr/bin/less", Block},
	} {
		d := p.DecidePrivate(func(_ int, g *Grant) bool { return g.Exe == c.exe && Within(AtHome(g.Path, "/home/me"), c.file) })
		if d.Stance != c.want {
			t.Errorf("%s for %s: %s, want %s", c.file, c.exe, d.Stance, c.want)
		}
	}
}

func TestParsePolicyRefusesPrivate(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"private: [notes]", "neither an absolute path"},
		{"private: ['~/']", "a whole home"},
		{"private: [/]", "a whole home or the root"},
		{"private: [/a/../b]", "not a clean path"},
		{"private: ['/a/[']", "syntax error in pattern"},
		{"private: ['!~/.shh']", `"~/.shh" is no private place`},
		{"private: {a: b}", "file:1:10: private is a mapping"},
		{"grants: [~/.ssh from /usr/bin/ssh]", "it begins with allow, ask or block"},
		{"grants: [allow ~/.ssh]", "`from` and the absolute path"},
		{"grants: [allow ~/.ssh from ssh]", "the absolute path of a program"},
		{"grants: [allow ~/.ssh from /usr/bin/*]", "a program is named in full"},
		{"grants: [allow ~/.gitconfig from /usr/bin/git]", "~/.gitconfig is in no private place"},
		{"grants: ['allow ~* from /usr/bin/git']", "name the home"},
		{"privat: []", `unknown key "privat"`},
	} {
		if _, err := ParsePolicy("file", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
	if err := (&Policy{Private: []string{"~/.npmrc", "~/.ssh"}}).AddPrivate("!~/.npm"); err == nil || !strings.Contains(strings.Join(Hints(err), " "), "~/.npmrc") {
		t.Errorf("no word of what was meant: %v %v", err, Hints(err))
	}
}

func TestDefaultPlacesAreWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range privatePlaces {
		if why := badPlace(p); why != "" {
			t.Errorf("%s: %s", p, why)
		}
		if seen[p] {
			t.Errorf("%s is there twice", p)
		}
		seen[p] = true
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		glob, path string
		want       bool
	}{
		{"/a/b", "/a/b", true}, {"/a/b", "/a/b/c/d", true}, {"/a/b", "/a/bc", false}, {"/a/b", "/a", false},
		{"/a/*_key", "/a/x_key", true}, {"/a/*_key", "/a/x_key/y", true}, {"/a/*_key", "/a/b/x_key", false}, {`/a/\*`, "/a/*", true}, {`/a/\*`, "/a/b", false},
	} {
		if got := Within(c.glob, c.path); got != c.want {
			t.Errorf("%s in %s: %v", c.path, c.glob, got)
		}
	}
	if got := AtHome("~/.ssh/*", "/home/a*b"); !Within(got, "/home/a*b/.ssh/x") || Within(got, "/home/acb/.ssh/x") {
		t.Errorf("a home with a star in it: %s", got)
	}
}

func FuzzGrant(f *testing.F) {
	f.Add("allow ~/.ssh from /usr/bin/ssh")
	f.Add("ask /a b from c from /d")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := ParseGrant(text)
		if err != nil {
			return
		}
		again, err := ParseGrant(g.String())
		if err != nil || again != g {
			t.Errorf("%q: %+v, again %+v (%v)", text, g, again, err)
		}
		if path.Clean(g.Exe) != g.Exe || !path.IsAbs(g.Exe) {
			t.Errorf("program %q", g.Exe)
		}
	})
}
