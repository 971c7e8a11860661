package network

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// The addresses of a box's network. They are of ranges that nobody has (RFC 5737, RFC 3849),
// so that no network of the machine's is hidden by them, and of the scope that a machine on
// the Internet has: programs then choose among addresses as they would outside (RFC 6724).
var (
	Box4      = netip.MustParseAddr("192.0.2.2")
	Box6      = netip.MustParseAddr("2001:db8:5361::2")
	Resolver4 = netip.MustParseAddr("192.0.2.1") // the supervisor's own, where the resolver answers
	Resolver6 = netip.MustParseAddr("2001:db8:5361::1")
)

// Interface is what the box's interface is called, MTU what fits through it: all that IP can
// say, so that nothing is ever sent in fragments and few packets carry much.
const (
	Interface = "sand0"
	MTU       = 65535
)

// Options say what a network is made of.
type Options struct {
	// Tun is a descriptor of [sys.OpenTun], or -1 when another session of the box has it; Diag
	// one of [sys.DiagSocket] in the box's network namespace. The network closes both.
	Tun, Diag int
	// Share is the folder where the sessions of the box find each other; "" when there is one only.
	Share string
	// Policy returns the session's policy as it is now.
	Policy func() *core.Policy
	// Log takes an operation over. It may block, which holds the box's network up.
	Log func(*core.Operation)
	// Guarded lists the ports on which the sandbox itself listens; nil: none.
	Guarded func() []uint16
	Limits  core.Limits
	// Capture is the file for packets, "" for none, CaptureLimit its size in bytes.
	Capture      string
	CaptureLimit int64
	// Trouble is told what went wrong beside the way; nil: nobody.
	Trouble func(error)
}

// Network is a running network. All its methods may be called at any time.
type Network struct {
	o        Options
	ctx      context.Context
	stop     context.CancelFunc
	wire     atomic.Pointer[wire]
	host     atomic.Pointer[host] // nil: another session has the device
	waiting  sync.Map             // flowKey to *connection: the stack has its SYN
	peers    sync.Map             // flowKey to *datagrams
	count    atomic.Int64         // of them
	stack    *stack.Stack
	link     *link
	owners   *owners
	names    *names
	resolver *resolver
	capture  *capture
	asks     askBook
	wg       sync.WaitGroup

	mu      sync.RWMutex
	flows   map[flowKey]*flow
	closed  bool
	refused map[flowKey]time.Time // that were refused of late, and logged
	inbound map[netip.AddrPort]*datagrams

	next      atomic.Uint64 // number of the last flow
	openings  chan struct{} // flows that are being opened
	questions chan struct{}
	packets   atomic.Uint64 // that came from the box
	carried   atomic.Int64  // bytes, both ways together
	full      atomic.Bool   // as much as the limit lets it carry
	up, down  *rate.Limiter

	near   sync.Mutex
	hood   core.Neighbourhood
	hoodAt time.Time
}

const (
	maxFlows     = 16384 // at a time
	maxOpenings  = 4096
	maxNames     = 512
	maxRefused   = 4096
	refusedAgain = 10 * time.Second // a refused flow is logged again after that
	hoodLives    = time.Second
)

// Start begins to serve a box's network.
func Start(o Options) (*Network, error) { return start(o, nil) }

// start serves the network on w, or on what attach finds.
func start(o Options, w wire) (*Network, error) {
	ctx, stop := context.WithCancel(context.Background())
	n := &Network{o: o, ctx: ctx, stop: stop, owners: newOwners(o.Diag), names: newNames(),
		flows: map[flowKey]*flow{}, refused: map[flowKey]time.Time{}, inbound: map[netip.AddrPort]*datagrams{},
		openings: make(chan struct{}, maxOpenings), questions: make(chan struct{}, maxNames)}
	n.resolver = newResolver(resolverConfig{Upstream: n.upstreams, Policy: o.Policy, Log: n.log, Names: n.names, Fake: o.Policy().Network.Proxy != ""})
	if r := o.Limits.NetRate; r > 0 {
		burst := int(max(r, chunk))
		n.up, n.down = rate.NewLimiter(rate.Limit(r), burst), rate.NewLimiter(rate.Limit(r), burst)
	}
	fail := func(err error) (*Network, error) {
		n.Close()
		return nil, err
	}
	if w != nil {
		n.wire.Store(&w)
	} else if err := n.attach(); err != nil {
		return fail(err)
	}
	if o.Capture != "" {
		c, err := newCapture(o.Capture, o.CaptureLimit, n.trouble)
		if err != nil {
			return fail(err)
		}
		n.capture = c
	}
	if err := n.newStack(); err != nil {
		return fail(err)
	}
	for _, p := range o.Policy().Network.Publish {
		if err := n.publish(p); err != nil {
			return fail(err)
		}
	}
	n.wg.Go(n.read)
	n.wg.Go(n.tick)
	return n, nil
}

const (
	drainMost  = 10 * time.Second // of waiting, in all
	drainStill = time.Second      // without a byte going on
	drainLook  = 3 * time.Millisecond
	drainQuiet = 3 // looks without a packet
)

// Drain waits until what the box's processes had sent when they ended is outside: their
// kernel would go on sending for them, too. It gives up when nothing moves any more.
func (n *Network) Drain() {
	if n.packets.Load() == 0 && n.next.Load() == 0 {
		return
	}
	end := time.Now().Add(drainMost)
	moved, quiet := time.Now(), 0
	for last := uint64(0); time.Now().Before(end) && time.Since(moved) < drainStill; {
		waiting, sum := n.undelivered()
		if sum += n.packets.Load(); sum != last {
			last, moved, quiet = sum, time.Now(), 0
		} else if quiet++; quiet >= drainQuiet && waiting == 0 {
			return
		}
		if !rest(n.ctx, drainLook) {
			return
		}
	}
}

// undelivered counts the connections that may hold something that the box has sent, and what
// all have carried.
func (n *Network) undelivered() (k int, carried uint64) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, f := range n.flows {
		carried += f.sent.Load()
		f.mu.Lock()
		if f.key.proto == protoTCP && (f.accepted || f.opened) && !f.over && !f.uploaded.Load() {
			k++
		}
		f.mu.Unlock()
	}
	return k, carried
}

// Close ends every flow and all that the network has begun. Log is called for the last time
// before it returns.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cut(func(*flow) bool { return true }, "session")
	n.stop()
	if w := n.wire.Load(); w != nil {
		(*w).close()
	}
	if h := n.host.Load(); h != nil {
		h.close()
	}
	n.wg.Wait()
	if n.stack != nil {
		n.stack.Destroy()
	}
	n.owners.close()
	if n.capture != nil {
		if err := n.capture.close(); err != nil && !n.capture.told {
			n.trouble(err)
		}
	}
}

func (n *Network) trouble(err error) {
	if n.o.Trouble != nil {
		n.o.Trouble(err)
	}
}

// log signs op as the network's and hands it on.
func (n *Network) log(op *core.Operation) {
	if op.Time.IsZero() {
		op.Time = time.Now()
	}
	n.o.Log(op)
}

// by says in op whose it is.
func (w Owner) by(op *core.Operation) *core.Operation {
	op.PID, op.Proc, op.Exe = w.PID, w.Proc, w.Exe
	return op
}

// Saw notes that a process of the box reaches, by its socket, for dst: the next flow there
// from that socket is its. cookie is 0 when it could not be found out.
func (n *Network) Saw(cookie uint64, proto string, dst netip.AddrPort, who Owner) {
	n.owners.saw(cookie, proto, dst, who)
	if h := n.host.Load(); h != nil && proto == "icmp" {
		h.reached(dst.Addr(), nil)
	}
	if w := n.wire.Load(); w != nil {
		l, guest := (*w).(*lane)
		switch {
		case guest && proto == "icmp":
			l.pings(dst.Addr())
		case guest && cookie != 0:
			l.saw(cookie)
		}
	}
}

// Serves notes whose a socket is that gets an address.
func (n *Network) Serves(cookie uint64, who Owner) {
	n.Saw(cookie, "", netip.AddrPort{}, who)
}

// Judge returns what would become of a flow there: whether it would be refused, by which rule
// and on which surface. What it does not refuse may still be, by a name.
func (n *Network) Judge(proto string, dst netip.AddrPort, who Owner) (sf core.Surface, rule string, refused bool) {
	f := n.describe(proto, dst, who)
	if f.ours() || dst.Addr() == Resolver4 || dst.Addr() == Resolver6 {
		return core.NetDNS, "own resolver", false
	}
	d := n.decide(&f)
	return f.surface, d.Rule, d.Stance == core.Block && !d.Later
}

// Cut ends the flow of that number, or all for "", and returns how many that were.
func (n *Network) Cut(number string) int {
	return n.cut(func(f *flow) bool { return number == "" || number == f.number() }, "cut")
}

// PolicyChanged ends the flows that the policy no longer allows.
func (n *Network) PolicyChanged() int {
	return n.cut(func(f *flow) bool {
		if f.view().surface == core.NetIn {
			return false // who comes in is let in by what is published, not by rules for what goes out
		}
		d := n.decideAgain(f)
		return d.Stance == core.Block && !d.Later
	}, "policy")
}

func (n *Network) cut(which func(*flow) bool, reason string) int {
	n.mu.RLock()
	var fs []*flow
	for _, f := range n.flows {
		fs = append(fs, f)
	}
	for _, d := range n.inbound {
		fs = append(fs, d.flow)
	}
	n.mu.RUnlock()
	slices.SortFunc(fs, func(a, b *flow) int { return int(int64(a.id) - int64(b.id)) })
	k := 0
	for _, f := range fs {
		if which(f) && f.finish(reason, "") {
			k++
		}
	}
	return k
}

// described is a flow as the policy sees it, with where it is recorded.
type described struct {
	core.Flow
	surface core.Surface
	self    bool // it leads to the sandbox itself
	taken   bool // the box is connected before it is decided
}

func (d *described) ours() bool {
	return d.Addr.Port() == 53 && d.Proto != "icmp"
}

// describe says all that is known of a flow.
func (n *Network) describe(proto string, dst netip.AddrPort, who Owner) described {
	dst = netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
	d := described{Flow: core.Flow{Proto: proto, Addr: dst, Place: n.placeOf(dst.Addr()), Names: n.names.of(time.Now(), dst.Addr()), Exe: who.Exe}}
	if isFake(dst.Addr()) && n.o.Policy().Network.Proxy != "" {
		d.Place = core.Internet
	}
	d.surface = core.NetOut
	switch {
	case d.Place == core.Host && n.guarded(dst.Port()):
		d.surface, d.self = core.SandboxSelf, true
	case d.Place == core.Host:
		d.surface = core.IPCLoopback
	case d.ours() || core.OtherDNS(&d.Flow):
		d.surface = core.NetDNS
	}
	return d
}

func (n *Network) guarded(port uint16) bool {
	return n.o.Guarded != nil && slices.Contains(n.o.Guarded(), port)
}

// decide asks the policy, and what stands above it.
func (n *Network) decide(d *described) core.FlowDecision {
	switch {
	case d.self:
		return core.FlowDecision{Stance: core.Block, Rule: "guarded port"}
	case n.full.Load():
		return core.FlowDecision{Stance: core.Block, Rule: "limit: net-bytes"}
	case d.Addr.Addr() == Resolver4 || d.Addr.Addr() == Resolver6:
		return core.FlowDecision{Stance: core.Block, Rule: "nothing is there"}
	}
	p := n.o.Policy()
	dec := p.DecideFlow(&d.Flow)
	if p.Network.Proxy != "" && d.Proto != "tcp" && dec.Stance != core.Block {
		return core.FlowDecision{Stance: core.Block, Rule: "proxy: it carries TCP alone"}
	}
	return dec
}

// leaks says whether a flow that is let go counts as a leak: the default policy would not.
func (d *described) leaks() bool {
	return d.Place != core.Internet || d.surface == core.NetDNS && !d.ours()
}

// placeOf says where an address leads, as the machine's interfaces are now.
func (n *Network) placeOf(a netip.Addr) core.Place {
	n.near.Lock()
	defer n.near.Unlock()
	if now := time.Now(); now.Sub(n.hoodAt) > hoodLives {
		n.hood, n.hoodAt = neighbourhood(), now
	}
	return n.hood.PlaceOf(a)
}

func (n *Network) upstreams() []netip.AddrPort {
	if rs := n.o.Policy().Network.Resolvers; len(rs) > 0 {
		return rs
	}
	return systemUpstreams()
}

// carry counts k bytes that a flow has carried, and says for how long it is to rest.
func (n *Network) carry(k int, lim *rate.Limiter) time.Duration {
	total := n.carried.Add(int64(k))
	if most := n.o.Limits.NetBytes; most > 0 && total > most && n.full.CompareAndSwap(false, true) {
		n.log(&core.Operation{Surface: core.SandboxLimit, Action: core.ActHit, Target: "net-bytes", Verdict: core.Blocked, Outcome: core.Performed,
			Rule: "limit", Errno: "ECONNRESET", Detail: core.Detail{"limit": strconv.FormatInt(most, 10), "used": strconv.FormatInt(total, 10)}})
		n.wg.Go(func() { n.cut(func(*flow) bool { return true }, "limit") })
	}
	if lim == nil {
		return 0
	}
	return lim.ReserveN(time.Now(), min(k, lim.Burst())).Delay()
}

// rest waits, or not, and is false when the flow is to end.
func rest(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tick tells, once a second, what flows carry.
func (n *Network) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		n.mu.RLock()
		var fs []*flow
		for _, f := range n.flows {
			if f.moved() {
				fs = append(fs, f)
			}
		}
		for _, d := range n.inbound {
			if d.flow.moved() {
				fs = append(fs, d.flow)
			}
		}
		n.mu.RUnlock()
		// The log is not for counters: of very many flows those that carry most.
		if len(fs) > maxCounted {
			slices.SortFunc(fs, func(a, b *flow) int { return int(b.fresh() - a.fresh()) })
			fs = fs[:maxCounted]
		}
		for _, f := range fs {
			f.count()
		}
	}
}

const maxCounted = 256

// errnoName is the name of an errno in err, "" when there is none.
func errnoName(err error) string {
	if e, ok := errnoOf(err); ok {
		return sys.ErrnoName(e)
	}
	return ""
}
