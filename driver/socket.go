package driver

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Connections. The wall is the kernel's: a box with a network namespace of its own has no
// abstract socket, port or interface of the outside in it, and a path socket in the lower
// layer of an overlay answers ECONNREFUSED. So the kernel may carry out whatever call it
// is that the program makes of one that was looked at - as long as the network is the
// box's own. On the caller's network it is not: there no connect(2) is let go on, each is
// carried out by the supervisor, on the box's own socket with the address that it copied.
// So is what a policy grants. The one exception are abstract names that the box bound itself,
// where the second wall stands: Landlock lets the box reach its own and nothing else, whatever
// the address says by then.
var socketTraps = []trap{
	{call: sys.CallConnect}, {call: sys.CallSocket}, {call: sys.CallSocketpair},
	{call: sys.CallSendto, arg: 4, mask: anyBit, wide: true}, // with an address
	{call: sys.CallSendmsg}, {call: sys.CallSendmmsg},
}

const (
	maxSockaddr = 128       // struct sockaddr_storage
	maxDatagram = 64 << 10  // of a datagram that the supervisor sends for the box
	msgFastOpen = 1 << 29   // MSG_FASTOPEN: connects without connect(2)
	sizeMsghdr  = 56        // struct msghdr on 64-bit machines
	sizeMmsghdr = 64        // struct mmsghdr
	maxMessages = 1024      // UIO_MAXIOV: the kernel takes no more of sendmmsg(2)
	maxUnixList = 256 << 10 // bytes of /proc/net/unix that are looked through
	maxAbstract = 4096      // names of the box's own that are remembered
)

// judgeSocket judges the calls of [socketTraps].
func (s *supervisor) judgeSocket(c sys.Call) (answer, bool) {
	a := &s.n.Args
	switch c {
	case sys.CallConnect:
		return s.connect(int32(a[0]), a[1], a[2]), true
	case sys.CallSendto:
		if uint32(a[3])&msgFastOpen != 0 && s.hostNet {
			return s.noFastOpen(c), true
		}
		return s.sendTo(c, int32(a[0]), a[4], a[5], a[1], a[2], uint32(a[3])), true
	case sys.CallSendmsg, sys.CallSendmmsg:
		flags := uint32(a[2])
		if c == sys.CallSendmmsg {
			flags = uint32(a[3])
		}
		if flags&msgFastOpen != 0 && s.hostNet {
			return s.noFastOpen(c), true
		}
		if c == sys.CallSendmmsg {
			return s.sendMany(int32(a[0]), a[1], uint32(a[2]), flags), true
		}
		return s.sendMsg(c, int32(a[0]), a[1], flags), true
	case sys.CallSocket, sys.CallSocketpair:
		return s.socket(c, int(int32(a[0])), int(int32(a[1])), int(int32(a[2]))), true
	}
	return answer{}, false
}

// noFastOpen refuses a connection that is made by sending: programs connect instead.
func (s *supervisor) noFastOpen(c sys.Call) answer {
	return s.refuse(core.NetOut, core.ActSend, "", "filter", syscall.EOPNOTSUPP, core.Detail{"call": c.String(), "flags": "MSG_FASTOPEN"})
}

// Protocols that a box has a use for; everything else in the kernel's network is old, odd
// or a way out of the namespace (AF_VSOCK, AF_ALG, AF_NETLINK's families without one).
const (
	protoICMP, protoTCP, protoUDP, protoICMPv6 = 1, 6, 17, 58
	netlinkRoute, netlinkUevent                = 0, 15
	afSMC                                      = 43
)

// socket judges socket(2) and socketpair(2), whose arguments are numbers: what is looked
// at is what the kernel uses.
func (s *supervisor) socket(c sys.Call, family, kind, proto int) answer {
	e := syscall.EAFNOSUPPORT
	switch k := kind &^ (syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK); family {
	case syscall.AF_UNIX:
		return s.unixSocket(c, k)
	case syscall.AF_INET, syscall.AF_INET6:
		switch {
		case k == syscall.SOCK_STREAM && (proto == 0 || proto == protoTCP), k == syscall.SOCK_DGRAM && (proto == 0 || proto == protoUDP),
			k == syscall.SOCK_DGRAM && (proto == protoICMP || proto == protoICMPv6):
			return answer{}
		case k == syscall.SOCK_RAW:
			e = syscall.EPERM
		default:
			e = syscall.EPROTONOSUPPORT
		}
	case syscall.AF_NETLINK:
		if proto == netlinkRoute || proto == netlinkUevent && !s.hostNet {
			return answer{}
		}
		e = syscall.EPROTONOSUPPORT
	case syscall.AF_PACKET:
		e = syscall.EPERM
	}
	target := sys.FamilyName(family) + " " + sys.SocketTypeName(kind)
	d := core.Detail{"call": c.String(), "protocol": strconv.Itoa(proto)}
	if s.hostNet && (family == syscall.AF_INET || family == syscall.AF_INET6 || family == afSMC) {
		// MPTCP, SCTP and SMC connect past Landlock's rule for TCP, to the sandbox's own port too.
		return s.refuse(core.IPCSocket, core.ActSocket, target, "guarded port", e, d)
	}
	dec := s.policy.Load().Decide(core.IPCSocket)
	if dec.Verdict != core.Blocked {
		return answer{ops: [2]*core.Operation{{Surface: core.IPCSocket, Action: core.ActSocket, Target: target, Verdict: core.Allowed, Rule: dec.Rule, Detail: d}}}
	}
	return s.refuse(core.IPCSocket, core.ActSocket, target, dec.Rule, e, d)
}

// unixSocket judges the making of a Unix socket. Who has one for datagrams can send to any
// abstract name of the network, by an address in memory that changes after any look: on the
// caller's network, without the second wall, there is none. Of SOCK_RAW the kernel makes a
// socket for datagrams (net/unix/af_unix.c, unix_create).
func (s *supervisor) unixSocket(c sys.Call, kind int) answer {
	if !s.hostNet || s.wall.Scoped || kind != syscall.SOCK_DGRAM && kind != syscall.SOCK_RAW {
		return answer{}
	}
	if s.policy.Load().Decide(core.IPCUnix).Verdict == core.Allowed {
		return answer{}
	}
	return s.refuse(core.IPCUnix, core.ActSocket, sys.FamilyName(syscall.AF_UNIX)+" "+sys.SocketTypeName(kind), "no second wall",
		syscall.EPROTONOSUPPORT, core.Detail{"call": c.String()})
}

// sockaddr copies an address of the box.
func (s *supervisor) sockaddr(addr, size uint64) ([]byte, syscall.Errno) {
	if size > maxSockaddr {
		return nil, syscall.EINVAL
	}
	b := make([]byte, size)
	if n, e := sys.ReadMem(int(s.n.TID), addr, b); size > 0 && (e != 0 || n < len(b)) {
		return nil, syscall.EFAULT
	}
	return b, 0
}

// unixName returns the name in a struct sockaddr_un: a path, or '@' and an abstract name,
// which may be empty; "" for an unnamed one.
func unixName(b []byte) string {
	name := b[2:min(len(b), 110)]
	if len(name) > 0 && name[0] == 0 {
		return "@" + string(name[1:])
	}
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return string(name)
}

// inetAddr returns the address in a struct sockaddr_in or sockaddr_in6.
func inetAddr(b []byte) (ap netip.AddrPort, ok bool) {
	if len(b) < 8 {
		return ap, false
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b) {
	case syscall.AF_INET, syscall.AF_UNSPEC: // to UDP the same (net/ipv4/udp.c, udp_sendmsg)
		if len(b) < 16 {
			return ap, false
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), true
	case syscall.AF_INET6:
		if len(b) < 24 {
			return ap, false
		}
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), port), true
	}
	return ap, false
}

func (s *supervisor) connect(fd int32, addr, size uint64) answer {
	b, e := s.sockaddr(addr, size)
	if e != 0 {
		return s.refuse(core.IPCUnix, core.ActConnect, "", "unreadable argument", e, nil)
	}
	p := peerCall{act: core.ActConnect, call: sys.CallConnect, fd: fd, addr: b}
	if len(b) < 2 {
		return s.reach(p, nil)
	}
	switch binary.NativeEndian.Uint16(b) {
	case syscall.AF_UNIX:
		return s.unixPeer(p, unixName(b))
	case syscall.AF_INET, syscall.AF_INET6:
		return s.inetPeer(p)
	}
	if s.hostNet && binary.NativeEndian.Uint16(b) != syscall.AF_UNSPEC {
		// Here it is the supervisor that connects, with its capabilities: netlink asks for some.
		return s.refuse(core.IPCSocket, core.ActConnect, sys.FamilyName(int(binary.NativeEndian.Uint16(b))), "net: host", syscall.EPERM, p.detail())
	}
	return s.reach(p, nil) // AF_UNSPEC dissolves a connection; of the others socket(2) was judged
}

// peerCall is a call that reaches for somebody at an address.
type peerCall struct {
	act  core.Action
	call sys.Call
	fd   int32
	addr []byte // copied
	// of a datagram that the supervisor could send itself
	data, size uint64
	flags      uint32
	fixed      bool // data is one buffer
}

func (s *supervisor) sendTo(c sys.Call, fd int32, addr, size, data, length uint64, flags uint32) answer {
	b, e := s.sockaddr(addr, size)
	if e != 0 {
		return s.refuse(core.IPCUnix, core.ActSend, "", "unreadable argument", e, core.Detail{"call": c.String()})
	}
	return s.send(peerCall{act: core.ActSend, call: c, fd: fd, addr: b, data: data, size: length, flags: flags, fixed: true})
}

// sendMany judges sendmmsg(2), message by message: the call is refused for the first that
// is, which the kernel would send the others before. All are on record but those between the
// first and the one that is refused.
func (s *supervisor) sendMany(fd int32, msgs uint64, n, flags uint32) (all answer) {
	for i := range uint64(min(n, maxMessages)) {
		a := s.sendMsg(sys.CallSendmmsg, fd, msgs+i*sizeMmsghdr, flags)
		switch {
		case i == 0:
			all = a
		case a.errno != 0 || a.do != nil:
			if all.dropped != nil {
				all.dropped()
			}
			a.ops[1] = a.ops[0]
			a.ops[0] = all.ops[0]
			return a
		}
		if all.errno != 0 || all.do != nil {
			return all
		}
	}
	return all
}

// sendMsg judges sendmsg(2), or one message of sendmmsg(2).
func (s *supervisor) sendMsg(c sys.Call, fd int32, msg uint64, flags uint32) answer {
	var h [sizeMsghdr]byte // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags
	if n, e := sys.ReadMem(int(s.n.TID), msg, h[:]); e != 0 || n < len(h) {
		return answer{} // the kernel says EFAULT, or sends to where it may
	}
	s.passes(h[:])
	name, size := binary.NativeEndian.Uint64(h[0:]), binary.NativeEndian.Uint32(h[8:])
	if name == 0 || size == 0 {
		return answer{}
	}
	b, e := s.sockaddr(name, uint64(size))
	if e != 0 {
		return s.refuse(core.IPCUnix, core.ActSend, "", "unreadable argument", e, core.Detail{"call": c.String()})
	}
	p := peerCall{act: core.ActSend, call: c, fd: fd, addr: b, flags: flags}
	var iov [16]byte
	if c == sys.CallSendmsg && binary.NativeEndian.Uint64(h[24:]) == 1 && binary.NativeEndian.Uint64(h[40:]) == 0 {
		if n, e := sys.ReadMem(int(s.n.TID), binary.NativeEndian.Uint64(h[16:]), iov[:]); e == 0 && n == len(iov) {
			p.data, p.size, p.fixed = binary.NativeEndian.Uint64(iov[:]), binary.NativeEndian.Uint64(iov[8:]), true
		}
	}
	return s.send(p)
}

func (s *supervisor) send(p peerCall) answer {
	if len(p.addr) < 2 {
		return answer{}
	}
	switch binary.NativeEndian.Uint16(p.addr) {
	case syscall.AF_UNIX:
		return s.unixPeer(p, unixName(p.addr))
	case syscall.AF_INET, syscall.AF_INET6, syscall.AF_UNSPEC:
		return s.inetPeer(p)
	case syscall.AF_NETLINK:
		return s.configure(p)
	}
	return answer{}
}

// configure refuses what would change an interface, an address or a route (rtnetlink(7)):
// a box has no capability for it, so this is for the log, and what was changed since the
// look gets the kernel's own EPERM.
func (s *supervisor) configure(p peerCall) answer {
	var h [8]byte // struct nlmsghdr: len, type
	if !p.fixed {
		return answer{}
	}
	if n, e := sys.ReadMem(int(s.n.TID), p.data, h[:6]); e != 0 || n < 6 {
		return answer{}
	}
	const first, get = 16, 2 // RTM_BASE; of each four the third asks
	kind := binary.NativeEndian.Uint16(h[4:])
	if kind < first || kind&3 == get {
		return answer{}
	}
	return s.refuse(core.IPCSocket, core.ActConfigure, rtnetlinkName(kind), "no capabilities", syscall.EPERM, p.detail())
}

// rtnetlinkName names a message of rtnetlink(7).
func rtnetlinkName(kind uint16) string {
	objects := [...]string{"LINK", "ADDR", "ROUTE", "NEIGH", "RULE", "QDISC", "TCLASS", "TFILTER", "ACTION"}
	if i := int(kind-16) / 4; i < len(objects) {
		return "RTM_" + [...]string{"NEW", "DEL", "GET", "SET"}[kind&3] + objects[i]
	}
	return "RTM " + strconv.Itoa(int(kind))
}

func (p *peerCall) detail() core.Detail { return core.Detail{"call": p.call.String()} }

// reach lets a call go on to where it may: the kernel carries it out, but for a connect
// on the caller's network, which is the supervisor's.
func (s *supervisor) reach(p peerCall, op *core.Operation) answer {
	if !s.hostNet || p.act != core.ActConnect {
		return answer{ops: [2]*core.Operation{op}}
	}
	return s.connectFor(p, op, addressed(p.addr))
}

// inetPeer judges an address of the Internet's families.
func (s *supervisor) inetPeer(p peerCall) answer {
	ap, ok := inetAddr(p.addr)
	if !ok {
		return s.reach(p, nil) // too short: EINVAL
	}
	local := ap.Addr().IsLoopback() || ap.Addr().IsUnspecified()
	sf := core.NetOut
	if local {
		sf = core.IPCLoopback
	}
	d := p.detail()
	op := &core.Operation{Surface: sf, Action: p.act, Target: ap.String(), Verdict: core.Redirected, Rule: "network namespace", Detail: d}
	if s.net != nil {
		if a, done := s.ownNet(p, ap, local); done {
			return a
		}
	}
	switch {
	case s.hostNet:
		if s.guarded(ap) {
			return s.refuse(core.SandboxSelf, p.act, ap.String(), "guarded port", syscall.ECONNREFUSED, d)
		}
		op.Verdict, op.Rule = core.Allowed, "net: host"
		return s.reach(p, op)
	case !local:
		return s.refuse(sf, p.act, ap.String(), "network namespace", syscall.ENETUNREACH, d)
	}
	return answer{ops: [2]*core.Operation{op}}
}

// guarded says whether ap is where the sandbox itself listens.
func (s *supervisor) guarded(ap netip.AddrPort) bool {
	if s.ports == nil {
		return false
	}
	for _, g := range s.ports() {
		// Its port on any address: which of them lead to this machine changes with the network.
		if g == ap.Port() {
			return true
		}
	}
	return false
}

// unixPeer judges the address of a Unix socket.
func (s *supervisor) unixPeer(p peerCall, name string) answer {
	if name == "" {
		return s.reach(p, nil)
	}
	if name[0] == '@' {
		return s.abstractPeer(p, name)
	}
	pl, e := s.walk(-100, name, true, false)
	if e != 0 {
		return s.unreadable(core.IPCUnix, p.act, pl, e)
	}
	if s.spotOf(pl) == onHidden {
		return s.refuse(core.SandboxSelf, p.act, pl.path, "mask", syscall.EACCES, p.detail())
	}
	sf := s.socketSurface(pl.path)
	op := &core.Operation{Surface: sf, Action: p.act, Target: pl.path, Verdict: core.Redirected, Rule: "own view", Detail: p.detail()}
	dec := s.policy.Load().DecideConnect(sf, pl.path)
	mode, _, err := sys.Lstat(s.paths.root, strings.TrimPrefix(pl.path, "/"))
	there := err == nil
	own := there && (s.spotOf(pl) == onOwn || s.changed.inUpper(pl.path))
	switch {
	case s.bus != nil && pl.path == s.bus.path && dec.Verdict == core.Redirected:
		op.Rule = "own bus"
		return s.ownBus(p, op)
	case own:
		return s.reachOwn(p, op)
	case dec.Verdict == core.Allowed:
		op.Verdict, op.Rule = core.Allowed, dec.Rule
		return s.grant(p, op, pl.path)
	case there && mode&syscall.S_IFMT == syscall.S_IFSOCK:
		return s.refuse(sf, p.act, pl.path, dec.Rule, syscall.ECONNREFUSED, p.detail())
	case !there && (under(pl.path, "/run") || under(pl.path, "/dev")) && exists(pl.path): // outside, where the box has its own
		return s.refuse(sf, p.act, pl.path, dec.Rule, syscall.ENOENT, p.detail())
	}
	if !there {
		op.Detail["found"] = "no"
	}
	return s.reachOwn(p, op)
}

// exists says whether there is something at a path outside of the box, below /run or /dev:
// elsewhere a look can take for ever, or make the machine ask another (NFS, autofs).
func exists(name string) bool { _, err := os.Lstat(name); return err == nil }

// reachOwn lets a call reach a socket of the box itself. On the caller's network the
// supervisor connects, to what it opens in the box's own view.
func (s *supervisor) reachOwn(p peerCall, op *core.Operation) answer {
	if !s.hostNet || p.act != core.ActConnect {
		return answer{ops: [2]*core.Operation{op}}
	}
	root, name := s.paths.root, op.Target
	return s.connectFor(p, op, func() ([]byte, int, syscall.Errno) {
		place, err := sys.OpenInRoot(root, name)
		if err != nil {
			e, ok := err.(syscall.Errno)
			if !ok {
				e = syscall.ENOENT
			}
			return nil, -1, e
		}
		return sys.FDAddr(place), place, 0
	})
}

// abstractPeer judges an abstract name, which belongs to a network namespace.
func (s *supervisor) abstractPeer(p peerCall, name string) answer {
	sf := s.socketSurface(name)
	dec := s.policy.Load().DecideConnect(sf, name)
	op := &core.Operation{Surface: sf, Action: p.act, Target: name, Verdict: core.Redirected, Rule: "network namespace", Detail: p.detail()}
	if !s.hostNet && s.boundHere(name) {
		return answer{ops: [2]*core.Operation{op}}
	}
	if s.hostNet && s.wall.Scoped && s.abstract[name] {
		// The kernel carries it out, as no domain but the box's is the socket's. On another
		// family's socket the address could become one of that.
		if !s.isUnix(p.fd) {
			return s.refuse(sf, p.act, name, "not a Unix socket", syscall.EINVAL, p.detail())
		}
		op.Rule = "landlock scope"
		return answer{ops: [2]*core.Operation{op}}
	}
	if dec.Verdict != core.Allowed {
		return s.refuse(sf, p.act, name, dec.Rule, syscall.ECONNREFUSED, p.detail())
	}
	op.Verdict, op.Rule = core.Allowed, dec.Rule
	if s.hostNet && p.act != core.ActConnect && s.wall.Scoped { // out of the box's reach
		return s.sendFor(p, op, addressed(sys.UnixAddr(name)))
	}
	if p.act != core.ActConnect {
		if s.hostNet {
			return s.reach(p, op)
		}
		return s.refuse(sf, p.act, name, "a datagram to an abstract name", syscall.ECONNREFUSED, p.detail())
	}
	return s.relay(p, op, addressed(sys.UnixAddr(name)))
}

// isUnix says whether a descriptor of the caller's is a Unix socket.
func (s *supervisor) isUnix(fd int32) bool {
	sock, e := s.theirSocket(fd)
	if e != 0 {
		return false
	}
	defer sys.CloseFD(sock)
	family, _, err := sys.SocketKind(sock)
	return err == nil && family == syscall.AF_UNIX
}

// binds remembers the abstract name that the box binds, for the log alone: whose a name is
// the second wall knows.
func (s *supervisor) binds(addr []byte) {
	if name := unixName(addr); s.hostNet && name != "" && name[0] == '@' && len(s.abstract) < maxAbstract {
		if s.abstract == nil {
			s.abstract = map[string]bool{}
		}
		s.abstract[name] = true
	}
}

// boundHere says whether a socket of the box's network namespace has that abstract name,
// as far as can be seen in the first of them (a box can have any number).
func (s *supervisor) boundHere(name string) bool {
	list := readBounded("/proc/"+strconv.Itoa(int(s.n.TID))+"/net/unix", maxUnixList)
	return len(list) == maxUnixList || bytes.Contains(list, []byte(" "+strings.ReplaceAll(name, "\x00", "@")+"\n"))
}

// readBounded reads the first bytes of a file, at most n.
func readBounded(file string, n int64) []byte {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, n))
	if err != nil {
		return nil
	}
	return b
}

// theirSocket copies a socket of the calling thread. The caller closes it.
func (s *supervisor) theirSocket(fd int32) (int, syscall.Errno) {
	if fd < 0 {
		return -1, syscall.EBADF
	}
	sock, err := sys.ThreadFD(int(s.n.TID), int(fd))
	if err != nil || !s.l.Valid(s.n.ID) { // the thread's number may be another's by now
		if err == nil {
			sys.CloseFD(sock)
		}
		return -1, syscall.EBADF
	}
	return sock, 0
}

// grant performs a call to a socket outside that the policy grants. Where the name leads is
// found out when it is done: it may take long.
func (s *supervisor) grant(p peerCall, op *core.Operation, name string) answer {
	where := func() (addr []byte, place int, e syscall.Errno) {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			return nil, -1, syscall.ENOENT
		}
		for _, h := range s.hide {
			if under(real, h) {
				op.Surface, op.Verdict, op.Outcome, op.Rule, op.Leak = core.SandboxSelf, core.Blocked, core.Refused, "mask", false
				return nil, -1, syscall.EACCES
			}
		}
		if place, err = sys.OpenPath(-1, real, syscall.O_NOFOLLOW); err != nil {
			return nil, -1, syscall.ENOENT
		}
		if m, err := sys.Mode(place); err != nil || m&syscall.S_IFMT != syscall.S_IFSOCK {
			sys.CloseFD(place)
			return nil, -1, syscall.ECONNREFUSED
		}
		return sys.FDAddr(place), place, 0
	}
	if p.act == core.ActConnect {
		return s.relay(p, op, where)
	}
	return s.sendFor(p, op, where)
}

// addressed is an address that is known.
func addressed(addr []byte) whereabouts {
	return func() ([]byte, int, syscall.Errno) { return addr, -1, 0 }
}

// failed notes in op that the box got e though nothing refused it.
func (s *supervisor) failed(op *core.Operation, e syscall.Errno) *core.Operation {
	if op == nil {
		return nil
	}
	op.Outcome, op.Errno = core.Performed, sys.ErrnoName(e)
	return op
}

// whereabouts finds an address, with a descriptor that it leads by and that is closed
// afterwards, unless it is -1. It may take long.
type whereabouts func() (addr []byte, place int, e syscall.Errno)

// onTheirs has do done with the box's own socket and the address that where finds.
func (s *supervisor) onTheirs(p peerCall, op *core.Operation, where whereabouts, do func(sock int, addr []byte) performed) answer {
	sock, e := s.theirSocket(p.fd)
	if e != 0 {
		return answer{errno: e, ops: [2]*core.Operation{s.failed(op, e)}}
	}
	done := func() { sys.CloseFD(sock) }
	return answer{ops: [2]*core.Operation{op}, dropped: done, do: func() performed {
		defer done()
		addr, place, e := where()
		if e != 0 {
			return performed{errno: e}
		}
		if place >= 0 {
			defer sys.CloseFD(place)
		}
		return do(sock, addr)
	}}
}

// connectFor connects the box's own socket from outside of the box. op may be nil.
func (s *supervisor) connectFor(p peerCall, op *core.Operation, where whereabouts) answer {
	if op == nil {
		op = &core.Operation{Surface: core.IPCSocket, Action: p.act, Target: "no address", Verdict: core.Redirected, Rule: "supervisor", Detail: p.detail()}
	}
	op.Detail["how"] = "by the supervisor"
	return s.onTheirs(p, op, where, func(sock int, addr []byte) performed {
		return performed{errno: sys.Connect(sock, addr)}
	})
}

// sendFor sends a datagram for the box: its bytes are copied first.
func (s *supervisor) sendFor(p peerCall, op *core.Operation, where whereabouts) answer {
	fail := func(rule string, e syscall.Errno) answer {
		return s.refuse(op.Surface, p.act, op.Target, rule, e, p.detail())
	}
	if !p.fixed || p.size > maxDatagram {
		return fail("a message of several parts, with descriptors or too long", syscall.EMSGSIZE)
	}
	data := make([]byte, p.size)
	for at := 0; at < len(data); at += maxPath * 8 { // as much as one read takes
		part := data[at:min(len(data), at+maxPath*8)]
		if n, e := sys.ReadMem(int(s.n.TID), p.data+uint64(at), part); e != 0 || n < len(part) {
			return fail("unreadable argument", syscall.EFAULT)
		}
	}
	op.Detail["how"] = "by the supervisor"
	const noSignal = 0x4000 // MSG_NOSIGNAL: SIGPIPE would be the supervisor's
	return s.onTheirs(p, op, where, func(sock int, addr []byte) performed {
		n, e := sys.SendTo(sock, data, int(p.flags)|noSignal, addr)
		return performed{value: int64(n), errno: e}
	})
}

// socketSurface says whose socket a name is: a D-Bus, an agent of the user, or any.
func (s *supervisor) socketSurface(name string) core.Surface {
	if sf, ok := s.sockets[name]; ok {
		return sf
	}
	if at, ok := strings.CutPrefix(name, "@"); ok {
		name = at // Xlib and D-Bus use abstract twins of their paths
	}
	for _, k := range knownSockets {
		if ok, err := path.Match(k.glob, name); ok && err == nil {
			return k.surface
		}
	}
	if under(name, "/run/systemd") || under(name, "/run/user") && strings.Contains(name, "/systemd/") {
		return core.IPCAgent
	}
	return core.IPCUnix
}

var knownSockets = func() (ks []struct {
	glob    string
	surface core.Surface
}) {
	for sf, globs := range map[core.Surface]string{
		core.IPCDBus: "/run/dbus/* /run/user/*/bus /run/user/*/dbus-* /tmp/dbus-* /var/run/dbus/* /run/user/*/at-spi/bus* /root/.cache/ibus/dbus-* /home/*/.cache/ibus/dbus-*",
		core.IPCAgent: `/tmp/ssh-*/agent.* /run/user/*/keyring/* /run/user/*/gnupg/* /run/user/*/gnupg/*/* /run/user/*/ssh-agent* /run/user/*/openssh_agent
			/home/*/.gnupg/S.* /root/.gnupg/S.* /run/user/*/gcr/* /run/user/*/pulse/* /run/user/*/pipewire-* /run/user/*/wayland-* /tmp/.X11-unix/* /tmp/.ICE-unix/*
			/run/docker.sock /run/podman/* /run/user/*/podman/* /run/user/*/docker.sock /run/containerd/* /run/cups/* /run/user/*/gvfsd/* /run/user/*/gvfs*
			/run/pcscd/* /run/avahi-daemon/* /run/nscd/* /run/snapd* /run/libvirt/* /run/acpid.socket /run/gpm /dev/gpmctl /dev/log /tmp/tmux-*/* /run/screen/*/* /run/user/*/at-spi/*`,
	} {
		for g := range strings.FieldsSeq(globs) {
			ks = append(ks, struct {
				glob    string
				surface core.Surface
			}{g, sf})
		}
	}
	return ks
}()

// socketsOf finds the sockets that an environment points at, with their surfaces.
func socketsOf(env []string) map[string]core.Surface {
	m := map[string]core.Surface{}
	for _, e := range env {
		name, v, _ := strings.Cut(e, "=")
		switch name {
		case "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "AT_SPI_BUS_ADDRESS", "IBUS_ADDRESS":
			for addr := range strings.SplitSeq(v, ";") {
				kind, opts, _ := strings.Cut(addr, ":")
				for o := range strings.SplitSeq(opts, ",") {
					k, p, _ := strings.Cut(o, "=")
					switch {
					case kind == "unix" && k == "path":
						m[p] = core.IPCDBus
					case kind == "unix" && k == "abstract":
						m["@"+p] = core.IPCDBus
					}
				}
			}
		case "SSH_AUTH_SOCK", "GPG_AGENT_INFO", "PULSE_SERVER", "DOCKER_HOST", "CONTAINER_HOST", "PODMAN_HOST", "SWAYSOCK", "I3SOCK", "WAYLAND_DISPLAY":
			v = strings.TrimPrefix(strings.TrimPrefix(v, "unix://"), "unix:")
			if v, _, _ = strings.Cut(v, ":"); strings.HasPrefix(v, "/") {
				m[v] = core.IPCAgent
			}
		}
	}
	return m
}
