package sys

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Notif is struct seccomp_notif of linux/seccomp.h: a trapped call that waits for an
// answer.
type Notif struct {
	ID    uint64
	TID   uint32 // thread id in the supervisor's PID namespace; 0 when it cannot be named there
	Flags uint32
	NR    int32
	Arch  Arch
	IP    uint64
	Args  [6]uint64
}

// notifResp is struct seccomp_notif_resp.
type notifResp struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// Listener is the supervisor's end of a seccomp filter. But where said, one goroutine, locked to its
// thread, may use it.
type Listener struct {
	fd    int
	notif Notif
	resp  notifResp
}

// ioctl requests of linux/seccomp.h ('!' is its magic).
const (
	ioctlNotifRecv     = 0xc0502100
	ioctlNotifSend     = 0xc0182101
	ioctlNotifIDValid  = 0x40082102
	ioctlNotifAddFD    = 0x40182103
	ioctlNotifSetFlags = 0x40082104

	notifFlagContinue = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE
	notifSyncWakeUp   = 1 // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6
)

// NewListener takes over fd. syncWake tells whether the kernel could be asked to
// switch to the supervisor and back on one CPU (Linux 6.6): without it each call
// costs about ten times as much.
func NewListener(fd int) (l *Listener, syncWake bool) {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlNotifSetFlags, notifSyncWakeUp)
	return &Listener{fd: fd}, e == 0
}

// Recv waits for a trapped call. The result is valid until the next Recv. ENOENT and
// EINTR are retried here; any other errno is the end (no process is left).
func (l *Listener) Recv() (*Notif, syscall.Errno) {
	for {
		l.notif = Notif{}
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifRecv, uintptr(unsafe.Pointer(&l.notif)))
		switch e {
		case 0:
			return &l.notif, 0
		case unix.EINTR:
			continue
		case unix.ENOENT:
			// The caller was killed before it could be read, or no filter is left: a
			// listener without filters reports POLLHUP (kernel/seccomp.c, seccomp_notify_poll).
			fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 0); err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0 && fds[0].Revents&unix.POLLIN == 0 {
				return nil, unix.ENOENT
			}
			continue
		}
		return nil, e
	}
}

// Wait blocks until a call waits or no process is left; it returns false in the
// latter case.
func (l *Listener) Wait() bool {
	fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	for {
		fds[0].Revents = 0
		_, err := unix.Poll(fds, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		if fds[0].Revents&unix.POLLIN != 0 {
			return true
		}
		if fds[0].Revents != 0 {
			return false
		}
	}
}

// Continue lets the kernel carry the call out. ENOENT: the caller was killed meanwhile.
func (l *Listener) Continue(id uint64) syscall.Errno {
	l.resp = notifResp{id: id, flags: notifFlagContinue}
	return l.send()
}

// Fail makes the call return errno.
func (l *Listener) Fail(id uint64, errno syscall.Errno) syscall.Errno {
	l.resp = notifResp{id: id, err: -int32(errno)}
	return l.send()
}

func (l *Listener) send() syscall.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifSend, uintptr(unsafe.Pointer(&l.resp)))
	return e
}

// Valid says whether the call still waits, so that what was read of its memory was
// its own.
func (l *Listener) Valid(id uint64) bool {
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifIDValid, uintptr(unsafe.Pointer(&id)))
	runtime.KeepAlive(&id)
	return e == 0
}

// Close ends the listener: trapped calls get ENOSYS from then on.
func (l *Listener) Close() { unix.Close(l.fd) }

// Insn is one instruction of classic BPF (struct sock_filter).
type Insn struct {
	Code   uint16
	JT, JF uint8
	K      uint32
}

// InstallFilter puts prog on the calling thread alone and returns the listener's
// descriptor. no_new_privs must be set. waitKillable tells whether
// WAIT_KILLABLE_RECV (Linux 5.19) was granted: with it, a signal other than a fatal
// one does not abort a call that the supervisor has already received.
func InstallFilter(prog []Insn) (fd int, waitKillable bool, err error) {
	fprog := struct {
		n    uint16
		insn *Insn
	}{uint16(len(prog)), &prog[0]}
	const setModeFilter, newListener, waitKillableRecv = 1, 1 << 3, 1 << 5
	for _, flags := range []uintptr{newListener | waitKillableRecv, newListener} {
		r, _, e := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, flags, uintptr(unsafe.Pointer(&fprog)))
		if e == 0 {
			return int(r), flags&waitKillableRecv != 0, nil
		}
		if e != unix.EINVAL {
			return -1, false, fmt.Errorf("seccomp(SECCOMP_SET_MODE_FILTER, NEW_LISTENER): %w", e)
		}
	}
	runtime.KeepAlive(prog)
	return -1, false, fmt.Errorf("seccomp(SECCOMP_SET_MODE_FILTER, NEW_LISTENER): %w", unix.EINVAL)
}

// Reply makes the call return value, or errno when that is not 0. Unlike the others it may
// be called from any goroutine.
func (l *Listener) Reply(id uint64, value int64, errno syscall.Errno) syscall.Errno {
	resp := notifResp{id: id, val: value, err: -int32(errno)}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifSend, uintptr(unsafe.Pointer(&resp)))
	return e
}

// Inject gives the caller a copy of the supervisor's descriptor fd and makes the call
// return its number there, in one step (SECCOMP_ADDFD_FLAG_SEND, Linux 5.14). From any
// goroutine.
func (l *Listener) Inject(id uint64, fd int, cloexec bool) syscall.Errno {
	add := struct {
		id                          uint64
		flags, src, newfd, newFlags uint32
	}{id: id, flags: 2, src: uint32(fd)}
	if cloexec {
		add.newFlags = unix.O_CLOEXEC
	}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifAddFD, uintptr(unsafe.Pointer(&add)))
	return e
}

// Proceed is [Listener.Continue] from any goroutine.
func (l *Listener) Proceed(id uint64) syscall.Errno {
	resp := notifResp{id: id, flags: notifFlagContinue}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifSend, uintptr(unsafe.Pointer(&resp)))
	return e
}

// Replace puts a copy of the supervisor's descriptor fd in the place of the caller's
// descriptor at (SECCOMP_ADDFD_FLAG_SETFD). The call still waits. From any goroutine.
func (l *Listener) Replace(id uint64, fd, at int, cloexec bool) syscall.Errno {
	add := struct {
		id                          uint64
		flags, src, newfd, newFlags uint32
	}{id: id, flags: 1, src: uint32(fd), newfd: uint32(at)}
	if cloexec {
		add.newFlags = unix.O_CLOEXEC
	}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), ioctlNotifAddFD, uintptr(unsafe.Pointer(&add)))
	return e
}
