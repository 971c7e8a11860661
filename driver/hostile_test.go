package driver

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

func init() {
	programs["names"] = hostileNames
	programs["rewrite"] = rewritePaths
	programs["walk"] = renameWhileWalking
	programs["kill"] = killInCalls
	programs["short"] = shortProcesses
	programs["true"] = func() {}
	programs["threads"] = manyThreads
	programs["supervise"] = supervise
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestHostileNames(t *testing.T) {
	l := newLab(t)
	os.Symlink("loop2", filepath.Join(l.dir, "loop1"))
	os.Symlink("loop1", filepath.Join(l.dir, "loop2"))
	l.write("real.txt", "real")
	check := unharmed(t, l.dir)
	r := l.boxed(runOpts{}, "names", l.dir)
	check()
	got := map[string]int{}
	for _, op := range r.ops {
		got[op.Target]++
	}
	for _, want := range append(oddNames(l.dir), l.dir+"/real.txt", l.dir+"/loop1") {
		if got[want] == 0 {
			t.Errorf("the log does not name %q", core.Shorten(want, 100))
		}
	}
	for p := range got {
		if len(p) > maxResolved {
			t.Errorf("a target of %d bytes", len(p))
		}
	}
}

// oddNames are names that a file may have.
func oddNames(dir string) []string {
	deep := dir
	for len(deep) < 3500 {
		deep += "/" + strings.Repeat("d", 200)
	}
	return []string{
		dir + "/new\nline", dir + "/\xff\xfe not \x80 utf-8", dir + "/\x1b]0;title\x07", dir + "/" + strings.Repeat("n", 255),
		dir + "/ ", dir + "/-rf", dir + "/\u202etxt.exe", dir + "/(deleted)", dir + "/a (deleted)", deep + "/last",
	}
}

func hostileNames() {
	d := os.Args[1]
	for _, n := range oddNames(d) {
		fatal(os.MkdirAll(filepath.Dir(n), 0o755))
		fatal(os.WriteFile(n, []byte("x"), 0o644))
	}
	// As long as a path may be, and longer.
	var long [8192]byte
	for i := range long {
		long[i] = 'x'
		if i%100 == 0 {
			long[i] = '/'
		}
	}
	for _, n := range []int{4094, 4095, 4096, 8191} {
		b := append(slices.Clone(long[:n]), 0)
		_, _, e := syscall.Syscall6(syscall.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(&b[0])), syscall.O_RDONLY, 0, 0, 0)
		want := syscall.ENOENT
		if n >= 4096 {
			want = syscall.ENAMETOOLONG
		}
		if e != want {
			fatal(fmt.Errorf("a path of %d bytes: %v, want %v", n, e, want))
		}
	}
	if _, _, e := syscall.Syscall6(syscall.SYS_OPENAT, ^uintptr(99), 8, syscall.O_RDONLY, 0, 0, 0); e != syscall.EFAULT {
		fatal(fmt.Errorf("a path that is not there: %v", e))
	}
	// A path that ends where its page does.
	page, err := syscall.Mmap(-1, 0, 8192, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	fatal(err)
	fatal(syscall.Mprotect(page[4096:], syscall.PROT_NONE))
	name := d + "/real.txt\x00"
	copy(page[4096-len(name):], name)
	fd, _, e := syscall.Syscall6(syscall.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(&page[4096-len(name)])), syscall.O_RDONLY, 0, 0, 0)
	if e != 0 {
		fatal(fmt.Errorf("a path at the end of its page: %v", e))
	}
	syscall.Close(int(fd))
	up := d + strings.Repeat("/..", 500) + d + strings.Repeat("/.", 300) + "/real.txt"
	_, err = os.ReadFile(up)
	fatal(err)
	if _, err := os.ReadFile(d + "/loop1"); err == nil {
		fatal(fmt.Errorf("a loop of links was read"))
	}
	fmt.Println("end")
}

// A thread rewrites the path during the call: the log may name either, the real tree
// never changes.
func TestPathRewrittenDuringTheCall(t *testing.T) {
	l := newLab(t)
	a, b := l.write("aaaa", "real a"), l.write("bbbb", "real b")
	check := unharmed(t, l.dir)
	r := l.boxed(runOpts{}, "rewrite", a, b)
	check()
	n := 0
	for _, op := range r.ops {
		switch op.Target {
		case a, b:
			n++
			if op.Action != core.ActRead && op.Verdict != core.Redirected {
				t.Fatalf("a change is logged as %s", op.Verdict)
			}
		}
	}
	if n < 3000 {
		t.Errorf("%d operations on the two files, want one for each of 3000 opens", n)
	}
}

func rewritePaths() {
	a, b := os.Args[1]+"\x00", os.Args[2]+"\x00"
	// The four letters that tell the names apart are one aligned word, so that every
	// call finds one name or the other.
	room := make([]byte, len(a)+8)
	start := (4 - (len(a)-5)%4) % 4
	buf := room[start : start+len(a)]
	copy(buf, a)
	last := (*uint32)(unsafe.Pointer(&buf[len(buf)-5]))
	copy(buf, b)
	other := *last
	copy(buf, a)
	one := *last
	var stop atomic.Bool
	go func() {
		runtime.LockOSThread()
		for !stop.Load() {
			atomic.StoreUint32(last, other)
			atomic.StoreUint32(last, one)
		}
	}()
	for i := range 3000 {
		p := uintptr(unsafe.Pointer(&buf[0]))
		fd, _, e := syscall.Syscall6(syscall.SYS_OPENAT, ^uintptr(99), p, uintptr(syscall.O_RDWR|i%2*syscall.O_TRUNC), 0, 0, 0)
		if e == 0 {
			syscall.Write(int(fd), []byte("box"))
			syscall.Close(int(fd))
		}
		if i%10 == 0 {
			syscall.Syscall(syscall.SYS_FCHMODAT, ^uintptr(99), p, 0o600)
		}
	}
	stop.Store(true)
	fmt.Println("end")
}

func TestDirectoryRenamedWhileItIsWalked(t *testing.T) {
	l := newLab(t)
	for i := range 50 {
		l.write(fmt.Sprintf("tree/d%d/f", i), "real")
	}
	check := unharmed(t, l.dir)
	l.boxed(runOpts{}, "walk", l.dir)
	check()
}

func renameWhileWalking() {
	d := os.Args[1]
	fatal(os.MkdirAll(d+"/mine/a/b", 0o755))
	fatal(os.WriteFile(d+"/mine/a/b/f", nil, 0o644))
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			os.Rename(d+"/mine/a", d+"/mine/c")
			os.Remove(d + "/mine/a")
			os.Symlink(d+"/tree", d+"/mine/a")
			os.Remove(d + "/mine/a")
			os.Rename(d+"/mine/c", d+"/mine/a")
		}
	}()
	for range 300 {
		filepath.Walk(d, func(p string, fi os.FileInfo, err error) error {
			if strings.Contains(p, "/mine/") {
				os.WriteFile(p+"/x", []byte("box"), 0o644)
			}
			return nil
		})
	}
	stop.Store(true)
	<-done
	fmt.Println("end")
}

func TestProcessesKilledInsideInterceptedCalls(t *testing.T) {
	l := newLab(t)
	check := unharmed(t, l.dir)
	r := l.boxed(runOpts{}, "kill", l.dir)
	check()
	ends := 0
	for _, op := range r.ops {
		if op.Action == core.ActExit && op.Detail["signal"] == "SIGKILL" {
			ends++
		}
	}
	if ends < 40 {
		t.Errorf("%d processes are logged as killed, want 40 at least", ends)
	}
}

func killInCalls() {
	d := os.Args[1]
	for i := range 50 {
		c := exec.Command("/bin/sh", "-c", "while :; do : > "+d+"/f"+strconv.Itoa(i)+"; : < /etc/passwd; done")
		fatal(c.Start())
		time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
		c.Process.Kill()
		c.Wait()
	}
	fmt.Println("end")
}

func TestThousandsOfShortProcesses(t *testing.T) {
	l := newLab(t)
	n := 10000
	if raceDetector {
		n = 1000
	}
	r := l.boxed(runOpts{}, "short", strconv.Itoa(n))
	starts, exits := map[core.ProcID]bool{}, 0
	for _, op := range r.ops {
		switch op.Action {
		case core.ActStart:
			if starts[op.Proc] {
				t.Fatalf("process %s starts twice", op.Proc)
			}
			starts[op.Proc] = true
		case core.ActExit:
			exits++
		}
	}
	if len(starts) != n+1 || exits != n+1 {
		t.Errorf("%d starts and %d ends, want %d", len(starts), exits, n+1)
	}
}

func shortProcesses() {
	n, _ := strconv.Atoi(os.Args[1])
	for i := 0; i < n; {
		var pids []int
		for ; len(pids) < 50 && i < n; i++ {
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
			fatal(err)
			pids = append(pids, pid)
		}
		for _, p := range pids {
			var ws syscall.WaitStatus
			_, err := syscall.Wait4(p, &ws, 0, nil)
			fatal(err)
		}
	}
	fmt.Println("end")
}

func TestThreadsAreOfTheirProcess(t *testing.T) {
	l := newLab(t)
	r := l.boxed(runOpts{}, "threads", l.dir)
	pids := map[int]int{}
	for _, op := range r.ops {
		if under(op.Target, l.dir) && op.Action == core.ActCreate {
			pids[op.PID]++
		}
	}
	if len(pids) != 1 {
		t.Errorf("the threads' operations are of the processes %v, want one", pids)
	}
	for _, n := range pids {
		if n != 64 {
			t.Errorf("%d files created, want 64", n)
		}
	}
}

func manyThreads() {
	d := os.Args[1]
	done := make(chan error)
	for i := range 64 {
		go func() {
			runtime.LockOSThread() // and end with the goroutine
			done <- os.WriteFile(fmt.Sprintf("%s/%d", d, i), nil, 0o644)
		}()
	}
	for range 64 {
		fatal(<-done)
	}
	fmt.Println("end")
}

func TestABombEndsWithItsBox(t *testing.T) {
	l := newLab(t)
	r := l.run(runOpts{}, "/bin/sh", "-c", `i=0; while [ $i -lt 300 ]; do /bin/sleep 1000 & i=$((i+1)); done; exit 5`)
	if r.code != 5 {
		t.Errorf("exit code %d", r.code)
	}
	live := map[core.ProcID]bool{}
	for _, op := range r.ops {
		switch op.Action {
		case core.ActStart:
			live[op.Proc] = true
		case core.ActExit:
			delete(live, op.Proc)
		}
	}
	if len(live) != 0 {
		t.Errorf("%d processes never end in the log", len(live))
	}
}

// A dead supervisor takes its box with it: the kernel sees to that, not the supervisor.
func TestTheBoxDiesWithItsSupervisor(t *testing.T) {
	l := newLab(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, l.home, l.dir)
	c.Env = append(os.Environ(), "BOXED_PROGRAM=supervise")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n') // written in the box: it runs
	if err != nil || line != "running\n" {
		t.Fatalf("the box said %q, %v", line, err)
	}
	refs, err := layers.Dir(filepath.Join(l.home, "boxes", "b")).Running()
	if err != nil || len(refs) != 1 {
		t.Fatalf("running sessions: %v, %v", refs, err)
	}
	inside := descendants(refs[0].Init)
	if len(inside) < 3 {
		t.Fatalf("processes in the box: %v", inside)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	deadline := time.After(20 * time.Second)
	for _, pid := range inside {
		for {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil || strings.Contains(string(data), ") Z ") {
				break
			}
			select {
			case <-deadline:
				t.Fatalf("process %d of the box lives without a supervisor", pid)
			default:
				runtime.Gosched()
			}
		}
	}
	if refs, err := layers.Dir(filepath.Join(l.home, "boxes", "b")).Running(); err != nil || len(refs) != 0 {
		t.Errorf("running sessions: %v, %v", refs, err)
	}
	l.sh("true") // and the box can be used again
}

// descendants returns pid and all below it.
func descendants(pid int) []int {
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", out[i], out[i]))
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", out[i]))
		for _, t := range tasks {
			if more, err := os.ReadFile(t); err == nil && !strings.HasSuffix(t, fmt.Sprintf("/%d/children", out[i])) {
				data = append(append(data, ' '), more...)
			}
		}
		for _, f := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

func supervise() {
	p, err := core.BuiltinPolicy("")
	fatal(err)
	box := filepath.Join(os.Args[1], "boxes", "b")
	fatal(os.MkdirAll(box, 0o700))
	Run(context.Background(), Options{BoxDir: box, Hide: []string{os.Args[1]}, Policy: p, Dir: os.Args[2],
		Session: core.Session{ID: "S", Box: "b", Command: []string{"/bin/sh", "-c", "sleep 1000 & sleep 1000 & (trap '' TERM HUP INT; echo running; while :; do sleep 100; done)"}},
		Env:     []string{"PATH=/usr/bin:/bin"}, Stdout: os.Stdout,
		Log: func(*core.Operation) error { return nil }})
}
