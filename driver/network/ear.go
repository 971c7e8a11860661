package network

import (
	"strings"
	"sync"
)

// ear listens to the first bytes of a connection, of either side, for what it says of
// itself. What it hears is for the log, and for rules that forbid.
type ear struct {
	mu         sync.Mutex
	c, s       []byte
	name, by   string
	alpn       []string
	cDone      bool
	sDone      bool
	tls        bool
	certs, via string
	found      bool
}

// done says whether the box has said all that it will say of itself.
func (e *ear) done() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cDone
}

// client hears what the box says.
func (e *ear) client(b []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cDone {
		return
	}
	e.c = append(e.c, b[:min(len(b), maxClientBytes-len(e.c))]...)
	h, st := clientHello(e.c)
	switch st {
	case allRead:
		e.tls, e.by, e.name, e.alpn = true, "tls", h.name, h.alpn
	case notThis:
		host, hst := httpHost(e.c)
		if hst == needsMore && len(e.c) < maxClientBytes {
			return
		}
		if hst == allRead {
			e.by, e.name = "http", host
		}
	default:
		if len(e.c) < maxClientBytes {
			return
		}
	}
	e.cDone, e.c = true, nil
	e.sDone = !e.tls
}

// serverSays hears what the other side says, of TLS alone.
func (e *ear) serverSays(b []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sDone || !e.cDone {
		if !e.cDone && len(e.c) == 0 {
			e.sDone = true // the server speaks first: it is neither
		}
		return
	}
	e.s = append(e.s, b[:min(len(b), maxServerBytes-len(e.s))]...)
	certs, alpn, st := serverNames(e.s)
	if st == needsMore && len(e.s) < maxServerBytes {
		return
	}
	e.certs, e.via = strings.Join(certs, ", "), alpn
	e.found = st == allRead && (len(certs) > 0 || alpn != "")
	e.sDone, e.s = true, nil
}

// serverNames returns, once, what the server has said.
func (e *ear) serverNames() (certs, alpn string, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.found {
		return "", "", false
	}
	e.found = false
	return e.certs, e.via, true
}

func (e *ear) alpnText() string { return strings.Join(e.alpn, ",") }
