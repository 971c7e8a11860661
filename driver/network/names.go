package network

import (
	"container/list"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// names is what the box knows addresses by: names that it asked the resolver for, and those
// that answers led by. It is what rules by name are matched with, so a name is in it only
// where an answer gave the address to that name. It is safe for concurrent use.
type names struct {
	mu     sync.Mutex
	byAddr map[netip.Addr]*list.Element // of *binding
	order  *list.List                   // the least recently bound first
	bytes  int                          // of all names in byAddr

	// The pool: place i stands for the i-th address of either family.
	pool     []string
	poolNext int
	byName   map[string]int
}

type binding struct {
	addr  netip.Addr
	names []boundName // the most recently bound first
}

type boundName struct {
	name  string
	until time.Time
}

const (
	maxBoundAddrs = 1 << 16
	maxBoundNames = 16       // of an address
	maxBoundBytes = 16 << 20 // of all names: an answer of 64 KiB can bind thousands of addresses
	maxFakes      = 1 << 16
	// Programs keep addresses for longer than an answer says that they may, and a session's
	// flows are judged by the names for as long as they do.
	leastBound = 10 * time.Minute
	mostBound  = 24 * time.Hour
)

// The pool's addresses: of the network for benchmarks (RFC 2544), which nobody routes, and
// of the box's own.
var (
	fakePrefix4 = netip.MustParsePrefix("198.18.0.0/15")
	fakePrefix6 = netip.MustParsePrefix("fd53:616e:6473:1::/64")
)

func newNames() *names {
	return &names{byAddr: map[netip.Addr]*list.Element{}, order: list.New(), byName: map[string]int{}}
}

// bind says that an answer gave addr to all of those canonical names, the one that was
// asked for first.
func (n *names) bind(now time.Time, addr netip.Addr, ttl time.Duration, to ...string) {
	addr = addr.Unmap().WithZone("")
	if len(to) == 0 || !addr.IsValid() {
		return
	}
	until := now.Add(min(max(ttl, leastBound), mostBound))
	n.mu.Lock()
	defer n.mu.Unlock()
	b := &binding{addr: addr}
	for _, name := range to[:min(len(to), maxBoundNames)] {
		b.names = append(b.names, boundName{name, until})
	}
	if e := n.byAddr[addr]; e != nil {
		for _, old := range e.Value.(*binding).names {
			at := slices.IndexFunc(b.names, func(x boundName) bool { return x.name == old.name })
			switch {
			case at >= 0 && old.until.After(b.names[at].until):
				b.names[at].until = old.until
			case at < 0 && old.until.After(now) && len(b.names) < maxBoundNames:
				b.names = append(b.names, old)
			}
		}
		n.forget(e)
	}
	n.byAddr[addr] = n.order.PushBack(b)
	n.bytes += b.size()
	for n.order.Len() > maxBoundAddrs || n.bytes > maxBoundBytes {
		n.forget(n.order.Front())
	}
}

func (n *names) forget(e *list.Element) {
	b := n.order.Remove(e).(*binding)
	n.bytes -= b.size()
	delete(n.byAddr, b.addr)
}

func (b *binding) size() (s int) {
	for _, x := range b.names {
		s += len(x.name)
	}
	return s
}

// of returns the names of addr, the most recently bound first.
func (n *names) of(now time.Time, addr netip.Addr) (of []string) {
	addr = addr.Unmap().WithZone("")
	n.mu.Lock()
	defer n.mu.Unlock()
	if i, ok := fakeIndex(addr); ok && i < len(n.pool) {
		return []string{n.pool[i]}
	}
	e := n.byAddr[addr]
	if e == nil {
		return nil
	}
	for _, x := range e.Value.(*binding).names {
		if x.until.After(now) {
			of = append(of, x.name)
		}
	}
	if of == nil {
		n.forget(e)
	}
	return of
}

// fake returns the address in the pool that stands for a canonical name, where the name
// must not be asked for outside: a proxy is told the name. It stays the name's own until
// maxFakes others have come after it.
func (n *names) fake(name string, v6 bool) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, ok := n.byName[name]
	if !ok {
		if i = n.poolNext; i == len(n.pool) {
			n.pool = append(n.pool, name)
		} else {
			delete(n.byName, n.pool[i])
			n.pool[i] = name
		}
		n.byName[name] = i
		n.poolNext = (i + 1) % maxFakes
	}
	return fakeAddr(i, v6)
}

// fakeAddr is the address of a place in the pool. The first address of either prefix is
// left out: it is the network's own.
func fakeAddr(i int, v6 bool) netip.Addr {
	if v6 {
		a := fakePrefix6.Addr().As16()
		binary.BigEndian.PutUint64(a[8:], uint64(i)+1)
		return netip.AddrFrom16(a)
	}
	a := fakePrefix4.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(i)+1)
	return netip.AddrFrom4(a)
}

// fakeIndex is the inverse of fakeAddr.
func fakeIndex(addr netip.Addr) (i int, ok bool) {
	var at uint64
	switch {
	case fakePrefix4.Contains(addr):
		a, first := addr.As4(), fakePrefix4.Addr().As4()
		at = uint64(binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(first[:]))
	case fakePrefix6.Contains(addr):
		a := addr.As16()
		at = binary.BigEndian.Uint64(a[8:])
	}
	return int(at) - 1, at >= 1 && at <= maxFakes
}

// isFake says whether addr is one of the pool's, given out or not.
func isFake(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return fakePrefix4.Contains(addr) || fakePrefix6.Contains(addr)
}
