package core

import (
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

func TestParsePolicyRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"surfaces:\n  device.disk: allow", "device.disk cannot be set to allow"},
		{"surfaces:\n  process.signal: allow", "cannot be set to allow"},
		{"surfaces:\n  sandbox.self: allow", "cannot be set to allow"},
		{"surfaces:\n  device.camera: maybe", "unknown verdict"},
		{"surfaces:\n  device.camra: allow", "unknown surface"},
		{"observe: full\nobserv: lean", `line 2: unknown field "observ"`},
		{"surfaces:\n  device.camera: allow\n  device.camera: block", "line 3"},
		{"connect: [run/x]", "not an absolute path"},
		{"connect: ['/run/[']", "syntax error"},
		{"limits: {memory: -1}", "not a size"},
		{"limits: {memory: 1e30T}", "not a size"},
		{"limits: {processes: 0}", "not a whole number"},
		{"limits: {wall-time: 1ms}", "not a duration"},
		{"limits: {cpus: NaN}", "not a number"},
		{"limits: {speed: 1}", "unknown limit"},
		{"net: wan", "unknown network"},
		{"base: nothing", "unknown policy"},
		{"name: ../x", "not a name"},
		{"name: fully-virtualised", "built-in"},
		{"[", "line 1"},
		{strings.Repeat("a", 1<<20+1), "larger than"},
	} {
		if _, err := ParsePolicy("file", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", Shorten(c.text, 60), err, c.want)
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
	f.Add([]byte("surfaces:\n  device.camera: allow\nlimits: {memory: 1G}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy("file", text)
		if err != nil {
			return
		}
		for s, v := range p.Surfaces {
			if i, err := LookupSurface(string(s)); err != nil || v != i.Default && !slices.Contains(i.Others, v) {
				t.Errorf("%s: %s", s, v)
			}
		}
	})
}
