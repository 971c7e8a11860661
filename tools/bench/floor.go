package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The least that any sandbox with seccomp user notification can cost here: the calls that
// a box sees are handed to a supervisor that looks at nothing and says "go on" at once
// (seccomp_unotify(2)), without overlay, namespaces or log. What the machine's own
// context switches cost is told apart so from what the box adds.

var floorCalls = append([]uint32{unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2,
	unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_MKDIRAT, unix.SYS_FTRUNCATE, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHOWN,
	unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT, unix.SYS_EXECVE, unix.SYS_EXIT_GROUP}, floorCallsOfArch...)

// floor runs argv so and does not return.
func floor(argv []string) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := exec.Command(self, append([]string{"-floored", "--"}, argv...)...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	c.ExtraFiles = []*os.File{theirs}
	if err := c.Start(); err != nil {
		return err
	}
	theirs.Close()
	listener, err := recvFD(pair[0])
	if err != nil {
		return err
	}
	go func() {
		c.Wait()
		os.Exit(c.ProcessState.ExitCode())
	}()
	runtime.LockOSThread()
	const (
		recv, send, setFlags = 0xc0502100, 0xc0182101, 0x40082104 // SECCOMP_IOCTL_NOTIF_*
		syncWakeUp, goOn     = 1, 1
	)
	unix.Syscall(unix.SYS_IOCTL, uintptr(listener), setFlags, syncWakeUp)
	for {
		var n [80]byte
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), recv, uintptr(unsafe.Pointer(&n)))
		if e == unix.EINTR || e == unix.ENOENT {
			continue
		}
		if e != 0 {
			return fmt.Errorf("receive a notification: %w", e)
		}
		var resp [24]byte
		copy(resp[:8], n[:8])
		binary.NativeEndian.PutUint32(resp[20:], goOn)
		unix.RawSyscall(unix.SYS_IOCTL, uintptr(listener), send, uintptr(unsafe.Pointer(&resp)))
	}
}

// floored is the other end: it puts the filter on itself and becomes argv.
func floored(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for _, nr := range floorCalls {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		return fmt.Errorf("seccomp(SECCOMP_SET_MODE_FILTER): %w", e)
	}
	// From here on nothing may be opened before the listener is handed over.
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("hand over the listener: %w", err)
	}
	unix.Close(int(fd))
	unix.Close(3)
	return syscall.Exec(path, argv, os.Environ())
}

func recvFD(sock int) (int, error) {
	f := os.NewFile(uintptr(sock), "ours")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return -1, err
	}
	defer c.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return -1, fmt.Errorf("take over the listener: %w", err)
	}
	ms, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(ms) == 0 {
		return -1, fmt.Errorf("take over the listener: no descriptor came (%v)", err)
	}
	fds, err := unix.ParseUnixRights(&ms[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}
