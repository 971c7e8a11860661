package driver

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// terminal stands between the caller's standard streams and the box's. No terminal,
// file or socket of the caller gets into the box: a terminal there would take
// TIOCSTI, a file could be opened again for more than it was given for
// (/proc/self/fd/0), a directory would be a way out, a socket could carry descriptors.
// So terminals are replaced by one pseudo-terminal of the box's own, pipes are passed
// on, and bytes are carried between the rest and new pipes.
type terminal struct {
	child [3]*os.File // what the stage gets as 0, 1, 2; null where the pty comes in
	tty   [3]bool
	kinds [3]string // for the log: "terminal", "pipe", "file", "null", "socket", "closed"
	front bool      // the command starts in the foreground
	attr  *sys.Termios
	size  *sys.Winsize

	outer  *os.File // the caller's terminal, opened anew
	master *os.File

	mu      sync.Mutex
	raw     bool
	had     bool          // the command has had the keys before
	readers chan struct{} // 1 deep: the right to read the caller's terminal

	ours   []*os.File // closed once the stage has its copies
	starts []func()
	out    sync.WaitGroup // carriers of output
	shown  chan struct{}  // closed when the pty's output is all written
}

func newTerminal(stdin, stdout, stderr *os.File) (t *terminal, err error) {
	t = &terminal{readers: make(chan struct{}, 1)}
	made := t
	defer func() {
		if err != nil {
			made.close()
		}
	}()
	std := [3]*os.File{stdin, stdout, stderr}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	t.ours = append(t.ours, null)
	var tty *os.File
	for i, f := range std {
		t.child[i], t.kinds[i] = null, "closed"
		if f == nil {
			continue
		}
		fi, err := f.Stat()
		if err != nil {
			continue
		}
		switch m := fi.Mode(); {
		case sys.IsTerminal(f.Fd()):
			t.tty[i], t.kinds[i] = true, "terminal"
			if tty == nil {
				tty = f
			}
			continue
		case m&os.ModeNamedPipe != 0 && anonymousPipe(f):
			t.child[i], t.kinds[i] = f, "pipe"
			continue
		case m&os.ModeCharDevice != 0 && isNull(fi):
			t.kinds[i] = "null"
			continue // the stage's own, opened in the box's /dev
		case m.IsDir(), m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0:
			return nil, fmt.Errorf("standard stream %d is a %s: it would be a way out of the box", i, kindOf(m))
		default:
			t.kinds[i] = kindOf(m)
		}
		if i == 2 && t.kinds[1] == t.kinds[2] && sys.SameFile(std[1].Fd(), f.Fd()) {
			t.child[2] = t.child[1] // 2>&1: one pipe keeps the order
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
		if i == 0 {
			t.child[0] = r
			t.ours = append(t.ours, r)
			t.starts = append(t.starts, func() {
				io.Copy(w, f) // ends with the input, or when the box no longer reads
				w.Close()
			})
			continue
		}
		t.child[i] = w
		t.ours = append(t.ours, w)
		t.out.Add(1)
		t.starts = append(t.starts, func() {
			defer t.out.Done()
			_, err := io.Copy(f, r)
			r.Close() // when the file cannot be written, the box gets SIGPIPE
			_ = err
		})
	}
	if tty == nil {
		return t, nil
	}
	if t.attr, err = sys.Termattr(tty.Fd()); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	t.size, _ = sys.WinsizeOf(tty.Fd())
	// A description of our own, so that O_NONBLOCK does not spread to the caller's.
	name := "/dev/tty"
	if t.outer, err = os.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0); err != nil {
		// Not our controlling terminal (setsid, a daemon): by its own name.
		if name, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", tty.Fd())); err == nil {
			t.outer, err = os.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("open the terminal: %w", err)
		}
	}
	// In a pipeline another program may want the keys: the command gets them when it
	// asks (SIGTTIN, SIGTTOU), see stopped.
	t.front = t.tty[0] && t.tty[1] && t.inForeground()
	return t, nil
}

func anonymousPipe(f *os.File) bool {
	l, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return err == nil && strings.HasPrefix(l, "pipe:[")
}

func isNull(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Rdev == 1<<8|3
}

func kindOf(m os.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&os.ModeSocket != 0:
		return "socket"
	case m&os.ModeNamedPipe != 0:
		return "fifo"
	case m&os.ModeCharDevice != 0:
		return "character device"
	}
	return "block device"
}

func (t *terminal) inForeground() bool {
	pg, err := 0, error(nil)
	withFD(t.outer, func(fd uintptr) { pg, err = sys.Foreground(fd) })
	return err != nil || pg == syscall.Getpgrp()
}

// started closes what now belongs to the stage and begins to carry.
func (t *terminal) started() {
	for _, f := range t.ours {
		f.Close()
	}
	t.ours = nil
	for _, f := range t.starts {
		go f()
	}
	t.starts = nil
}

// attach takes the box's pty over and begins to show it.
func (t *terminal) attach(fd int) error {
	if err := sys.SetNonblock(uintptr(fd)); err != nil {
		return err
	}
	t.master = os.NewFile(uintptr(fd), "pty")
	t.shown = make(chan struct{})
	go func() {
		defer close(t.shown)
		io.Copy(t.outer, t.master) // ends with EIO when the last process has closed the pty
	}()
	if t.front {
		t.takeKeys()
	}
	return nil
}

// takeKeys puts the caller's terminal into raw mode and passes its input on.
func (t *terminal) takeKeys() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.raw {
		return
	}
	withFD(t.outer, func(fd uintptr) {
		if a, err := sys.Termattr(fd); err == nil {
			t.attr = a // the shell may have changed it while we were stopped
		}
		if !t.had && !t.front {
			// Started in the background, when the shell had the terminal set up for its
			// own line editor: now it is as a command finds it.
			withFD(t.master, func(m uintptr) { sys.SetTermattr(m, t.attr) })
		}
		t.had = true
		sys.SetTermattr(fd, sys.Raw(t.attr))
	})
	t.raw = true
	t.outer.SetReadDeadline(time.Time{})
	go func() {
		t.readers <- struct{}{}
		defer func() { <-t.readers }()
		buf := make([]byte, 4096)
		for {
			n, err := t.outer.Read(buf)
			if n > 0 {
				t.master.Write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
}

// giveKeys gives the caller's terminal back as it was.
func (t *terminal) giveKeys() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.raw {
		return
	}
	t.raw = false
	t.outer.SetReadDeadline(time.Unix(1, 0)) // ends the reader
	withFD(t.outer, func(fd uintptr) { sys.SetTermattr(fd, t.attr) })
}

// stopped acts on the command's stop: a command that wants the keys gets them when we
// have them to give; otherwise we stop as well, as the command would have done for the
// caller's shell. It returns true when the command is to go on in the foreground.
func (t *terminal) stopped(sig syscall.Signal) bool {
	if t.outer == nil {
		return false
	}
	wants := sig == syscall.SIGTTIN || sig == syscall.SIGTTOU
	for {
		if wants && t.inForeground() {
			break
		}
		t.giveKeys()
		if !stopSelf() {
			return false
		}
		// Continued: by fg we have the terminal, by bg we have not.
		if t.inForeground() {
			break
		}
		if !wants {
			return true
		}
	}
	t.takeKeys()
	t.resize()
	return true
}

// stopSelf stops this process and its group as Ctrl-Z does, and returns once it is
// continued. The kernel may deliver the signal to another thread, so that this one
// runs on for a moment: it must not touch the terminal, which is the shell's by then.
// In a group that nobody could continue the signal does nothing.
func stopSelf() bool {
	cont := make(chan os.Signal, 1)
	signal.Notify(cont, syscall.SIGCONT)
	defer signal.Stop(cont)
	if sys.SelfStop() != nil {
		return false
	}
	select {
	case <-cont:
	case <-time.After(200 * time.Millisecond):
		select {
		case <-cont:
		default:
		}
	}
	return true
}

func (t *terminal) resize() {
	if t.outer == nil || t.master == nil {
		return
	}
	withFD(t.outer, func(outer uintptr) {
		if w, err := sys.WinsizeOf(outer); err == nil {
			withFD(t.master, func(fd uintptr) { sys.SetWinsize(fd, w) })
		}
	})
}

// withFD calls fn with f's descriptor and leaves f in the runtime's poller, which
// [os.File.Fd] does not.
func withFD(f *os.File, fn func(fd uintptr)) {
	if c, err := f.SyscallConn(); err == nil {
		c.Control(fn)
	}
}

// finish waits until all output is out and gives the terminal back. No process of
// the session is left.
func (t *terminal) finish() {
	t.out.Wait()
	if t.shown != nil {
		<-t.shown
	}
	t.close()
}

func (t *terminal) close() {
	if t.outer != nil {
		t.giveKeys()
		t.outer.Close()
		t.outer = nil
	}
	if t.master != nil {
		t.master.Close()
		t.master = nil
	}
	for _, f := range t.ours {
		f.Close()
	}
	t.ours = nil
}
