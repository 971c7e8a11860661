package driver

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

func init() {
	programs["echoserver"] = func() { echoServer(os.Args[1]); fmt.Println("end") }
	programs["leave"] = func() { leave(os.Args[1]); fmt.Println("end") }
	programs["held"] = func() { held(os.Args[1]); fmt.Println("end") }
	programs["chatter"] = func() { chatter(os.Args[1]); fmt.Println("end") }
	programs["talk"] = func() { talk(os.Args[1]); fmt.Println("end") }
}

// echoServer says when it listens, and sends back what one client sends.
func echoServer(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("listening")
	c, err := l.Accept()
	if err == nil {
		_, err = io.Copy(c, c)
		c.Close()
	}
	fmt.Println("served", err)
}

// held connects and says how the connection ends.
func held(addr string) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		fmt.Println("connect", err)
		return
	}
	fmt.Fprintln(c, "hello")
	_, err = io.Copy(io.Discard, c)
	fmt.Println("ended", err)
}

// leave connects, sends much and ends at once.
func leave(addr string) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err == nil {
		_, err = c.Write(make([]byte, leaveBytes))
	}
	if err != nil {
		fmt.Println(err)
	}
}

const leaveBytes = 1 << 20

// talk connects, and says what is sent to it.
func talk(addr string) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		fmt.Println("connect", err)
		return
	}
	b, err := io.ReadAll(c)
	fmt.Println(string(b), err)
}

// chatter sends datagrams that mean nothing.
func chatter(addr string) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 400 {
		c.Write(make([]byte, 1200))
	}
}

// mustOwnNet skips where the machine gives no tun device.
func mustOwnNet(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if os.Getenv("SANDGLASS_NO_SKIP") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// listener accepts on this machine's loopback, and hands over what comes.
func listener(t *testing.T) (addr string, conns chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	conns = make(chan net.Conn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	return l.Addr().String(), conns
}

func rules(rs ...string) func(*core.Policy) {
	return func(p *core.Policy) {
		for _, r := range rs {
			if err := p.Network.AddRule(r, false); err != nil {
				panic(err)
			}
		}
	}
}

// onNet picks the operations of the network, as lines.
func onNet(ops []core.Operation, acts ...core.Action) (lines []string) {
	for _, op := range ops {
		if s := string(op.Surface); (strings.HasPrefix(s, "net.") || op.Surface == core.IPCLoopback) && slices.Contains(acts, op.Action) {
			lines = append(lines, fmt.Sprint(op.Verdict, " ", s, " ", op.Action, " ", op.Target, " ", filepath.Base(op.Exe), " ", op.Detail["reason"]))
		}
	}
	return lines
}

// A port of this machine's loopback that a rule names is on the box's own loopback; any other
// is not, by whatever name.
func TestLoopbackByRule(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	open, conns := listener(t)
	shut, heard := listener(t)
	go func() {
		c := <-conns
		io.WriteString(c, "from outside")
		c.Close()
	}()
	r := l.boxed(runOpts{policy: rules("allow " + open)}, "talk", open)
	if !strings.HasPrefix(r.out, "from outside <nil>") {
		t.Errorf("in the box: %s", r.out)
	}
	exe := filepath.Base(os.Args[0])
	want := []string{"allowed ipc.loopback connect " + open + " " + exe + " ", "allowed ipc.loopback close " + open + " " + exe + " fin"}
	var got []string
	for _, line := range onNet(r.ops, core.ActConnect, core.ActClose) {
		if !strings.HasPrefix(line, "redirected") { // the box's own end of it
			got = append(got, line)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("on record %q, want %q", got, want)
	}
	_, port, _ := net.SplitHostPort(shut)
	var tries []string
	for _, a := range append(machineAddrs(t), "127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "192.0.2.1", "2001:db8:5361::1") {
		tries = append(tries, "tcp:"+net.JoinHostPort(a, port))
	}
	r = l.boxed(runOpts{policy: rules("allow "+open, "allow *")}, "reach", tries...)
	for _, line := range strings.Split(strings.TrimSpace(r.out), "\n") {
		if strings.HasSuffix(line, "reached") {
			t.Errorf("in the box: %s", line)
		}
	}
	select {
	case c := <-heard:
		t.Errorf("a server of this machine heard from %s", c.RemoteAddr())
	default:
	}
}

// machineAddrs lists this machine's own addresses but those of loopback.
func machineAddrs(t *testing.T) (as []string) {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			as = append(as, p.Addr().String())
		}
	}
	return as
}

// A published port leads to the box's server, and each that comes is on record.
func TestPublishedPort(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	at := make(chan string, 1)
	answer := make(chan string, 1)
	go func() {
		addr := <-at
		for { // until the box's server listens
			c, err := net.Dial("tcp", addr)
			if err == nil {
				io.WriteString(c, "to the box")
				c.(*net.TCPConn).CloseWrite()
				b, err := io.ReadAll(c)
				c.Close()
				if err != nil && len(b) > 0 {
					t.Errorf("%q came, and then: %v", b, err)
				}
				if err == nil && len(b) > 0 {
					answer <- string(b)
					return
				}
			}
		}
	}()
	r := l.boxed(runOpts{policy: func(p *core.Policy) {
		if err := p.Network.AddPublish("127.0.0.1:0:7000"); err != nil {
			t.Fatal(err)
		}
	}, live: func(op *core.Operation) {
		if op.Surface == core.NetIn && op.Action == core.ActListen {
			at <- op.Target
		}
	}}, "echoserver", ":7000")
	if got := <-answer; got != "to the box" || !strings.Contains(r.out, "served <nil>") {
		t.Errorf("the box answered %q; in it: %s", got, r.out)
	}
	accepted := false
	for _, op := range r.ops {
		if op.Surface == core.NetIn && op.Action == core.ActClose && op.Detail["reason"] == "fin" {
			accepted = op.Detail["received"] == "10" && op.Detail["sent"] == "10"
		}
	}
	if !accepted {
		t.Errorf("on record: %q", onNet(r.ops, core.ActAccept, core.ActClose))
	}
}

// The sessions of a box have one network: each its own flows and log, and the second goes on
// when the first, whose device it is, has ended.
func TestSessionsShareANetwork(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	first, conns := listener(t)
	second, conns2 := listener(t)
	firstOver, secondBegun := make(chan result, 1), make(chan struct{})
	ready := make(chan struct{})
	l2 := *l
	go func() {
		firstOver <- l2.boxed(runOpts{policy: rules("allow " + first), live: func(op *core.Operation) {
			if op.Action == core.ActConnect && op.Verdict == core.Allowed && op.Surface == core.IPCLoopback {
				close(ready)
			}
		}}, "held", first)
	}()
	<-ready
	held := <-conns
	bufio.NewReader(held).ReadString('\n') // what is not read would be a reset
	go func() {
		c := <-conns2
		close(secondBegun)
		r := bufio.NewReader(c)
		r.ReadString('\n')
		held.Close() // the first session ends
		a := <-firstOver
		if !strings.Contains(a.out, "ended <nil>") {
			t.Errorf("in the first: %s", a.out)
		}
		if got := onNet(a.ops, core.ActConnect); len(got) != 2 {
			t.Errorf("the first has on record %q", got)
		}
		c.Close()
	}()
	l.seq += 10
	r := l.boxed(runOpts{policy: rules("allow " + second)}, "held", second)
	<-secondBegun
	if !strings.Contains(r.out, "ended <nil>") || r.ops[0].Detail["joined"] != "true" {
		t.Errorf("in the second: %s; %v", r.out, r.ops[0].Detail)
	}
	if got := onNet(r.ops, core.ActConnect); len(got) != 2 || !strings.Contains(strings.Join(got, "\n"), "allowed ipc.loopback connect "+second) {
		t.Errorf("the second has on record %q", got)
	}
}

// A session does not join a box that runs with another network than it asks for.
func TestSessionsOfDifferentNetworks(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	addr, conns := listener(t)
	over := make(chan result, 1)
	l2 := *l
	go func() { over <- l2.boxed(runOpts{policy: rules("allow " + addr)}, "held", addr) }()
	held := <-conns
	bufio.NewReader(held).ReadString('\n')
	for _, n := range []core.Net{core.NetNone, core.NetHost} {
		l.seq += 10
		if r := l.run(runOpts{net: n, quiet: true}, "/bin/true"); r.err == nil || !strings.Contains(r.err.Error(), "another network") {
			t.Errorf("--net %s: %v", n, r.err)
		}
	}
	held.Close()
	<-over
}

// A flow that is cut, or that a rule forbids while it goes on, ends at once with a reset.
func TestFlowsAreCut(t *testing.T) {
	mustOwnNet(t)
	for _, c := range []struct {
		order  Order
		reason string
	}{{Order{Do: "cut"}, "cut"}, {Order{Do: "cut", Flow: "1"}, "cut"}, {Order{Do: "rule", Rule: "block 127.0.0.1"}, "policy"}} {
		t.Run(c.order.Do+c.order.Flow, func(t *testing.T) {
			l := newLab(t)
			addr, conns := listener(t)
			gone := make(chan error, 1)
			go func() {
				conn := <-conns
				bufio.NewReader(conn).ReadString('\n')
				if n, err := Ask(filepath.Join(l.home, "boxes", "b"), c.order); err != nil || n != 1 {
					t.Errorf("%d sessions: %v", n, err)
				}
				_, err := io.Copy(io.Discard, conn)
				gone <- err
			}()
			r := l.boxed(runOpts{policy: rules("allow " + addr)}, "held", addr)
			if !strings.Contains(r.out, "connection reset") {
				t.Errorf("in the box: %s", r.out)
			}
			if err := <-gone; err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("outside: %v", err)
			}
			if got := onNet(r.ops, core.ActClose); len(got) != 1 || !strings.HasSuffix(got[0], " "+c.reason) {
				t.Errorf("on record: %q", got)
			}
		})
	}
}

// A rule that asks holds the flow until there is an answer; no answer is a no.
func TestAsking(t *testing.T) {
	mustOwnNet(t)
	for _, allow := range []bool{true, false} {
		t.Run(fmt.Sprint(allow), func(t *testing.T) {
			l := newLab(t)
			box := filepath.Join(l.home, "boxes", "b")
			addr, conns := listener(t)
			go func() {
				if c, ok := <-conns; ok {
					io.WriteString(c, "from outside")
					c.Close()
				}
			}()
			r := l.boxed(runOpts{policy: rules("ask " + addr), live: func(op *core.Operation) {
				if op.Action != core.ActAsk || op.Detail["answer"] != "" {
					return
				}
				id := op.Detail["ask"]
				go func() {
					qs, err := Questions(box)
					if err != nil || len(qs) != 1 || qs[0].ID != id || qs[0].Target != addr {
						t.Errorf("questions %+v, %v", qs, err)
					}
					if n, err := Ask(box, Order{Do: "answer", Ask: id, Allow: allow}); err != nil || n != 1 {
						t.Errorf("%d sessions: %v", n, err)
					}
				}()
			}}, "talk", addr)
			if got := strings.HasPrefix(r.out, "from outside <nil>"); got != allow {
				t.Errorf("in the box: %s", r.out)
			}
			want := map[bool]string{true: "allowed", false: "blocked"}[allow]
			if got := onNet(r.ops, core.ActAsk); len(got) != 2 || !strings.HasPrefix(got[1], want) {
				t.Errorf("on record: %q", got)
			}
		})
	}
}

// What a box would change of its interface is refused, and on record.
func TestBoxDoesNotConfigureItsNetwork(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	r := l.run(runOpts{quiet: true}, "/bin/sh", "-c", "ip addr add 203.0.113.5/24 dev sand0; ip link set sand0 down; ip route del default; ip addr show dev sand0")
	if !strings.Contains(r.out, "192.0.2.2") || !strings.Contains(r.out, "UP") {
		t.Errorf("in the box: %s\n%s", r.out, r.stderr)
	}
	var got []string
	for _, op := range r.ops {
		if op.Action == core.ActConfigure {
			got = append(got, fmt.Sprint(op.Verdict, " ", op.Target, " ", op.Errno))
		}
	}
	if want := []string{"blocked RTM_NEWADDR EPERM", "blocked RTM_NEWLINK EPERM", "blocked RTM_DELROUTE EPERM"}; !slices.Equal(got, want) {
		t.Errorf("on record %q, want %q", got, want)
	}
}

// A session that ends with flows open closes them, and the log says so.
func TestSessionEndClosesFlows(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	addr, conns := listener(t)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		c := <-conns
		bufio.NewReader(c).ReadString('\n')
		cancel()
		io.Copy(io.Discard, c)
	}()
	r := l.run(runOpts{ctx: ctx, quiet: true, env: []string{"BOXED_PROGRAM=held"}, policy: rules("allow " + addr)}, os.Args[0], addr)
	if got := onNet(r.ops, core.ActClose); len(got) != 1 {
		t.Errorf("on record: %q", got)
	}
}

// Who connects from another session of the box, with its one loopback, is not taken for a
// process of this one.
func TestLoopbackOfAnotherSession(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	addr, conns := listener(t)
	over, ready := make(chan result, 1), make(chan struct{}, 2)
	l2 := *l
	go func() {
		over <- l2.boxed(runOpts{policy: rules("allow " + addr), live: func(op *core.Operation) {
			if op.Action == core.ActConnect && op.Verdict == core.Allowed {
				ready <- struct{}{}
			}
		}}, "held", addr)
	}()
	<-ready
	held := <-conns
	bufio.NewReader(held).ReadString('\n')
	go func() {
		c := <-conns
		io.WriteString(c, "hello")
		c.Close()
	}()
	l.seq += 10
	if r := l.boxed(runOpts{}, "talk", addr); !strings.HasPrefix(r.out, "hello") {
		t.Errorf("in the second: %s", r.out)
	}
	held.Close()
	a := <-over
	var pids []int
	for _, op := range a.ops {
		if op.Surface == core.IPCLoopback && op.Action == core.ActConnect && op.Verdict == core.Allowed {
			pids = append(pids, op.PID)
		}
	}
	if len(pids) != 2 || pids[0] == 0 || pids[1] != 0 {
		t.Errorf("the first has on record processes %d", pids)
	}
}

// What a program has sent when it ends arrives, though its session ends with it.
func TestWhatWasSentArrives(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	addr, conns := listener(t)
	got := make(chan int64, 1)
	go func() {
		c := <-conns
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	l.boxed(runOpts{policy: rules("allow " + addr)}, "leave", addr)
	if n := <-got; n != leaveBytes {
		t.Errorf("%d of %d bytes arrived", n, leaveBytes)
	}
}

// A capture that cannot go on costs the box nothing, and is not silent.
func TestACaptureThatFailsIsOnRecord(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	dir := filepath.Join(t.TempDir(), "captures")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := l.boxed(runOpts{capture: filepath.Join(dir, "c"), live: func(op *core.Operation) {
		if op.Action == core.ActBegin {
			os.RemoveAll(dir) // so that its first file cannot become its second
		}
	}}, "chatter", "192.0.2.1:53")
	var told []string
	for _, op := range r.ops {
		if op.Action == core.ActTrouble {
			told = append(told, op.Target+": "+op.Detail["error"])
		}
	}
	if len(told) != 1 || !strings.HasPrefix(told[0], "network: capture: ") || !strings.Contains(told[0], "no such file") {
		t.Errorf("on record: %q", told)
	}
}
