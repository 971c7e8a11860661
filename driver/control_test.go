package driver

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// states returns the states of the box's processes.
func states(t *testing.T, dir string) string {
	t.Helper()
	ps, err := Processes(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s string
	for _, p := range ps {
		s += p.State
	}
	return s
}

// until waits for a condition; the test's own time-out is the bound.
func until(ctx context.Context, what func() bool) bool {
	for !what() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

func TestFreezeThawAndKill(t *testing.T) {
	l := newLab(t)
	dir := l.boxDir("b")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// One child is stopped by the box itself, and stays so; a bomb of short processes goes
	// on forking while it is frozen.
	r := l.run(runOpts{ctx: ctx, quiet: true, live: func() func(*core.Operation) {
		first := true
		return func(op *core.Operation) {
			if op.Action != core.ActMkdir || !first {
				return
			}
			first = false
			go func() {
				ok := false
				defer func() {
					if !ok {
						cancel()
					}
				}()
				if !until(ctx, func() bool { return strings.Contains(states(t, dir), "T") }) {
					t.Error("nothing is stopped")
				}
				for range 3 {
					if n, err := Ask(dir, Order{Do: "freeze"}); n != 1 || err != nil {
						t.Errorf("freeze: %d %v", n, err)
					}
					if !until(ctx, func() bool { return !strings.ContainsAny(states(t, dir), "RS") }) {
						t.Errorf("not all is frozen: %s", states(t, dir))
					}
					if _, err := Ask(dir, Order{Do: "thaw"}); err != nil {
						t.Errorf("thaw: %v", err)
					}
					if !until(ctx, func() bool { return strings.ContainsAny(states(t, dir), "RSD") }) {
						t.Error("it does not go on")
					}
					if !strings.Contains(states(t, dir), "T") {
						t.Error("what the box had stopped goes on")
					}
				}
				n, err := Ask(dir, Order{Do: "kill"})
				if ok = n == 1 && err == nil; !ok {
					t.Errorf("kill: %d %v", n, err)
				}
			}()
		}
	}()}, "/bin/sh", "-c", "sleep 1000 & kill -STOP $!; mkdir begin; while :; do /bin/true & /bin/true; done")
	var killed *KilledError
	if r.code != 137 || !errors.As(r.err, &killed) {
		t.Errorf("exit code %d, %v %s", r.code, r.err, r.stderr)
		for _, op := range r.ops {
			if op.Verdict == core.Blocked {
				t.Log(op)
			}
		}
	}
	var acts []core.Action
	for _, op := range ofSurface(r.ops, core.SandboxLifecycle) {
		acts = append(acts, op.Action)
	}
	want := []core.Action{core.ActBegin, core.ActFreeze, core.ActThaw, core.ActFreeze, core.ActThaw, core.ActFreeze, core.ActThaw, core.ActKill, core.ActEnd}
	if len(acts) != len(want) {
		t.Fatalf("on record %v", acts)
	}
	for i := range want {
		if acts[i] != want[i] {
			t.Errorf("on record %v", acts)
			break
		}
	}
	if got := ofSurface(r.ops, core.OutsideKill); len(got) > 0 {
		t.Errorf("said to come from outside: %+v", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "run", "*.sock")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A grant is taken back from a program that runs.
func TestAGrantIsTakenBack(t *testing.T) {
	l := newLab(t)
	h := &heard{t, make(chan string, 100)}
	sock := filepath.Join(l.dir, "s")
	h.stream("unix", sock)
	step := 0
	r := l.run(runOpts{policy: func(p *core.Policy) {
		if err := p.Grant(sock); err != nil {
			t.Fatal(err)
		}
	}, live: func(op *core.Operation) {
		if op.Action != core.ActMkdir {
			return
		}
		orders := [][]Order{{{Do: "revoke", Socket: sock}}, {{Do: "grant", Socket: sock}, {Do: "set", Surface: "files.exec", Verdict: "allow"}}}[step]
		step++
		for _, o := range orders {
			if n, err := Ask(l.boxDir("b"), o); n != 1 || err != nil {
				t.Errorf("%+v: %d %v", o, n, err)
			}
		}
	}}, "/bin/sh", "-ec", `try() { python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1" 2>/dev/null && echo yes || echo no; }
		[ $(try s) = yes ]; mkdir one; until [ $(try s) = no ]; do :; done; mkdir two; until [ $(try s) = yes ]; do :; done; echo end`)
	if r.out != "end\n" {
		t.Errorf("%q %s", r.out, r.stderr)
	}
}

func TestBadOrdersAreRefused(t *testing.T) {
	l := newLab(t)
	dir := l.boxDir("b")
	r := l.run(runOpts{live: func(op *core.Operation) {
		if op.Action != core.ActMkdir {
			return
		}
		for _, o := range []Order{{Do: "dance"}, {Do: "set", Surface: "no.such", Verdict: "allow"}, {Do: "set", Surface: "system.power", Verdict: "allow"}, {Do: "revoke", Socket: "/x"}, {}} {
			if n, err := Ask(dir, o); err == nil || n != 0 {
				t.Errorf("%+v is obeyed", o)
			}
		}
		// Somebody who talks nonsense, says nothing, or sends without end.
		refs, _ := layers.Dir(dir).Running()
		for _, say := range []string{"{", "", strings.Repeat(" ", 1<<20)} {
			c, err := net.Dial("unix", filepath.Join(dir, "run", string(refs[0].ID)+".sock"))
			if err != nil {
				t.Error(err)
				continue
			}
			c.Write([]byte(say))
			if say == "" {
				defer c.Close()
				continue
			}
			var out outcome
			if c.(*net.UnixConn).CloseWrite(); json.NewDecoder(c).Decode(&out) == nil && out.Error == "" {
				t.Errorf("%.10q is obeyed", say)
			}
			c.Close()
		}
	}}, "/bin/sh", "-c", "mkdir x; sleep 0.2; echo fine")
	if r.out != "fine\n" || r.code != 0 {
		t.Errorf("exit code %d, %q", r.code, r.out)
	}
	if n, err := Ask(dir, Order{Do: "kill"}); n != 0 || err != nil {
		t.Errorf("without a session: %d %v", n, err)
	}
}

// Processes that wake each other all the time do not get around being frozen.
func TestWakingEachOtherIsNoWayAroundFreezing(t *testing.T) {
	l := newLab(t)
	dir := l.boxDir("b")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var once sync.Once
	r := l.run(runOpts{ctx: ctx, quiet: true, observe: core.ObserveLean, live: func(op *core.Operation) {
		if op.Surface != core.ProcessSignal {
			return
		}
		once.Do(func() {
			go func() {
				defer Ask(dir, Order{Do: "kill"})
				for range 5 {
					if _, err := Ask(dir, Order{Do: "freeze"}); err != nil {
						t.Errorf("freeze: %v", err)
					}
					if s := states(t, dir); strings.ContainsAny(s, "RS") {
						t.Errorf("frozen: %s", s)
					}
					if _, err := Ask(dir, Order{Do: "thaw"}); err != nil {
						t.Errorf("thaw: %v", err)
					}
				}
			}()
		})
	}}, "/usr/bin/python3", "-c", `import os, signal
for i in range(3):
    if os.fork() == 0: break
while True: os.kill(-1, signal.SIGCONT)`)
	if r.code != 137 {
		t.Errorf("exit code %d %s", r.code, r.stderr)
	}
}

// A log that takes nothing holds neither the end of a session nor its limits up.
func TestALogThatIsHeldHoldsNoOrder(t *testing.T) {
	for _, name := range []string{"wall-time", "kill"} {
		l := newLab(t)
		dir := l.boxDir("b")
		ended := make(chan struct{})
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		opts := runOpts{ctx: ctx, quiet: true, ended: func() { close(ended) }, log: func(op *core.Operation) error {
			if op.Seq > 20 { // the log is full, until the session has ended
				<-ended
			}
			return nil
		}}
		if name == "wall-time" {
			opts.policy = limited("wall-time=2s")
		} else {
			go func() {
				// Until the log holds the box: its processes use no time any more.
				still, before := 0, -1.0
				until(ctx, func() bool {
					ps, err := Processes(dir)
					used := 0.0
					for _, p := range ps {
						used += p.CPU
					}
					if still++; err != nil || len(ps) == 0 || used != before {
						still, before = 0, used
					}
					return still == 50
				})
				if n, err := Ask(dir, Order{Do: "kill"}); n != 1 || err != nil {
					t.Errorf("kill: %d %v", n, err)
					cancel()
				}
			}()
		}
		r := l.run(opts, "/usr/bin/python3", "-c", `import os, signal
while True:
    # deaths that look like somebody's outside, and calls to fill the log
    p = os.fork()
    if p == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.01); signal.signal(signal.SIGALRM, signal.SIG_DFL)
        while True: pass
    for i in range(2000):
        try: os.open("/nonexistent", os.O_RDONLY)
        except OSError: pass
    os.waitpid(p, 0)`)
		var killed *KilledError
		if r.code != 137 || !errors.As(r.err, &killed) {
			t.Errorf("%s: exit code %d, %v %s", name, r.code, r.err, r.stderr)
		}
	}
}
