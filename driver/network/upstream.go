package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Patience with the servers outside. A program in the box asks again after five seconds,
// resolv.conf(5).
const (
	askRounds  = 2
	askEach    = 2500 * time.Millisecond
	askTotal   = 10 * time.Second
	maxServers = 8
	// maxStrays bounds the datagrams of one question that answer another one. Each is a
	// guess at the question's id and port: after so many the port is given up.
	maxStrays = 64
	ednsSize  = 1232 // what passes unfragmented everywhere (DNS flag day 2020)
	udpBuffer = 4096
)

var (
	errNoServers = errors.New("no server to ask")
	errStrays    = errors.New("too many answers to another question")
	errCut       = errors.New("the answer over TCP is cut too")
)

// ask puts the question to the servers outside, one after the other, and returns the first
// answer that is one, or else the first that says that it cannot.
func (r *resolver) ask(ctx context.Context, q *question) (m message, from netip.AddrPort, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.total)
	defer cancel()
	servers := r.Upstream()
	servers = servers[:min(len(servers), maxServers)]
	err = errNoServers
	var second message
	plain := false // without EDNS: a server did not understand (RFC 6891 6.2.2)
rounds:
	for range askRounds {
		again := false
		for _, s := range servers {
			got, e := r.exchange(ctx, s, q, plain)
			if e != nil {
				if err, again = fmt.Errorf("%s: %w", s, e), true; ctx.Err() != nil {
					break rounds
				}
				continue
			}
			switch got.rcode() {
			case rcodeFormat, rcodeNotImpl:
				again = again || !plain
				plain = true
			case rcodeServer, rcodeRefused:
			default:
				return got, s, nil
			}
			if second.raw == nil {
				second, from = got, s
			}
		}
		if !again {
			break
		}
	}
	if second.raw != nil {
		return second, from, nil
	}
	return m, netip.AddrPort{}, err
}

// exchange asks one server once: over UDP, and again over TCP what was cut.
func (r *resolver) exchange(ctx context.Context, server netip.AddrPort, q *question, plain bool) (m message, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.each)
	defer cancel()
	query, raw := q.outside(plain), []byte(nil)
	if raw, err = r.overUDP(ctx, server, query); err != nil {
		return m, err
	}
	if binary.BigEndian.Uint16(raw[2:])&flagTruncated != 0 || len(raw) == udpBuffer {
		query = q.outside(plain)
		if raw, err = r.overTCP(ctx, server, query); err != nil {
			return m, err
		}
		if binary.BigEndian.Uint16(raw[2:])&flagTruncated != 0 {
			return m, errCut
		}
	}
	if m, err = parseMessage(raw); err != nil {
		return m, err
	}
	if len(m.asked) != 1 {
		return m, errMalformed
	}
	return m, nil
}

// outside is the question as it leaves: built anew, so that nothing passes but the name and
// the type, under an id that nobody can guess.
func (q *question) outside(plain bool) []byte {
	var id [2]byte
	rand.Read(id[:]) // never fails
	be := binary.BigEndian
	b := append(make([]byte, 0, headerSize+maxName+4+11), id[:]...)
	b = be.AppendUint16(b, flagRecurse)
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	b = append(b, q.raw...)
	for i, c := range b[headerSize : len(b)-4] {
		b[headerSize+i] = lowerASCII(c)
	}
	if plain {
		return b
	}
	b[11] = 1
	return appendOPT(b, ednsSize, 0, q.dnssec)
}

// appendOPT appends an OPT record (RFC 6891 6.1.2) without options.
func appendOPT(b []byte, size uint16, rcode int, dnssec bool) []byte {
	b = append(b, 0, 0, typeOPT)
	b = binary.BigEndian.AppendUint16(b, size)
	b = append(b, byte(rcode>>4), 0, 0, 0, 0, 0)
	if dnssec {
		b[len(b)-4] |= ednsDNSSEC >> 8
	}
	return b
}

// lowerASCII is c in small letters: names know no others than ASCII's (RFC 4343). What says how
// long a label is, 63 at most, is none.
func lowerASCII(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// answers says whether b is an answer to query, as far as its beginning tells: the id, the
// kind, the one question (RFC 5452 9.1; the server and the port are the socket's).
func answers(b, query []byte) bool {
	asked := headerSize
	for query[asked] != 0 {
		asked += 1 + int(query[asked])
	}
	asked += 5
	if len(b) < asked || b[0] != query[0] || b[1] != query[1] {
		return false
	}
	for i, c := range b[headerSize : asked-4] {
		if lowerASCII(c) != query[headerSize+i] {
			return false
		}
	}
	flags := binary.BigEndian.Uint16(b[2:])
	return flags&flagResponse != 0 && flags&maskOpcode == 0 && binary.BigEndian.Uint16(b[4:]) == 1 && bytes.Equal(b[asked-4:asked], query[asked-4:asked])
}

func (r *resolver) dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, func(), error) {
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c, err := dial(ctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	return c, func() { stop(); c.Close() }, nil
}

func (r *resolver) overUDP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	c, done, err := r.dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, udpBuffer)
	for range maxStrays + 1 {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], query) {
			return buf[:n], nil
		}
	}
	return nil, errStrays
}

func (r *resolver) overTCP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	c, done, err := r.dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	raw := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, raw); err != nil {
		return nil, err
	}
	if !answers(raw, query) {
		return nil, errStrays
	}
	return raw, nil
}

// resolvConf is the caller's own list of servers, resolv.conf(5), which changes as the
// machine moves from network to network.
type resolvConf struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	file    os.FileInfo
	servers []netip.AddrPort
}

const (
	resolvConfRest  = time.Second
	maxResolvConf   = 64 << 10
	maxSystemServer = 3 // MAXNS, resolv.conf(5)
)

var systemResolvConf = resolvConf{path: "/etc/resolv.conf"}

// systemUpstreams returns the servers that this machine asks.
func systemUpstreams() []netip.AddrPort { return systemResolvConf.upstreams(time.Now()) }

func (c *resolvConf) upstreams(now time.Time) []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.looked.IsZero() && now.Sub(c.looked) < resolvConfRest {
		return c.servers
	}
	c.looked = now
	fi, err := os.Stat(c.path)
	if err == nil && c.file != nil && os.SameFile(fi, c.file) && fi.ModTime().Equal(c.file.ModTime()) && fi.Size() == c.file.Size() {
		return c.servers
	}
	c.file, c.servers = fi, nil
	if err == nil && fi.Mode().IsRegular() {
		c.servers = readResolvConf(c.path)
	}
	if c.servers == nil {
		c.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return c.servers
}

func readResolvConf(path string) (servers []netip.AddrPort) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil && len(servers) < maxSystemServer {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers
}
