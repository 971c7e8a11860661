package driver

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// sessionBus is the box's own D-Bus session bus: a dbus-daemon that the box's init starts
// when somebody first connects to it, in the box, so that whatever service it starts in
// turn is in the box too. Without a dbus-daemon on this machine there is none.
type sessionBus struct {
	path  string // in the box
	start func() error
	mu    sync.Mutex
	last  time.Time // when it was last started
}

const (
	busPatience = 5 * time.Second       // how long a client waits for the bus to listen
	busPoll     = 10 * time.Millisecond //
	busAgain    = time.Second           // a bus that dies is not started more often
)

// busPath is where the box's session bus listens.
func busPath() string { return "/run/user/" + strconv.Itoa(os.Getuid()) + "/bus" }

// busDaemon returns the path of the dbus-daemon, "" when there is none.
var busDaemon = sync.OnceValue(func() string {
	p, err := exec.LookPath("dbus-daemon")
	if err != nil || !strings.HasPrefix(p, "/") {
		return ""
	}
	return p
})

// busCommand is what listens on path.
func busCommand(daemon, path string) []string {
	return []string{daemon, "--session", "--nofork", "--nopidfile", "--nosyslog", "--address=unix:path=" + path}
}

// ownBus lets a call reach the box's own bus, once that listens.
func (s *supervisor) ownBus(p peerCall, op *core.Operation) answer {
	bus, root, over := s.bus, s.paths.root, s.performer.done
	sock := -1
	if s.hostNet && p.act == core.ActConnect {
		var e syscall.Errno
		if sock, e = s.theirSocket(p.fd); e != 0 {
			return answer{errno: e, ops: [2]*core.Operation{op}}
		}
	}
	done := func() {
		if sock >= 0 {
			sys.CloseFD(sock)
		}
	}
	return answer{ops: [2]*core.Operation{op}, dropped: done, do: func() performed {
		defer done()
		if !bus.ready(root, over) {
			return performed{errno: syscall.ECONNREFUSED}
		}
		if sock < 0 {
			return performed{proceed: true}
		}
		place, err := sys.OpenInRoot(root, bus.path)
		if err != nil {
			return performed{errno: syscall.ECONNREFUSED}
		}
		defer sys.CloseFD(place)
		return performed{errno: sys.Connect(sock, sys.FDAddr(place))}
	}}
}

// ready waits until the bus listens, having it started when it does not. The socket is the
// box's to remove or replace at any time: then it is the box that has no bus.
func (b *sessionBus) ready(root int, over <-chan struct{}) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listens(root) {
		return true
	}
	if time.Since(b.last) < busAgain {
		return false
	}
	b.last = time.Now()
	if b.start() != nil {
		return false
	}
	tick := time.NewTicker(busPoll)
	defer tick.Stop()
	for end := time.Now().Add(busPatience); time.Now().Before(end); {
		select {
		case <-over:
			return false
		case <-tick.C:
			if b.listens(root) {
				return true
			}
		}
	}
	return false
}

// listens says whether something in the box accepts connections at the bus's path.
func (b *sessionBus) listens(root int) bool {
	place, err := sys.OpenInRoot(root, b.path)
	if err != nil {
		return false
	}
	defer sys.CloseFD(place)
	if m, err := sys.Mode(place); err != nil || m&syscall.S_IFMT != syscall.S_IFSOCK {
		return false
	}
	c, err := sys.UnixSocket(syscall.SOCK_STREAM, syscall.SOCK_NONBLOCK)
	if err != nil {
		return false
	}
	defer sys.CloseFD(c)
	e := sys.Connect(c, sys.FDAddr(place))
	return e == 0 || e == syscall.EAGAIN // full, but there
}
