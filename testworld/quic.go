package testworld

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/quic-go/quic-go"
)

const quicProto = "testworld-echo"

// serveQUIC echoes streams at 443/udp of [Web], [Web6] and [DoH].
func (s *internetState) serveQUIC() error {
	for _, addr := range []netip.Addr{Web, Web6, DoH} {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 443)))
		if err != nil {
			return err
		}
		conf := s.tlsConfig(quicProto)
		conf.MinVersion = tls.VersionTLS13
		l, err := quic.Listen(conn, conf, nil)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept(context.Background())
				if err != nil {
					return
				}
				go s.echoQUIC(c)
			}
		}()
	}
	return nil
}

func (s *internetState) echoQUIC(c *quic.Conn) {
	s.journal.add(Heard{Server: "quic", From: c.RemoteAddr().(*net.UDPAddr).AddrPort(), To: c.LocalAddr().(*net.UDPAddr).AddrPort(), What: c.ConnectionState().TLS.ServerName})
	for {
		stream, err := c.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() { io.Copy(stream, stream); stream.Close() }()
	}
}

// quicEcho is a client: it sends n bytes of [Stream] and checks that they come back.
func quicEcho(addr, name, caFile string, n int64) (string, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return "", err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := quic.DialAddr(ctx, addr, &tls.Config{ServerName: name, RootCAs: pool, NextProtos: []string{quicProto}}, nil)
	if err != nil {
		return "", err
	}
	defer c.CloseWithError(0, "")
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		return "", err
	}
	go func() {
		io.Copy(stream, io.LimitReader(&Stream{}, n))
		stream.Close()
	}()
	sum, got, err := sumOf(stream)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s", got, sum), nil
}
