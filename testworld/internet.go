package testworld

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// internetState is what the Internet's servers share.
type internetState struct {
	dir     string
	journal journal
	ca      *authority
	hop     *hop
	mu      sync.Mutex
	running []*exec.Cmd
}

// internet is the process of all that is not the machine. It ends when the machine does.
func internet() error {
	control := os.NewFile(controlFD, "control")
	syscall.CloseOnExec(controlFD)
	conn, err := net.FileConn(control)
	control.Close()
	if err != nil {
		return err
	}
	if n, err := conn.Read(make([]byte, 1)); n != 1 { // isp0 is there
		return fmt.Errorf("the machine is gone: %w", err)
	}
	s := &internetState{dir: os.Getenv(dirEnv)}
	if err := s.addresses(); err != nil {
		return err
	}
	if err := s.watchWire("isp0"); err != nil {
		return err
	}
	if s.ca, err = newAuthority(s.dir); err != nil {
		return err
	}
	for _, start := range []func() error{s.serveDNS, s.serveWeb, s.serveSockets, s.serveQUIC} {
		if err := start(); err != nil {
			return err
		}
	}
	server := rpc.NewServer()
	if err := server.Register(&Control{s}); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	server.ServeConn(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.running {
		c.Process.Kill()
	}
	return nil
}

// addresses makes the Internet's side of the wires.
func (s *internetState) addresses() error {
	for name, value := range map[string]string{
		"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
		// Without forwarding nobody is told that a host is unreachable, and at most
		// one in a while is (icmp(7)).
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	lines := []string{
		"link set lo up",
		"addr add 198.51.100.1/24 dev isp0",
		"addr add 192.168.77.1/24 dev isp0",
		"addr add 2001:db8:51::1/64 dev isp0 nodad",
		"link set isp0 up",
		"addr add " + DoH.String() + "/32 dev lo",
		"addr add 1.1.1.1/32 dev lo",
		"addr add " + Metadata.String() + "/32 dev lo",
		"addr add " + Resolver.String() + "/32 dev lo",
		"addr add 2001:db8:beef::53/128 dev lo nodad",
		"route add blackhole " + Silent.String(),
		"route add unreachable " + Unreachable.String(),
		"route add prohibit " + Prohibited.String(),
		"route add blackhole " + Silent6.String(),
	}
	for i := 10; i <= 30; i++ {
		lines = append(lines, fmt.Sprintf("addr add 203.0.113.%d/32 dev lo", i), fmt.Sprintf("addr add 2001:db8:beef::%d/128 dev lo nodad", i))
	}
	if err := ip(lines...); err != nil {
		return err
	}
	return s.makeHop()
}

// Control is what the machine asks of the Internet ([rpc.Register]).
type Control struct{ s *internetState }

// Hop is how the hop to [Far] treats packets.
type Hop struct {
	PerMille int // so many are lost, each way
	Delay    time.Duration
}

// SetHop is [World.SetHop].
func (c *Control) SetHop(h Hop, _ *struct{}) error {
	if c.s.hop == nil {
		return errors.New("there is no hop: /dev/net/tun could not be opened")
	}
	c.s.hop.how.Store(&h)
	return nil
}

// Heard is [World.Heard].
func (c *Control) Heard(mark string, out *[]Heard) (err error) {
	*out, err = c.s.journal.upTo(mark)
	return err
}

// Forget is [World.Forget].
func (c *Control) Forget(struct{}, *struct{}) error {
	c.s.journal.forget()
	return nil
}

// Program is a program that is to be started, and the TCP port that it listens on.
type Program struct {
	Port int
	Argv []string
}

// Start is [World.Start].
func (c *Control) Start(p Program, _ *struct{}) error {
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // whose death is the program's
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.s.mu.Lock()
	c.s.running = append(c.s.running, cmd)
	c.s.mu.Unlock()
	// Nothing tells when a program has begun to listen: it is tried.
	try := time.NewTicker(10 * time.Millisecond)
	defer try.Stop()
	patience := time.After(20 * time.Second)
	for {
		if conn, err := net.Dial("tcp", netip.AddrPortFrom(Gateway, uint16(p.Port)).String()); err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("%q ended: %s", p.Argv, out.Bytes())
		case <-patience:
			return fmt.Errorf("%q does not listen", p.Argv)
		case <-try.C:
		}
	}
}

// Heard is something that the Internet has heard.
type Heard struct {
	Server string // "wire", "dns", "http", "https", "tls", "quic", "tcp" or "udp"
	Proto  string // of the wire: "tcp" (of which connections' beginnings), "udp", "icmp" or "ip N"
	From   netip.AddrPort
	To     netip.AddrPort
	What   string // what a server understood, or the payload
}

func (h Heard) String() string {
	return fmt.Sprintf("%s %s from %s to %s: %q", h.Server, h.Proto, h.From, h.To, h.What)
}

// journal is all that was heard, in order. It is bounded: what comes after that is an error.
type journal struct {
	mu    sync.Mutex
	heard []Heard
	marks map[string]chan struct{}
	over  bool
}

const maxHeard = 200_000

func (j *journal) add(h Heard) {
	if len(h.What) > 256 {
		h.What = h.What[:256]
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if h.Server == "wire" && h.Proto == "udp" && h.To.Port() == markPort {
		close(j.mark(h.What))
		return
	}
	if len(j.heard) >= maxHeard {
		j.over = true
		return
	}
	j.heard = append(j.heard, h)
}

// mark returns what is closed when a mark came by.
func (j *journal) mark(name string) chan struct{} {
	if j.marks == nil {
		j.marks = map[string]chan struct{}{}
	}
	ch, ok := j.marks[name]
	if !ok {
		ch = make(chan struct{})
		j.marks[name] = ch
	}
	return ch
}

func (j *journal) upTo(mark string) ([]Heard, error) {
	j.mu.Lock()
	came := j.mark(mark)
	j.mu.Unlock()
	<-came
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.marks, mark)
	if j.over {
		return nil, fmt.Errorf("more was heard than %d", maxHeard)
	}
	return append([]Heard{}, j.heard...), nil
}

func (j *journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.heard, j.over = nil, false
}

// tcpServer serves each connection to a port of any address.
func tcpServer(port int, serve func(*net.TCPConn)) error {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return nil
}

// udpServer answers each datagram to an address. IPv4 and IPv6 sockets for any address
// answer from the wrong one.
func udpServer(at netip.AddrPort, answer func(from, to netip.AddrPort, b []byte) []byte) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // an ICMP error of an answer before
				continue
			}
			if a := answer(unmap(from), at, buf[:n]); a != nil {
				c.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	return nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// ends returns the addresses of a connection.
func ends(c net.Conn) (from, to netip.AddrPort) {
	addr := func(a net.Addr) netip.AddrPort {
		switch a := a.(type) {
		case *net.TCPAddr:
			return unmap(a.AddrPort())
		case *net.UDPAddr:
			return unmap(a.AddrPort())
		}
		return netip.AddrPort{}
	}
	return addr(c.RemoteAddr()), addr(c.LocalAddr())
}
