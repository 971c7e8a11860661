package network

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"

	"github.com/sandglass/sandglass/core"
)

// What is read here is what a flow says of itself, and either end may lie. It can only make
// rules stricter: a flow that says nothing, or what cannot be told for sure (two names where
// one belongs), has no name.

// helloState is how far the first bytes of one direction of a flow have been understood.
type helloState uint8

const (
	needsMore helloState = iota // ask again when there are more bytes
	allRead
	notThis // it is not this protocol, or it breaks its rules
)

const (
	maxClientBytes = 16 << 10 // of one direction that are kept for this
	maxServerBytes = 64 << 10
	maxALPN        = 16
	maxCertNames   = 16
)

// hello is what a TLS client says in the open.
type hello struct {
	name string   // of the server, canonical; "" when it names none
	alpn []string // what it speaks, the dearest first
	ech  bool     // the name may be a front's: the true one is encrypted, or made to look as if (RFC 9849, GREASE)
}

// Of RFC 8446 4, 4.2 and 5.1, RFC 5246 7.4.
const (
	recordHandshake    = 22
	msgClientHello     = 1
	msgServerHello     = 2
	msgCertificate     = 11
	msgServerHelloDone = 14
	extServerName      = 0
	extALPN            = 16
	extVersions        = 43
	extECH             = 0xfe0d
	maxRecord          = 1<<14 + 2048 // of TLS 1.2, which lets a compressed one be longer
)

// clientHello reads the first bytes that a client sends. Its hello may be spread over
// several records.
func clientHello(b []byte) (h hello, s helloState) {
	if s = handshakes(b, func(kind uint8, body cryptobyte.String) helloState {
		if kind != msgClientHello || !h.read(body) {
			return notThis
		}
		return allRead
	}); s == needsMore && len(b) >= maxClientBytes {
		s = notThis
	}
	if s != allRead {
		h = hello{}
	}
	return h, s
}

// read reads a ClientHello (RFC 8446 4.1.2).
func (h *hello) read(body cryptobyte.String) bool {
	var session, suites, compressions cryptobyte.String
	if !body.Skip(2+32) || !body.ReadUint8LengthPrefixed(&session) || !body.ReadUint16LengthPrefixed(&suites) ||
		!body.ReadUint8LengthPrefixed(&compressions) {
		return false
	}
	return extensions(body, func(kind uint16, data cryptobyte.String) bool {
		switch kind {
		case extServerName:
			return h.readName(data)
		case extALPN:
			var ok bool
			h.alpn, ok = readALPN(data)
			return ok
		case extECH:
			h.ech = true
		}
		return true
	})
}

// readName reads a list of server names (RFC 6066 3), in which there must not be two.
func (h *hello) readName(data cryptobyte.String) bool {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() {
		return false
	}
	for n := 0; !list.Empty(); {
		var kind uint8
		var name cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) {
			return false
		}
		if kind != 0 {
			continue
		}
		if n++; n > 1 {
			return false
		}
		h.name = hostName(string(name))
	}
	return true
}

// readALPN reads what is spoken (RFC 7301 3.1).
func readALPN(data cryptobyte.String) (protos []string, ok bool) {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() {
		return nil, false
	}
	for !list.Empty() {
		var p cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&p) || p.Empty() {
			return nil, false
		}
		if len(protos) < maxALPN && !slices.ContainsFunc(p, func(c byte) bool { return c <= ' ' || c > '~' }) {
			protos = append(protos, string(p))
		}
	}
	return protos, true
}

// extensions calls f for each extension of a hello. One that comes twice makes it invalid
// (RFC 8446 4.2): two programs might each read another of them.
func extensions(body cryptobyte.String, f func(kind uint16, data cryptobyte.String) bool) bool {
	if body.Empty() {
		return true // RFC 5246 7.4.1.2: there may be none
	}
	var all cryptobyte.String
	if !body.ReadUint16LengthPrefixed(&all) || !body.Empty() {
		return false
	}
	seen := map[uint16]bool{}
	for !all.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !all.ReadUint16(&kind) || !all.ReadUint16LengthPrefixed(&data) || seen[kind] || !f(kind, data) {
			return false
		}
		seen[kind] = true
	}
	return true
}

// handshakes calls f for each handshake message that is whole in b, until f is satisfied or
// knows better. Records of other kinds end it.
func handshakes(b []byte, f func(kind uint8, body cryptobyte.String) helloState) helloState {
	var got []byte // of handshake messages, without their records
	for {
		if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
			return notThis
		}
		if len(b) < 5 {
			return needsMore
		}
		size := int(binary.BigEndian.Uint16(b[3:]))
		if size == 0 || size > maxRecord {
			return notThis
		}
		whole := len(b) >= 5+size
		part := b[5:min(len(b), 5+size)]
		if b = b[min(len(b), 5+size):]; got == nil {
			got = part[:len(part):len(part)] // nothing is copied while one record is enough
		} else {
			got = append(got, part...)
		}
		for len(got) >= 4 {
			size := int(got[1])<<16 | int(got[2])<<8 | int(got[3])
			if size > maxServerBytes {
				return notThis
			}
			if len(got) < 4+size {
				break
			}
			if s := f(got[0], cryptobyte.String(got[4:4+size])); s != needsMore {
				return s
			}
			got = got[4+size:]
		}
		if !whole {
			return needsMore
		}
	}
}

// serverNames reads the first bytes that a TLS server sends: the names of its certificate and
// what it has chosen to speak. From TLS 1.3 on both are encrypted, and in a session that is
// resumed no certificate is sent.
func serverNames(b []byte) (certs []string, alpn string, s helloState) {
	hello := false
	s = handshakes(b, func(kind uint8, body cryptobyte.String) helloState {
		switch {
		case !hello && kind == msgServerHello:
			hello = true
			secret, ok := false, false
			if alpn, secret, ok = serverHello(body); !ok {
				return notThis
			}
			if secret {
				return allRead
			}
		case !hello:
			return notThis
		case kind == msgCertificate:
			certs = leafNames(body)
			return allRead
		case kind == msgServerHelloDone:
			return allRead
		}
		return needsMore
	})
	switch {
	case s == notThis && hello: // what comes instead is a change of ciphers, or an alert
		s = allRead
	case s == needsMore && len(b) >= maxServerBytes && hello:
		s = allRead
	case s == needsMore && len(b) >= maxServerBytes:
		s = notThis
	}
	return certs, alpn, s
}

// serverHello reads a ServerHello (RFC 8446 4.1.3), and says whether what follows is
// encrypted.
func serverHello(body cryptobyte.String) (alpn string, secret, ok bool) {
	var session cryptobyte.String
	if !body.Skip(2+32) || !body.ReadUint8LengthPrefixed(&session) || !body.Skip(2+1) {
		return "", false, false
	}
	ok = extensions(body, func(kind uint16, data cryptobyte.String) bool {
		switch kind {
		case extVersions:
			secret = true // a server sends it from TLS 1.3 on only
		case extALPN:
			p, ok := readALPN(data)
			if len(p) == 1 {
				alpn = p[0]
			}
			return ok
		}
		return true
	})
	return alpn, secret, ok
}

// leafNames returns the names of the first certificate of a Certificate message of TLS 1.2
// (RFC 5246 7.4.2). One that cannot be read has none.
func leafNames(body cryptobyte.String) (names []string) {
	var list, leaf cryptobyte.String
	if !body.ReadUint24LengthPrefixed(&list) || !list.ReadUint24LengthPrefixed(&leaf) {
		return nil
	}
	c, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil
	}
	for _, n := range append(c.DNSNames, c.Subject.CommonName) {
		below, wild := strings.CutPrefix(n, "*.")
		name := hostName(below)
		if name == "" || len(names) == maxCertNames {
			continue
		}
		if wild {
			name = "*." + name
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// hostName returns the canonical form of a host's name, "" of what is none: addresses above
// all, in the forms too that only some programs take for one (`127.1`, `0x7f000001`: what
// ends in a number, https://url.spec.whatwg.org/#ends-in-a-number-checker).
func hostName(s string) string {
	name, ok := core.CanonicalName(s)
	if !ok {
		return ""
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "" {
		return ""
	}
	return name
}

// Methods of requests: those of RFC 9110 and RFC 5789, of WebDAV and its kin.
var httpMethods = strings.Fields(`GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK
	REPORT SEARCH MERGE CHECKOUT MKACTIVITY MKWORKSPACE MKCALENDAR ACL BIND REBIND UNBIND PURGE QUERY SUBSCRIBE UNSUBSCRIBE NOTIFY M-SEARCH`)

// httpHost reads the first bytes that a client sends: whom its first HTTP request is for,
// canonical, "" when that cannot be told. HTTP/2 in the open begins with a request too, by
// a method that is none of these.
func httpHost(b []byte) (host string, s helloState) {
	host, s = httpRequest(b[:min(len(b), maxClientBytes)])
	if s == needsMore && len(b) >= maxClientBytes {
		s = notThis
	}
	return host, s
}

func httpRequest(b []byte) (host string, s helloState) {
	method, rest, found := bytes.Cut(b, []byte(" "))
	if !found {
		if slices.ContainsFunc(httpMethods, func(m string) bool { return strings.HasPrefix(m, string(b)) }) {
			return "", needsMore
		}
		return "", notThis
	}
	if !slices.Contains(httpMethods, string(method)) {
		return "", notThis
	}
	line, rest, whole := cutLine(rest)
	if !whole {
		return "", needsMore
	}
	target, version, _ := strings.Cut(line, " ")
	if !strings.HasPrefix(version, "HTTP/1.") || target == "" {
		return "", notThis
	}
	host, named := targetHost(string(method), target)
	hosts := 0
	for {
		if line, rest, whole = cutLine(rest); !whole {
			return "", needsMore
		}
		if line == "" {
			break
		}
		field, value, ok := strings.Cut(line, ":")
		if !ok || field == "" || strings.ContainsAny(field, " \t") { // RFC 9112 5.1, 5.2: folded, or space before the colon
			return "", notThis
		}
		if !strings.EqualFold(field, "Host") {
			continue
		}
		if hosts++; hosts > 1 { // RFC 9112 3.2
			return "", notThis
		}
		if !named {
			host = hostName(withoutPort(strings.Trim(value, " \t")))
		}
	}
	return host, allRead
}

// cutLine cuts a line off b; a bare LF ends one too (RFC 9112 2.2).
func cutLine(b []byte) (line string, rest []byte, whole bool) {
	l, rest, whole := bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimSuffix(l, []byte("\r"))), rest, whole
}

// targetHost is the host in a request's target: it comes before the one in the header
// (RFC 9112 3.2.2, 3.2.3).
func targetHost(method, target string) (host string, named bool) {
	if method == "CONNECT" {
		return hostName(withoutPort(target)), true
	}
	_, after, ok := strings.Cut(target, "://")
	if !ok || target[0] == '/' {
		return "", false
	}
	authority := after
	if i := strings.IndexAny(after, "/?#\\"); i >= 0 {
		authority = after[:i]
	}
	return hostName(withoutPort(authority[strings.LastIndexByte(authority, '@')+1:])), true
}

// withoutPort cuts the port off an authority. Of an address in brackets, and of what has
// more to it, nothing that is a name is left.
func withoutPort(s string) string {
	host, port, _ := strings.Cut(s, ":")
	if strings.Trim(port, "0123456789") != "" {
		return ""
	}
	return host
}
