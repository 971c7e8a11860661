package driver

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// outer finds the process with that number in the box, as numbered here.
func outer(t *testing.T, dir string, pid int) int {
	t.Helper()
	refs, err := layers.Dir(dir).Running()
	if err != nil || len(refs) != 1 {
		t.Fatalf("running: %v %v", refs, err)
	}
	ents, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		p := e.Name()
		n, err := strconv.Atoi(p)
		if err != nil {
			continue
		}
		if id, ok := readStatus(n); ok && id.Inner == pid {
			mine, err1 := os.Readlink("/proc/" + p + "/ns/pid")
			its, err2 := os.Readlink("/proc/" + strconv.Itoa(refs[0].Init) + "/ns/pid")
			if err1 == nil && err2 == nil && mine == its {
				return n
			}
		}
	}
	t.Fatalf("pid %d of the box is nowhere", pid)
	return 0
}

// started calls what with the number in the box of the first process that executes exe.
func started(exe string, what func(pid int)) func(*core.Operation) {
	done := false
	return func(op *core.Operation) {
		if !done && op.Surface == core.FilesExec && op.Target == exe && op.Verdict != core.Blocked {
			done = true
			pid := op.PID
			go what(pid)
		}
	}
}

func ofSurface(ops []core.Operation, sf core.Surface) (out []core.Operation) {
	for _, op := range ops {
		if op.Surface == sf {
			out = append(out, op)
		}
	}
	return out
}

func sleepPath(t *testing.T) string {
	t.Helper()
	// The real one: /bin may be a link.
	for _, p := range []string{"/usr/bin/sleep", "/bin/sleep"} {
		if fi, err := os.Lstat(p); err == nil && fi.Mode().IsRegular() {
			return p
		}
	}
	t.Fatal("no sleep")
	return ""
}

// waitExe waits until a process executes exe.
func waitExe(pid int, exe string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	until(ctx, func() bool {
		p, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
		return err == nil && p == exe
	})
}

func TestAKillFromOutsideIsSeen(t *testing.T) {
	l := newLab(t)
	sleep := sleepPath(t)
	for _, c := range []struct {
		name, script string
		sig          syscall.Signal
		code         int
	}{
		{"a child", sleep + " 1000; echo $?; sleep 1", syscall.SIGKILL, 0},
		{"by SIGTERM", sleep + " 1000; echo $?; sleep 1", syscall.SIGTERM, 0},
		{"the command", "exec " + sleep + " 1000", syscall.SIGKILL, 137},
	} {
		r := l.run(runOpts{live: started(sleep, func(pid int) {
			out := outer(t, l.boxDir("b"), pid)
			waitExe(out, sleep)
			syscall.Kill(out, c.sig)
		})}, "/bin/sh", "-c", c.script)
		got := ofSurface(r.ops, core.OutsideKill)
		if len(got) != 1 || got[0].Detail["signal"] != signalName(c.sig) || got[0].Exe != sleep || !got[0].Leak || got[0].Verdict != core.Allowed || r.code != c.code {
			t.Errorf("%s: exit code %d, on record %+v", c.name, r.code, got)
		}
	}
}

func TestWhatABoxDoesToItselfIsNotFromOutside(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{}, "/bin/bash", "-c", `
		sleep 100 & kill -9 $!; wait $!
		sleep 100 & kill $!; wait $!
		sh -c 'kill -USR1 $$'; sh -c 'kill -9 $$'
		(set -m; sleep 100 & sleep 0.1; kill -9 -$!; wait $!)
		timeout -s KILL 0.1 sleep 10
		python3 -c 'import ctypes,os,time,signal
r,w=os.pipe()
if os.fork()==0:
    if os.fork()==0:
        ctypes.CDLL(None).prctl(1, 9); os.write(w, b"x"); time.sleep(100)
    os.read(r, 1); os._exit(0)
os.wait(); time.sleep(0.2)'
		sh -c 'ulimit -t 1; while :; do :; done'
		python3 -c 'import signal,os; signal.setitimer(signal.ITIMER_REAL, 0.05); signal.pause()'
		yes | head -1 >/dev/null
		sleep 1000 & sleep 1000 & sleep 1`)
	if got := ofSurface(r.ops, core.OutsideKill); len(got) != 0 {
		t.Errorf("said to come from outside: %+v", got)
	}
}

func TestATracerFromOutsideIsSeen(t *testing.T) {
	l := newLab(t)
	sleep := sleepPath(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	seen := make(chan struct{})
	begin := started(sleep, func(pid int) {
		runtime.LockOSThread() // a tracer is a thread
		out := outer(t, l.boxDir("b"), pid)
		waitExe(out, sleep)
		if err := unix.PtraceSeize(out); err != nil {
			t.Errorf("seize: %v", err)
			cancel()
			return
		}
		select {
		case <-seen:
		case <-ctx.Done():
		}
		cancel() // the tracer's thread ends with this goroutine
	})
	r := l.run(runOpts{ctx: ctx, quiet: true, live: func(op *core.Operation) {
		begin(op)
		if op.Surface == core.OutsideTrace {
			close(seen)
		}
	}}, "/bin/sh", "-c", "exec "+sleep+" 1000")
	got := ofSurface(r.ops, core.OutsideTrace)
	if len(got) != 1 || got[0].Exe != sleep || !got[0].Leak || got[0].Detail["tracer"] == "" {
		t.Fatalf("on record %+v", got)
	}
	if exe, _ := os.Executable(); got[0].Detail["tracer_exe"] != exe {
		t.Errorf("the tracer is %q", got[0].Detail)
	}
}

func TestATracerInTheBoxIsNoneFromOutside(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{}, "strace", "-f", "-o", "trace", "/bin/sh", "-c", "sleep 1; echo traced")
	if !strings.Contains(r.out, "traced") || r.code != 0 {
		t.Errorf("exit code %d, %q %s", r.code, r.out, r.stderr)
	}
	if got := ofSurface(r.ops, core.OutsideTrace); len(got) != 0 {
		t.Errorf("on record %+v", got)
	}
}

func TestTheEndOfTheInitIsSeen(t *testing.T) {
	l := newLab(t)
	sleep := sleepPath(t)
	r := l.run(runOpts{quiet: true, live: started(sleep, func(int) {
		refs, err := layers.Dir(l.boxDir("b")).Running()
		if err != nil || len(refs) != 1 {
			t.Errorf("running: %v %v", refs, err)
			return
		}
		syscall.Kill(refs[0].Init, syscall.SIGKILL)
	})}, "/bin/sh", "-c", sleep+" 1000 & exec "+sleep+" 1000")
	got := ofSurface(r.ops, core.OutsideKill)
	if len(got) != 1 || got[0].Target != "the session's init" || r.code != 125 {
		t.Errorf("exit code %d, on record %+v", r.code, got)
	}
}

// Nobody in the box has asked for its end yet.
func TestAKillFromOutsideIsSeenBeforeItIsReaped(t *testing.T) {
	l := newLab(t)
	sleep := sleepPath(t)
	seen := make(chan struct{})
	var once sync.Once
	begin := started(sleep, func(pid int) {
		out := outer(t, l.boxDir("b"), pid)
		waitExe(out, sleep)
		syscall.Kill(out, syscall.SIGKILL)
		select {
		case <-seen:
		case <-time.After(time.Minute):
			t.Error("it is not seen")
		}
		Ask(l.boxDir("b"), Order{Do: "kill"})
	})
	l.run(runOpts{quiet: true, live: func(op *core.Operation) {
		begin(op)
		if op.Surface == core.OutsideKill {
			once.Do(func() { close(seen) })
		}
	}}, "/usr/bin/python3", "-c", "import subprocess, time; p = subprocess.Popen(['"+sleep+"', '1000']); time.sleep(1000)")
}
