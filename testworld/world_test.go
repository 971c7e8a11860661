package testworld

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Stage()
	if len(os.Args) > 1 && os.Args[1] == "visit" {
		os.Args = os.Args[1:]
		Visit()
		return
	}
	os.Exit(m.Run())
}

// run runs the visitor.
func run(args ...string) string {
	out, _ := exec.Command("/proc/self/exe", append([]string{"visit"}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

// TestTheWorld holds the world to what is said of it: tests of boxes stand on it.
func TestTheWorld(t *testing.T) {
	In(t, func(t *testing.T, w *World) {
		for _, c := range []struct {
			name, want string
			visit      []string
		}{
			{"a server answers", "connected", []string{"tcp", "203.0.113.10", "80", "x"}},
			{"and by IPv6", "connected", []string{"tcp", Web6.String(), "80", "x"}},
			{"a port that is closed", "ECONNREFUSED", []string{"tcp", "203.0.113.10", fmt.Sprint(PortRefused), "x"}},
			{"a host that is not there", "EHOSTUNREACH", []string{"tcp", Unreachable.String(), "80", "x"}},
			{"a host that is forbidden", "EHOSTUNREACH", []string{"tcp", Prohibited.String(), "80", "x"}},
			{"a host that says nothing", "EINPROGRESS", []string{"tcp", Silent.String(), "80", "x"}},
			{"a server that resets", "ECONNRESET", []string{"http", "203.0.113.10", fmt.Sprint(PortReset), "www.example.test", "x"}},
			{"UDP", "answer 4", []string{"udp", Echo.String(), "7", "text"}},
			{"UDP by IPv6", "answer 4", []string{"sendto", Echo6.String(), "7", "text"}},
			{"UDP to a port that is closed", "ECONNREFUSED", []string{"udp", Echo.String(), "8", "text"}},
			{"ping", "answer 12", []string{"ping", Web.String(), "text"}},
			{"ping by IPv6", "answer 12", []string{"ping", Web6.String(), "text"}},
			{"a name", "rcode 0, 1 answers", []string{"dns", Resolver.String(), "www.example.test"}},
			{"a chain of names", "rcode 0, 4 answers", []string{"dns", Resolver.String(), "alias.example.test"}},
			{"no name", "rcode 3, 0 answers", []string{"dns", Resolver.String(), "nothing.example.test"}},
			{"TLS", "HTTP/1.1 200 OK", []string{"tls", Web.String(), "443", "www.example.test", "x"}},
			{"the LAN", "connected", []string{"tcp", LANServer.String(), "80", "x"}},
			{"metadata", "connected", []string{"tcp", Metadata.String(), "80", "x"}},
			{"QUIC", "100000 " + StreamSum(100000), []string{"quic", Web.String(), "443", "quic.example.test", w.CA, "100000"}},
			{"half-close", "100000 " + StreamSum(100000) + " <nil>", []string{"half", Web.String(), fmt.Sprint(PortSum), "100000"}},
			{"many", "100 ", []string{"many", "100", Web.String(), fmt.Sprint(PortHold)}},
			{"a scan", "2 tried, open: 203.0.113.10:80", []string{"scan", "79-80", Web.String()}},
			{"fast open", "sent", []string{"fastopen", Web.String(), "80", "text"}},
		} {
			if got := run(c.visit...); !strings.Contains(got, c.want) {
				t.Errorf("%s: %q, want %q", c.name, got, c.want)
			}
		}
		t.Run("what was heard", func(t *testing.T) {
			if err := w.Forget(); err != nil {
				t.Fatal(err)
			}
			run("tls", Web.String(), "443", "front.example.test", "secret")
			run("udp", "203.0.113.99", "1234", "lost")
			run("ping", Web6.String(), "payload")
			hs, err := w.Heard()
			if err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			for _, h := range hs {
				fmt.Fprintln(&said, h)
			}
			for _, want := range []string{"wire tcp from 198.51.100.2", "tls  from", `"front.example.test"`, `"GET front.example.test/secret"`, `to 203.0.113.99:1234: "lost"`, `icmp from [2001:db8:51::2]:0 to [2001:db8:beef::10]:0: "payload"`} {
				if !strings.Contains(said.String(), want) {
					t.Errorf("not heard: %s in\n%s", want, said.String())
				}
			}
			if len(hs) != 5 {
				t.Errorf("heard %d things:\n%s", len(hs), said.String())
			}
		})
		t.Run("the hop", func(t *testing.T) {
			if !w.HasFar() {
				if os.Getenv("SANDGLASS_NO_SKIP") != "" {
					t.Fatal("no hop: /dev/net/tun")
				}
				t.Skip("no hop: /dev/net/tun")
			}
			want := "200000 " + StreamSum(200000) + " <nil>"
			for _, addr := range []netip.Addr{Far, Far6} {
				if got := run("half", addr.String(), fmt.Sprint(PortSum), "200000"); got != want {
					t.Errorf("half: %q", got)
				}
			}
			if err := w.SetHop(30, 20*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c, err := net.Dial("tcp", netip.AddrPortFrom(Far, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			if took := time.Since(began); took < 40*time.Millisecond {
				t.Errorf("a round trip took %v", took)
			}
			if got := run("half", Far.String(), fmt.Sprint(PortSum), "200000"); got != want {
				t.Errorf("half: %q", got)
			}
		})
	})
}
