package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// flowKey names a flow as packets do. local is the box's side; of ICMP its port is the
// identifier, and remote has none.
type flowKey struct {
	proto         uint8
	local, remote netip.AddrPort
}

// flow is a flow that was let through, or is about to be.
type flow struct {
	n   *Network
	id  uint64
	key flowKey
	described
	owner  Owner
	start  time.Time
	ctx    context.Context
	cancel context.CancelFunc

	sent, received, pktsOut, pktsIn atomic.Uint64
	counted                         atomic.Uint64 // sent + received when last counted
	rtt                             atomic.Int64  // microseconds; 0: unknown
	boxFin, ourFin                  atomic.Bool   // of TCP: that side has sent its FIN
	resets                          atomic.Int32  // of the box, behind both
	uploaded                        atomic.Bool   // all that the box has sent is outside

	mu        sync.Mutex
	opened    bool     // its begin is in the log
	accepted  bool     // the stack has its SYN
	told      bool     // what it said of itself is in the log
	asked     []string // names that the resolver knows its address by, whatever it said itself
	over      bool
	reason    string
	roundTrip func() (int64, bool) // asks for the round-trip time
}

// view is the flow as the policy sees it now.
func (f *flow) view() described {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.described
}

// names notes what the flow said of itself, "" for nothing; there is no more to be heard.
func (f *flow) names(name string) described {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Heard = true
	if name != "" {
		f.Names = []string{name}
	}
	if f.surface == core.NetOut && core.OtherDNS(&f.Flow) {
		f.surface = core.NetDNS
	}
	return f.described
}

// decideAgain asks the policy about a flow as it is known now. The name that it says itself
// forbids and never opens: what the policy says of it without that name holds too.
func (n *Network) decideAgain(f *flow) core.FlowDecision {
	f.mu.Lock()
	said, asked := f.described, f.described
	asked.Names = f.asked
	f.mu.Unlock()
	d := n.decide(&said)
	if k := n.decide(&asked); k.Stance < d.Stance && !k.Later {
		d = k
	}
	return d
}

// knownName is the flow's name when an answer of the resolver gave it its address.
func (f *flow) knownName() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.asked) == 0:
		return ""
	case len(f.Names) > 0 && slices.Contains(f.asked, f.Names[0]):
		return f.Names[0]
	}
	return f.asked[0]
}

func (f *flow) number() string { return strconv.FormatUint(f.id, 10) }

// admit makes a flow for key, or nil when there is one, there are too many or the network
// ends. owner is the process that opens it.
func (n *Network) admit(key flowKey, d described, owner Owner) *flow {
	f := &flow{n: n, key: key, described: d, owner: owner, start: time.Now(), asked: d.Names}
	f.ctx, f.cancel = context.WithCancel(n.ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.flows[key] != nil || len(n.flows)+len(n.inbound) >= maxFlows {
		f.cancel()
		return nil
	}
	n.flows[key] = f
	f.id = n.next.Add(1)
	return f
}

// find returns the flow that a packet belongs to.
func (n *Network) find(key flowKey) *flow {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.flows[key]
}

// forget takes a flow out of the table.
func (f *flow) forget() {
	f.n.mu.Lock()
	if f.n.flows[f.key] == f {
		delete(f.n.flows, f.key)
	}
	f.n.mu.Unlock()
}

// begin logs that the flow was let go.
func (f *flow) begin(act core.Action, rule string, d core.Detail) {
	if d == nil {
		d = core.Detail{}
	}
	d["flow"], d["proto"] = f.number(), f.Proto
	if f.key.proto != 0 {
		d["local"] = strconv.Itoa(int(f.key.local.Port()))
	}
	v := f.view()
	if len(v.Names) > 0 && d["name"] == "" {
		d["name"], d["by"] = v.Names[0], "dns"
	}
	f.mu.Lock()
	f.opened = true
	f.mu.Unlock()
	f.n.log(f.owner.by(&core.Operation{Surface: v.surface, Action: act, Target: target(f.Proto, f.Addr), Verdict: core.Allowed,
		Rule: rule, Leak: v.leaks() || act == core.ActAccept, Detail: d}))
}

// target is an address as it is written in the log: an echo request has no port.
func target(proto string, a netip.AddrPort) string {
	if proto == "icmp" {
		return a.Addr().String()
	}
	return a.String()
}

// finish ends the flow, once. reason says why; errno what the other side said of it.
func (f *flow) finish(reason, errno string) bool {
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return false
	}
	f.over, f.reason = true, reason
	opened, surface := f.opened, f.surface
	f.mu.Unlock()
	f.sampleRoundTrip()
	f.cancel()
	f.forget()
	if opened {
		d := f.carried()
		d["reason"], d["ms"] = reason, strconv.FormatInt(time.Since(f.start).Milliseconds(), 10)
		f.n.log(f.owner.by(&core.Operation{Surface: surface, Action: core.ActClose, Target: target(f.Proto, f.Addr), Verdict: core.Allowed,
			Outcome: core.Performed, Rule: "supervisor", Errno: errno, Detail: d}))
	}
	return true
}

func (f *flow) carried() core.Detail {
	num := func(v uint64) string { return strconv.FormatUint(v, 10) }
	d := core.Detail{"flow": f.number(), "proto": f.Proto, "sent": num(f.sent.Load()), "received": num(f.received.Load()),
		"packets_out": num(f.pktsOut.Load()), "packets_in": num(f.pktsIn.Load())}
	if us := f.rtt.Load(); us > 0 {
		d["rtt_us"] = strconv.FormatInt(us, 10)
	}
	return d
}

// fresh is how much it has carried since it was last counted.
func (f *flow) fresh() int64 { return int64(f.sent.Load() + f.received.Load() - f.counted.Load()) }

func (f *flow) moved() bool { return f.fresh() != 0 }

// count logs what the flow has carried so far.
func (f *flow) count() {
	f.mu.Lock()
	over, opened, surface := f.over, f.opened, f.surface
	f.mu.Unlock()
	if over || !opened {
		return
	}
	f.sampleRoundTrip()
	f.counted.Store(f.sent.Load() + f.received.Load())
	f.n.log(f.owner.by(&core.Operation{Surface: surface, Action: core.ActCount, Target: target(f.Proto, f.Addr), Verdict: core.Allowed,
		Outcome: core.Performed, Rule: "supervisor", Detail: f.carried()}))
}

// sampleRoundTrip asks the socket outside how long the way there and back is.
func (f *flow) sampleRoundTrip() {
	f.mu.Lock()
	ask := f.roundTrip
	f.mu.Unlock()
	if ask == nil {
		return
	}
	if us, ok := ask(); ok {
		f.rtt.Store(us)
	}
}

// refusal is the errno that a program of the box gets of a refused flow: what its kernel
// makes of the answer (net/ipv4/icmp.c, icmp_err_convert; net/ipv6/icmp.c, tab_unreach).
func (d *described) refusal() syscall.Errno {
	switch a := d.Addr.Addr(); {
	case d.self || a == Resolver4 || a == Resolver6:
		return syscall.ECONNREFUSED
	case d.Heard || d.taken:
		return syscall.ECONNRESET // the box is connected already
	case a.Is6():
		return syscall.EACCES
	}
	return syscall.EHOSTUNREACH
}

// refuse logs that the flow was refused. The box gets errno.
func (n *Network) refuse(d *described, key flowKey, act core.Action, owner Owner, rule string, errno syscall.Errno) {
	now := time.Now()
	n.mu.Lock()
	last, again := n.refused[key]
	again = again && now.Sub(last) < refusedAgain
	if !again {
		if len(n.refused) >= maxRefused {
			clear(n.refused)
		}
		n.refused[key] = now
	}
	n.mu.Unlock()
	if again {
		return
	}
	detail := core.Detail{"proto": d.Proto}
	if len(d.Names) > 0 {
		detail["name"], detail["by"] = d.Names[0], "dns"
	}
	n.log(owner.by(&core.Operation{Surface: d.surface, Action: act, Target: target(d.Proto, d.Addr), Verdict: core.Blocked, Outcome: core.Refused,
		Rule: rule, Errno: sys.ErrnoName(errno), Detail: detail}))
}

// errnoOf finds the errno in an error of package net.
func errnoOf(err error) (syscall.Errno, bool) {
	var e syscall.Errno
	ok := errors.As(err, &e)
	return e, ok
}
