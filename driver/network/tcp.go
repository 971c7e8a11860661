package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// A connection of the box's. Its SYN is held here, outside of the stack, until it is known
// what the real network says: then the stack gets it and answers, or the box gets what a
// router or the host itself would have said.
type connection struct {
	*flow
	syn  []byte // the packet
	conn net.Conn
	hold bool // it is accepted before it is dialled: what it says of itself decides
}

const (
	// What the kernel waits for an answer to a SYN (tcp(7), tcp_syn_retries 6), and how much
	// longer the box's own is let wait: it is to time out by itself.
	dialPatience   = 127 * time.Second
	silentPatience = 70 * time.Second
	// How long a flow that is decided by what it says may say nothing.
	helloPatience = 10 * time.Second
	chunk         = 64 << 10
)

// syn takes the first packet of a connection.
func (n *Network) syn(p *packet, known *flow) {
	if known != nil {
		n.capturePacket(true, p.whole, known)
		known.mu.Lock()
		accepted := known.accepted
		known.mu.Unlock()
		if accepted { // its SYN-ACK was lost
			n.link.inject(p.v6, p.whole)
		}
		return
	}
	owner := n.owners.of("tcp", p.src, p.dst)
	d := n.describe("tcp", p.dst, owner)
	select {
	case n.openings <- struct{}{}:
	default:
		return // it will be sent again
	}
	f := n.admit(p.key(), d, owner)
	if f == nil {
		<-n.openings
		return
	}
	f.pktsOut.Add(1)
	n.capturePacket(true, p.whole, f)
	c := &connection{flow: f, syn: bytes.Clone(p.whole)}
	n.wg.Go(func() {
		defer func() { <-n.openings }()
		c.open()
	})
}

// open decides what becomes of a connection, and begins it.
func (c *connection) open() {
	n := c.n
	if c.ours() {
		c.accept()
		return
	}
	dec := n.decide(&c.described)
	if dec.Stance == core.Ask && !dec.Later {
		dec = n.ask(c.flow, dec)
	}
	switch {
	case dec.Later:
		c.hold = true
		c.accept()
		return
	case dec.Stance != core.Allow:
		c.refuse(dec.Rule)
		return
	}
	c.begin(core.ActConnect, dec.Rule, nil)
	if err := c.dial(); err != nil {
		c.failed(err)
		return
	}
	c.accept()
}

// refuse ends a connection that the policy does not want, as a firewall that says so.
func (c *connection) refuse(rule string) {
	errno := c.refusal()
	answer := icmpError(c.packet(), prohibited, 0)
	if errno == syscall.ECONNREFUSED {
		answer = reset(c.packet())
	}
	c.n.refuse(&c.described, c.key, core.ActConnect, c.owner, rule, errno)
	c.finish("policy", "")
	c.n.write(nil, answer)
}

func (c *connection) packet() *packet {
	p, _ := parsePacket(c.syn)
	return &p
}

// dial connects to where the box wants to, from outside.
func (c *connection) dial() (err error) {
	c.conn, err = c.n.dial(c.flow)
	if err != nil {
		return err
	}
	if t, ok := c.conn.(*net.TCPConn); ok {
		c.watchRoundTrip(t)
	}
	return nil
}

func (n *Network) dial(f *flow) (net.Conn, error) {
	if p := n.o.Policy().Network.Proxy; p != "" {
		ctx, cancel := context.WithTimeout(f.ctx, dialPatience)
		defer cancel()
		return dialProxy(ctx, p, f)
	}
	d := net.Dialer{Timeout: dialPatience, KeepAlive: -1}
	return d.DialContext(f.ctx, "tcp", f.Addr.String())
}

func (f *flow) watchRoundTrip(t *net.TCPConn) {
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	f.mu.Lock()
	f.roundTrip = func() (us int64, ok bool) {
		raw.Control(func(fd uintptr) { us, ok = sys.TCPRoundTrip(int(fd)) })
		return us, ok
	}
	f.mu.Unlock()
}

// failed gives the box what came of connecting outside.
func (c *connection) failed(err error) {
	errno, known := errnoOf(err)
	var late interface{ Timeout() bool }
	p := c.packet()
	switch {
	case c.ctx.Err() != nil: // cut
		c.n.write(nil, reset(p))
		return
	case errno == syscall.ETIMEDOUT || !known && errors.As(err, &late) && late.Timeout():
		// The box's kernel has sent its SYN for as long, and gives up by itself.
		rest(c.ctx, silentPatience)
		c.finish("timeout", "ETIMEDOUT")
		return
	case errno == syscall.ECONNREFUSED || errno == syscall.ECONNRESET:
		c.finish("refused", sys.ErrnoName(errno))
		c.n.write(nil, reset(p))
		return
	}
	why, reason := noHost, "unreachable"
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL:
		// The supervisor's own want, not what the network says.
		reason, known = "limit", false
	case syscall.ENETUNREACH:
		why = noNetwork
	case syscall.EACCES, syscall.EPERM:
		why = prohibited
	}
	name := sys.ErrnoName(errno)
	if !known {
		name = "EHOSTUNREACH"
		c.n.trouble(err)
	}
	c.finish(reason, name)
	c.n.write(nil, icmpError(p, why, 0))
}

// accept gives the SYN to the stack, which calls forward.
func (c *connection) accept() {
	c.flow.mu.Lock()
	if c.over {
		c.flow.mu.Unlock()
		if c.conn != nil {
			c.conn.Close()
		}
		return
	}
	c.accepted = true
	c.flow.mu.Unlock()
	c.n.waiting.Store(c.key, c)
	context.AfterFunc(c.ctx, func() {
		if c.n.waiting.CompareAndDelete(c.key, c) && c.conn != nil {
			c.conn.Close()
		}
	})
	v6 := c.Addr.Addr().Is6()
	c.n.link.inject(v6, c.syn)
	c.syn = nil
}

// forward is called by the stack for each connection that begins.
func (n *Network) forward(r *tcp.ForwarderRequest) {
	id := r.ID()
	key := flowKey{protoTCP, addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)}
	v, ok := n.waiting.LoadAndDelete(key)
	if !ok {
		r.Complete(true) // not one that was let in
		return
	}
	c := v.(*connection)
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil { // the box has given up
		if c.conn != nil {
			c.conn.Close()
		}
		c.finish("reset", "")
		return
	}
	ep.SocketOptions().SetDelayOption(false)
	n.mu.RLock()
	closed := n.closed
	if !closed { // the stack's goroutine, this one, is not waited for
		n.wg.Add(1)
	}
	n.mu.RUnlock()
	if closed {
		ep.Abort()
		if c.conn != nil {
			c.conn.Close()
		}
		return
	}
	go func() {
		defer n.wg.Done()
		c.serve(&inner{ep: ep, wq: &wq})
	}()
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(ip, port)
}

// serve carries a connection that the box has now.
func (c *connection) serve(in *inner) {
	defer in.ep.Close()
	if c.ours() {
		c.n.serveNames(c.flow, in)
		return
	}
	var first []byte
	if c.hold {
		var ok bool
		if first, ok = c.hear(in); !ok {
			in.ep.Abort()
			return
		}
	}
	defer c.conn.Close()
	if len(first) > 0 {
		if _, err := c.conn.Write(first); err != nil {
			in.ep.Abort()
			c.finish("reset", errnoName(err))
			return
		}
		c.sent.Add(uint64(len(first)))
		c.n.carry(len(first), nil)
	}
	c.relay(in, first)
}

// hear waits for what the flow says of itself, lets the policy decide and connects.
func (c *connection) hear(in *inner) (first []byte, ok bool) {
	ctx, cancel := context.WithTimeout(c.ctx, helloPatience)
	defer cancel()
	var e ear
	for !e.done() {
		b, err := in.read(ctx, chunk)
		if err != nil {
			break
		}
		first = append(first, b...)
		e.client(b)
	}
	if c.ctx.Err() != nil {
		return nil, false
	}
	c.verify(e.name)
	d := c.names(e.name)
	dec := c.n.decideAgain(c.flow)
	if dec.Stance == core.Ask {
		dec = c.n.ask(c.flow, dec)
	}
	if dec.Stance != core.Allow {
		c.n.refuse(&d, c.key, core.ActConnect, c.owner, dec.Rule, syscall.ECONNRESET)
		c.finish("policy", "")
		return nil, false
	}
	detail := core.Detail{}
	if e.name != "" {
		detail["name"], detail["by"] = e.name, e.by
	}
	c.begin(core.ActConnect, dec.Rule, detail)
	if err := c.dial(); err != nil {
		c.finish("unreachable", errnoName(err))
		return nil, false
	}
	return first, true
}

// verify finds out whether the name that a held flow says is one of its address's. Rules that
// let a name through need that: who connects can say any.
func (c *connection) verify(name string) {
	if name == "" || c.n.o.Policy().Network.Proxy != "" {
		return
	}
	d := c.view()
	d.Heard = true
	without := c.n.decide(&d)
	d.Names = []string{name}
	if with := c.n.decide(&d); with.Stance == core.Block || without.Stance == core.Allow {
		return // it opens nothing
	}
	c.n.resolver.lookUp(c.ctx, name, c.Addr.Addr(), c.owner)
	known := c.n.names.of(time.Now(), c.Addr.Addr())
	c.mu.Lock()
	c.asked = known
	c.mu.Unlock()
}

// relay carries bytes both ways until both have ended, or one has failed.
func (c *connection) relay(in *inner, heard []byte) {
	e := &ear{}
	if len(heard) > 0 {
		e.client(heard)
	}
	c.carryBoth(in, c.conn, e)
}

// carryBoth carries a flow between the stack and a connection outside.
func (f *flow) carryBoth(in *inner, out net.Conn, e *ear) {
	stop := context.AfterFunc(f.ctx, func() {
		abort(out)
		in.ep.Abort()
	})
	defer stop()
	// Both ways may be waiting for the outside when the box resets.
	dead := waiter.NewFunctionEntry(waiter.EventErr|waiter.EventHUp, func(waiter.EventMask) {
		if tcp.EndpointState(in.ep.State()) == tcp.StateError {
			go abort(out)
		}
	})
	in.wq.EventRegister(&dead)
	defer in.wq.EventUnregister(&dead)
	var both sync.WaitGroup
	var errOut, errIn error
	both.Go(func() { // box to outside
		errOut = f.upload(in, out, e)
		f.uploaded.Store(true)
		if errOut != nil {
			f.giveUp(in, out, errOut)
		}
	})
	both.Go(func() {
		if errIn = f.download(in, out, e); errIn != nil {
			f.giveUp(in, out, errIn)
		}
	})
	both.Wait()
	stop() // or the end of the flow would be taken for a cut
	reason, errno := "fin", ""
	for _, err := range []error{errOut, errIn} {
		if errOut == nil && errors.Is(err, errBoxGone) {
			continue // it has closed, and what came then was for nobody
		}
		if err != nil && !errors.Is(err, errAborted) {
			reason, errno = "reset", errnoName(err)
			if errno == "ETIMEDOUT" {
				reason = "timeout"
			}
		}
	}
	f.finish(reason, errno)
}

// errBoxGone is what the way to the box says when that has reset the connection.
var errBoxGone = errors.New("the box takes no more")

// errAborted is what one way says when the other has failed.
var errAborted = errors.New("aborted")

// giveUp ends both sides as the one that failed has: with a reset.
func (f *flow) giveUp(in *inner, out net.Conn, err error) {
	f.sampleRoundTrip() // while there is a socket to ask
	in.ep.Abort()
	abort(out)
}

// abort closes a connection with a reset.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// inner is the box's side of a connection: an endpoint of the stack.
type inner struct {
	ep tcpip.Endpoint
	wq *waiter.Queue
}

// wait waits until one of the events has come.
func (in *inner) wait(ctx context.Context, mask waiter.EventMask, ready func() (done bool)) error {
	e, ch := waiter.NewChannelEntry(mask | waiter.EventErr | waiter.EventHUp)
	in.wq.EventRegister(&e)
	defer in.wq.EventUnregister(&e)
	for !ready() {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// read reads what there is, at most about most bytes; io.EOF at the end.
func (in *inner) read(ctx context.Context, most int) (b []byte, err error) {
	var buf bytes.Buffer
	werr := in.wait(ctx, waiter.ReadableEvents, func() bool {
		_, terr := in.ep.Read(&limitWriter{&buf, most}, tcpip.ReadOptions{})
		err = readError(terr)
		return buf.Len() > 0 || err != errAgain
	})
	if buf.Len() > 0 {
		return buf.Bytes(), nil
	}
	if werr != nil {
		return nil, werr
	}
	return nil, err
}

type limitWriter struct {
	b    *bytes.Buffer
	room int
}

func (w *limitWriter) Write(p []byte) (int, error) {
	if w.room <= 0 {
		return 0, errAgain
	}
	k := min(len(p), w.room)
	w.room -= k
	w.b.Write(p[:k])
	if k < len(p) {
		return k, errAgain
	}
	return k, nil
}

// write writes all of b.
func (in *inner) write(ctx context.Context, b []byte) (err error) {
	werr := in.wait(ctx, waiter.WritableEvents, func() bool {
		var k int64
		for err = nil; len(b) > 0 && err == nil; b = b[k:] {
			var terr tcpip.Error
			k, terr = in.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{})
			err = readError(terr)
		}
		return err != errAgain
	})
	if werr != nil {
		return werr
	}
	return err
}

var errAgain = errors.New("not now")

// readError makes an error of package net's kind of one of the stack's.
func readError(e tcpip.Error) error {
	switch e.(type) {
	case nil:
		return nil
	case *tcpip.ErrWouldBlock, *tcpip.ErrBadBuffer:
		return errAgain
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	}
	return errors.New(e.String())
}

// upload carries what the box sends. What the stack holds goes to the socket as it is, when
// that has room for it: nothing is held in between.
func (f *flow) upload(in *inner, out net.Conn, e *ear) error {
	w := &socketWriter{f: f, ear: e}
	var raw syscall.RawConn
	if t, ok := out.(*net.TCPConn); ok {
		var err error
		if raw, err = t.SyscallConn(); err != nil {
			return err
		}
	} else {
		w.conn = out
	}
	for {
		var err error
		w.wrote, w.full = 0, false
		werr := in.wait(f.ctx, waiter.ReadableEvents, func() bool {
			read := func(fd uintptr) bool {
				w.fd, w.full = int(fd), false
				_, terr := in.ep.Read(w, tcpip.ReadOptions{})
				err = readError(terr)
				return !(w.full && w.wrote == 0)
			}
			if raw == nil {
				read(0)
			} else if rerr := raw.Write(read); rerr != nil {
				err = rerr
			}
			if w.err != nil {
				err = w.err
			}
			return w.wrote > 0 || err != errAgain
		})
		if w.wrote > 0 {
			f.sent.Add(uint64(w.wrote))
			if !rest(f.ctx, f.n.carry(w.wrote, f.n.up)) {
				return errAborted
			}
		}
		switch {
		case werr != nil:
			return errAborted
		case w.err != nil:
			return w.err
		case err == io.EOF:
			return closeWrite(out)
		case err != nil && err != errAgain:
			return err
		}
	}
}

// closeWrite passes the end of one way on.
func closeWrite(c net.Conn) error {
	type half interface{ CloseWrite() error }
	if h, ok := c.(half); ok {
		if err := h.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			return err
		}
	}
	return nil
}

// socketWriter writes to a socket what it takes at once.
type socketWriter struct {
	f     *flow
	ear   *ear
	fd    int
	conn  net.Conn // instead
	wrote int
	full  bool
	err   error
}

func (w *socketWriter) Write(b []byte) (k int, err error) {
	if w.ear != nil && !w.ear.done() {
		// Before a byte of it is outside: the name may be one that is not let go there.
		w.ear.client(b)
		if w.ear.done() && !w.f.heard(w.ear) {
			w.err = syscall.ECONNRESET
			return 0, w.err
		}
	}
	if w.conn != nil {
		k, err = w.conn.Write(b)
	} else {
		for {
			if k, err = syscall.Write(w.fd, b); err != syscall.EINTR {
				break
			}
		}
		k = max(k, 0)
		if err == syscall.EAGAIN {
			w.full = true
			w.wrote += k
			return k, errAgain
		}
	}
	w.wrote += k
	if err != nil {
		w.err = err
	} else if k < len(b) {
		w.full = true
		return k, errAgain
	}
	return k, err
}

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// download carries what the other side sends.
func (f *flow) download(in *inner, out net.Conn, e *ear) error {
	var raw syscall.RawConn
	if t, ok := out.(*net.TCPConn); ok {
		var err error
		if raw, err = t.SyscallConn(); err != nil {
			return err
		}
	}
	for {
		var k int
		var err error
		var b *[]byte
		if raw == nil {
			b = chunks.Get().(*[]byte)
			k, err = out.Read(*b)
		} else {
			b, k, err = readSome(raw)
		}
		if k > 0 {
			if e != nil {
				e.serverSays((*b)[:k])
				f.overheard(e)
			}
			werr := in.write(f.ctx, (*b)[:k])
			if werr == nil {
				f.received.Add(uint64(k))
			} else {
				err = fmt.Errorf("%w: %w", errBoxGone, werr)
			}
		}
		if b != nil {
			chunks.Put(b)
		}
		switch {
		case f.ctx.Err() != nil:
			return errAborted
		case err == io.EOF:
			if terr := in.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
				if _, gone := terr.(*tcpip.ErrNotConnected); !gone {
					return readError(terr)
				}
			}
			return nil
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
			return errAborted
		case err != nil:
			return err
		}
		if !rest(f.ctx, f.n.carry(k, f.n.down)) {
			return errAborted
		}
	}
}

// heard takes what the flow has said of itself to the policy, once, and is false when it
// is to end.
func (f *flow) heard(e *ear) bool {
	if e.name == "" && len(e.alpn) == 0 {
		return true
	}
	f.mu.Lock()
	if f.told {
		f.mu.Unlock()
		return true
	}
	f.told = true
	f.mu.Unlock()
	d := f.names(e.name)
	dec := core.FlowDecision{Stance: core.Allow, Rule: "supervisor"}
	if e.name != "" && (f.n.o.Policy().Network.HasNames() || core.OtherDNS(&d.Flow)) {
		dec = f.n.decideAgain(f)
		if dec.Stance == core.Ask {
			dec.Stance = core.Allow // it was asked about when it began
		}
	}
	op := f.owner.by(&core.Operation{Surface: d.surface, Action: core.ActIdentify, Target: e.name, Verdict: core.Allowed, Outcome: core.Performed,
		Rule: dec.Rule, Detail: core.Detail{"flow": f.number(), "by": e.by}})
	if len(e.alpn) > 0 {
		op.Detail["alpn"] = e.alpnText()
	}
	if dec.Stance != core.Allow {
		op.Verdict, op.Outcome, op.Errno = core.Blocked, core.Refused, "ECONNRESET"
		f.n.log(op)
		f.finish("policy", "")
		return false
	}
	f.n.log(op)
	return true
}

// overheard logs what the server has said of itself.
func (f *flow) overheard(e *ear) {
	certs, alpn, ok := e.serverNames()
	if !ok {
		return
	}
	name := ""
	v := f.view()
	if len(v.Names) > 0 {
		name = v.Names[0]
	}
	d := core.Detail{"flow": f.number(), "by": "tls"}
	if certs != "" {
		d["cert"] = certs
	}
	if alpn != "" {
		d["alpn"] = alpn
	}
	f.n.log(f.owner.by(&core.Operation{Surface: v.surface, Action: core.ActIdentify, Target: name, Verdict: core.Allowed, Outcome: core.Performed,
		Rule: "supervisor", Detail: d}))
}

// serveNames answers questions that come over TCP (RFC 7766).
func (n *Network) serveNames(f *flow, in *inner) {
	defer f.finish("fin", "")
	defer in.ep.Shutdown(tcpip.ShutdownWrite)
	var buf []byte
	for {
		ctx, cancel := context.WithTimeout(f.ctx, helloPatience)
		b, err := in.read(ctx, chunk)
		cancel()
		if err != nil {
			return
		}
		buf = append(buf, b...)
		for len(buf) >= 2 {
			size := int(binary.BigEndian.Uint16(buf))
			if len(buf) < 2+size {
				break
			}
			answer := n.resolver.answer(f.ctx, buf[2:2+size], true, f.owner, f.Addr)
			buf = buf[2+size:]
			if answer == nil || len(answer) > 0xffff {
				in.ep.Abort()
				return
			}
			if in.write(f.ctx, append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)) != nil {
				return
			}
		}
	}
}

// writeSegment hands a packet of the stack's to the box.
func (n *Network) writeSegment(pkt *stack.PacketBuffer) tcpip.Error {
	var f *flow
	if net, t := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice(); len(t) >= 4 && len(net) >= sizeIPv4 {
		var src, dst netip.Addr
		if pkt.NetworkProtocolNumber == ipv6.ProtocolNumber && len(net) >= sizeIPv6 {
			src, dst = netip.AddrFrom16([16]byte(net[8:24])), netip.AddrFrom16([16]byte(net[24:40]))
		} else if pkt.NetworkProtocolNumber == ipv4.ProtocolNumber {
			src, dst = netip.AddrFrom4([4]byte(net[12:16])), netip.AddrFrom4([4]byte(net[16:20]))
		}
		ports := header.TCP(t)
		f = n.find(flowKey{protoTCP, netip.AddrPortFrom(dst, ports.DestinationPort()), netip.AddrPortFrom(src, ports.SourcePort())})
	}
	if f != nil {
		f.pktsIn.Add(1)
		if t := header.TCP(pkt.TransportHeader().Slice()); t.Flags().Contains(header.TCPFlagFin) {
			f.ourFin.Store(true)
		}
	}
	parts := pkt.AsSlices()
	if n.capture != nil {
		n.capturePacket(false, bytes.Join(parts, nil), f)
	}
	head := sys.VnetPartial(len(pkt.NetworkHeader().Slice()), header.TCPChecksumOffset)
	if (*n.wire.Load()).send(head, parts) != nil {
		return &tcpip.ErrNoBufferSpace{}
	}
	return nil
}
