package sys

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NS is a set of CLONE_NEW* flags.
type NS uintptr

// The namespaces.
const (
	NewUser   NS = unix.CLONE_NEWUSER
	NewMount  NS = unix.CLONE_NEWNS
	NewPID    NS = unix.CLONE_NEWPID
	NewIPC    NS = unix.CLONE_NEWIPC
	NewUTS    NS = unix.CLONE_NEWUTS
	NewCgroup NS = unix.CLONE_NEWCGROUP
	NewNet    NS = unix.CLONE_NEWNET
	NewTime   NS = 0x80 // CLONE_NEWTIME; for clone(2) the bit is part of the exit signal

	AllNS = NewUser | NewMount | NewPID | NewIPC | NewUTS | NewCgroup | NewNet
)

// Child is a process that this package started.
type Child struct {
	PID   int
	Pidfd int // owned by the caller
}

// Wait waits for the child's end and reaps it.
func (c Child) Wait() (syscall.WaitStatus, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(c.PID, &ws, 0, nil)
		if err != unix.EINTR {
			return syscall.WaitStatus(ws), err
		}
	}
}

// SpawnIn starts exe in new namespaces that a new user namespace owns, with every
// capability in it. files become descriptors 0, 1, 2 ... uid and gid maps are those
// of the parent where it may write them, else the caller's own ids alone.
// The child dies with the calling thread, which must be locked.
func SpawnIn(exe string, argv, env []string, files []*os.File, ns NS) (Child, error) {
	uids, gids, setgroups := idMaps()
	pidfd := -1
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	pid, err := syscall.ForkExec(exe, argv, &syscall.ProcAttr{
		Env: env, Files: fds,
		Sys: &syscall.SysProcAttr{
			Setsid: true, Cloneflags: uintptr(ns), Pdeathsig: syscall.SIGKILL, PidFD: &pidfd,
			UidMappings: uids, GidMappings: gids, GidMappingsEnableSetgroups: setgroups,
			AmbientCaps: KnownCaps(),
		},
	})
	runtime.KeepAlive(files)
	if err != nil {
		return Child{}, err
	}
	return Child{pid, pidfd}, nil
}

// idMaps returns the id maps of a box. A caller that may (root) maps every id that it
// has to itself, so that files keep their owners; another maps its own ids alone,
// which is all that the kernel lets it (user_namespaces(7)).
func idMaps() (uids, gids []syscall.SysProcIDMap, setgroups bool) {
	const setuid, setgid = 7, 6
	has := map[uintptr]bool{}
	for _, c := range AllCaps() {
		has[c] = true
	}
	if has[setuid] && has[setgid] {
		uids, gids = identity("/proc/self/uid_map"), identity("/proc/self/gid_map")
		if uids != nil && gids != nil {
			// In a namespace whose setgroups is denied, it stays so (a rootless container).
			allowed, err := os.ReadFile("/proc/self/setgroups")
			return uids, gids, err == nil && strings.TrimSpace(string(allowed)) == "allow"
		}
	}
	one := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
	}
	return one(os.Geteuid()), one(os.Getegid()), false
}

func identity(file string) (m []syscall.SysProcIDMap) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	for {
		var in, out, n int
		if k, err := fmt.Fscan(f, &in, &out, &n); err != nil || k != 3 {
			return m
		}
		m = append(m, syscall.SysProcIDMap{ContainerID: in, HostID: in, Size: n})
	}
}

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// SpawnJoined starts the open file exe in the user namespace and the others of nsFDs, which it
// joins in order, and in new namespaces ns of its own, with every capability in the
// user namespace. files become descriptors 0, 1, 2 ... The child dies with the
// calling thread, which must be locked.
//
// A user namespace can only be joined by a process with one thread (setns(2)), which
// a Go program never is: so the joining is done by a fork of this thread alone,
// which makes nothing but raw system calls until it executes.
func SpawnJoined(exe *os.File, argv, env []string, files []*os.File, nsFDs []int, ns NS) (Child, error) {
	j := joinPlan{ns: uintptr(ns), caps: KnownCaps()}
	var err error
	if j.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return Child{}, err
	}
	if j.env, err = syscall.SlicePtrFromStrings(env); err != nil {
		return Child{}, err
	}
	for _, fd := range nsFDs {
		j.join = append(j.join, uintptr(fd))
	}
	// By descriptor: the box's /proc does not know this process.
	exefd, err := unix.FcntlInt(exe.Fd(), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return Child{}, fmt.Errorf("duplicate descriptor: %w", err)
	}
	defer unix.Close(exefd)
	j.exe = uintptr(exefd)
	// Copies above every target number, so that dup3 below never overwrites a source.
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 64)
		if err != nil {
			return Child{}, fmt.Errorf("duplicate descriptor: %w", err)
		}
		defer unix.Close(fd)
		j.fds = append(j.fds, uintptr(fd))
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return Child{}, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(p[0])
	j.pipe = uintptr(p[1])

	syscall.ForkLock.Lock()
	pid, errno := forkAndJoin(&j)
	syscall.ForkLock.Unlock()
	unix.Close(p[1])
	runtime.KeepAlive(&j)
	if errno != 0 {
		return Child{}, fmt.Errorf("fork: %w", errno)
	}
	// Messages of three words: the final child's PID as seen here, or 0; the step that
	// failed, or 0; its errno. The pipe ends when the final child executes or dies.
	var child, step int
	var why syscall.Errno
	for {
		var buf [12]byte
		k, err := unix.Read(p[0], buf[:])
		if err == unix.EINTR {
			continue
		}
		if k != len(buf) {
			break
		}
		if v := binary.NativeEndian.Uint32(buf[0:]); v != 0 {
			child = int(v)
		}
		if v := binary.NativeEndian.Uint32(buf[4:]); v != 0 {
			step, why = int(v), syscall.Errno(binary.NativeEndian.Uint32(buf[8:]))
		}
	}
	reap(pid)
	if step != 0 || child == 0 {
		if child > 0 {
			reap(child)
		}
		if step == 0 {
			why = syscall.ESRCH
		}
		return Child{}, fmt.Errorf("%s: %w", joinSteps[min(step, len(joinSteps)-1)], why)
	}
	pidfd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		return Child{}, fmt.Errorf("pidfd_open: %w", err)
	}
	return Child{child, pidfd}, nil
}

var joinSteps = [...]string{"start the session's init", "join the box's namespaces", "make namespaces of the session's own", "raise capabilities", "die with the parent", "pass descriptors", "execute the stage", "start a session"}

type joinPlan struct {
	exe       uintptr
	empty     [1]byte
	argv, env []*byte
	join      []uintptr
	ns        uintptr
	fds       []uintptr
	caps      []uintptr
	pipe      uintptr
	msg       [3]uint32
	hdr       unix.CapUserHeader
	data      [2]unix.CapUserData
}

// forkAndJoin runs between fork and exec with the address space of a threaded Go
// program but only one thread: no allocation, no stack growth, raw calls only.
//
//go:norace
//go:noinline
func forkAndJoin(j *joinPlan) (pid int, errno syscall.Errno) {
	j.hdr.Version = unix.LINUX_CAPABILITY_VERSION_3
	beforeFork()
	r, _, e := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 || r != 0 {
		afterFork()
		return int(r), e
	}
	afterForkInChild()
	for i := range j.join {
		if _, _, e = syscall.RawSyscall(unix.SYS_SETNS, j.join[i], 0, 0); e != 0 {
			joinFail(j, 1, e)
		}
	}
	r, _, e = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_PARENT|j.ns, 0, 0, 0, 0, 0)
	if e != 0 {
		joinFail(j, 2, e)
	}
	if r != 0 {
		j.msg = [3]uint32{uint32(r), 0, 0}
		syscall.RawSyscall(unix.SYS_WRITE, j.pipe, uintptr(unsafe.Pointer(&j.msg)), 12)
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	// The grandchild: PID 1 of its namespace, child of the supervisor.
	if _, _, e = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		joinFail(j, 7, e)
	}
	syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&j.hdr)), uintptr(unsafe.Pointer(&j.data)), 0)
	j.data[0].Inheritable, j.data[1].Inheritable = j.data[0].Permitted, j.data[1].Permitted
	if _, _, e = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&j.hdr)), uintptr(unsafe.Pointer(&j.data)), 0); e != 0 {
		joinFail(j, 3, e)
	}
	for i := range j.caps {
		if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, j.caps[i], 0, 0, 0); e != 0 {
			joinFail(j, 3, e)
		}
	}
	if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0); e != 0 {
		joinFail(j, 4, e)
	}
	for i := range j.fds {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, j.fds[i], uintptr(i), 0); e != 0 {
			joinFail(j, 5, e)
		}
	}
	_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, j.exe, uintptr(unsafe.Pointer(&j.empty)),
		uintptr(unsafe.Pointer(&j.argv[0])), uintptr(unsafe.Pointer(&j.env[0])), unix.AT_EMPTY_PATH, 0)
	joinFail(j, 6, e)
	return 0, 0
}

// joinFail reports a step that failed and ends the child.
//
//go:norace
//go:nosplit
func joinFail(j *joinPlan, step uint32, e syscall.Errno) {
	j.msg = [3]uint32{0, step, uint32(e)}
	syscall.RawSyscall(unix.SYS_WRITE, j.pipe, uintptr(unsafe.Pointer(&j.msg)), 12)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

func reap(pid int) {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return
		}
	}
}
