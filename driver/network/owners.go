package network

import (
	"net/netip"
	"sync"

	"github.com/sandglass/sandglass/driver/sys"
)

// owners knows which process of the box has which socket. When a process reaches for
// somebody the supervisor learns the socket's cookie, which names it for ever; when the
// first packet of a flow comes the kernel of the box is asked which socket has it. So a
// socket that was inherited or passed on is told from another to the same place.
type owners struct {
	mu    sync.Mutex
	diag  int // -1 when closed
	seq   uint32
	books [2]book // the younger, and the one before it
}

type book struct {
	sockets map[uint64]Owner
	last    map[reach]Owner // who reached there last: for what has no socket any more
}

type reach struct {
	proto string
	dst   netip.AddrPort
}

// maxSockets bounds each of two books: the older is thrown away when the younger is full.
const maxSockets = 32768

func newOwners(diag int) *owners {
	o := &owners{diag: diag}
	for i := range o.books {
		o.books[i] = newBook()
	}
	return o
}

func newBook() book { return book{map[uint64]Owner{}, map[reach]Owner{}} }

func (o *owners) saw(cookie uint64, proto string, dst netip.AddrPort, who Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if b := &o.books[0]; len(b.sockets) >= maxSockets || len(b.last) >= maxSockets {
		o.books[1], o.books[0] = o.books[0], newBook()
	}
	if cookie != 0 {
		o.books[0].sockets[cookie] = who
	}
	o.books[0].last[reach{proto, dst}] = who
}

// of returns the owner of a flow that is new, the zero Owner when nobody is known.
func (o *owners) of(proto string, local, remote netip.AddrPort) Owner {
	o.mu.Lock()
	defer o.mu.Unlock()
	if proto != "icmp" && o.diag >= 0 {
		o.seq++
		if c, ok := sys.DiagCookie(o.diag, proto == "tcp", local, remote, o.seq); ok {
			for i := range o.books {
				if w, ok := o.books[i].sockets[c]; ok {
					return w
				}
			}
		}
	}
	for i := range o.books {
		if w, ok := o.books[i].last[reach{proto, remote}]; ok {
			return w
		}
	}
	return Owner{}
}

// ours says whether the packet's socket is of a process of this session, and which it is; 0
// when that cannot be found out.
func (o *owners) ours(p *packet) (cookie uint64, ours bool) {
	if p.proto != protoTCP && p.proto != protoUDP {
		return 0, false
	}
	return o.find(p.proto == protoTCP, p.src, p.dst)
}

// mine says whether the socket that has a flow is of a process of this session.
func (o *owners) mine(proto string, local, remote netip.AddrPort) bool {
	_, mine := o.find(proto == "tcp", local, remote)
	return mine
}

func (o *owners) find(tcp bool, local, remote netip.AddrPort) (cookie uint64, mine bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.diag < 0 {
		return 0, false
	}
	o.seq++
	c, ok := sys.DiagCookie(o.diag, tcp, local, remote, o.seq)
	if !ok {
		return 0, false
	}
	for i := range o.books {
		if _, ok := o.books[i].sockets[c]; ok {
			return c, true
		}
	}
	return c, false
}

func (o *owners) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.diag >= 0 {
		sys.CloseFD(o.diag)
		o.diag = -1
	}
}
