// Package sys is the driver's one door to the kernel: every raw system call, every
// unsafe pointer and every number of an ABI is here, each behind a function that
// takes and returns Go values.
//
// What comes in: descriptors and strings. What goes out: results, or a
// [syscall.Errno]. The idea to know: nothing in this package decides anything. It
// says what the kernel said.
package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// String returns the call's name as in its manual page.
func (c Call) String() string {
	if c < numCalls {
		return callNames[c]
	}
	return fmt.Sprintf("call(%d)", uint8(c))
}

// Calls lists all calls of the table.
func Calls() []Call {
	cs := make([]Call, 0, numCalls-1)
	for c := CallUnknown + 1; c < numCalls; c++ {
		cs = append(cs, c)
	}
	return cs
}

// Arch is an architecture as seccomp and audit name it: AUDIT_ARCH_* of linux/audit.h.
type Arch uint32

// The architectures whose calls this package knows.
const (
	ArchAMD64 Arch = unix.AUDIT_ARCH_X86_64
	ArchARM64 Arch = unix.AUDIT_ARCH_AARCH64
	ArchI386  Arch = unix.AUDIT_ARCH_I386
	ArchARM   Arch = unix.AUDIT_ARCH_ARM
)

// X32Bit marks a system call number of the x32 ABI on amd64.
const X32Bit = 0x40000000

// NativeArch returns the architecture of this binary.
func NativeArch() Arch {
	if runtime.GOARCH == "arm64" {
		return ArchARM64
	}
	return ArchAMD64
}

// Number returns the call's number on a, and false where a does not have the call.
func (c Call) Number(a Arch) (uint32, bool) {
	var n int32 = -1
	if c < numCalls {
		switch a {
		case ArchAMD64:
			n = amd64Numbers[c]
		case ArchARM64:
			n = arm64Numbers[c]
		}
	}
	return uint32(n), n >= 0
}

var nativeCalls = func() (t [1024]Call) {
	for _, c := range Calls() {
		if n, ok := c.Number(NativeArch()); ok && n < uint32(len(t)) {
			t[n] = c
		}
	}
	return t
}()

// NativeCall returns the call with number nr on this machine, or [CallUnknown].
func NativeCall(nr int32) Call {
	if nr < 0 || int(nr) >= len(nativeCalls) {
		return CallUnknown
	}
	return nativeCalls[nr]
}

// ErrnoName returns the symbolic name of err's errno ("EPERM"), or "" when err has none.
func ErrnoName(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		if e == unix.EOPNOTSUPP {
			return "EOPNOTSUPP" // the kernel's word; ENOTSUP is POSIX's for the same number
		}
		return unix.ErrnoName(e)
	}
	return ""
}

// OpenPath opens path below the directory dirfd as a place (O_PATH), following no
// symbolic link in its last component. dirfd -1 stands for the working directory.
func OpenPath(dirfd int, path string, more int) (int, error) {
	if dirfd == -1 {
		dirfd = unix.AT_FDCWD
	}
	return unix.Openat(dirfd, path, unix.O_PATH|unix.O_CLOEXEC|more, 0)
}

// ReadlinkAt reads the symbolic link path below dirfd into buf and returns its
// length; a result of len(buf) may be cut. It allocates nothing.
func ReadlinkAt(dirfd int, path []byte, buf []byte) (int, syscall.Errno) {
	// path must end in NUL
	n, _, e := unix.RawSyscall6(unix.SYS_READLINKAT, uintptr(dirfd), uintptr(unsafe.Pointer(&path[0])),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	runtime.KeepAlive(path)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// ReadMem copies memory of the thread tid at addr into buf: as much as is mapped, in
// steps that end at page borders, so that a string just before an unmapped page is
// read whole (process_vm_readv(2) transfers whole iovec elements or stops). It
// returns the bytes read, 0 with an errno when nothing could be.
func ReadMem(tid int, addr uint64, buf []byte) (int, syscall.Errno) {
	const page = 4096
	if len(buf) == 0 {
		return 0, 0
	}
	var remote [18]unix.RemoteIovec
	n, left, at := 0, len(buf), addr
	for left > 0 && n < len(remote) {
		l := min(left, int(page-at%page))
		remote[n] = unix.RemoteIovec{Base: uintptr(at), Len: l}
		n, left, at = n+1, left-l, at+uint64(l)
	}
	local := unix.Iovec{Base: &buf[0]}
	local.SetLen(len(buf) - left)
	r, _, e := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(tid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&remote[0])), uintptr(n), 0)
	runtime.KeepAlive(buf)
	if e != 0 {
		return 0, e
	}
	return int(r), 0
}

// ReadMemMany copies up to len(bufs) strings of the thread tid in one call: from
// each address the bytes that fit its buffer without crossing a page border. It
// returns the total of bytes read; the kernel stops at the first bad address.
func ReadMemMany(tid int, addrs []uint64, bufs [][]byte) (int, syscall.Errno) {
	const page = 4096
	var remote [64]unix.RemoteIovec
	var local [64]unix.Iovec
	n := min(len(addrs), len(bufs), len(remote))
	if n == 0 {
		return 0, 0
	}
	for i := range n {
		l := min(len(bufs[i]), int(page-addrs[i]%page))
		remote[i] = unix.RemoteIovec{Base: uintptr(addrs[i]), Len: l}
		local[i] = unix.Iovec{Base: &bufs[i][0]}
		local[i].SetLen(l)
	}
	r, _, e := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(tid), uintptr(unsafe.Pointer(&local[0])), uintptr(n),
		uintptr(unsafe.Pointer(&remote[0])), uintptr(n), 0)
	runtime.KeepAlive(bufs)
	if e != 0 {
		return 0, e
	}
	return int(r), 0
}

// Lstat reports on path below dirfd without following a last symbolic link: mode and
// device number of the node.
func Lstat(dirfd int, path string) (mode uint32, rdev uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, 0, err
	}
	return st.Mode, uint64(st.Rdev), nil
}

// SetTimes sets the access and the modification time of what path names itself
// (utimensat(2)), in nanoseconds.
func SetTimes(path string, atime, mtime int64) error {
	ts := []unix.Timespec{unix.NsecToTimespec(atime), unix.NsecToTimespec(mtime)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// Lgetxattr returns an extended attribute of path itself, not of what a link leads to.
func Lgetxattr(path, name string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(path, name, buf)
		if err == unix.ERANGE && len(buf) < 1<<16 { // XATTR_SIZE_MAX
			buf = make([]byte, 1<<16)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// Lremovexattr removes an extended attribute of path itself.
func Lremovexattr(path, name string) error { return unix.Lremovexattr(path, name) }

// Llistxattr lists the names of the extended attributes of path itself.
func Llistxattr(path string) ([]string, error) {
	n, err := unix.Llistxattr(path, nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, 1<<16) // XATTR_LIST_MAX
	if n, err = unix.Llistxattr(path, buf); err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}

// PidfdOpen returns a descriptor of the process pid (a thread group leader).
func PidfdOpen(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }

// PidfdGetfd copies descriptor fd of the process behind pidfd.
func PidfdGetfd(pidfd, fd int) (int, error) { return unix.PidfdGetfd(pidfd, fd, 0) }

// PidfdKill sends a signal to the process behind pidfd.
func PidfdKill(pidfd int, sig syscall.Signal) error {
	return unix.PidfdSendSignal(pidfd, sig, nil, 0)
}

// ExitOf returns the wait status of the dead process behind pidfd, also after its
// parent has reaped it (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15), and false
// where the kernel cannot tell.
func ExitOf(pidfd int) (syscall.WaitStatus, bool) {
	const infoExit = 1 << 3
	info, e := pidfdInfo(pidfd, infoExit)
	if e != 0 || info.mask&infoExit == 0 {
		return 0, false
	}
	return syscall.WaitStatus(info.exit), true
}

// pidfdInfoV1 is struct pidfd_info of linux/pidfd.h, in the size of Linux 6.15.
type pidfdInfoV1 struct {
	mask, cgroup uint64
	ids          [11]uint32 // pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid
	exit         int32
	rest         [2]uint32
}

func pidfdInfo(pidfd int, mask uint64) (info pidfdInfoV1, e syscall.Errno) {
	info.mask = mask
	const ioctl = 0xc0000000 | 0xff<<8 | 11 | unsafe.Sizeof(info)<<16 // _IOWR(0xFF, 11, struct pidfd_info)
	_, _, e = unix.RawSyscall(unix.SYS_IOCTL, uintptr(pidfd), ioctl, uintptr(unsafe.Pointer(&info)))
	return info, e
}

// Identity is who a process is.
type Identity struct {
	TGID, PPID int // as seen from here
	Inner      int // of the thread group in the PID namespace asked for; 0: not in it
}

// Identify asks who the leader of thread group pid is, through its pidfd and the PID
// namespace ns, in two system calls (PIDFD_GET_INFO, Linux 6.13; NS_GET_TGID_IN_PIDNS,
// Linux 6.12) where reading /proc/PID/status takes thirty times as long. ENOTTY or
// EINVAL: the kernel cannot.
func Identify(pidfd, ns, pid int) (Identity, syscall.Errno) {
	info, e := pidfdInfo(pidfd, 1) // PIDFD_INFO_PID
	if e != 0 {
		return Identity{}, e
	}
	const nsGetTGIDInPIDNS = 0x8004b709 // _IOR(0xb7, 9, int)
	inner, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(ns), nsGetTGIDInPIDNS, uintptr(pid))
	if e == unix.ESRCH {
		inner, e = 0, 0
	}
	return Identity{TGID: int(info.ids[1]), PPID: int(info.ids[2]), Inner: int(inner)}, e
}

// Poller waits for processes to die: an epoll set of pidfds.
type Poller struct {
	fd   int
	wake int
}

// NewPoller makes an empty set. The caller closes it.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &Poller{fd, wake}, nil
}

// Add watches pidfd, once.
func (p *Poller) Add(pidfd int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, pidfd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(pidfd)})
}

// Wait blocks until at least one watched process is dead and returns their pidfds, or
// nil after [Poller.Stop].
func (p *Poller) Wait(buf []int) []int {
	var ev [128]unix.EpollEvent
	for {
		n, err := unix.EpollWait(p.fd, ev[:], -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil
		}
		buf = buf[:0]
		for _, e := range ev[:n] {
			if int(e.Fd) == p.wake {
				return nil
			}
			buf = append(buf, int(e.Fd))
		}
		return buf
	}
}

// Stop ends every present and later [Poller.Wait].
func (p *Poller) Stop() { unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Close frees the set; nobody may be waiting.
func (p *Poller) Close() { unix.Close(p.fd); unix.Close(p.wake) }

// CloseFD closes a descriptor.
func CloseFD(fd int) { unix.Close(fd) }

// SelfExe returns a path that executes this very binary, also when its file has been
// replaced meanwhile.
func SelfExe() string { return "/proc/self/exe" }

// Flock takes a lock on f: exclusive or shared, waiting for it or failing with
// EWOULDBLOCK. It is gone when the last copy of the descriptor is closed.
func Flock(f *os.File, exclusive, wait bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// MapShared maps the first size bytes of f, shared and writable, as 64-bit words.
func MapShared(f *os.File, size int) ([]uint64, func() error, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap %s: %w", f.Name(), err)
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), size/8), func() error { return unix.Munmap(b) }, nil
}

// SignalName returns the symbolic name of a signal ("SIGKILL"), or "".
func SignalName(s syscall.Signal) string { return unix.SignalName(s) }

// Text returns the text of a field of struct utsname, whose characters are signed on
// some machines and unsigned on others.
func Text[C int8 | uint8](field []C) string {
	var b []byte
	for _, c := range field {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// ProcessIn finds the thread group, as numbered here, of the thread that has number tid in
// the PID namespace ns (NS_GET_TGID_FROM_PIDNS, Linux 6.11). ESRCH: ns has no such
// thread. ENOTTY: the kernel cannot be asked.
func ProcessIn(ns, tid int) (tgid int, e syscall.Errno) {
	const nsGetTGIDFromPIDNS = 0x8004b707 // _IOR(0xb7, 7, int)
	r, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(ns), nsGetTGIDFromPIDNS, uintptr(tid))
	return int(r), e
}

// Rlimit is a resource limit of a process, setrlimit(2).
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// RlimitNproc is RLIMIT_NPROC, which package syscall does not name.
const RlimitNproc = unix.RLIMIT_NPROC

// SetRlimit sets a limit of another process. A hard limit that is lower already stays.
func SetRlimit(pid int, r Rlimit) error {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, r.Resource, nil, &old); err != nil {
		return err
	}
	return unix.Prlimit(pid, r.Resource, &unix.Rlimit{Cur: min(r.Soft, old.Max), Max: min(r.Hard, old.Max)}, nil)
}

// OpenFiles returns how many descriptors a process has open: the size of its fd directory
// (Linux 6.2, fs/proc/fd.c). dir is a descriptor of its folder in /proc.
func OpenFiles(dir int) (int64, bool) {
	var st unix.Stat_t
	if dir < 0 || unix.Fstatat(dir, "fd", &st, 0) != nil || st.Size == 0 {
		return 0, false
	}
	return st.Size, true
}

// PIDMaxIsPerNamespace says whether /proc/sys/kernel/pid_max is of the PID namespace of who
// writes it (Linux 6.14, "pid: allow pid_max to be set per pid namespace"), not of the machine.
func PIDMaxIsPerNamespace() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, err := fmt.Sscanf(Text(u.Release[:]), "%d.%d", &major, &minor); err != nil || n < 2 {
		return false
	}
	return major > 6 || major == 6 && minor >= 14
}

// Affinity lists the processors that this process may use.
func Affinity() (cpus []int) {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	for c := range len(set) * 64 {
		if set.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	return cpus
}

// SetAffinity lets a thread run on those processors alone: sched_setaffinity(2).
func SetAffinity(tid int, cpus []int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	return unix.SchedSetaffinity(tid, &set)
}
