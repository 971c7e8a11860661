package network

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tap is one end of a connection that keeps what is written to it.
type tap struct {
	net.Conn
	mu    sync.Mutex
	wrote []byte
}

func (c *tap) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.wrote = append(c.wrote, b...)
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// certificate is one of a server, with those names.
func certificate(t testing.TB, common string, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: common}, DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// handshake is what the two ends of a TLS connection send.
func handshake(t testing.TB, client, server *tls.Config) (fromClient, fromServer []byte) {
	t.Helper()
	a, b := net.Pipe()
	x, y := &tap{Conn: a}, &tap{Conn: b}
	var all sync.WaitGroup
	all.Go(func() {
		defer y.Close()
		if s := tls.Server(y, server); s.Handshake() == nil {
			io.Copy(io.Discard, s)
		}
	})
	c := tls.Client(x, client)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("a secret")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	x.Close()
	all.Wait()
	return x.wrote, y.wrote
}

// inRecords cuts the handshake message in b's first record into records of n bytes.
func inRecords(b []byte, n int) (out []byte) {
	size := int(binary.BigEndian.Uint16(b[3:]))
	for part := range slices.Chunk(b[5:5+size], n) {
		out = append(append(out, b[0], b[1], b[2], byte(len(part)>>8), byte(len(part))), part...)
	}
	return append(out, b[5+size:]...)
}

// grows calls f with ever more of b, and demands that it says nothing until it is sure, and
// then stays with it. It returns how many bytes it took.
func grows(t *testing.T, b []byte, f func([]byte) (string, helloState)) (said string, took int) {
	t.Helper()
	took = -1
	for n := range len(b) + 1 {
		got, s := f(b[:n])
		switch {
		case s == notThis:
			t.Fatalf("after %d bytes: not this protocol", n)
		case s == needsMore && took >= 0:
			t.Fatalf("after %d bytes it was done, after %d it needs more", took, n)
		case s == allRead && took < 0:
			took, said = n, got
		case s == allRead && got != said:
			t.Fatalf("%s after %d bytes, %s after %d", said, took, got, n)
		}
	}
	return said, took
}

func sayHello(b []byte) (string, helloState) {
	h, s := clientHello(b)
	return fmt.Sprintf("%+v", h), s
}

func saysServer(b []byte) (string, helloState) {
	certs, alpn, s := serverNames(b)
	return fmt.Sprint(certs, " ", alpn), s
}

func TestATLSHelloIsRead(t *testing.T) {
	server := &tls.Config{Certificates: []tls.Certificate{certificate(t, "Common.example.org", "www.example.org", "*.Example.net", "bad name", "192.0.2.1", "common.example.org")},
		NextProtos: []string{"h2", "http/1.1"}}
	for _, c := range []struct {
		version      uint16
		name         string
		alpn         []string
		hello        string
		names, chose string
	}{
		{tls.VersionTLS13, "www.example.org", []string{"h2", "http/1.1"}, "{name:www.example.org alpn:[h2 http/1.1] ech:false}", "[]", ""},
		{tls.VersionTLS12, "WWW.Example.ORG", []string{"http/1.1"}, "{name:www.example.org alpn:[http/1.1] ech:false}", "[www.example.org *.example.net common.example.org]", "http/1.1"},
		{tls.VersionTLS12, "192.0.2.7", nil, "{name: alpn:[] ech:false}", "[www.example.org *.example.net common.example.org]", ""},
	} {
		t.Run(fmt.Sprintf("%s as %s", c.name, tls.VersionName(c.version)), func(t *testing.T) {
			client, from := handshake(t, &tls.Config{InsecureSkipVerify: true, ServerName: c.name, NextProtos: c.alpn, MinVersion: c.version, MaxVersion: c.version}, server)
			said, took := grows(t, client, sayHello)
			if said != c.hello || took != 5+int(binary.BigEndian.Uint16(client[3:])) {
				t.Errorf("the hello is %s after %d bytes, want %s", said, took, c.hello)
			}
			for _, n := range []int{1, 3, 100} {
				if got, _ := grows(t, inRecords(client, n), sayHello); got != said {
					t.Errorf("in records of %d bytes it is %s", n, got)
				}
			}
			if said, _ = grows(t, from, saysServer); said != c.names+" "+c.chose {
				t.Errorf("the server is %s, want %s %s", said, c.names, c.chose)
			}
			if _, s := clientHello(from); s != notThis {
				t.Error("what the server says is a client's hello")
			}
			if _, _, s := serverNames(client); s != notThis {
				t.Error("what the client says is a server's hello")
			}
		})
	}
}

func TestAResumedSessionHasNoCertificate(t *testing.T) {
	server := &tls.Config{Certificates: []tls.Certificate{certificate(t, "", "www.example.org")}}
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "www.example.org", MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for _, want := range []string{"[www.example.org] ", "[] "} {
		_, from := handshake(t, client, server)
		if said, _ := grows(t, from, saysServer); said != want {
			t.Errorf("the server is %s, want %s", said, want)
		}
	}
}

func TestAnEncryptedHelloIsKnownAsOne(t *testing.T) {
	b, _ := handshake(t, &tls.Config{InsecureSkipVerify: true, ServerName: "front.example"}, &tls.Config{Certificates: []tls.Certificate{certificate(t, "", "x.example")}})
	if h, s := clientHello(withExtension(b, extECH, []byte{0})); s != allRead || !h.ech || h.name != "front.example" {
		t.Errorf("the hello is %+v, %d", h, s)
	}
}

// withExtension adds an extension to the hello that begins b.
func withExtension(b []byte, kind uint16, data []byte) []byte {
	be := binary.BigEndian
	size := int(be.Uint16(b[3:]))
	add := append(be.AppendUint16(be.AppendUint16(nil, kind), uint16(len(data))), data...)
	out := append(bytes.Clone(b[:5+size]), add...)
	be.PutUint16(out[3:], uint16(size+len(add)))
	be.PutUint16(out[7:], uint16(size-4+len(add)))
	at := 5 + 4 + 2 + 32
	at += 1 + int(out[at])
	at += 2 + int(be.Uint16(out[at:]))
	at += 1 + int(out[at])
	be.PutUint16(out[at:], be.Uint16(out[at:])+uint16(len(add)))
	return out
}

func TestAHelloThatCanBeReadInTwoWaysNamesNobody(t *testing.T) {
	b, _ := handshake(t, &tls.Config{InsecureSkipVerify: true, ServerName: "good.example"}, &tls.Config{Certificates: []tls.Certificate{certificate(t, "", "x.example")}})
	name := func(names ...string) (list []byte) {
		for _, n := range names {
			list = append(append(list, 0, byte(len(n)>>8), byte(len(n))), n...)
		}
		return append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)
	}
	plain, _ := handshake(t, &tls.Config{InsecureSkipVerify: true}, &tls.Config{Certificates: []tls.Certificate{certificate(t, "", "x.example")}})
	for _, c := range []struct {
		what string
		b    []byte
		want helloState
		name string
	}{
		{"one name", withExtension(plain, extServerName, name("Good.example.")), allRead, "good.example"},
		{"two extensions", withExtension(b, extServerName, name("bad.example")), notThis, ""},
		{"two names", withExtension(plain, extServerName, name("a.example", "b.example")), notThis, ""},
		{"a list that is longer than it says", withExtension(plain, extServerName, append(name("a.example"), 0)), notThis, ""},
		{"bytes of no name", withExtension(plain, extServerName, name("a\x00.example")), allRead, ""},
		{"an address", withExtension(plain, extServerName, name("0x7f.1")), allRead, ""},
		{"a large one that does not end", append([]byte{22, 3, 1, 0x40, 0}, make([]byte, maxClientBytes)...), notThis, ""},
		{"a record of nothing", []byte{22, 3, 1, 0, 0}, notThis, ""},
		{"a record that is too long", []byte{22, 3, 1, 0xFF, 0xFF}, notThis, ""},
		{"an alert", []byte{21, 3, 1, 0, 2, 2, 40}, notThis, ""},
		{"SSH", []byte("SSH-2.0-OpenSSH\r\n"), notThis, ""},
		{"nothing yet", nil, needsMore, ""},
	} {
		if h, s := clientHello(c.b); s != c.want || h.name != c.name {
			t.Errorf("%s: %+v, %d", c.what, h, s)
		}
	}
	if _, _, s := serverNames(make([]byte, 10)); s != notThis {
		t.Error("zeroes are a server's hello")
	}
}

func TestACertificateWithManyNames(t *testing.T) {
	var names []string
	for i := range 300 {
		names = append(names, fmt.Sprintf("n%d.%s.example.org", i, strings.Repeat("a", 60)))
	}
	_, from := handshake(t, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, &tls.Config{Certificates: []tls.Certificate{certificate(t, "", names...)}})
	certs, _, s := serverNames(from)
	if s != allRead || !slices.Equal(certs, names[:maxCertNames]) {
		t.Errorf("%d names, %d", len(certs), s)
	}
	if certs, _, s := serverNames(from[:1000]); s != needsMore || certs != nil {
		t.Errorf("of a part: %q, %d", certs, s)
	}
}

func TestWhomAnHTTPRequestIsFor(t *testing.T) {
	for _, c := range []struct {
		request string
		host    string
		want    helloState
	}{
		{"GET / HTTP/1.1\r\nHost: WWW.Example.org\r\n\r\n", "www.example.org", allRead},
		{"POST /a?b=http://x.example HTTP/1.0\r\nA: b\r\nhOsT:\twww.example.org:8080 \r\n\r\nHost: body.example\r\n\r\n", "www.example.org", allRead},
		{"GET / HTTP/1.1\nHost: www.example.org\n\n", "www.example.org", allRead},
		{"GET http://user@Target.example:80/x@y HTTP/1.1\r\nHost: header.example\r\n\r\n", "target.example", allRead},
		{"GET http://target.example?x HTTP/1.1\r\n\r\n", "target.example", allRead},
		{"CONNECT target.example:443 HTTP/1.1\r\nHost: header.example\r\n\r\n", "target.example", allRead},
		{"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: header.example\r\n\r\n", "", allRead},
		{"OPTIONS * HTTP/1.1\r\nHost: www.example.org\r\n\r\n", "www.example.org", allRead},
		{"PROPFIND /d HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "", allRead},
		{"GET / HTTP/1.1\r\nHost: 2001:db8::1\r\n\r\n", "", allRead},
		{"GET / HTTP/1.1\r\nHost: 127.1\r\n\r\n", "", allRead},
		{"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", "", allRead},
		{"GET / HTTP/1.1\r\nHost: a b.example\r\n\r\n", "", allRead},
		{"GET / HTTP/1.1\r\nHost: a\r.example\r\n\r\n", "", allRead},
		{"GET / HTTP/1.0\r\n\r\n", "", allRead},
		{"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", "", notThis},
		{"GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", "", notThis},
		{"GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\n\r\n", "", notThis},
		{"GET / HTTP/1.1\r\nHost\r\n\r\n", "", notThis},
		{"GET / HTTP/2.0\r\nHost: a.example\r\n\r\n", "", notThis},
		{"GET /\r\n", "", notThis},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", notThis},
		{"SSH-2.0-OpenSSH\r\n", "", notThis},
		{"get / HTTP/1.1\r\n\r\n", "", notThis},
		{"EHLO mail.example\r\n", "", notThis},
		{"\x16\x03\x01", "", notThis},
		{"PRO", "", needsMore},
		{"", "", needsMore},
		{"GET / HTTP/1.1\r\nHost: www.example.org\r\n", "", needsMore},
		{"GET / HTTP/1.1\r\nA: " + strings.Repeat("b", maxClientBytes), "", notThis},
		{"GET / HTTP/1.1\r\nHost: a.example\r\nA: " + strings.Repeat("b", maxClientBytes) + "\r\n\r\n", "", notThis},
	} {
		host, s := httpHost([]byte(c.request))
		if host != c.host || s != c.want {
			t.Errorf("%.60q is for %q, %d, want %q, %d", c.request, host, s, c.host, c.want)
		}
		if c.want == allRead {
			grows(t, []byte(c.request), httpHost)
		}
	}
}

// TestARequestOfARealClient, and that what we take for its host is what a server does.
func TestARequestOfARealClient(t *testing.T) {
	a, b := net.Pipe()
	x := &tap{Conn: a}
	go http.ReadRequest(bufio.NewReader(b))
	req, err := http.NewRequest("PUT", "http://www.example.org:8080/x", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(x); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if host, s := httpHost(x.wrote); host != "www.example.org" || s != allRead {
		t.Errorf("%q is for %q, %d", x.wrote, host, s)
	}
}

func FuzzClientHello(f *testing.F) {
	b, s := handshake(f, &tls.Config{InsecureSkipVerify: true, ServerName: "www.example.org", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12},
		&tls.Config{Certificates: []tls.Certificate{certificate(f, "x.example", "www.example.org")}})
	f.Add(b)
	f.Add(inRecords(b, 7))
	f.Add(s)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, s := clientHello(b)
		if s != allRead && (h.name != "" || h.alpn != nil || h.ech) || len(h.alpn) > maxALPN || s == needsMore && len(b) >= maxClientBytes || h.name != "" && hostName(h.name) != h.name {
			t.Errorf("%x is %+v, %d", b, h, s)
		}
		if more, again := clientHello(append(b[:len(b):len(b)], 0)); s == allRead && (again != allRead || fmt.Sprint(h) != fmt.Sprint(more)) || s == notThis && again != notThis {
			t.Errorf("%x is %+v, %d, and with another byte %+v, %d", b, h, s, more, again)
		}
	})
}

func FuzzServerNames(f *testing.F) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, b := handshake(f, &tls.Config{InsecureSkipVerify: true, MaxVersion: v}, &tls.Config{Certificates: []tls.Certificate{certificate(f, "x.example", "www.example.org")}})
		f.Add(b)
		f.Add(inRecords(b, 7))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, alpn, s := serverNames(b)
		if len(certs) > maxCertNames || len(alpn) > 255 || s == needsMore && len(b) >= maxServerBytes || s != allRead && certs != nil {
			t.Errorf("%x is %q, %q, %d", b, certs, alpn, s)
		}
	})
}

// FuzzHTTPHost: where net/http takes a request, it is for whom we say, or we say nobody.
func FuzzHTTPHost(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n"))
	f.Add([]byte("GET http://u@a.example:80/ HTTP/1.1\r\nHost: b.example\r\nX: y\r\n z\r\n\r\n"))
	f.Add([]byte("CONNECT a.example:443 HTTP/1.1\n\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		host, s := httpHost(b)
		if s != allRead && host != "" || s == needsMore && len(b) >= maxClientBytes || host != "" && hostName(host) != host {
			t.Errorf("%q is for %q, %d", b, host, s)
		}
		if s != allRead || host == "" {
			return
		}
		if r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b))); err == nil && !strings.EqualFold(hostName(withoutPort(r.Host)), host) {
			t.Errorf("%q is for %q, net/http has it for %q", b, host, r.Host)
		}
	})
}

func BenchmarkClientHello(b *testing.B) {
	client, _ := handshake(b, &tls.Config{InsecureSkipVerify: true, ServerName: "www.example.org", NextProtos: []string{"h2", "http/1.1"}},
		&tls.Config{Certificates: []tls.Certificate{certificate(b, "", "www.example.org")}})
	b.ReportAllocs()
	for b.Loop() {
		if h, s := clientHello(client); s != allRead || h.name == "" {
			b.Fatal(h, s)
		}
	}
}
