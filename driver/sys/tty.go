package sys

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Termios is a terminal's settings, to be given back as they were.
type Termios = unix.Termios

// Winsize is a terminal's size in characters and pixels.
type Winsize = unix.Winsize

// Termattr returns the settings of the terminal fd, an error when it is not one.
func Termattr(fd uintptr) (*Termios, error) { return unix.IoctlGetTermios(int(fd), unix.TCGETS) }

// IsTerminal says whether fd is a terminal.
func IsTerminal(fd uintptr) bool { _, err := Termattr(fd); return err == nil }

// SetTermattr sets the terminal's settings once its output is drained.
func SetTermattr(fd uintptr, t *Termios) error {
	return unix.IoctlSetTermios(int(fd), unix.TCSETSW, t)
}

// Raw returns t changed to raw mode: no echo, no line editing, no signals, no
// translation (termios(3), cfmakeraw).
func Raw(t *Termios) *Termios {
	r := *t
	r.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	r.Oflag &^= unix.OPOST
	r.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	r.Cflag &^= unix.CSIZE | unix.PARENB
	r.Cflag |= unix.CS8
	r.Cc[unix.VMIN], r.Cc[unix.VTIME] = 1, 0
	return &r
}

// WinsizeOf returns the terminal's size.
func WinsizeOf(fd uintptr) (*Winsize, error) { return unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ) }

// SetWinsize sets it; the foreground process group gets SIGWINCH.
func SetWinsize(fd uintptr, w *Winsize) error {
	return unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, w)
}

// Foreground returns the foreground process group of the terminal fd, which must be
// the caller's controlling terminal.
func Foreground(fd uintptr) (int, error) { return unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) }

// SetForeground sets it.
func SetForeground(fd uintptr, pgrp int) error {
	return unix.IoctlSetPointerInt(int(fd), unix.TIOCSPGRP, pgrp)
}

// MakeControlling makes fd the controlling terminal of the calling session leader.
func MakeControlling(fd uintptr) error { return unix.IoctlSetInt(int(fd), unix.TIOCSCTTY, 0) }

// OpenPTY opens a new pseudo-terminal of the devpts instance at /dev/pts. The master
// does not block: closing it ends its reads.
func OpenPTY() (master, slave *os.File, err error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(m), "/dev/ptmx")
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlock pty: %w", err)
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	s, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	return master, os.NewFile(uintptr(s), name), nil
}

// Socketpair makes a connected pair of sequenced-packet sockets: each message is one
// read, and an end that closes is seen by the other.
func Socketpair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

// SetNonblock makes f's reads and writes wait in the Go runtime's poller, so that
// closing it ends them.
func SetNonblock(fd uintptr) error { return unix.SetNonblock(int(fd), true) }

// Wait4Any waits for any child to change state: end, or stop. It returns the PID.
func Wait4Any() (pid int, status unix.WaitStatus, err error) {
	for {
		pid, err = unix.Wait4(-1, &status, unix.WUNTRACED, nil)
		if err != unix.EINTR {
			return pid, status, err
		}
	}
}

// SelfStop stops the calling process group's member that this is, as Ctrl-Z does.
func SelfStop() error { return unix.Kill(0, unix.SIGTSTP) }

// SameFile tells whether two open files are the same pipe, socket or file.
func SameFile(a, b uintptr) bool {
	var x, y unix.Stat_t
	return unix.Fstat(int(a), &x) == nil && unix.Fstat(int(b), &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino && x.Mode == y.Mode
}
