package driver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() {
	programs["reach"] = reach
	programs["floodsend"] = floodSend
}

// reach tries to reach what its arguments name - unix:, dgram:, tcp:, udp: or open: - and
// says what came of it.
func reach() {
	for _, arg := range os.Args[1:] {
		kind, addr, _ := strings.Cut(arg, ":")
		var err error
		switch kind {
		case "unix", "tcp":
			var c net.Conn
			if c, err = net.DialTimeout(kind, addr, 5*time.Second); err == nil {
				c.Write([]byte("hello"))
				c.Close()
			}
		case "dgram", "udp":
			if kind == "dgram" {
				kind = "unixgram"
			}
			// Without connect(2): the address is in sendto(2) alone.
			var fd int
			family, sa := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: addr})
			if kind == "udp" {
				a, _ := net.ResolveUDPAddr("udp4", addr)
				family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}
			}
			if fd, err = unix.Socket(family, unix.SOCK_DGRAM, 0); err == nil {
				err = unix.Sendto(fd, []byte("hello"), 0, sa)
				if err == nil {
					err = unix.Sendmsg(fd, []byte("again"), nil, sa, 0)
				}
			}
		case "open":
			var fd int
			if fd, err = unix.Open(addr, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				var b [4]byte
				n, rerr := unix.Read(fd, b[:])
				_, werr := unix.Write(fd, b[:])
				fmt.Printf("%s: read %d %v, write %v\n", arg, n, rerr, werr)
				continue
			}
		case "socket":
			var family, typ, proto int
			fmt.Sscanf(addr, "%d,%d,%d", &family, &typ, &proto)
			_, err = unix.Socket(family, typ, proto)
		case "serve": // a socket of its own, reached as one outside would be
			var l net.Listener
			if l, err = net.Listen("unix", addr); err == nil {
				var c net.Conn
				if c, err = net.Dial("unix", addr); err == nil {
					c.Close()
				}
				l.Close()
			}
		case "sti":
			_, _, e := unix.Syscall(unix.SYS_IOCTL, 0, 0xabc<<32|unix.TIOCSTI, 0)
			err = e
		}
		if err == nil {
			fmt.Printf("%s: reached\n", arg)
			continue
		}
		var e syscall.Errno
		if !asErrno(err, &e) {
			fmt.Printf("%s: %v\n", arg, err)
			continue
		}
		fmt.Printf("%s: %s\n", arg, unix.ErrnoName(e))
	}
	fmt.Println("end")
}

func asErrno(err error, e *syscall.Errno) bool {
	return errors.As(err, e)
}

// heard collects what arrives at sockets outside.
type heard struct {
	t    *testing.T
	what chan string
}

func (h *heard) stream(network, addr string) net.Addr {
	l, err := net.Listen(network, addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
			h.what <- addr
		}
	}()
	return l.Addr()
}

func (h *heard) dgram(addr string) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			h.what <- addr + " " + string(b[:n])
		}
	}()
}

func (h *heard) all() (got []string) {
	for {
		select {
		case s := <-h.what:
			got = append(got, s)
		default:
			slices.Sort(got)
			return got
		}
	}
}

// connections lists what a session did on the surfaces of connections and devices.
func connections(ops []core.Operation) (out []string) {
	for _, op := range ops {
		switch f, _, _ := strings.Cut(string(op.Surface), "."); f {
		case "ipc", "net", "device":
			s := fmt.Sprintf("%s %s %s %s", op.Verdict, op.Surface, op.Action, op.Target)
			if op.Errno != "" {
				s += " " + op.Errno
			}
			out = append(out, s)
		}
	}
	return out
}

func TestNothingOutsideIsReached(t *testing.T) {
	l := newLab(t)
	h := &heard{t, make(chan string, 100)}
	unixPath, gram, abstract := filepath.Join(l.dir, "s"), filepath.Join(l.dir, "d"), "@sandglass-test-"+strconv.Itoa(os.Getpid())
	h.stream("unix", unixPath)
	h.stream("unix", abstract)
	h.dgram(gram)
	tcp := h.stream("tcp", "127.0.0.1:0").String()
	masked := filepath.Join("/dev/shm", strings.TrimPrefix(abstract, "@")) // the box has a /dev of its own
	h.stream("unix", masked)
	own := filepath.Join(l.dir, "own")

	r := l.boxed(runOpts{net: core.NetNone}, "reach", "unix:"+unixPath, "unix:"+abstract, "dgram:"+gram, "tcp:"+tcp, "tcp:192.0.2.1:80", "udp:192.0.2.1:53",
		"unix:"+masked, "serve:"+own, "serve:@own", "socket:40,1,0", "socket:2,3,1", "socket:17,3,0", "socket:38,5,0", "socket:16,3,9", "socket:2,1,262", "sti:0")
	want := []string{
		"unix:" + unixPath + ": ECONNREFUSED", "unix:" + abstract + ": ECONNREFUSED", "dgram:" + gram + ": ECONNREFUSED",
		"tcp:" + tcp + ": ECONNREFUSED", "tcp:192.0.2.1:80: ENETUNREACH", "udp:192.0.2.1:53: ENETUNREACH", "unix:" + masked + ": ENOENT",
		"serve:" + own + ": reached", "serve:@own: reached", "socket:40,1,0: EAFNOSUPPORT", "socket:2,3,1: EPERM", "socket:17,3,0: EPERM",
		"socket:38,5,0: EAFNOSUPPORT", "socket:16,3,9: EPROTONOSUPPORT", "socket:2,1,262: EPROTONOSUPPORT", "sti:0: EPERM", "end",
	}
	if got := strings.Split(strings.TrimSpace(r.out), "\n"); !slices.Equal(got, want) {
		t.Errorf("in the box:\n%s\nwant\n%s", r.out, strings.Join(want, "\n"))
	}
	if got := h.all(); got != nil {
		t.Errorf("outside heard %q", got)
	}
	wantOps := []string{
		"blocked ipc.unix connect " + unixPath + " ECONNREFUSED", "blocked ipc.unix connect " + abstract + " ECONNREFUSED",
		"blocked ipc.unix send " + gram + " ECONNREFUSED", "redirected ipc.loopback connect " + tcp,
		"blocked net.out connect 192.0.2.1:80 ENETUNREACH", "blocked net.out send 192.0.2.1:53 ENETUNREACH",
		"blocked ipc.unix connect " + masked + " ENOENT", "redirected ipc.unix connect " + own, "redirected ipc.unix connect @own",
		"blocked ipc.socket socket AF_VSOCK SOCK_STREAM EAFNOSUPPORT", "blocked ipc.socket socket AF_INET SOCK_RAW EPERM",
		"blocked ipc.socket socket AF_PACKET SOCK_RAW EPERM", "blocked ipc.socket socket AF_ALG SOCK_SEQPACKET EAFNOSUPPORT",
		"blocked ipc.socket socket AF_NETLINK SOCK_RAW EPROTONOSUPPORT", "blocked ipc.socket socket AF_INET SOCK_STREAM EPROTONOSUPPORT",
		"blocked device.tty ioctl TIOCSTI EPERM",
	}
	if got := connections(r.ops); !slices.Equal(got, wantOps) {
		t.Errorf("on record:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantOps, "\n"))
	}
}

func TestAGrantIsPerformedBySupervisor(t *testing.T) {
	l := newLab(t)
	h := &heard{t, make(chan string, 100)}
	unixPath, gram, abstract := filepath.Join(l.dir, "s"), filepath.Join(l.dir, "d"), "@sandglass-test-"+strconv.Itoa(os.Getpid())
	long := filepath.Join(l.dir, strings.Repeat("long", 20), strings.Repeat("name", 10))
	l.write(filepath.Join(strings.Repeat("long", 20), "x"), "")
	h.stream("unix", unixPath)
	h.stream("unix", abstract)
	h.dgram(gram)
	if err := os.Symlink(unixPath, filepath.Join(l.dir, "link")); err != nil {
		t.Fatal(err)
	}
	policy := func(p *core.Policy) {
		for _, g := range []string{unixPath, abstract, gram} {
			if err := p.Grant(g); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := l.boxed(runOpts{policy: policy}, "reach", "unix:"+unixPath, "unix:"+abstract, "dgram:"+gram, "unix:"+filepath.Join(l.dir, "link"), "unix:"+long)
	for _, line := range strings.Split(strings.TrimSpace(r.out), "\n")[:4] {
		if !strings.HasSuffix(line, ": reached") {
			t.Errorf("in the box: %s", line)
		}
	}
	for range 5 { // until all five have come
		select {
		case s := <-h.what:
			h.t.Logf("heard %s", s)
		case <-time.After(time.Minute):
			t.Fatal("outside heard too little")
		}
	}
	leaks := 0
	for _, op := range r.ops {
		if op.Surface == core.IPCUnix && op.Verdict == core.Allowed && op.Leak && op.Outcome == core.Performed && op.Errno == "" {
			leaks++
		}
	}
	if leaks != 5 {
		t.Errorf("%d of 5 granted operations are on record as leaks: %q", leaks, connections(r.ops))
	}
}

// A box on the caller's network reaches what the caller does, but not the sandbox itself,
// whatever its threads do to the address meanwhile.
func TestOnTheCallersNetworkTheSandboxIsOutOfReach(t *testing.T) {
	l := newLab(t)
	h := &heard{t, make(chan string, 100)}
	open, guarded := h.stream("tcp", "127.0.0.1:0").String(), h.stream("tcp", "127.0.0.1:0").String()
	_, port, _ := net.SplitHostPort(guarded)
	n, _ := strconv.ParseUint(port, 10, 16)
	abstract := "@sandglass-test-" + strconv.Itoa(os.Getpid())
	h.stream("unix", abstract)
	own := filepath.Join(l.dir, "own")
	r := l.boxed(runOpts{net: core.NetHost, guarded: func() []uint16 { return []uint16{uint16(n)} }}, "reach", "tcp:"+open, "tcp:"+guarded, "tcp:0.0.0.0:"+port,
		"tcp:[::ffff:127.0.0.1]:"+port, "unix:"+abstract, "serve:"+own)
	want := []string{"tcp:" + open + ": reached", "tcp:" + guarded + ": ECONNREFUSED", "tcp:0.0.0.0:" + port + ": ECONNREFUSED",
		"tcp:[::ffff:127.0.0.1]:" + port + ": ECONNREFUSED", "unix:" + abstract + ": ECONNREFUSED", "serve:" + own + ": reached", "end"}
	if got := strings.Split(strings.TrimSpace(r.out), "\n"); !slices.Equal(got, want) {
		t.Errorf("in the box:\n%s\nwant\n%s", r.out, strings.Join(want, "\n"))
	}
	self := 0
	for _, op := range r.ops {
		if op.Surface == core.SandboxSelf && op.Verdict == core.Blocked && op.Action == core.ActConnect {
			self++
		}
	}
	if self != 3 {
		t.Errorf("%d of 3 tries at the sandbox's port are on record", self)
	}
	if got := h.all(); !slices.Equal(got, []string{"127.0.0.1:0"}) {
		t.Errorf("outside heard %q", got)
	}
}

// floodSend has many threads ask for what the supervisor performs.
func floodSend() {
	done := make(chan int)
	for range 200 {
		go func() {
			ok := 0
			for range 5 {
				if c, err := net.Dial("unix", os.Args[1]); err == nil {
					c.Close()
					ok++
				}
			}
			done <- ok
		}()
	}
	n := 0
	for range 200 {
		n += <-done
	}
	fmt.Println(n > 0)
	fmt.Println("end")
}

// What the supervisor performs is bounded: more at once is refused, and nothing is lost.
func TestAFloodOfGrantedConnections(t *testing.T) {
	l := newLab(t)
	h := &heard{t, make(chan string, 2000)}
	path := filepath.Join(l.dir, "s")
	h.stream("unix", path)
	r := l.boxed(runOpts{policy: func(p *core.Policy) {
		if err := p.Grant(path); err != nil {
			t.Fatal(err)
		}
	}}, "floodsend", path)
	if r.out != "true\nend\n" {
		t.Errorf("the box said %q", r.out)
	}
	n := 0
	for _, op := range r.ops {
		if op.Surface == core.IPCUnix && op.Action == core.ActConnect {
			n++
		}
	}
	if n != 1000 {
		t.Errorf("%d of 1000 connections are on record", n)
	}
}

// A service that is asked for over D-Bus starts in the box, on its own bus.
func TestASessionBusOfItsOwn(t *testing.T) {
	if busDaemon() == "" {
		if os.Getenv("SANDGLASS_NO_SKIP") != "" {
			t.Fatal("there is no dbus-daemon: tools/setup.sh installs it")
		}
		t.Skip("there is no dbus-daemon")
	}
	l := newLab(t)
	share := filepath.Join(l.dir, "share")
	canary := l.write("canary", "real")
	l.write("share/dbus-1/services/x.service", "[D-BUS Service]\nName=org.sandglass.Test\nExec="+filepath.Join(l.dir, "service")+"\n")
	l.write("service", "#!/bin/sh\necho service > "+canary+"\n")
	if err := os.Chmod(filepath.Join(l.dir, "service"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := l.run(runOpts{env: []string{"XDG_DATA_DIRS=" + share, "DBUS_SESSION_BUS_ADDRESS=unix:path=/nowhere"}}, "/bin/sh", "-c",
		`echo $DBUS_SESSION_BUS_ADDRESS; dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.StartServiceByName string:org.sandglass.Test uint32:0 2>&1; cat canary`)
	if !strings.HasPrefix(r.out, "unix:path="+busPath()+"\n") || !strings.HasSuffix(r.out, "\nservice\n") {
		t.Errorf("in the box: %s%s", r.out, r.stderr)
	}
	if b, _ := os.ReadFile(canary); string(b) != "real" {
		t.Errorf("outside, the service wrote %q", b)
	}
	var asked, written bool
	for _, op := range r.ops {
		asked = asked || op.Surface == core.IPCDBus && op.Target == busPath() && op.Verdict == core.Redirected
		written = written || op.Target == canary && op.Action == core.ActCreate || op.Target == canary && op.Action == core.ActWrite && op.Verdict == core.Redirected
	}
	if !asked || !written {
		t.Errorf("on record: asked %v, written %v", asked, written)
	}
}

// Without the second wall a datagram could leave for any abstract name of the caller's
// network, by an address that is rewritten after the look.
func TestDatagramsOnTheCallersNetworkNeedTheSecondWall(t *testing.T) {
	for _, c := range []struct {
		host, scoped, allowed bool
		kind                  int
		refused               bool
	}{
		{host: true, kind: syscall.SOCK_DGRAM | syscall.SOCK_CLOEXEC, refused: true},
		{host: true, kind: syscall.SOCK_RAW, refused: true},
		{host: true, kind: syscall.SOCK_STREAM},
		{host: true, kind: syscall.SOCK_SEQPACKET},
		{host: true, scoped: true, kind: syscall.SOCK_DGRAM},
		{host: true, allowed: true, kind: syscall.SOCK_DGRAM},
		{kind: syscall.SOCK_DGRAM},
	} {
		p, err := core.BuiltinPolicy("")
		if err != nil {
			t.Fatal(err)
		}
		if c.allowed {
			if err := p.Set("ipc.unix", "allow"); err != nil {
				t.Fatal(err)
			}
		}
		s := &supervisor{hostNet: c.host, wall: secondWall{Scoped: c.scoped}}
		s.policy.Store(p)
		for _, call := range []sys.Call{sys.CallSocket, sys.CallSocketpair} {
			a := s.socket(call, syscall.AF_UNIX, c.kind, 0)
			if refused := a.errno != 0; refused != c.refused || refused && (a.ops[0] == nil || a.ops[0].Surface != core.IPCUnix) {
				t.Errorf("%v %+v: errno %v, on record: %v", call, c, a.errno, a.ops[0])
			}
		}
	}
}

// The supervisor connects for a box on the caller's network, and has more rights than the box.
func TestTheSupervisorIsNoDeputy(t *testing.T) {
	l := newLab(t)
	heard := make(chan string, 10)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// The empty abstract name, which is one.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@"}); err != nil {
		t.Skipf("the empty abstract name is taken: %v", err)
	}
	if err := unix.Listen(fd, 10); err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
			heard <- "the empty abstract name"
			unix.Close(c)
		}
	}()
	r := l.run(runOpts{net: core.NetHost}, "/usr/bin/python3", "-c", `import ctypes, socket
def attempt(name, what):
    try: what(); print(name, "reached")
    except OSError as e: print(name, e.errno)
def empty():
    s = socket.socket(socket.AF_UNIX)
    if ctypes.CDLL(None, use_errno=True).connect(s.fileno(), b"\1\0\0", 3): raise OSError(ctypes.get_errno(), "")
attempt("empty", empty)
attempt("netlink", lambda: socket.socket(16, 3, 0).connect((1, 0)))
attempt("groups", lambda: socket.socket(16, 3, 0).connect((0, 1)))
attempt("mptcp", lambda: socket.socket(2, 1, 262))`)
	want := fmt.Sprintf("empty %d\nnetlink %d\ngroups %d\nmptcp %d\n", unix.ECONNREFUSED, unix.EPERM, unix.EPERM, unix.EPROTONOSUPPORT)
	if r.out != want {
		t.Errorf("%q, want %q %s", r.out, want, r.stderr)
	}
	if len(heard) > 0 {
		t.Errorf("outside heard: %s", <-heard)
	}
}

// A box that has no descriptor free gets an error, not a call that never ends.
func TestAGrantWithoutAFreeDescriptor(t *testing.T) {
	l := newLab(t)
	if os.Getuid() != 0 {
		t.Skip("a device that an ordinary user may open, and a box has not, is not to be counted on")
	}
	r := l.run(runOpts{policy: func(p *core.Policy) {
		if err := p.Set("device.screen", "allow"); err != nil {
			t.Fatal(err)
		}
	}}, "/usr/bin/python3", "-c", `import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
fds = []
try:
    while True: fds.append(os.dup(0))
except OSError: pass
try: os.open("/dev/tty0", os.O_RDONLY | os.O_NONBLOCK)
except OSError as e: print(e.errno)`)
	if r.out != strconv.Itoa(int(unix.EMFILE))+"\n" {
		t.Errorf("%q %s", r.out, r.stderr)
	}
}

// What is granted is also named: the environment keeps the variable that leads there.
func TestTheEnvironmentOfAGrant(t *testing.T) {
	p, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"SSH_AUTH_SOCK=/tmp/ssh-x/agent.1", "DOCKER_HOST=unix:///run/docker.sock", "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/7/bus", "TMUX=/tmp/tmux-7/default,1,0", "KEEP=1"}
	own := "DBUS_SESSION_BUS_ADDRESS=unix:path=" + busPath()
	for _, c := range []struct{ grants, want []string }{
		{nil, []string{"KEEP=1", own}},
		{[]string{"/tmp/ssh-*/agent.*"}, []string{env[0], "KEEP=1", own}},
		{[]string{"/run/docker.sock", "/run/user/7/bus"}, []string{env[1], env[2], "KEEP=1"}},
	} {
		p.Connect = c.grants
		got := boxEnv(env, p)
		if busDaemon() == "" {
			c.want = slices.DeleteFunc(c.want, func(e string) bool { return e == own })
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("granted %q: %q, want %q", c.grants, got, c.want)
		}
	}
}
