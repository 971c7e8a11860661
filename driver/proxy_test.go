package driver

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

func init() {
	programs["fetch"] = func() { fetch(); fmt.Println("end") }
	programs["halfclosed"] = func() { halfClosed(os.Args[1]); fmt.Println("end") }
}

// fetch looks a name up, and connects there and to an address.
func fetch() {
	for _, to := range []string{"inside.example:80", "203.0.113.77:81"} {
		c, err := net.Dial("tcp4", to)
		if err != nil {
			fmt.Println("connect", err)
			continue
		}
		b, err := io.ReadAll(c)
		fmt.Println(string(b), err)
	}
	c, err := net.Dial("udp4", "203.0.113.77:123")
	if err == nil {
		if _, err = c.Write([]byte("time")); err == nil {
			_, err = c.Read(make([]byte, 10))
		}
	}
	fmt.Println("udp", err)
}

// halfClosed says something to its end, and then listens.
func halfClosed(to string) {
	c, err := net.DialTimeout("tcp4", to, 10*time.Second)
	if err != nil {
		fmt.Println("connect", err)
		return
	}
	io.WriteString(c, "all of it")
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	fmt.Println(string(b), err)
}

// socks answers as a SOCKS5 proxy (RFC 1928, RFC 1929) that is at every place itself.
func socks(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	read := func(n int) []byte { b := make([]byte, n); io.ReadFull(r, b); return b }
	read(int(read(2)[1]))
	c.Write([]byte{5, 2})
	user := string(read(int(read(2)[1])))
	password := string(read(int(read(1)[0])))
	c.Write([]byte{1, 0})
	var host string
	switch read(4)[3] {
	case 1:
		host = netip.AddrFrom4([4]byte(read(4))).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	port := binary.BigEndian.Uint16(read(2))
	c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	fmt.Fprintf(c, "%s:%s asks for %s", user, password, net.JoinHostPort(host, strconv.Itoa(int(port))))
	if host == "half.example" {
		b, err := io.ReadAll(r)
		fmt.Fprint(c, " and says ", string(b), " ", err)
	}
}

// connectProxy is the same over HTTP.
func connectProxy(c net.Conn) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	auth := http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}
	user, password, _ := auth.BasicAuth()
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\n%s:%s asks for %s", user, password, req.Host)
	if strings.HasPrefix(req.Host, "half.example") {
		b, err := io.ReadAll(c)
		fmt.Fprint(c, " and says ", string(b), " ", err)
	}
}

// Behind a proxy the end of one way is passed on, and the other goes on.
func TestProxyHalfClosed(t *testing.T) {
	mustOwnNet(t)
	for scheme, serve := range map[string]func(net.Conn){"socks5": socks, "http": connectProxy} {
		t.Run(scheme, func(t *testing.T) {
			l := newLab(t)
			addr, conns := listener(t)
			go func() { serve(<-conns) }()
			r := l.boxed(runOpts{policy: func(p *core.Policy) {
				if err := p.Network.SetProxy(scheme + "://me:secret@" + addr); err != nil {
					t.Fatal(err)
				}
			}}, "halfclosed", "half.example:80")
			if !strings.HasPrefix(r.out, "me:secret asks for half.example:80 and says all of it <nil> <nil>") {
				t.Errorf("in the box: %s", r.out)
			}
		})
	}
}

// Behind a proxy a name is told to it and asked of nobody, and what it does not carry does
// not leave.
func TestProxy(t *testing.T) {
	mustOwnNet(t)
	for scheme, serve := range map[string]func(net.Conn){"socks5": socks, "http": connectProxy} {
		t.Run(scheme, func(t *testing.T) {
			l := newLab(t)
			addr, conns := listener(t)
			asked, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer asked.Close()
			go func() {
				for c := range conns {
					go serve(c)
				}
			}()
			r := l.boxed(runOpts{policy: func(p *core.Policy) {
				if err := p.Network.SetProxy(scheme + "://me:secret@" + addr); err != nil {
					t.Fatal(err)
				}
				if err := p.Network.AddResolver(asked.LocalAddr().String()); err != nil {
					t.Fatal(err)
				}
			}}, "fetch")
			want := "me:secret asks for inside.example:80 <nil>\nme:secret asks for 203.0.113.77:81 <nil>\nudp "
			if !strings.HasPrefix(r.out, want) || strings.Contains(r.out, "udp <nil>") {
				t.Errorf("in the box:\n%s", r.out)
			}
			asked.SetReadDeadline(time.Unix(1, 0))
			if n, _, err := asked.ReadFrom(make([]byte, 512)); err == nil {
				t.Errorf("the resolver was asked %d bytes", n)
			}
			blocked := false
			for _, op := range r.ops {
				if strings.Contains(fmt.Sprint(op), "secret") {
					t.Errorf("the password is on record: %v", op)
				}
				blocked = blocked || op.Verdict == core.Blocked && op.Target == "203.0.113.77:123"
			}
			if !blocked {
				t.Errorf("on record: %q", onNet(r.ops, core.ActSend, core.ActConnect))
			}
		})
	}
}

// A box that has carried as many bytes as it may carries no more.
func TestNetworkLimits(t *testing.T) {
	mustOwnNet(t)
	l := newLab(t)
	addr, conns := listener(t)
	got := make(chan int64, 8)
	go func() {
		for c := range conns {
			go func() {
				n, _ := io.CopyN(c, zeros{}, 64<<20)
				got <- n
				c.Close()
			}()
		}
	}()
	r := l.boxed(runOpts{policy: func(p *core.Policy) {
		rules("allow " + addr)(p)
		if err := p.Limits.Set("net-bytes", "1MiB"); err != nil {
			t.Fatal(err)
		}
	}}, "held", addr)
	if !strings.Contains(r.out, "connection reset") {
		t.Errorf("in the box: %s", r.out)
	}
	if n := <-got; n == 64<<20 {
		t.Error("all of it was carried")
	}
	hits, reason := 0, ""
	for _, op := range r.ops {
		if op.Surface == core.SandboxLimit && op.Target == "net-bytes" {
			hits++
		}
		if op.Action == core.ActClose {
			reason = op.Detail["reason"]
		}
	}
	if hits != 1 || reason != "limit" {
		t.Errorf("%d hits on record, the flow ended by %q", hits, reason)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
