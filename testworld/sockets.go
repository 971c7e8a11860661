package testworld

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"time"
)

// quiet is for servers that would complain of what a test did to them on purpose.
var quiet = log.New(io.Discard, "", 0)

// Ports of the Internet's servers, each on every address of TCP.
const (
	PortEcho    = 7    // sends back what it gets; of UDP at [Echo] only
	PortDiscard = 1009 // takes whatever comes, and says at the end how much it was
	PortChargen = 19   // sends bytes of [Stream] for ever
	PortNever   = 8001 // takes a connection and never says anything
	PortClose   = 8002 // sends half of an answer and ends
	PortReset   = 8003 // resets a connection that has said something
	PortGarbage = 8004 // answers with what is no protocol
	PortSum     = 8005 // at the end of what it gets, sends its length and SHA-256
	PortHold    = 8006 // says "hello" and holds the connection
	PortTell    = 8007 // what it gets first is heard
	PortRefused = 8999 // nobody listens
)

// serveSockets serves what is no protocol of anybody.
func (s *internetState) serveSockets() error {
	tcp := map[int]func(*net.TCPConn){
		PortEcho:    func(c *net.TCPConn) { io.Copy(c, c) },
		PortDiscard: func(c *net.TCPConn) { n, _ := io.Copy(io.Discard, c); fmt.Fprintln(c, n) },
		PortChargen: func(c *net.TCPConn) { io.Copy(c, &fastStream{}) },
		PortNever:   func(c *net.TCPConn) { io.Copy(io.Discard, c) },
		PortClose: func(c *net.TCPConn) {
			c.Read(make([]byte, 4096))
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789")
		},
		PortReset: func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			c.SetLinger(0)
		},
		PortGarbage: func(c *net.TCPConn) {
			c.Read(make([]byte, 4096))
			io.CopyN(c, &Stream{}, 4096)
		},
		PortSum: func(c *net.TCPConn) {
			h := sha256.New()
			n, err := io.Copy(h, c)
			fmt.Fprintf(c, "%d %x %v\n", n, h.Sum(nil), err)
		},
		PortHold: func(c *net.TCPConn) { io.WriteString(c, "hello"); io.Copy(io.Discard, c) },
	}
	tcp[PortTell] = func(c *net.TCPConn) {
		from, to := ends(c)
		b := make([]byte, 256)
		n, _ := c.Read(b)
		s.journal.add(Heard{Server: "tcp", From: from, To: to, What: string(b[:n])})
	}
	for port, serve := range tcp {
		err := tcpServer(port, func(c *net.TCPConn) {
			from, to := ends(c)
			if port != PortHold { // of which there are thousands
				s.journal.add(Heard{Server: "tcp", From: from, To: to, What: "connection"})
			}
			c.SetDeadline(time.Now().Add(10 * time.Minute))
			serve(c)
		})
		if err != nil {
			return err
		}
	}
	for _, addr := range []netip.Addr{Echo, Echo6, Gateway, LANServer} {
		err := udpServer(netip.AddrPortFrom(addr, PortEcho), func(from, to netip.AddrPort, b []byte) []byte {
			s.journal.add(Heard{Server: "udp", From: from, To: to, What: string(b)})
			return b
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Echo6 is [Echo] of IPv6.
var Echo6 = netip.MustParseAddr("2001:db8:beef::20")

// fastStream is as endless as [Stream], and as fast as memory.
type fastStream struct{}

func (fastStream) Read(b []byte) (int, error) { return len(b), nil }
