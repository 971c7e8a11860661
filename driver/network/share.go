package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// The sessions of one box have one network namespace and so one device. The first of them
// has it, and gives each of the others what is its own: the packets of flows that its
// processes open, so that each session's policy decides on them and its log has them.
//
//	guest -> host   'S' cookie      a process of mine has this socket
//	                'I' address     one reaches for it by ICMP
//	                'P' packet      for the box
//	host -> guest   'T' + device    once, to go on with when I end
//	                'P' packet      from the box
//
// When the host ends, the first guest that gets the lock is the next one. Its flows go on.

// ErrNobodyHas is what [Start] says when it was given no device and no other session of the
// box has one.
var ErrNobodyHas = errors.New("no session of the box has its network")

// wire is where the box's packets come from and go to.
type wire interface {
	// read returns the box's next packet, behind a [sys.VnetHeader]; it is a part of buf.
	read(buf []byte) ([]byte, error)
	// send gives the box a packet, which head goes before.
	send(head [sys.VnetHeader]byte, parts [][]byte) error
	close()
}

// device is the wire of the session that has the tun device.
type device struct {
	f   *os.File
	raw syscall.RawConn
}

func newDevice(fd int) (*device, error) {
	f := os.NewFile(uintptr(fd), "tun")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &device{f, raw}, nil
}

func (d *device) close() { d.f.Close() }

func (d *device) read(buf []byte) ([]byte, error) {
	k, err := d.f.Read(buf)
	return buf[:max(k, 0)], err
}

func (d *device) send(head [sys.VnetHeader]byte, parts [][]byte) (err error) {
	all := make([][]byte, 0, len(parts)+1)
	all = append(append(all, head[:]), parts...)
	if rerr := d.raw.Write(func(fd uintptr) bool {
		_, err = sys.Writev(int(fd), all)
		return true
	}); rerr != nil {
		return rerr
	}
	return err
}

const (
	msgSaw, msgPing, msgPacket, msgTake = 'S', 'I', 'P', 'T'

	maxGuests   = 64
	maxRoutes   = 16384
	guestBehind = 20 * time.Millisecond // what a guest says of a socket may be that late
	takeRest    = 20 * time.Millisecond
	takeTries   = 100
)

// lane is a connection between host and guest, of packets.
type lane struct {
	c    *net.UnixConn
	mu   sync.Mutex
	buf  []byte
	take int // of a guest: the device, -1 when it was taken
}

func (l *lane) close() {
	l.c.Close()
	if fd := l.taken(); fd >= 0 {
		sys.CloseFD(fd)
	}
}

// taken hands over the device that came with the lane, once; -1 afterwards.
func (l *lane) taken() (fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fd, l.take = l.take, -1
	return fd
}

func (l *lane) read(buf []byte) ([]byte, error) {
	for {
		k, err := l.c.Read(buf)
		if err != nil || k == 0 {
			return nil, errors.Join(err, net.ErrClosed)
		}
		if buf[0] == msgPacket && k > 1+sys.VnetHeader {
			return buf[1:k], nil
		}
	}
}

// send never waits for long: what the other side does not take is lost.
func (l *lane) send(head [sys.VnetHeader]byte, parts [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(append(l.buf[:0], msgPacket), head[:]...)
	for _, p := range parts {
		l.buf = append(l.buf, p...)
	}
	l.c.SetWriteDeadline(time.Now().Add(guestBehind))
	_, err := l.c.Write(l.buf)
	return err
}

func (l *lane) saw(cookie uint64) { l.tell(binary.NativeEndian.AppendUint64([]byte{msgSaw}, cookie)) }

func (l *lane) pings(a netip.Addr) {
	b := a.As16()
	l.tell(append([]byte{msgPing}, b[:]...))
}

func (l *lane) tell(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.SetWriteDeadline(time.Now().Add(guestBehind))
	l.c.Write(b)
}

// host is what the session that has the device knows of the others.
type host struct {
	l      *net.UnixListener
	at     string // its file
	lock   *os.File
	mu     sync.Mutex
	guests []*lane
	books  [2]map[uint64]*lane // sockets, by cookie: the younger, and the one before it
	routes [2]map[flowKey]*lane
	pings  map[netip.Addr]*lane
	news   chan struct{} // closed, and made anew, when something was learned
}

// socketPath leads to a file of a folder whose own path may be longer than an address can be.
func socketPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

const (
	shareSocket = "net.sock"
	shareLock   = "net.lock"
)

// beHost takes guests, when nobody else of the box does.
func (n *Network) beHost() (*host, error) {
	lock, err := os.OpenFile(filepath.Join(n.o.Share, shareLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*host, error) {
		lock.Close()
		return nil, err
	}
	if err := sys.Flock(lock, true, false); err != nil {
		return fail(err)
	}
	dir, err := os.Open(n.o.Share)
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	os.Remove(filepath.Join(n.o.Share, shareSocket))
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: socketPath(dir, shareSocket)})
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false)
	return &host{l: l, at: filepath.Join(n.o.Share, shareSocket), lock: lock, news: make(chan struct{}), pings: map[netip.Addr]*lane{}, books: [2]map[uint64]*lane{{}, {}}, routes: [2]map[flowKey]*lane{{}, {}}}, nil
}

func (h *host) close() {
	h.l.Close()
	h.mu.Lock()
	for _, g := range h.guests {
		g.c.Close()
	}
	h.mu.Unlock()
	os.Remove(h.at) // before the lock is another's, with a file of its own
	h.lock.Close()
}

// serveGuests takes guests until the listener is closed.
func (n *Network) serveGuests(h *host, dev *device) {
	for {
		c, err := h.l.AcceptUnix()
		if err != nil {
			if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) || !rest(n.ctx, takeRest) {
				return
			}
			continue
		}
		g := &lane{c: c, take: -1}
		h.mu.Lock()
		full := len(h.guests) >= maxGuests
		if !full {
			h.guests = append(h.guests, g)
		}
		h.mu.Unlock()
		if full || n.offer(g, dev) != nil {
			h.leave(g)
			continue
		}
		n.wg.Go(func() {
			defer h.leave(g)
			n.serveGuest(h, g, dev)
		})
	}
}

// offer gives a guest the device, to go on with.
func (n *Network) offer(g *lane, dev *device) (err error) {
	g.c.SetWriteDeadline(time.Now().Add(time.Second))
	rerr := dev.raw.Control(func(fd uintptr) {
		_, _, err = g.c.WriteMsgUnix([]byte{msgTake}, syscall.UnixRights(int(fd)), nil)
	})
	return errors.Join(rerr, err)
}

func (h *host) leave(g *lane) {
	g.c.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests = slices.DeleteFunc(h.guests, func(x *lane) bool { return x == g })
	for a, x := range h.pings {
		if x == g {
			delete(h.pings, a)
		}
	}
	for i := range h.books {
		for k, x := range h.books[i] {
			if x == g {
				delete(h.books[i], k)
			}
		}
		for k, x := range h.routes[i] {
			if x == g {
				delete(h.routes[i], k)
			}
		}
	}
}

// serveGuest takes what a guest says: another supervisor of the same user and box.
func (n *Network) serveGuest(h *host, g *lane, dev *device) {
	buf := make([]byte, 1+sys.VnetHeader+MTU)
	for {
		k, err := g.c.Read(buf)
		if err != nil || k == 0 {
			return
		}
		switch {
		case buf[0] == msgSaw && k == 9:
			h.learn(binary.NativeEndian.Uint64(buf[1:]), g)
		case buf[0] == msgPing && k == 17:
			h.reached(netip.AddrFrom16([16]byte(buf[1:])), g)
		case buf[0] == msgPacket && k > 1+sys.VnetHeader:
			b := buf[1+sys.VnetHeader : k]
			if key, ok := towardsBox(b); ok {
				h.route(key, g)
			}
			dev.send([sys.VnetHeader]byte(buf[1:]), [][]byte{b})
		}
	}
}

func (h *host) learn(cookie uint64, g *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.books[0]) >= maxSockets {
		h.books[1], h.books[0] = h.books[0], map[uint64]*lane{}
	}
	h.books[0][cookie] = g
	close(h.news)
	h.news = make(chan struct{})
}

func (h *host) route(key flowKey, g *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.routes[0][key] == g {
		return
	}
	if len(h.routes[0]) >= maxRoutes {
		h.routes[1], h.routes[0] = h.routes[0], map[flowKey]*lane{}
	}
	h.routes[0][key] = g
}

// lookUp returns the guest that has a flow, or a socket, and whether there are any.
func (h *host) lookUp(key flowKey, cookie uint64) (g *lane, news <-chan struct{}, any bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.routes {
		if g = h.routes[i][key]; g != nil {
			break
		}
		if g = h.books[i][cookie]; cookie != 0 && g != nil {
			break
		}
	}
	return g, h.news, len(h.guests) > 0
}

// elsewhere gives a packet that belongs to a guest to him.
func (n *Network) elsewhere(p *packet, head [sys.VnetHeader]byte, known *flow) bool {
	h := n.host.Load()
	if h == nil || known != nil {
		return false
	}
	key := p.key()
	g, _, any := h.lookUp(key, 0)
	opens := p.proto != protoTCP || p.segment[13]&(flagSYN|flagACK) == flagSYN
	if p.proto == protoTCP && opens {
		g = nil // its port may have been another's: the socket tells
	}
	if g == nil && any && opens {
		var mine bool
		if g, mine = n.whose(h, p); g != nil {
			h.route(key, g)
		} else if !mine {
			n.nobodys(p)
			return true
		}
	}
	if g == nil {
		return false
	}
	g.send(head, [][]byte{p.whole})
	return true
}

// whose finds out which session a packet that begins something is of: a guest's, or this one's
// own. It is neither's when the socket cannot be found any more: who sends and closes would
// choose by whose policy.
func (n *Network) whose(h *host, p *packet) (g *lane, mine bool) {
	if p.proto == protoUDP {
		n.mu.RLock()
		_, mine = n.inbound[p.dst]
		n.mu.RUnlock()
		if mine {
			return nil, true
		}
	}
	until := time.NewTimer(guestBehind)
	defer until.Stop()
	for {
		var news <-chan struct{}
		if p.proto != protoTCP && p.proto != protoUDP {
			var known bool
			if g, known, news = h.pinger(p.dst.Addr()); known {
				return g, g == nil
			}
		} else {
			cookie, ours := n.owners.ours(p)
			if ours || cookie == 0 {
				return nil, ours
			}
			if g, news, _ = h.lookUp(flowKey{}, cookie); g != nil {
				return g, false
			}
		}
		select {
		case <-news:
		case <-until.C:
			return nil, false
		}
	}
}

// nobodys refuses a packet of which nobody knows whose it is.
func (n *Network) nobodys(p *packet) {
	proto, act := map[uint8]string{protoTCP: "tcp", protoUDP: "udp"}[p.proto], core.ActSend
	if proto == "" {
		proto = "icmp"
	}
	if proto != "udp" {
		act = core.ActConnect
	}
	v := n.describe(proto, p.dst, Owner{})
	n.capturePacket(true, p.whole, nil)
	n.refuse(&v, p.key(), act, Owner{}, "nobody's socket", v.refusal())
	n.write(nil, icmpError(p, prohibited, 0))
}

// reached notes who has last reached for an address by ICMP, whose sockets cannot be asked
// after (sock_diag(7)): g, or this session when it is nil.
func (h *host) reached(a netip.Addr, g *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pings) >= maxSockets {
		clear(h.pings)
	}
	h.pings[a.Unmap().WithZone("")] = g
	close(h.news)
	h.news = make(chan struct{})
}

func (h *host) pinger(a netip.Addr) (g *lane, known bool, news <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g, known = h.pings[a]
	return g, known, h.news
}

// towardsBox is the key of a flow that a packet to the box belongs to.
func towardsBox(b []byte) (key flowKey, ok bool) {
	if len(b) < sizeIPv4 {
		return key, false
	}
	var src, dst netip.Addr
	var t []byte
	if b[0]>>4 == 4 {
		src, dst, key.proto = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		t = b[min(len(b), int(b[0]&15)*4):]
	} else if len(b) >= sizeIPv6 {
		src, dst, key.proto = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6]
		t = b[sizeIPv6:]
	}
	if len(t) < 4 || key.proto != protoTCP && key.proto != protoUDP {
		return key, false
	}
	key.remote = netip.AddrPortFrom(src, binary.BigEndian.Uint16(t))
	key.local = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(t[2:]))
	return key, true
}

// beGuest connects with the session that has the device.
func (n *Network) beGuest() (*lane, error) {
	dir, err := os.Open(n.o.Share)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: socketPath(dir, shareSocket)})
	if err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var b [16]byte
	oob := make([]byte, syscall.CmsgSpace(4))
	k, on, _, _, err := c.ReadMsgUnix(b[:], oob)
	if err == nil && (k != 1 || b[0] != msgTake) {
		err = errors.New("an odd answer")
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetReadDeadline(time.Time{})
	l := &lane{c: c, take: -1}
	ms, err := syscall.ParseSocketControlMessage(oob[:on])
	if err == nil && len(ms) == 1 {
		var fds []int
		if fds, err = syscall.ParseUnixRights(&ms[0]); err == nil && len(fds) == 1 {
			l.take = fds[0]
			syscall.CloseOnExec(l.take)
		}
	}
	if l.take < 0 {
		c.Close()
		return nil, fmt.Errorf("no device came: %w", errors.Join(err, net.ErrClosed))
	}
	return l, nil
}

// attach finds the network's wire: the device, when it was given it, or a session that has
// it.
func (n *Network) attach() error {
	if n.o.Tun < 0 {
		return n.rejoin(nil)
	}
	d, err := newDevice(n.o.Tun)
	if err != nil {
		return err
	}
	return n.have(d)
}

// have makes the device this session's, and takes guests when there is where to.
func (n *Network) have(d *device) error {
	var w wire = d
	n.wire.Store(&w)
	if n.o.Share == "" {
		return nil
	}
	h, err := n.beHost()
	if err != nil {
		return fmt.Errorf("share the box's network: %w", err)
	}
	n.host.Store(h)
	n.wg.Go(func() { n.serveGuests(h, d) })
	return nil
}

// wired makes w the network's wire, unless it has been closed meanwhile: who closes it closes
// the wire that it finds.
func (n *Network) wired(w wire, h *host) bool {
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.wire.Store(&w)
		if h != nil {
			n.host.Store(h)
		}
	}
	n.mu.Unlock()
	if closed {
		w.close()
		if h != nil {
			h.close()
		}
	}
	return !closed
}

// rejoin finds a wire again when the session that had the device has ended: the device
// itself, or another session that has got it. left is the lane to the one that ended.
func (n *Network) rejoin(left *lane) error {
	var last error
	for range takeTries {
		if n.ctx.Err() != nil {
			return n.ctx.Err()
		}
		if left != nil {
			if h, err := n.beHost(); err == nil {
				fd := left.taken()
				if fd < 0 { // closed meanwhile
					h.close()
					return errAborted
				}
				d, err := newDevice(fd)
				if err != nil {
					h.close()
					return err
				}
				if !n.wired(d, h) {
					return errAborted
				}
				n.wg.Go(func() { n.serveGuests(h, d) })
				return nil
			}
		}
		l, err := n.beGuest()
		if err == nil {
			if !n.wired(l, nil) {
				return errAborted
			}
			return nil
		}
		if last = err; errors.Is(err, syscall.ENOENT) && left == nil {
			break // there has been none
		}
		if !rest(n.ctx, takeRest) {
			break
		}
	}
	return fmt.Errorf("%w: %w", ErrNobodyHas, last)
}
