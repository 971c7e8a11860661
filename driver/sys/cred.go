package sys

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

type unixStat = syscall.Stat_t

// lastCap is more than the highest capability of any kernel so far (40,
// CAP_CHECKPOINT_RESTORE); prctl answers EINVAL for those a kernel does not have.
const lastCap = 63

// AllCaps lists the numbers of the capabilities that this process has as permitted.
func AllCaps() []uintptr {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return nil
	}
	var cs []uintptr
	for c := range uintptr(lastCap) {
		if data[c/32].Permitted&(1<<(c%32)) != 0 {
			cs = append(cs, c)
		}
	}
	return cs
}

// KnownCaps lists the numbers of all capabilities that the kernel knows.
func KnownCaps() []uintptr {
	var cs []uintptr
	for c := range uintptr(lastCap) {
		if r, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0); e == 0 && r <= 1 {
			cs = append(cs, c)
		}
	}
	return cs
}

// DropForGood takes every capability from the calling thread and from whatever it
// executes, for ever: bounding and ambient set empty, no_new_privs, and no special
// treatment of uid 0 (securebits(7)). The goroutine must be locked to its thread.
func DropForGood() error {
	for c := range uintptr(lastCap) {
		if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); e != 0 && e != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, e)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	const noRoot = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<6 | 1<<7 // NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each locked
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0); err != nil {
		return fmt.Errorf("set securebits: %w", err)
	}
	if err := NoNewPrivs(); err != nil {
		return err
	}
	return dropCaps()
}

func dropCaps() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// DropAllThreads takes every capability from all threads of this process.
func DropAllThreads() error {
	hdr := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(&none[0])), 0)
	if e != 0 && e != unix.ENOTSUP { // ENOTSUP: a binary with cgo, as the race detector needs it
		return fmt.Errorf("capset on all threads: %w", e)
	}
	return nil
}

// NoNewPrivs keeps the calling thread, and what it executes, from gaining privileges by
// execve(2) (PR_SET_NO_NEW_PRIVS).
func NoNewPrivs() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	return nil
}

// SetUndumpable keeps processes of the same user from tracing this one and from
// reading its memory (PR_SET_DUMPABLE).
func SetUndumpable() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// CloseOnExecFrom marks every descriptor from fd on to be closed when this process
// executes or its children do (close_range(2), Linux 5.11).
func CloseOnExecFrom(fd int) error {
	const cloexec = 4 // CLOSE_RANGE_CLOEXEC
	if _, _, e := unix.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(fd), ^uintptr(0)>>32, cloexec); e != 0 {
		return fmt.Errorf("close_range: %w", e)
	}
	return nil
}

// DieWithParent makes the kernel kill this process when the thread that made it ends.
func DieWithParent() error { return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) }

// IgnoreSignalsAsInit gives back to the kernel what it does for PID 1 of a
// namespace: a signal sent from inside, without a handler, is dropped. The Go
// runtime installs handlers for all signals; without this a boxed process could end
// its box's init. SIGCHLD and SIGURG (the runtime's preemption) keep theirs.
func IgnoreSignalsAsInit() {
	var dfl [4]uint64 // struct sigaction of the kernel: handler SIG_DFL, flags, restorer, mask
	for s := 1; s <= 64; s++ {
		switch syscall.Signal(s) {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG:
			continue
		}
		var old [4]uint64
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
		if old[0] == 1 { // SIG_IGN, inherited (nohup): the command inherits it too
			continue
		}
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
	}
}
