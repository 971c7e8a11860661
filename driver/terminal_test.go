package driver

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() { programs["terminal"] = onTerminal }

// onTerminal runs a command in a box on the terminal that it has itself.
func onTerminal() {
	p, err := core.BuiltinPolicy("")
	fatal(err)
	home := os.Getenv("LAB_HOME")
	box := filepath.Join(home, "boxes", "b")
	fatal(os.MkdirAll(box, 0o700))
	code, err := Run(context.Background(), Options{BoxDir: box, Hide: []string{home}, Policy: p,
		Session: core.Session{ID: "S", Box: "b", Command: os.Args[1:]}, Env: []string{"PATH=/usr/bin:/bin", "TERM=dumb"},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Log: func(*core.Operation) error { return nil }})
	fatal(err)
	os.Exit(code)
}

// screen is a shell with job control on a terminal of its own, as a person has it.
type screen struct {
	t      *testing.T
	master *os.File
	mu     sync.Mutex
	cond   *sync.Cond
	out    string
	ended  bool
}

func newScreen(t *testing.T, l *lab) *screen {
	t.Helper()
	master, slave, err := sys.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	withFD(master, func(fd uintptr) { sys.SetWinsize(fd, &sys.Winsize{Row: 24, Col: 80}) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/bin/bash", "--norc", "--noprofile", "-i")
	c.Dir = l.dir
	c.Env = []string{"PATH=/usr/bin:/bin", "TERM=dumb", "PS1=outside> ", "EXE=" + exe, "LAB_HOME=" + l.home, "BOXED_PROGRAM=terminal", "HISTFILE="}
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	s := &screen{t: t, master: master}
	s.cond = sync.NewCond(&s.mu)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.out += strings.ReplaceAll(string(buf[:n]), "\r", "")
			s.ended = err != nil
			s.cond.Broadcast()
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	timer := time.AfterFunc(15*time.Second, func() { master.Close() })
	t.Cleanup(func() {
		timer.Stop()
		c.Process.Kill()
		c.Wait()
		master.Close()
	})
	return s
}

func (s *screen) keys(k string) {
	s.t.Helper()
	if _, err := s.master.WriteString(k); err != nil {
		s.t.Fatal(err)
	}
}

// see waits until the screen has shown what, and forgets all up to it.
func (s *screen) see(what string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if i := strings.Index(s.out, what); i >= 0 {
			s.out = s.out[i+len(what):]
			return
		}
		if s.ended {
			s.t.Fatalf("the screen never showed %q; it shows\n%s", what, s.out)
		}
		s.cond.Wait()
	}
}

func TestTerminal(t *testing.T) {
	l := newLab(t)
	s := newScreen(t, l)
	s.see("outside> ")
	s.keys("$EXE /bin/bash --norc --noprofile -i\n")
	s.see("bash-")
	s.keys("PS1='in''side> '\n")
	s.see("inside> ")
	s.keys("tty; stty size; echo pid $$\n")
	s.see("/dev/pts/0\n24 80\npid ")
	// Ctrl-C ends what runs in the box, not the box.
	s.keys("sh -c 'echo ru\"n\"ning; exec sleep 1000'\n")
	s.see("running\n")
	s.keys("\x03")
	s.see("inside> ")
	// Job control of the shell in the box.
	s.keys("sh -c 'echo ru\"n\"ning; exec sleep 1000'\n")
	s.see("running\n")
	s.keys("\x1a")
	s.see("Stopped")
	s.keys("jobs; kill %1; wait; echo do'n'e\n")
	s.see("done")
	// A window that changes its size.
	withFD(s.master, func(fd uintptr) { sys.SetWinsize(fd, &sys.Winsize{Row: 33, Col: 111}) })
	s.keys("while ! stty size | grep '^33'; do :; done\n")
	s.see("33 111\n")
	s.keys("exit 9\n")
	s.see("outside> ")
	s.keys("echo code $? $(stty -a | grep -o ' echo ')\n")
	s.see("code 9 echo")
}

func TestCtrlZStopsTheBoxForTheShellOutside(t *testing.T) {
	l := newLab(t)
	s := newScreen(t, l)
	s.see("outside> ")
	s.keys("$EXE /bin/sh -c 'echo ru\"n\"ning; cat; echo \"e\"nd'\n")
	s.see("running\n")
	// The shell has its cat: a shell whose child is stopped between vfork and exec
	// waits for it without a word, outside as well.
	s.keys("first\n")
	s.see("first\nfirst\n")
	s.keys("\x1a")
	s.see("Stopped")
	s.see("outside> ")
	s.keys("echo mi'd'dle; fg\n")
	s.see("middle\n")
	s.keys("typed\n")
	s.see("typed\ntyped\n")
	s.keys("\x04")
	s.see("end\n")
	s.see("outside> ")
	// In the background: it stops when it wants the keys, and gets them with fg.
	s.keys("$EXE /bin/cat &\n")
	s.see("[1]")
	s.keys("while ! jobs | grep Stopp'e'd; do sleep 0.05; done\n")
	s.see("Stopped")
	s.keys("fg\n")
	s.see("/bin/cat\n")
	s.keys("again\n")
	s.see("again\nagain\n")
	s.keys("\x04")
	s.see("outside> ")
	// In a pipeline.
	s.keys("echo x | $EXE /bin/cat | tr x y; $EXE /bin/sh -c 'exit 3'; echo code $?\n")
	s.see("y\n")
	s.see("code 3\n")
}
