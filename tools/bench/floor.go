package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"github.com/sandglass/sandglass/driver/sys"
)

// The least that any sandbox with seccomp user notification can cost here: the calls that
// a box sees are handed to a supervisor that looks at nothing and says "go on" at once
// (seccomp_unotify(2)), without overlay, namespaces or log. What the machine's own
// context switches cost is told apart so from what the box adds.

var floorCalls = []sys.Call{sys.CallOpenat, sys.CallOpen, sys.CallOpenat2, sys.CallCreat, sys.CallExecve, sys.CallExitGroup,
	sys.CallUnlink, sys.CallUnlinkat, sys.CallRename, sys.CallRenameat, sys.CallRenameat2, sys.CallLink, sys.CallLinkat,
	sys.CallSymlink, sys.CallSymlinkat, sys.CallMkdir, sys.CallMkdirat, sys.CallRmdir, sys.CallFtruncate, sys.CallChmod,
	sys.CallFchmod, sys.CallFchmodat, sys.CallChown, sys.CallLchown, sys.CallFchown, sys.CallFchownat, sys.CallUtimensat}

// floor runs argv so, and returns only when that fails: the program's exit code becomes
// its own.
func floor(argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	told, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	wait, goOn, err := os.Pipe()
	if err != nil {
		return err
	}
	c := exec.Command(self, append([]string{"-floored", "--"}, argv...)...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{tell, wait}
	if err := c.Start(); err != nil {
		return err
	}
	tell.Close()
	wait.Close()
	var word [16]byte
	n, err := told.Read(word[:])
	if err != nil {
		return fmt.Errorf("learn of the listener: %w", err)
	}
	theirs, err := strconv.Atoi(string(word[:n]))
	if err != nil {
		return err
	}
	pidfd, err := sys.PidfdOpen(c.Process.Pid)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	fd, err := sys.PidfdGetfd(pidfd, theirs)
	if err != nil {
		return fmt.Errorf("take over the listener: %w", err)
	}
	goOn.Close()
	go func() {
		c.Wait()
		os.Exit(c.ProcessState.ExitCode())
	}()
	runtime.LockOSThread()
	l, _ := sys.NewListener(fd)
	for {
		n, e := l.Recv()
		if e != 0 {
			select {} // nobody is left; Wait says how it ended
		}
		l.Continue(n.ID)
	}
}

// floored is the other end: it puts the filter on itself and becomes argv.
func floored(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := sys.NoNewPrivs(); err != nil {
		return err
	}
	const load, jumpEq, ret, allow, notify = 0x20, 0x15, 0x06, 0x7fff0000, 0x7fc00000 // linux/bpf_common.h, linux/seccomp.h
	prog := []sys.Insn{{Code: load}}
	for _, c := range floorCalls {
		if nr, ok := c.Number(sys.NativeArch()); ok {
			prog = append(prog, sys.Insn{Code: jumpEq, JF: 1, K: nr}, sys.Insn{Code: ret, K: notify})
		}
	}
	fd, _, err := sys.InstallFilter(append(prog, sys.Insn{Code: ret, K: allow}))
	if err != nil {
		return err
	}
	// From here on nothing may be opened before the listener is taken over. It closes
	// itself when argv is executed.
	tell, wait := os.NewFile(3, "tell"), os.NewFile(4, "wait")
	if _, err := tell.WriteString(strconv.Itoa(fd)); err != nil {
		return err
	}
	wait.Read(make([]byte, 1))
	tell.Close()
	wait.Close()
	return syscall.Exec(path, argv, os.Environ())
}
