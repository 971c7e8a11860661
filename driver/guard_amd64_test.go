package driver

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() {
	programs["damage"] = damage
	programs["kernel"] = kernelInterfaces
}

// damage tries to reach the process outside whose number there is BOXED_PID, then does
// the same to a child of its own.
func damage() {
	var pid int
	fmt.Sscan(os.Getenv("BOXED_PID"), &pid)
	child := exec.Command("/bin/sleep", "100")
	if err := child.Start(); err != nil {
		panic(err)
	}
	own := child.Process.Pid
	var word [8]byte
	iov := [2]uint64{uint64(uintptr(unsafe.Pointer(&word))), 8}
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	attr := [14]uint32{56} // struct sched_attr
	cpus := [16]uint64{3}
	info := [16]uint64{}
	calls := func(pid int) []syscall.Errno {
		var out []syscall.Errno
		try := func(c sys.Call, a ...uintptr) {
			nr, _ := c.Number(sys.ArchAMD64)
			var x [6]uintptr
			copy(x[:], a)
			_, _, e := syscall.Syscall6(uintptr(nr), x[0], x[1], x[2], x[3], x[4], x[5])
			out = append(out, e)
		}
		p := uintptr(pid)
		try(sys.CallPtrace, ptraceSeize, p)
		try(sys.CallPtrace, ptraceAttach, p)
		try(sys.CallProcessVMReadv, p, uintptr(unsafe.Pointer(&iov)), 1, uintptr(unsafe.Pointer(&iov)), 1)
		try(sys.CallProcessVMWritev, p, uintptr(unsafe.Pointer(&iov)), 1, uintptr(unsafe.Pointer(&iov)), 1)
		try(sys.CallKcmp, uintptr(os.Getpid()), p, 1, 0, 0)
		try(sys.CallSetpriority, 0, p, 1)
		try(sys.CallIoprioSet, 1, p, 2<<13|7)
		try(sys.CallSchedSetattr, p, uintptr(unsafe.Pointer(&attr)))
		try(sys.CallSchedSetaffinity, p, 128, uintptr(unsafe.Pointer(&cpus)))
		try(sys.CallPrlimit64, p, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)))
		try(sys.CallTgkill, p, p, 0)
		try(sys.CallTkill, p, 0)
		try(sys.CallRtSigqueueinfo, p, uintptr(syscall.SIGURG), uintptr(unsafe.Pointer(&info)))
		try(sys.CallKill, p, uintptr(syscall.SIGKILL))
		return out
	}
	fmt.Println("outside", calls(pid))
	fmt.Println("own", calls(own))
	fmt.Println("child", child.Wait())
	syscall.Kill(-1, 0)
	fmt.Println("end")
}

// In a box every such call finds no process outside, works on one of the box, and is on
// record with what it was about.
func TestDamage(t *testing.T) {
	l := newLab(t)
	// A number that no process of the box has: they are numbered from 1 there.
	outside := exec.Command("/bin/sleep", "1000")
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	defer outside.Wait()
	defer outside.Process.Kill()
	pid := fmt.Sprint(outside.Process.Pid)
	if outside.Process.Pid < 50 {
		t.Skip("a box may have a process of that number")
	}
	r := l.boxed(runOpts{env: []string{"BOXED_PID=" + pid}}, "damage")
	if r.err != nil || r.code != 0 {
		t.Fatalf("exit code %d, %v: %s", r.code, r.err, r.out)
	}
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if none := strings.Count(lines[0], "no such process"); none != 14 {
		t.Errorf("%d of 14 calls found no process outside: %s", none, lines[0])
	}
	if strings.Contains(lines[1], "no such process") { // an attached process cannot be attached again, and so on
		t.Errorf("calls to a process of the box: %s", lines[1])
	}
	if lines[2] != "child signal: killed" {
		t.Errorf("the child: %s", lines[2])
	}
	if err := outside.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process outside: %v", err)
	}
	var refused, done []string
	for _, op := range r.ops {
		switch op.Surface {
		case core.ProcessSignal, core.ProcessMemory:
			s := string(op.Action) + " " + op.Detail["call"]
			if op.Verdict == core.Blocked && op.Target == "pid "+pid && op.Errno == "ESRCH" {
				refused = append(refused, s)
			}
			if op.Verdict == core.Redirected && op.Detail["exe"] == "/usr/bin/sleep" || op.Target == "every process" {
				done = append(done, s)
			}
		}
	}
	want := []string{"trace ptrace", "trace ptrace", "memory process_vm_readv", "memory process_vm_writev", "compare kcmp",
		"schedule setpriority", "schedule ioprio_set", "schedule sched_setattr", "schedule sched_setaffinity", "limit prlimit64",
		"signal tgkill", "signal tkill", "signal rt_sigqueueinfo", "signal kill"}
	if !slices.Equal(refused, want) {
		t.Errorf("refused and logged:\n%q, want\n%q", refused, want)
	}
	if want := append(want, "signal kill"); !slices.Equal(done, want) {
		t.Errorf("done in the box and logged:\n%q, want\n%q", done, want)
	}
}

// kernelInterfaces tries every call of kernelCalls with arguments that would do harm.
func kernelInterfaces() {
	for _, c := range sys.Calls() {
		if _, ok := kernelCalls[c]; !ok {
			continue
		}
		nr, _ := c.Number(sys.ArchAMD64)
		var a [6]uintptr
		modes := [32]uint64{1}
		if c == sys.CallAdjtimex {
			a[0] = uintptr(unsafe.Pointer(&modes))
		}
		if c == sys.CallClockAdjtime {
			a[1] = uintptr(unsafe.Pointer(&modes))
		}
		_, _, e := syscall.Syscall6(uintptr(nr), a[0], a[1], a[2], a[3], a[4], a[5])
		fmt.Println(c, sys.ErrnoName(e))
	}
	fmt.Println("end")
}

func TestKernelInterfaces(t *testing.T) {
	l := newLab(t)
	for _, o := range []core.Observe{core.ObserveFull, core.ObserveLean} {
		r := l.boxed(runOpts{observe: o}, "kernel")
		if r.err != nil || r.code != 0 {
			t.Fatalf("exit code %d, %v: %s", r.code, r.err, r.out)
		}
		logged := map[string]bool{}
		for _, op := range r.ops {
			if op.Action == core.ActSyscall && op.Verdict == core.Blocked && op.Errno == "EPERM" {
				logged[op.Target] = true
			}
		}
		n := 0
		for line := range strings.Lines(strings.TrimSuffix(r.out, "end\n")) {
			call, errno, _ := strings.Cut(strings.TrimSpace(line), " ")
			if errno != "EPERM" || !logged[call] {
				t.Errorf("%s: %s: errno %s, logged %v", o, call, errno, logged[call])
			}
			n++
		}
		if n != len(kernelCalls) {
			t.Errorf("%s: %d calls were tried, of %d", o, n, len(kernelCalls))
		}
	}
}
