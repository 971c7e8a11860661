package core

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Stance is what a rule of the network says. The zero value is the safe one.
type Stance uint8

// The stances.
const (
	Block Stance = iota
	Ask          // the flow is held until a person has answered; no answer is a no
	Allow
)

var stances = []string{Block: "block", Ask: "ask", Allow: "allow"}

func (s Stance) String() string { return stances[s] }

// ParseStance reads a stance.
func ParseStance(s string) (Stance, error) {
	if i := slices.Index(stances, s); i >= 0 {
		return Stance(i), nil
	}
	return Block, Hint(fmt.Errorf("unknown stance %q", Shorten(s, 80)), "allow, ask or block")
}

// Network is what a policy says of a box's own network ([NetOwn]).
type Network struct {
	// Outbound is the stance on the Internet where no rule matches. The local network and
	// this machine are blocked then, whatever it is.
	Outbound Stance
	// OtherDNS is the stance on names that are asked for past the box's resolver, where it
	// can be known: DNS over TLS or QUIC, well-known servers of DNS over HTTPS.
	OtherDNS Stance
	Rules    []FlowRule // the first that matches decides
	Publish  []Publish
	// Proxy, when not "", carries all TCP flows: socks5://[USER:PASSWORD@]HOST:PORT or http://...
	Proxy string
	// Resolvers are asked the box's questions; none: the caller's own.
	Resolvers []netip.AddrPort
}

// Place is where an address leads to, seen from this machine.
type Place uint8

// The places.
const (
	Internet Place = iota
	LAN            // private, link-local, shared and on-link addresses; multicast and broadcast
	Host           // this machine itself: its loopback and all of its addresses
	Nowhere        // no address of anybody: unspecified, reserved
)

var placeNames = []string{Internet: "internet", LAN: "lan", Host: "host", Nowhere: "nowhere"}

func (p Place) String() string { return placeNames[p] }

// Neighbourhood is what this machine's interfaces say of addresses.
type Neighbourhood struct {
	Own    []netip.Addr   // the machine's own
	OnLink []netip.Prefix // what is reached without a router
}

var (
	lanPrefixes = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
		"224.0.0.0/4", "255.255.255.255/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
		"192.0.0.0/24",     // between a host and its provider (RFC 6890), the metadata of a cloud among it
		"168.63.129.16/32", // the host of an Azure machine: public by its looks, it hands out the machine's secrets
		"64:ff9b:1::/48")   // a translator of the network's own (RFC 8215): where in it the IPv4 address is, only that knows
	nowherePrefixes = prefixes("0.0.0.0/8", "240.0.0.0/4", "::/128", "100::/64")
	// IPv6 addresses that carry an IPv4 address in them: the prefix, and at which byte
	// (RFC 6052 and its well-known prefix, RFC 3056, RFC 4291 2.5.5).
	carriers = []struct {
		prefix netip.Prefix
		at     int
	}{
		{netip.MustParsePrefix("64:ff9b::/96"), 12},
		{netip.MustParsePrefix("2002::/16"), 2}, {netip.MustParsePrefix("::/96"), 12}, {netip.MustParsePrefix("::ffff:0:0:0/96"), 12},
	}
)

func prefixes(ps ...string) (out []netip.Prefix) {
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func within(a netip.Addr, ps []netip.Prefix) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// PlaceOf says where a leads to. An IPv6 address that carries an IPv4 address (NAT64,
// 6to4) is where that one is.
func (n *Neighbourhood) PlaceOf(a netip.Addr) Place {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid():
		return Nowhere
	case a.IsLoopback() || slices.Contains(n.Own, a):
		return Host
	case a.IsUnspecified(): // Linux takes it for loopback
		return Host
	case within(a, lanPrefixes) || within(a, n.OnLink):
		return LAN
	case within(a, nowherePrefixes):
		return Nowhere
	}
	if a.Is6() {
		b := a.As16()
		for _, c := range carriers {
			if c.prefix.Contains(a) {
				if p := n.PlaceOf(netip.AddrFrom4([4]byte(b[c.at : c.at+4]))); p != Internet {
					return p
				}
			}
		}
	}
	return Internet
}

// Flow is what a policy decides about: who in the box wants what from where.
type Flow struct {
	Proto string // "tcp", "udp" or "icmp"
	Addr  netip.AddrPort
	Place Place
	// Names are what the box knows the address by, canonical ([CanonicalName]): names that
	// it asked the resolver for, or the one that it named in the flow itself.
	Names []string
	// Heard: nothing more will be learned of the flow's name.
	Heard bool
	Exe   string // that opened it, in the box's view; "" when unknown
}

// FlowDecision is what a policy says of a flow.
type FlowDecision struct {
	Stance Stance
	Rule   string
	// Later: a rule by name may yet decide otherwise, when the flow has said its own.
	Later bool
}

// DecideFlow returns what p says of f: the first rule that matches, else its stance on the
// place. The Internet alone is meant by `*` and by names: who answers for a name can point
// it at any address. The local network and this machine take a rule that says so by
// address or by place. It never blocks and never fails. Cost: one walk of the rules.
func (p *Policy) DecideFlow(f *Flow) FlowDecision {
	n := &p.Network
	d, pending := FlowDecision{Stance: Block, Rule: p.Name + ": " + f.Place.String()}, [3]bool{}
	if f.Place == Internet {
		d = FlowDecision{Stance: n.Outbound, Rule: p.Name + ": " + string(NetOut)}
		if p.Surfaces[NetOut] == Blocked {
			d.Stance = Block
		}
		if OtherDNS(f) {
			d = FlowDecision{Stance: n.OtherDNS, Rule: p.Name + ": other-dns"}
			if p.Surfaces[NetDNS] == Blocked {
				d.Stance = Block
			}
		}
	}
	for i := range n.Rules {
		r := &n.Rules[i]
		switch r.matches(f) {
		case matchYes:
			d = FlowDecision{Stance: r.Stance, Rule: p.Name + ": " + r.String()}
		case matchMaybe:
			pending[r.Stance] = true
			continue
		default:
			continue
		}
		break
	}
	for s, is := range pending {
		if is && Stance(s) != d.Stance {
			d.Later = true
		}
	}
	return d
}

// DecideName returns what p says of asking the resolver for name: a rule that blocks the
// name whole, or that lets it be connected to, decides; else the stance on the Internet.
// A name that might be asked about may be looked up.
func (p *Policy) DecideName(name string) FlowDecision {
	if p.Surfaces[NetDNS] == Blocked {
		return FlowDecision{Stance: Block, Rule: p.Name + ": " + string(NetDNS)}
	}
	for i := range p.Network.Rules {
		r := &p.Network.Rules[i]
		whole := r.Proto == "" && len(r.Ports) == 0 && r.Exe == ""
		if (r.Name == "*" || r.Name != "" && MatchName(r.Name, name)) && (r.Stance != Block || whole) {
			return FlowDecision{Stance: r.Stance, Rule: p.Name + ": " + r.String()}
		}
	}
	d := FlowDecision{Stance: p.Network.Outbound, Rule: p.Name + ": " + string(NetDNS)}
	if p.Surfaces[NetOut] == Blocked {
		d.Stance = Block
	}
	return d
}

// maxRules bounds the rules of a policy's network.
const maxRules = 4096

// AddRule adds a rule ([ParseFlowRule]) behind the others or, when first, before them.
func (n *Network) AddRule(text string, first bool) error {
	r, err := ParseFlowRule(text)
	if err != nil {
		return err
	}
	if len(n.Rules) >= maxRules {
		return fmt.Errorf("rule %q: there are %d already", Shorten(text, 80), maxRules)
	}
	at := len(n.Rules)
	if first {
		at = 0
	}
	n.Rules = slices.Insert(n.Rules, at, r)
	return nil
}

// RemoveRule takes back every rule that is written like that.
func (n *Network) RemoveRule(text string) error {
	r, err := ParseFlowRule(text)
	if err != nil {
		return err
	}
	had := len(n.Rules)
	n.Rules = slices.DeleteFunc(n.Rules, func(x FlowRule) bool { return x.String() == r.String() })
	if len(n.Rules) == had {
		return fmt.Errorf("rule %q: %w", r.String(), ErrNotFound)
	}
	return nil
}

// AddPublish adds a port ([ParsePublish]).
func (n *Network) AddPublish(text string) error {
	p, err := ParsePublish(text)
	if err != nil {
		return err
	}
	const most = 256
	if len(n.Publish) >= most {
		return fmt.Errorf("publish %q: there are %d already", text, most)
	}
	n.Publish = append(n.Publish, p)
	return nil
}

// AddResolver adds an address, with a port when it is not 53.
func (n *Network) AddResolver(text string) error {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		a, aerr := netip.ParseAddr(text)
		if aerr != nil {
			return Hint(fmt.Errorf("resolver %q: not an address", Shorten(text, 80)), "as in 192.0.2.53 or [2001:db8::53]:5353")
		}
		ap = netip.AddrPortFrom(a, 53)
	}
	n.Resolvers = append(n.Resolvers, ap)
	return nil
}

// SetProxy sets the proxy; "" is none.
func (n *Network) SetProxy(text string) error {
	if text != "" {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "socks5" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			return Hint(fmt.Errorf("proxy %q: not a proxy's URL", Shorten(text, 80)), "as in socks5://127.0.0.1:1080 or http://USER:PASSWORD@proxy.example:3128")
		}
	}
	n.Proxy = text
	return nil
}

// changes says in what n differs from base, for people and the log.
func (n *Network) changes(base *Network) (out []string) {
	if n.Outbound != base.Outbound {
		out = append(out, "outbound="+n.Outbound.String())
	}
	if n.OtherDNS != base.OtherDNS {
		out = append(out, "other-dns="+n.OtherDNS.String())
	}
	for i := range n.Rules {
		out = append(out, "rule="+n.Rules[i].String())
	}
	for _, p := range n.Publish {
		out = append(out, "publish="+p.String())
	}
	for _, r := range n.Resolvers {
		out = append(out, "resolver="+r.String())
	}
	if u, err := url.Parse(n.Proxy); err == nil && n.Proxy != "" {
		out = append(out, "proxy="+u.Redacted())
	}
	return out
}

// maxLoopback bounds the ports of this machine's loopback that a box is given.
const maxLoopback = 64

// Loopback lists the addresses of this machine's loopback that rules by address or `host`
// let a box connect to, with their ports named: those it has on its own loopback then.
func (n *Network) Loopback() (as []netip.AddrPort) {
	for _, r := range n.Rules {
		var to []netip.Addr
		switch {
		case r.Stance == Block || r.Proto != "" && r.Proto != "tcp":
		case r.Prefix.IsValid() && r.Prefix.IsSingleIP() && r.Prefix.Addr().IsLoopback():
			to = []netip.Addr{r.Prefix.Addr()}
		case r.To == "host":
			to = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
		}
		for _, a := range to {
			for _, p := range r.Ports {
				for port := int(p.First); port <= int(p.Last) && len(as) < maxLoopback; port++ {
					if ap := netip.AddrPortFrom(a, uint16(port)); !slices.Contains(as, ap) {
						as = append(as, ap)
					}
				}
			}
		}
	}
	return as
}

// HasNames says whether a rule decides by name.
func (n *Network) HasNames() bool {
	return slices.ContainsFunc(n.Rules, func(r FlowRule) bool { return r.Name != "" && r.Name != "*" })
}

// FlowRule is a rule of the network. Exactly one of Name, Prefix and To is set.
type FlowRule struct {
	Stance Stance
	Proto  string       // "" is any
	Name   string       // a canonical name, "*.example.org" for all below it, "*" for the Internet
	Prefix netip.Prefix // or addresses
	To     string       // or a place: "lan", "host", "internet"
	Ports  []PortRange  // none is any
	Exe    string       // [path.Match] of the executable in the box; "" is any
}

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

const flowRuleHint = "as in `allow *.debian.org:443`, `block 10.0.0.0/8`, `ask tcp *:22 from /usr/bin/ssh`, `allow 127.0.0.1:5432`, `allow lan:631`"

// ParseFlowRule reads a rule: STANCE [tcp|udp|icmp] WHERE[:PORTS] [from EXECUTABLE].
// WHERE is a name, a name that begins with `*.`, an address, a prefix, `lan`, `host`,
// `internet` or `*`; PORTS are numbers and ranges, with commas between them.
func ParseFlowRule(text string) (r FlowRule, err error) {
	fail := func(why string) (FlowRule, error) {
		return FlowRule{}, Hint(fmt.Errorf("rule %q: %s", Shorten(text, 200), why), flowRuleHint)
	}
	words := strings.Fields(text)
	if len(words) < 2 {
		return fail("a stance and a place are needed")
	}
	if r.Stance, err = ParseStance(words[0]); err != nil {
		return fail("it begins with allow, ask or block")
	}
	words = words[1:]
	if w := words[0]; w == "tcp" || w == "udp" || w == "icmp" {
		r.Proto, words = w, words[1:]
	}
	if len(words) == 3 && words[1] == "from" {
		if _, err := path.Match(words[2], ""); err != nil || !strings.HasPrefix(words[2], "/") && !strings.HasPrefix(words[2], "*") {
			return fail("after `from` comes the absolute path of an executable, or a glob")
		}
		r.Exe, words = words[2], words[:1]
	}
	if len(words) != 1 {
		return fail("too many words, or too few")
	}
	where, ports := splitPorts(words[0])
	if ports != "" {
		if r.Ports, err = parsePorts(ports); err != nil {
			return fail(err.Error())
		}
		if r.Proto == "icmp" {
			return fail("icmp has no ports")
		}
	}
	switch {
	case where == "*" || where == "":
		r.Name = "*"
		if where == "" && ports == "" {
			return fail("no place")
		}
	case where == "lan" || where == "host" || where == "internet":
		r.To = where
	default:
		if p, err := netip.ParsePrefix(where); err == nil {
			r.Prefix = p.Masked()
		} else if a, err := netip.ParseAddr(where); err == nil {
			a = a.Unmap().WithZone("")
			r.Prefix = netip.PrefixFrom(a, a.BitLen())
		} else if name, ok := CanonicalName(strings.TrimPrefix(where, "*.")); ok {
			if r.Name = name; strings.HasPrefix(where, "*.") {
				r.Name = "*." + name
			}
		} else {
			return fail("neither a name, an address, a prefix nor a place")
		}
	}
	return r, nil
}

// splitPorts splits WHERE:PORTS. An IPv6 address with ports is in brackets.
func splitPorts(s string) (where, ports string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		a, p, ok := strings.Cut(rest, "]")
		if !ok || p != "" && p[0] != ':' {
			return s, ""
		}
		return a, strings.TrimPrefix(p, ":")
	}
	if strings.Count(s, ":") != 1 {
		return s, ""
	}
	where, ports, _ = strings.Cut(s, ":")
	if ports == "" {
		return s, ""
	}
	return where, ports
}

const maxPortRanges = 64

func parsePorts(s string) (ps []PortRange, err error) {
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, aerr := strconv.ParseUint(first, 10, 16)
		b, berr := strconv.ParseUint(last, 10, 16)
		if aerr != nil || berr != nil || a > b || a == 0 {
			return nil, fmt.Errorf("%q: ports are numbers from 1 to 65535, or ranges of them", Shorten(part, 40))
		}
		if len(ps) == maxPortRanges {
			return nil, fmt.Errorf("more than %d ranges of ports", maxPortRanges)
		}
		ps = append(ps, PortRange{uint16(a), uint16(b)})
	}
	return ps, nil
}

// String is the rule as [ParseFlowRule] reads it.
func (r *FlowRule) String() string {
	var b strings.Builder
	b.WriteString(r.Stance.String() + " ")
	if r.Proto != "" {
		b.WriteString(r.Proto + " ")
	}
	where := r.Name + r.To
	if r.Prefix.IsValid() {
		if where = r.Prefix.String(); r.Prefix.IsSingleIP() {
			where = r.Prefix.Addr().String()
		}
		if r.Prefix.Addr().Is6() && len(r.Ports) > 0 {
			where = "[" + where + "]"
		}
	}
	b.WriteString(where)
	for i, p := range r.Ports {
		b.WriteString([...]string{":", ","}[min(i, 1)] + strconv.Itoa(int(p.First)))
		if p.Last != p.First {
			b.WriteString("-" + strconv.Itoa(int(p.Last)))
		}
	}
	if r.Exe != "" {
		b.WriteString(" from " + r.Exe)
	}
	return b.String()
}

type matchResult uint8

const (
	matchNo matchResult = iota
	matchMaybe
	matchYes
)

func (r *FlowRule) matches(f *Flow) matchResult {
	if r.Proto != "" && r.Proto != f.Proto || len(r.Ports) > 0 && !r.hasPort(f) {
		return matchNo
	}
	if r.Exe != "" {
		if ok, err := path.Match(r.Exe, f.Exe); !ok || err != nil {
			return matchNo
		}
	}
	is := func(b bool) matchResult {
		if b {
			return matchYes
		}
		return matchNo
	}
	a := f.Addr.Addr().Unmap().WithZone("")
	switch {
	case r.Prefix.IsValid():
		// This machine is opened one address at a time.
		return is(r.Prefix.Contains(a) && (r.Stance == Block || f.Place != Host || r.Prefix.IsSingleIP()))
	case r.To != "":
		return is(r.To == f.Place.String())
	case r.Name == "*":
		return is(f.Place == Internet || r.Stance == Block)
	case f.Place != Internet && r.Stance != Block:
		return matchNo
	case slices.ContainsFunc(f.Names, func(n string) bool { return MatchName(r.Name, n) }):
		return matchYes
	case len(f.Names) == 0 && !f.Heard && f.Proto == "tcp":
		return matchMaybe
	}
	return matchNo
}

func (r *FlowRule) hasPort(f *Flow) bool {
	return f.Proto != "icmp" && slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= f.Addr.Port() && f.Addr.Port() <= p.Last })
}

// MatchName says whether a canonical name matches a pattern: itself, or `*.example.org`
// for every name below example.org.
func MatchName(pattern, name string) bool {
	if below, ok := strings.CutPrefix(pattern, "*."); ok {
		return len(name) > len(below)+1 && strings.HasSuffix(name, below) && name[len(name)-len(below)-1] == '.'
	}
	return pattern == name
}

// CanonicalName returns a host name in lower case without its final dot, and whether it is
// one: 1 to 253 bytes, labels of 1 to 63 letters, digits, '-' or '_'. Names of other
// scripts come in their ASCII form (RFC 5891).
func CanonicalName(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if len(s) == 0 || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 {
			return "", false
		}
		for i := range len(label) {
			c := label[i]
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", false
			}
		}
	}
	return s, true
}

// Publish is a port of the caller's that leads to one of the box.
type Publish struct {
	Proto  string         // "tcp" or "udp"
	Listen netip.AddrPort // outside
	Port   uint16         // in the box
}

// ParsePublish reads [ADDRESS:]PORT:PORT[/udp]: where outside, then the box's port. Without
// an address it is 127.0.0.1; port 0 outside is one that is free.
func ParsePublish(text string) (p Publish, err error) {
	fail := func() (Publish, error) {
		return Publish{}, Hint(fmt.Errorf("publish %q: not [ADDRESS:]PORT:PORT", Shorten(text, 80)), "as in 127.0.0.1:8080:80, or 5353:53/udp")
	}
	s, proto, found := strings.Cut(text, "/")
	if p.Proto = proto; !found {
		p.Proto = "tcp"
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 || p.Proto != "tcp" && p.Proto != "udp" {
		return fail()
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return fail()
	}
	p.Port = uint16(port)
	if s = s[:i]; !strings.Contains(s, ":") {
		s = "127.0.0.1:" + s
	}
	if p.Listen, err = netip.ParseAddrPort(s); err != nil {
		return fail()
	}
	return p, nil
}

// String is p as [ParsePublish] reads it.
func (p Publish) String() string {
	s := p.Listen.String() + ":" + strconv.Itoa(int(p.Port))
	if p.Proto == "udp" {
		s += "/udp"
	}
	return s
}

// OtherDNS says whether a flow asks for names past the box's resolver, as far as its
// address and port tell: DNS over TLS or QUIC by port (RFC 7858, RFC 9250), over HTTPS by
// a well-known server's name or address.
func OtherDNS(f *Flow) bool {
	if f.Proto == "icmp" {
		return false
	}
	switch f.Addr.Port() {
	case 853, 8853:
		return true
	case 443:
		return slices.Contains(dohAddrs, f.Addr.Addr().Unmap()) || slices.ContainsFunc(f.Names, DoHName)
	}
	return false
}

// DoHName says whether name is a well-known server of DNS over HTTPS.
func DoHName(name string) bool {
	return slices.ContainsFunc(dohNames, func(p string) bool { return MatchName(p, name) })
}

// What the large public resolvers publish, and those that browsers offer.
var (
	dohNames = strings.Fields(`dns.google dns64.dns.google cloudflare-dns.com *.cloudflare-dns.com one.one.one.one 1dot1dot1dot1.cloudflare-dns.com
		dns.quad9.net dns9.quad9.net dns10.quad9.net dns11.quad9.net doh.opendns.com doh.familyshield.opendns.com doh.umbrella.com
		dns.adguard-dns.com *.adguard-dns.com dns.adguard.com doh.cleanbrowsing.org dns.nextdns.io *.dns.nextdns.io dns.controld.com freedns.controld.com
		doh.mullvad.net dns.mullvad.net *.dns.mullvad.net doh.dns.sb dns.sb doh.libredns.gr doh.ffmuc.net dns.switch.ch doh.xfinity.com
		dns.alidns.com doh.pub dns.pub doh.360.cn dns.twnic.tw doh.applied-privacy.net dns0.eu *.dns0.eu dns.digitale-gesellschaft.ch
		odvr.nic.cz doh.centraleu.pi-dns.com mask.icloud.com doh.dns.apple.com dns.brahma.world ordns.he.net dns.njal.la common.dot.dns.yandex.net`)
	dohAddrs = func() (as []netip.Addr) {
		for a := range strings.FieldsSeq(`8.8.8.8 8.8.4.4 2001:4860:4860::8888 2001:4860:4860::8844 1.1.1.1 1.0.0.1 1.1.1.2 1.0.0.2 1.1.1.3 1.0.0.3
			2606:4700:4700::1111 2606:4700:4700::1001 9.9.9.9 149.112.112.112 9.9.9.10 9.9.9.11 2620:fe::fe 2620:fe::9
			208.67.222.222 208.67.220.220 94.140.14.14 94.140.15.15 45.90.28.0 45.90.30.0 76.76.2.0 76.76.10.0 194.242.2.2
			223.5.5.5 223.6.6.6 185.222.222.222 45.11.45.11`) {
			as = append(as, netip.MustParseAddr(a))
		}
		return as
	}()
)
