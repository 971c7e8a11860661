package network

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/net/proxy"
)

// dialProxy connects by way of a SOCKS5 proxy (RFC 1928) or an HTTP one (RFC 9110, 9.3.6).
// Where the box asked for a name the proxy is told the name: no question has left for it.
func dialProxy(ctx context.Context, text string, f *flow) (net.Conn, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	v := f.view()
	to := v.Addr.String()
	if len(v.Names) > 0 {
		to = net.JoinHostPort(v.Names[0], strconv.Itoa(int(v.Addr.Port())))
	}
	plain := &net.Dialer{KeepAlive: -1}
	if u.Scheme == "socks5" {
		var auth *proxy.Auth
		if u.User != nil {
			pw, _ := u.User.Password()
			auth = &proxy.Auth{User: u.User.Username(), Password: pw}
		}
		d, err := proxy.SOCKS5("tcp", u.Host, auth, plain)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		// Over a connection of our own: what is given back otherwise cannot be half-closed.
		by, ok := d.(interface {
			DialWithConn(ctx context.Context, c net.Conn, network, address string) (net.Addr, error)
		})
		if !ok {
			return nil, errors.New("proxy: no dialer of connections")
		}
		c, err := plain.DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		if _, err := by.DialWithConn(ctx, c, "tcp", to); err != nil {
			c.Close()
			return nil, fmt.Errorf("proxy: %w", err)
		}
		return c, nil
	}
	c, err := plain.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if err := connectThrough(ctx, c, u, to); err != nil {
		c.Close()
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return c, nil
}

func connectThrough(ctx context.Context, c net.Conn, u *url.URL, to string) error {
	if t, ok := ctx.Deadline(); ok {
		c.SetDeadline(t)
	}
	defer c.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: to}, Host: to, Header: http.Header{}}
	if u.User != nil {
		pw, _ := u.User.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+pw)))
	}
	if err := req.Write(c); err != nil {
		return err
	}
	// One byte at a time: what comes behind the answer is the flow's.
	resp, err := http.ReadResponse(bufio.NewReaderSize(&byteReader{c: c, room: 16 << 10}, 16), req)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("it says %q", resp.Status)
	}
	return nil
}

// byteReader reads no further than it must.
type byteReader struct {
	c    net.Conn
	room int
}

func (r *byteReader) Read(b []byte) (int, error) {
	if r.room--; r.room < 0 {
		return 0, errors.New("too long an answer")
	}
	return r.c.Read(b[:min(1, len(b))])
}
