package core

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParsePolicy(t *testing.T) {
	p, err := ParsePolicy("file", []byte(`
name: web
base: fully-virtualised
observe: changes
surfaces:
  device.camera: allow
  ipc.dbus: block
connect:
  - /run/postgresql/.s.PGSQL.*
  - "@/tmp/.X11-unix/X0"
limits:
  processes: 100
  memory: 1.5GiB
  cpus: 0.5
  wall-time: 10m
  file-size: 64k
`))
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "web" || p.Observe != ObserveChanges || p.Net != NetOwn {
		t.Errorf("%+v", p)
	}
	for s, want := range map[Surface]Verdict{DeviceCamera: Allowed, IPCDBus: Blocked, DeviceSound: Blocked, FilesWrite: Redirected, "new.surface": Blocked} {
		if d := p.Decide(s); d.Verdict != want {
			t.Errorf("%s: %s, want %s", s, d.Verdict, want)
		}
	}
	if want := (Limits{Processes: 100, Memory: 3 << 29, CPUs: 0.5, WallTime: 10 * time.Minute, FileSize: 64 << 10, Versions: defaultVersions, VersionFile: defaultVersionFile}); p.Limits != want {
		t.Errorf("limits %+v, want %+v", p.Limits, want)
	}
	for addr, want := range map[string]Verdict{"/run/postgresql/.s.PGSQL.5432": Allowed, "/run/postgresql/x/.s.PGSQL.1": Blocked,
		"@/tmp/.X11-unix/X0": Allowed, "/tmp/.X11-unix/X0": Blocked} {
		if d := p.DecideConnect(IPCUnix, addr); d.Verdict != want {
			t.Errorf("connect %s: %s, want %s", addr, d.Verdict, want)
		}
	}
	want := "device.camera=allow, ipc.dbus=block, connect=/run/postgresql/.s.PGSQL.*, connect=@/tmp/.X11-unix/X0, " +
		"processes=100, memory=1610612736, cpus=0.5, file-size=65536, wall-time=10m0s"
	if c := p.Changes(); c != want {
		t.Errorf("changes %q, want %q", c, want)
	}
	if p, _ := BuiltinPolicy(""); p.Changes() != "" {
		t.Errorf("the built-in policy has changed: %s", p.Changes())
	}
}

// Each mistake is found at its place, with what was expected.
func TestMistakesInAPolicy(t *testing.T) {
	for _, c := range []struct{ text, where, what, hint string }{
		{"surfaces:\n  device.disk: allow", "2:16", "device.disk cannot be set to allow", "it can be: block"},
		{"surfaces:\n  process.signal: allow", "2:19", "cannot be set to allow", "redirect, block"},
		{"surfaces:\n  sandbox.self: allow", "2:17", "cannot be set to allow", "block"},
		{"surfaces:\n  device.camera: maybe", "2:18", `unknown verdict "maybe"`, "allow, redirect or block"},
		{"surfaces:\n  device.camra: allow", "2:3", "unknown surface", `did you mean "device.camera"?`},
		{"surfaces:\n  nothing: allow", "2:3", "unknown surface", "surfaces: device.camera, "},
		{"surfaces:\n  files.write:", "2:15", "files.write: no value", "allow, redirect or block"},
		{"surfaces:\n  files.write: [block]", "2:16", "files.write is a list, not a word", "allow, redirect or block"},
		{"surfaces: allow", "1:11", "surfaces is a plain value, not a mapping", "`key: value`"},
		{"observe: full\nobserv: lean", "2:1", `unknown key "observ"`, `did you mean "observe"?`},
		{"surfcaes:\n  device.camera: allow", "1:1", `unknown key "surfcaes"`, `did you mean "surfaces"?`},
		{"xyz: 1", "1:1", `unknown key "xyz"`, "keys of a policy: base, name, "},
		{"surfaces:\n  device.camera: allow\n  device.camera: block", "3:3", `"device.camera" is said a second time`, "line 2"},
		{"observe: full\nnet: own\nobserve: lean", "3:1", `"observe" is said a second time`, "line 1"},
		{"connect: [run/x]", "1:11", "not an absolute path", "@"},
		{"connect:\n  - /run/x\n  - '/run/['", "3:5", "syntax error", "literal"},
		{"connect: {a: b}", "1:10", "connect is a mapping, not a list", "- "},
		{"connect: [[a]]", "1:11", "an entry of connect is a list, not a word", "- "},
		{"limits: {memory: -1}", "1:18", "not a size", "512MiB"},
		{"limits: {memory: 1e30T}", "1:18", "not a size", "512MiB"},
		{"limits: {processes: 0}", "1:21", "not a whole number", "a number"},
		{"limits: {wall-time: 1ms}", "1:21", "not a duration", "10m"},
		{"limits: {cpus: NaN}", "1:16", "not a number", "a number"},
		{"limits: {speed: 1}", "1:10", `unknown key "speed"`, "keys of limits: processes, "},
		{"limits: {memroy: 1G}", "1:10", `unknown key "memroy"`, `did you mean "memory"?`},
		{"net: wan", "1:6", "unknown network", "one of own, none"},
		{"observe: 1", "1:10", "unknown observe setting", "one of full"},
		{"base: nothing", "1:7", "unknown policy", "fully-virtualised"},
		{"base: fully-virtualized", "1:7", "unknown policy", `did you mean "fully-virtualised"?`},
		{"name: ../x", "1:7", "not a name", "letters"},
		{"name: fully-virtualised", "1:7", "built-in", "another"},
		{"shares: write", "1:9", "unknown setting", "block or read"},
		{"shares: read\nsurfaces: {files.share: block}", "1:9", "said as the surface files.share, too", "line 2"},
		{"network: {rulez: []}", "1:11", `unknown key "rulez"`, `did you mean "rules"?`},
		{"network:\n  rules:\n    - allow *.debian.org\n    - permit x", "4:7", `rule "permit x": it begins with allow, ask or block`, "as in `allow"},
		{"network: {outbound: maybe}", "1:21", "unknown stance", "allow, ask or block"},
		{"network: {publish: ['x']}", "1:21", "publish", "as in"},
		{"network: {resolvers: [dns]}", "1:23", "not an address", "as in 192.0.2.53"},
		{"network: {proxy: 'ftp://x'}", "1:18", "not a proxy's URL", "socks5://"},
		{"a: &x 1\nnet: *x", "2:6", "a reference to one", "own, none or host"},
		{"net: !!str own", "1:6", "tagged", "own, none or host"},
		{"<<: {net: own}", "1:1", "anchor", ""},
		{"net: own\n---\nnet: none", "3:4", "a second document", "one policy"},
		{"- net: own", "1:1", "a policy is a list, not a mapping", "with the keys base, "},
		{"net", "1:1", "a policy is a plain value, not a mapping", "keys"},
		{"[", "1:1", "not YAML", "indentation"},
		{"net: own\n observe: full", "1:6", "not YAML", "indentation"},
		{"name: 'x", "1:7", "not YAML", "indentation"},
		{"\tnet: own", "1:4", "not YAML", "indentation"},
		{strings.Repeat("[", 1000), "1:33", "nested too deep", "levels"},
		{strings.Repeat("- ", 1000), "1:257", "nested too deep", "levels"},
		{strings.Repeat("a", 1<<20+1), "", "larger than", ""},
	} {
		name := Shorten(c.text, 60)
		_, err := ParsePolicy("file", []byte(c.text))
		var pe *PolicyError
		if !errors.As(err, &pe) {
			t.Errorf("%q: %v, want %q", name, err, c.what)
			continue
		}
		where := strings.TrimPrefix(strings.TrimPrefix(pe.Where(&pe.Mistakes[len(pe.Mistakes)-1]), "file"), ":")
		if c.text == "shares: read\nsurfaces: {files.share: block}" {
			where = strings.TrimPrefix(pe.Where(&pe.Mistakes[0]), "file:")
		}
		m := pe.Mistakes[len(pe.Mistakes)-1]
		if where != c.where || !strings.Contains(m.What, c.what) || !strings.Contains(strings.Join(m.Hints, "\n"), c.hint) {
			t.Errorf("%q: at %s %q %q, want %s %q %q", name, where, m.What, m.Hints, c.where, c.what, c.hint)
		}
	}
}

func TestAllMistakesAreFoundInTheOrderOfTheirPlaces(t *testing.T) {
	_, err := ParsePolicy("work", []byte("limits:\n\tmemory: 1"))
	if err == nil || !strings.HasPrefix(err.Error(), "policy work:") {
		t.Errorf("%v", err)
	}
	_, err = ParsePolicy("work", []byte("limits: {memory: lots, speed: 1}\nsurfaces:\n  files.wirte: block # caf\u00e9\nnet: \u00e9\u00e9 # x\n"))
	var pe *PolicyError
	if !errors.As(err, &pe) || len(pe.Mistakes) != 4 {
		t.Fatalf("%v", err)
	}
	if want := `policy work:1:18: limit memory: "lots": not a size (and 3 more mistakes)`; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	var lines []int
	for _, m := range pe.Mistakes {
		lines = append(lines, m.Line)
	}
	if !slices.Equal(lines, []int{1, 1, 3, 4}) {
		t.Errorf("mistakes in lines %v", lines)
	}
	if got := pe.Mistakes[2].Snippet(); !slices.Equal(got, []string{"   3 |   files.wirte: block # caf\u00e9", "     |   ^"}) {
		t.Errorf("%q", got)
	}
	long := Mistake{Line: 1, Column: 501, Source: strings.Repeat("x", 500) + "HERE" + strings.Repeat("y", 500)}
	got := long.Snippet()
	if at := strings.IndexByte(got[1], '^'); !strings.HasPrefix(got[0][at:], "HERE") || len(got[0]) > 120 {
		t.Errorf("%q", got)
	}
}

func TestSharesAreASurface(t *testing.T) {
	for text, want := range map[string]Verdict{"": Blocked, "shares: block": Blocked, "shares: read": Allowed, "surfaces: {files.share: allow}": Allowed} {
		p, err := ParsePolicy("file", []byte(text))
		if err != nil || p.Decide(FilesShare).Verdict != want {
			t.Errorf("%q: %v, %v", text, p, err)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"observe", "surfaces", "limits", "name"}
	for word, want := range map[string]string{"observ": "observe", "surfcaes": "surfaces", "LIMITS": "limits", "nmae": "name", "xyz": "", "": "", "network": "", strings.Repeat("s", 100): ""} {
		if got := nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

// What counts as a leak, and what a policy may choose, is said for every surface.
func TestSurfaces(t *testing.T) {
	for _, i := range surfaces {
		if slices.Contains(i.Others, i.Default) {
			t.Errorf("%s: the default is not another verdict", i.Surface)
		}
	}
	for s, want := range map[Surface]bool{FilesRead: false, FilesExec: false, SandboxLifecycle: false, DeviceCamera: true, IPCUnix: true, OutsideKill: true, "new.surface": true} {
		if s.Leaks() != want {
			t.Errorf("%s leaks: %v, want %v", s, s.Leaks(), want)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	for _, seed := range []string{"surfaces:\n  device.camera: allow\nlimits: {memory: 1G}", "network:\n  rules: [allow x]\n  publish: [1:2]", "a: &x [*x]\nb: *x\n<<: {c: d}",
		"? a\n: b\n---\n- |\n c", "name: \"\\x00\"\nshares: {", "connect:\n\t- x\r\n- y"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy("file", text)
		var pe *PolicyError
		if errors.As(err, &pe) {
			for _, m := range pe.Mistakes {
				m.Snippet()
			}
			if len(pe.Mistakes) == 0 || pe.Error() == "" || p != nil {
				t.Errorf("%v with %v", pe, p)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for s, v := range p.Surfaces {
			if i, err := LookupSurface(string(s)); err != nil || v != i.Default && !slices.Contains(i.Others, v) {
				t.Errorf("%s: %s", s, v)
			}
		}
	})
}
