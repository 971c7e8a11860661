package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
)

// resolverConfig is what a resolver needs. Its functions are called from many goroutines.
type resolverConfig struct {
	Upstream func() []netip.AddrPort // whom to ask
	Policy   func() *core.Policy
	Log      func(*core.Operation) // each question, once it is answered; box, session and number are the caller's to add
	Names    *names
	// Fake: no question leaves; a name gets an address of the pool, for a proxy that is told
	// the name.
	Fake bool
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
}

// resolver answers the box's questions for names. Each is judged by its name, asked anew
// outside, read whole on its way back, and an operation whatever came of it.
type resolver struct {
	resolverConfig
	places      chan struct{} // one taken by each question that waits for an answer
	tunnels     *tunnels
	each, total time.Duration // patience
}

// maxQuestions bounds the questions that wait at a time. libc asks two for a name.
const maxQuestions = 256

func newResolver(c resolverConfig) *resolver {
	return &resolver{resolverConfig: c, places: make(chan struct{}, maxQuestions), tunnels: newTunnels(), each: askEach, total: askTotal}
}

// Where the box asks, and that side of its network.
var (
	resolverAddr4, resolverAddr6 = Resolver4, Resolver6
	boxAddr4, boxAddr6           = Box4, Box6
)

// question is what the box asks.
type question struct {
	id      uint16
	recurse bool
	name    string // in small letters; with escapes when it is no host's
	host    bool   // the name is canonical, or the root
	typ     uint16
	raw     []byte // the question as the box wrote it; nil when there is none to repeat
	edns    bool
	size    int // of the largest datagram that the box takes
	dnssec  bool
}

// parseQuestion reads what the box sent. A code other than rcodeOK is what it gets for it.
func parseQuestion(b []byte) (q question, rcode int, why string) {
	if len(b) < headerSize {
		return q, rcodeDropping, "too short"
	}
	q.id, q.size = binary.BigEndian.Uint16(b), leastUDP
	flags := binary.BigEndian.Uint16(b[2:])
	if flags&flagResponse != 0 {
		return q, rcodeDropping, "not a question" // two that answer each other never stop
	}
	q.recurse = flags&flagRecurse != 0
	if flags&maskOpcode != 0 {
		return q, rcodeNotImpl, "opcode " + strconv.Itoa(int(flags&maskOpcode>>11))
	}
	m, err := parseMessage(b)
	switch {
	case err != nil:
		return q, rcodeFormat, err.Error()
	case len(m.asked) != 1:
		return q, rcodeFormat, strconv.Itoa(len(m.asked)) + " questions"
	}
	a := m.asked[0]
	q.name, q.typ, q.raw = nameText(b, a.name), a.typ, b[a.name:a.end]
	_, q.host = core.CanonicalName(q.name)
	q.host = q.host || q.name == "."
	if end, _ := skipName(b, a.name); end != a.end-4 || b[end-1] != 0 || q.compressed() {
		q.raw = nil
		return q, rcodeFormat, "a compressed question"
	}
	opts := 0
	for _, r := range m.records {
		switch {
		case r.section != 3:
			return q, rcodeFormat, "a question with answers"
		case r.typ == typeOPT:
			opts++
			q.edns, q.size, q.dnssec = true, max(leastUDP, min(int(r.class), mostUDP)), r.ttl&ednsDNSSEC != 0
			if r.ttl>>16&0xFF != 0 {
				return q, rcodeBadVers, "EDNS version " + strconv.Itoa(int(r.ttl>>16&0xFF))
			}
		}
	}
	switch {
	case opts > 1:
		return q, rcodeFormat, "two OPT records"
	case a.class != classIN:
		return q, rcodeRefused, "class " + strconv.Itoa(int(a.class))
	case q.typ == 0 || q.typ == typeOPT || q.typ >= 128 && q.typ <= 255: // RFC 6895 3.1: not records but deeds, ANY and transfers among them
		return q, rcodeRefused, "type"
	case !q.host:
		return q, rcodeRefused, "not a host's name"
	}
	return q, rcodeOK, ""
}

// The bounds of an answer in a datagram: RFC 1035 2.3.4, and what passes a tun device.
const (
	leastUDP = 512
	mostUDP  = 4096
)

// compressed says whether the question's name is not written out.
func (q *question) compressed() bool {
	off := 0
	for off < len(q.raw)-4 && q.raw[off] != 0 {
		if q.raw[off] > 63 {
			return true
		}
		off += 1 + int(q.raw[off])
	}
	return off != len(q.raw)-5
}

// ruling is what becomes of a question.
type ruling struct {
	verdict core.Verdict
	rule    string
	rcode   int
	said    string // instead of the code's name
	why     string // of a failure
	server  string // who answered
	answers string
	reply   []byte // nil: the code alone is answered
	left    bool   // the question was asked outside
}

// answer returns what the box gets for query: nil is nothing. stream says that it came over
// TCP, asked whom it was sent to. It blocks until the servers outside have answered, ten
// seconds at most.
func (r *resolver) answer(ctx context.Context, query []byte, stream bool, who Owner, asked netip.AddrPort) []byte {
	began := time.Now()
	q, rcode, why := parseQuestion(query)
	v := ruling{verdict: core.Blocked, rule: "own resolver", rcode: rcode, why: why}
	if rcode == rcodeOK {
		v = r.decide(ctx, &q, asked)
	}
	reply := v.reply
	if reply == nil && v.rcode != rcodeDropping {
		reply = q.reply(v.rcode, nil)
	}
	if !stream && len(reply) > q.size {
		reply = q.cut(v.rcode)
	}
	r.log(began, &q, &v, who, asked)
	if v.left {
		if t, fires := r.tunnels.saw(began, q.name, typeText(q.typ)); fires {
			r.Log(t.operation(began, who))
		}
	}
	return reply
}

// decide judges a question that is one and has it answered.
func (r *resolver) decide(ctx context.Context, q *question, asked netip.AddrPort) ruling {
	d := r.Policy().DecideName(q.name)
	v := ruling{verdict: core.Allowed, rule: d.Rule, server: "sandglass"}
	if a := asked.Addr().Unmap(); a != resolverAddr4 && a != resolverAddr6 || asked.Port() != 53 {
		v.verdict, v.rule = core.Redirected, "own resolver"
	}
	if v.special(q) {
		v.rule = "own names"
		return v
	}
	if d.Stance == core.Block {
		return ruling{verdict: core.Blocked, rule: d.Rule, rcode: rcodeNoName}
	}
	if r.Fake {
		r.fake(q, &v)
		return v
	}
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	default:
		v.rcode, v.why = rcodeServer, "too many"
		return v
	}
	v.left = true
	r.forward(ctx, q, &v)
	return v
}

// lookUp asks for an address of a name that a flow has said, as if the box had asked: whether
// a name may be asked for, and what it is bound to, is the same. It is on record as what it is.
func (r *resolver) lookUp(ctx context.Context, name string, a netip.Addr, who Owner) {
	began := time.Now()
	b := append(make([]byte, headerSize), nameBytes(name)...)
	typ := uint16(typeA)
	if a.Is6() {
		typ = typeAAAA
	}
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, typ), classIN)
	b[2], b[5] = flagRecurse>>8, 1
	q, rcode, _ := parseQuestion(b)
	if rcode != rcodeOK {
		return
	}
	at := netip.AddrPortFrom(resolverAddr4, 53)
	v := r.decide(ctx, &q, at)
	if v.why == "" {
		v.why = "a flow says it"
	}
	r.log(began, &q, &v, who, at)
}

// nameBytes is a canonical name as it is sent.
func nameBytes(name string) (b []byte) {
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

// forward has a question answered outside.
func (r *resolver) forward(ctx context.Context, q *question, v *ruling) {
	m, from, err := r.ask(ctx, q)
	v.server = ""
	if from.IsValid() {
		v.server = from.String()
	}
	switch {
	case errors.Is(err, errMalformed):
		v.rcode, v.said, v.why = rcodeServer, errMalformed.Error(), err.Error()
		return
	case err != nil:
		v.rcode, v.why = rcodeServer, err.Error()
		return
	}
	v.rcode, v.answers, v.reply = m.rcode(), m.answersText(), q.handOn(&m)
	r.learn(q, &m)
}

// learn binds the addresses of an answer to the names by which the question led to them. A
// record of a name that the question does not lead to is anybody's word for it.
func (r *resolver) learn(q *question, m *message) {
	if q.name == "." {
		return
	}
	now, chain := time.Now(), m.chain(q.name)
	for i := range m.records {
		rec := &m.records[i]
		if rec.section != 1 {
			break
		}
		addrs := m.addrs(rec)
		if len(addrs) == 0 {
			continue
		}
		if at := slices.Index(chain, nameText(m.raw, rec.name)); at >= 0 {
			for _, a := range addrs {
				r.Names.bind(now, a, time.Duration(rec.ttl)*time.Second, chain[:at+1]...)
			}
		}
	}
}

// handOn is an answer from outside as the box gets it: to the question in its own spelling,
// with its own id, and about EDNS only when it spoke of it.
func (q *question) handOn(m *message) []byte {
	be := binary.BigEndian
	b := slices.Clone(m.raw)
	be.PutUint16(b, q.id)
	be.PutUint16(b[2:], q.flags(m.flags))
	copy(b[headerSize:], q.raw)
	if n := len(m.records); n > 0 && m.records[n-1].typ == typeOPT {
		b = b[:m.records[n-1].name] // nothing after it has a pointer that this would bend
		be.PutUint16(b[10:], uint16(m.counts[3]-1))
	} else if m.opt() != nil {
		return b
	}
	if q.edns && len(b)+11 <= maxMessage {
		b = appendOPT(b, mostUDP, m.rcode(), q.dnssec)
		be.PutUint16(b[10:], be.Uint16(b[10:])+1)
	}
	return b
}

// flags are those of an answer, where the box asked with its own.
func (q *question) flags(f uint16) uint16 {
	f = f&^flagRecurse | flagResponse | flagCanRecur
	if q.recurse {
		f |= flagRecurse
	}
	return f
}

// reply is an answer of our own: a code, and addresses of the name.
func (q *question) reply(rcode int, addrs []netip.Addr) []byte {
	be := binary.BigEndian
	b := be.AppendUint16(make([]byte, 0, leastUDP), q.id)
	b = be.AppendUint16(b, q.flags(uint16(rcode)&maskRcode))
	b = append(b, 0, 0, 0, byte(len(addrs)), 0, 0, 0, 0)
	if q.raw != nil {
		b[5] = 1
		b = append(b, q.raw...)
	}
	for _, a := range addrs {
		b = append(b, 0xC0, headerSize) // the name in the question
		b = be.AppendUint16(b, q.typ)
		b = be.AppendUint16(b, classIN)
		b = be.AppendUint32(b, fakeTTL)
		data := a.AsSlice()
		b = append(be.AppendUint16(b, uint16(len(data))), data...)
	}
	if q.edns {
		b[11] = 1
		b = appendOPT(b, mostUDP, rcode, q.dnssec)
	}
	return b
}

// cut is the answer in place of one that is too long for a datagram: ask over TCP.
func (q *question) cut(rcode int) []byte {
	b := q.reply(rcode, nil)
	b[2] |= flagTruncated >> 8
	return b
}

// fakeTTL is the life of answers of our own, in seconds.
const fakeTTL = 60

// fake answers a question for an address from the pool; of anything else there is none.
func (r *resolver) fake(q *question, v *ruling) {
	switch {
	case q.name == "." || reverse(q.name),
		hostName(q.name) == "": // an address, of the proxy's own network perhaps: none of them is the Internet's by being called so
		v.rcode = rcodeNoName
	case q.typ == typeA || q.typ == typeAAAA:
		v.address(q, r.Names.fake(q.name, q.typ == typeAAAA))
	}
}

// address answers with an address.
func (v *ruling) address(q *question, a netip.Addr) {
	v.reply, v.answers = q.reply(rcodeOK, []netip.Addr{a}), typeText(q.typ)+" "+a.String()
}

// special answers questions that concern nobody outside.
func (v *ruling) special(q *question) bool {
	below := func(name string) bool { return q.name == name || strings.HasSuffix(q.name, "."+name) }
	switch {
	case below("localhost"): // RFC 6761 6.3: the box's own
		switch q.typ {
		case typeA:
			v.address(q, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		case typeAAAA:
			v.address(q, netip.IPv6Loopback())
		}
	case below("sandglass"), // ours, and there is none
		below("resolver.arpa"),              // RFC 9462: who else would answer, encrypted
		q.name == "use-application-dns.net", // a browser asks whether it may ask past its resolver
		reverse(q.name) && !publicReverse(q.name):
		v.rcode = rcodeNoName
	default:
		return false
	}
	return true
}

// reverse says whether a name stands for an address (RFC 1035 3.5, RFC 3596 2.5).
func reverse(name string) bool {
	return strings.HasSuffix(name, ".in-addr.arpa") || strings.HasSuffix(name, ".ip6.arpa")
}

// publicReverse says whether the address that a name stands for is one of the Internet's. What the
// local network calls its machines is not the box's to know (RFC 6303: such names are
// answered where they are asked).
func publicReverse(name string) bool {
	a, ok := reversed(name)
	return !ok || new(core.Neighbourhood).PlaceOf(a) == core.Internet && !isOwn(a)
}

func isOwn(a netip.Addr) bool {
	return a == resolverAddr4 || a == boxAddr4 || a == resolverAddr6 || a == boxAddr6
}

// reversed is the address that a name stands for.
func reversed(name string) (a netip.Addr, ok bool) {
	if digits, is := strings.CutSuffix(name, ".in-addr.arpa"); is {
		b := strings.Split(digits, ".")
		slices.Reverse(b)
		a, err := netip.ParseAddr(strings.Join(b, "."))
		return a, err == nil && a.Is4()
	}
	digits, is := strings.CutSuffix(name, ".ip6.arpa")
	if !is || len(digits) != 63 {
		return a, false
	}
	var b [16]byte
	for i := range 32 {
		n, err := strconv.ParseUint(digits[62-2*i:63-2*i], 16, 4)
		if err != nil || i < 31 && digits[61-2*i] != '.' {
			return a, false
		}
		b[i/2] |= byte(n) << (4 - i%2*4)
	}
	return netip.AddrFrom16(b), true
}

// log reports a question and what came of it.
func (r *resolver) log(began time.Time, q *question, v *ruling, who Owner, asked netip.AddrPort) {
	op := &core.Operation{Time: began, PID: who.PID, Proc: who.Proc, Exe: who.Exe, Surface: core.NetDNS, Action: core.ActResolve,
		Target: q.name, Verdict: v.verdict, Outcome: core.Performed, Rule: v.rule,
		Detail: core.Detail{"rcode": rcodeText(v.rcode), "ms": strconv.FormatInt(time.Since(began).Milliseconds(), 10), "asked": asked.String()}}
	if v.verdict == core.Blocked {
		op.Outcome = core.Refused
	}
	if v.said != "" {
		op.Detail["rcode"] = v.said
	}
	if q.name != "" {
		op.Detail["type"] = typeText(q.typ)
	}
	for k, s := range map[string]string{"answers": v.answers, "why": v.why, "server": v.server} {
		if s != "" {
			op.Detail[k] = s
		}
	}
	r.Log(op)
}

// operation is the alarm for the log.
func (t *tunnelAlarm) operation(at time.Time, who Owner) *core.Operation {
	return &core.Operation{Time: at, PID: who.PID, Proc: who.Proc, Exe: who.Exe, Surface: core.NetDNS, Action: core.ActTunnel, Target: t.domain,
		Verdict: core.Allowed, Outcome: core.Performed, Rule: "tunnel", Leak: true,
		Detail: core.Detail{"questions": fmt.Sprint(t.questions), "distinct": fmt.Sprint(t.distinct), "bytes": fmt.Sprint(t.bytes), "why": t.why}}
}
