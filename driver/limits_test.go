package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() {
	programs["forks"] = forks
	programs["eat"] = eat
	programs["grow"] = grow
	programs["descriptors"] = descriptors
	programs["rlimits"] = showRlimits
}

// forks makes children until it may not, holds them all, and says how many there were.
func forks() {
	n := 0
	for n < 1000 {
		pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if pid == 0 && e == 0 {
			for {
				syscall.RawSyscall(unix.SYS_PPOLL, 0, 0, 0)
			}
		}
		if e != 0 {
			fmt.Println(n, "then", unix.ErrnoName(e))
			break
		}
		n++
	}
	syscall.Mkdir("said", 0o700)
	for { // until somebody has seen it
		syscall.Pause()
	}
}

// eat takes memory, never to give it back.
func eat() {
	size, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		fmt.Println("not", err)
		fmt.Println("end")
		return
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Println("eaten")
	runtime.KeepAlive(b)
	for {
		syscall.Pause()
	}
}

// grow makes files until it may not.
func grow() {
	data := make([]byte, 1<<20)
	for i := range 1000 {
		f, err := os.Create("grow" + strconv.Itoa(i))
		if err != nil {
			fmt.Println("after", i, err)
			break
		}
		f.Write(data)
		f.Close()
	}
	fmt.Println(os.Remove("grow0"))
	fmt.Println("end")
}

func descriptors() {
	for i := range 1000 {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err != nil {
			fmt.Println("after", i, err)
			break
		}
	}
	fmt.Println("end")
}

func showRlimits() {
	for _, r := range []int{unix.RLIMIT_CORE, unix.RLIMIT_NOFILE, unix.RLIMIT_FSIZE, unix.RLIMIT_DATA, unix.RLIMIT_CPU} {
		var l unix.Rlimit
		if err := unix.Getrlimit(r, &l); err != nil {
			fmt.Println(err)
		}
		fmt.Println(r, l.Cur, l.Max)
	}
	fmt.Println(unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}), unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: 0}, nil),
		unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{}, &unix.Rlimit{}))
	var l unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_CORE, &l)
	fmt.Println(l.Cur)
	fmt.Println("end")
}

func limited(set ...string) func(*core.Policy) {
	return func(p *core.Policy) {
		for _, s := range set {
			name, value, _ := strings.Cut(s, "=")
			if err := p.Limits.Set(name, value); err != nil {
				panic(err)
			}
		}
	}
}

// hits returns the limits that a session hit, each once, with the first operation.
func hits(ops []core.Operation) map[string]core.Operation {
	m := map[string]core.Operation{}
	for _, op := range ops {
		if _, ok := m[op.Target]; !ok && op.Surface == core.SandboxLimit && op.Action == core.ActHit {
			m[op.Target] = op
		}
	}
	return m
}

func TestProcessesAreLimited(t *testing.T) {
	l := newLab(t)
	// To an ordinary user the kernel says no, and the watcher sees it; to root the
	// supervisor does. Its init's and its own threads count, in part.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	hit, said := false, false
	r := l.run(runOpts{ctx: ctx, policy: limited("processes=60"), env: []string{"BOXED_PROGRAM=forks"}, live: func(op *core.Operation) {
		hit = hit || op.Surface == core.SandboxLimit && op.Target == "processes"
		if said = said || op.Action == core.ActMkdir; hit && said {
			cancel()
		}
	}}, l.self())
	var n int
	if _, err := fmt.Sscanf(r.out, "%d then EAGAIN", &n); err != nil || n > 70 || n < 30 {
		t.Errorf("%q: %v", r.out, err)
	}
	if op, ok := hits(r.ops)["processes"]; !ok || op.Verdict != core.Blocked || op.Errno != "EAGAIN" || op.Detail["limit"] != "60" {
		t.Errorf("on record: %+v", op)
	}
	// What has ended makes room.
	r = l.run(runOpts{policy: limited("processes=40")}, "/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do /bin/true || exit 1; i=$((i+1)); done; echo done")
	if r.out != "done\n" || r.code != 0 || len(hits(r.ops)) > 0 {
		t.Errorf("exit code %d, %q, hits %v", r.code, r.out, hits(r.ops))
	}
}

// The bound is of the session's PID namespace: the machine's is what it was.
func TestThePIDNamespaceIsBounded(t *testing.T) {
	const file = "/proc/sys/kernel/pid_max"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	r := l.run(runOpts{policy: limited("processes=500")}, "/bin/cat", file)
	want := string(before)
	if sys.PIDMaxIsPerNamespace() {
		want = strconv.Itoa(500+nprocSlack+reservedPIDs) + "\n"
	}
	if r.out != want {
		t.Errorf("in the box %q, want %q", r.out, want)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("outside %q, was %q (%v)", after, before, err)
	}
}

func TestMemoryIsLimited(t *testing.T) {
	l := newLab(t)
	// One process alone: the kernel refuses it.
	r := l.boxed(runOpts{policy: limited("memory=600M")}, "eat", "900000000")
	if !strings.HasPrefix(r.out, "not cannot allocate memory") {
		t.Errorf("%q", r.out)
	}
	// Several together: the largest is killed, the box goes on.
	// (Not this binary: the race detector's memory alone is more.)
	r = l.run(runOpts{policy: limited("memory=300M")}, "/usr/bin/python3", "-c", `import os, time
for i in range(3):
    if os.fork() == 0:
        b = bytearray(120 << 20)
        while True: time.sleep(1)
print(os.WTERMSIG(os.wait()[1])) # its end ends the others`)
	op, ok := hits(r.ops)["memory"]
	if !ok || !strings.HasPrefix(op.Detail["killed"], "pid ") || op.Detail["limit"] != "314572800" || r.out != "9\n" {
		t.Errorf("on record: %+v; exit code %d, %q", op, r.code, r.out)
	}
	for _, op := range r.ops {
		if op.Surface == core.OutsideKill {
			t.Errorf("said to come from outside: %+v", op)
		}
	}
}

func TestWhatIsInMemoryFilesIsLimited(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{policy: limited("memory=64M"), quiet: true}, "/bin/sh", "-c", "i=0; while [ $i -lt 8 ]; do head -c 16000000 /dev/zero >/dev/shm/$i || exit 3; i=$((i+1)); done; sleep 100")
	var killed *KilledError
	if op := hits(r.ops)["memory"]; op.Detail["killed"] != "the session" || r.code != 137 || !errors.As(r.err, &killed) {
		t.Errorf("exit code %d, %v, on record %+v", r.code, r.err, op)
	}
}

func TestTimeIsLimited(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct{ limit, script string }{
		{"cpu-time=1s", "while :; do :; done & while :; do :; done"},
		{"wall-time=1s", "sleep 100"},
	} {
		r := l.run(runOpts{policy: limited(c.limit), quiet: true}, "/bin/sh", "-c", c.script)
		name, _, _ := strings.Cut(c.limit, "=")
		var killed *KilledError
		op := hits(r.ops)[name]
		if r.code != 137 || !errors.As(r.err, &killed) || !strings.Contains(killed.Why, name) || op.Verdict != core.Blocked || op.Detail["limit"] != "1s" {
			t.Errorf("%s: exit code %d, %v, on record %+v", c.limit, r.code, r.err, op)
		}
		if last := r.ops[len(r.ops)-1]; last.Action != core.ActEnd || last.Detail["code"] != "137" {
			t.Errorf("%s: the last is %+v", c.limit, last)
		}
	}
}

func TestFilesAreLimited(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{policy: limited("file-size=1M")}, "/bin/sh", "-c", "(head -c 2000000 /dev/zero >big); wc -c <big")
	if op := hits(r.ops)["file-size"]; strings.TrimSpace(r.out) != "1048576" || op.Detail["signal"] != "SIGXFSZ" || op.PID == 0 {
		t.Errorf("%q, on record %+v", r.out, op)
	}
	r = l.boxed(runOpts{policy: limited("open-files=20")}, "descriptors")
	var n int
	if _, err := fmt.Sscanf(r.out, "after %d too many open files", &n); err != nil || n < 5 || n > 17 {
		t.Errorf("%q", r.out)
	}
	if op := hits(r.ops)["open-files"]; op.Errno != "EMFILE" || op.Detail["limit"] != "20" {
		t.Errorf("on record %+v", op)
	}
}

func TestTheBoxIsLimited(t *testing.T) {
	l := newLab(t)
	// It waits for the watcher to have seen it: then nothing is added, and what is removed is.
	r := l.run(runOpts{box: "full", policy: limited("box-size=8M")}, "/bin/sh", "-c",
		`i=0; while [ $i -lt 9 ]; do head -c 1000000 /dev/zero >f$i; i=$((i+1)); done
		while echo x 2>/dev/null >more; do rm more; sleep 0.1; done
		echo full; rm f0 f1 && while ! echo x 2>/dev/null >more; do sleep 0.1; done; echo room`)
	if r.out != "full\nroom\n" {
		t.Errorf("%q %s", r.out, r.stderr)
	}
	refused := false
	for _, op := range r.ops {
		refused = refused || op.Surface == core.FilesWrite && op.Errno == "EDQUOT" && op.Rule == "limit box-size"
	}
	if op, ok := hits(r.ops)["box-size"]; !ok || !refused {
		t.Errorf("on record %+v, refused %v", op, refused)
	}
}

func TestNoCoreDumps(t *testing.T) {
	l := newLab(t)
	r := l.boxed(runOpts{policy: limited("open-files=64", "file-size=1G", "memory=1G", "cpu-time=1h")}, "rlimits")
	want := "4 1 1\n7 64 64\n1 1073741824 1073741824\n2 1073741824 1073741824\n0 3600 3605\n<nil> <nil> operation not permitted\n1\nend\n"
	if r.out != want {
		t.Errorf("%q, want %q", r.out, want)
	}
	n := 0
	for _, op := range r.ops {
		if op.Surface == core.SandboxLimit && op.Target == "core" {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d operations on record, want 3", n)
	}
}

func TestProcessorsAreLimited(t *testing.T) {
	if len(sys.Affinity()) < 2 {
		t.Skip("there is one processor")
	}
	l := newLab(t)
	r := l.run(runOpts{policy: limited("cpus=1")}, "/bin/sh", "-c", `nproc; taskset -c 0-63 nproc; taskset -p $$ | wc -l; sh -c nproc`)
	if r.out != "1\n1\n1\n1\n" || r.code != 0 {
		t.Errorf("exit code %d, %q %s", r.code, r.out, r.stderr)
	}
	if ops := ofSurface(r.ops, core.SandboxLimit); len(ops) != 1 || ops[0].Action != core.ActSchedule || ops[0].Verdict != core.Redirected {
		t.Errorf("on record %+v", ops)
	}
	if r := l.run(runOpts{policy: limited("cpus=1000")}, "/usr/bin/env", "nproc"); r.out != strconv.Itoa(len(sys.Affinity()))+"\n" {
		t.Errorf("%q", r.out)
	}
}

func TestALimitThatCannotBeKept(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{policy: limited("cpus=0.5"), quiet: true}, "/bin/true")
	if r.code != 125 || r.err == nil || len(core.Hints(r.err)) == 0 {
		t.Errorf("exit code %d, %v", r.code, r.err)
	}
}

// A bomb within its limit does not keep the session from being ended.
func TestABombIsHeldByItsLimit(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := l.run(runOpts{ctx: ctx, policy: limited("processes=100"), quiet: true, live: func(op *core.Operation) {
		if op.Surface == core.SandboxLimit {
			cancel()
		}
	}}, "/bin/bash", "-c", ":(){ :|:& };:; sleep 1000")
	if r.code != 137 {
		t.Errorf("exit code %d, %v", r.code, r.err)
	}
	if _, ok := hits(r.ops)["processes"]; !ok {
		t.Error("the limit is not on record")
	}
}

// A parent that has its children reaped unseen hides no time, and one that starts another for
// each that is killed gets no more memory.
func TestLimitsAreNotWornDown(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{quiet: true, policy: limited("cpu-time=2s")}, "/usr/bin/python3", "-c", `import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        end = time.process_time() + 1
        while time.process_time() < end: pass
        os._exit(0)
    time.sleep(1)`)
	if _, ok := hits(r.ops)["cpu-time"]; !ok || r.code != 137 {
		t.Errorf("exit code %d, %v", r.code, r.err)
	}
	r = l.run(runOpts{quiet: true, policy: limited("memory=100M")}, "/usr/bin/python3", "-c", `import os
def eat():
    b = bytearray(30 << 20)
    while True: os.read(r, 1)
r, w = os.pipe()
for i in range(20):
    if os.fork() == 0: eat()
while True:
    os.wait()
    if os.fork() == 0: eat()`)
	if _, ok := hits(r.ops)["memory"]; !ok || r.code != 137 {
		t.Errorf("exit code %d, %v", r.code, r.err)
	}
}
