package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/sandglass/sandglass/core"
)

// Give takes over a socket that listens on the box's own loopback for a server on this
// machine's: who connects there is connected with that, when the policy lets him. So a
// program finds the server where it always is, and the rest of the loopback stays the box's.
func (n *Network) Give(fd int, a netip.AddrPort) {
	f := os.NewFile(uintptr(fd), "loopback")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		n.trouble(err)
		return
	}
	n.mu.RLock()
	closed := n.closed
	if !closed {
		n.wg.Add(1)
	}
	n.mu.RUnlock()
	if closed {
		l.Close()
		return
	}
	stop := context.AfterFunc(n.ctx, func() { l.Close() })
	go func() {
		defer n.wg.Done()
		defer stop()
		defer l.Close()
		for {
			c, err := l.Accept()
			if err != nil {
				if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) || !rest(n.ctx, 50*time.Millisecond) {
					return
				}
				continue
			}
			select {
			case n.openings <- struct{}{}:
				n.wg.Go(func() { n.given(c.(*net.TCPConn), a) })
			default:
				abort(c)
			}
		}
	}()
}

// given connects one that came to a port of [Network.Give].
func (n *Network) given(c *net.TCPConn, a netip.AddrPort) {
	opened := sync.OnceFunc(func() { <-n.openings })
	defer opened()
	from := addrPortOf(c.RemoteAddr())
	key := flowKey{protoTCP, from, a}
	var owner Owner // of another session of the box, which has one loopback with this, nobody is known
	if n.owners.mine("tcp", from, a) {
		owner = n.owners.of("tcp", from, a)
	}
	d := n.describe("tcp", a, owner)
	d.taken = true
	f := n.admit(key, d, owner)
	if f == nil {
		abort(c)
		return
	}
	dec := n.decide(&d) // once the flow is there to be found by who changes the policy
	if dec.Stance == core.Ask {
		dec = n.ask(f, dec)
	}
	if dec.Stance != core.Allow {
		n.refuse(&d, key, core.ActConnect, owner, dec.Rule, syscall.ECONNRESET)
		f.finish("policy", "")
		abort(c)
		return
	}
	f.begin(core.ActConnect, dec.Rule, nil)
	dialer := net.Dialer{Timeout: dialPatience, KeepAlive: -1}
	out, err := dialer.DialContext(f.ctx, "tcp", a.String())
	if err != nil {
		f.finish("refused", errnoName(err))
		abort(c)
		return
	}
	opened()
	f.between(c, out.(*net.TCPConn))
}

// between carries a flow between two sockets: the box's and the one outside.
func (f *flow) between(box, out *net.TCPConn) {
	defer box.Close()
	defer out.Close()
	f.watchRoundTrip(out)
	stop := context.AfterFunc(f.ctx, func() {
		abort(box)
		abort(out)
	})
	defer stop()
	var errs [2]error
	var both sync.WaitGroup
	for i, w := range []struct {
		to, from *net.TCPConn
		count    *atomic.Uint64
		lim      *rate.Limiter
	}{{out, box, &f.sent, f.n.up}, {box, out, &f.received, f.n.down}} {
		both.Go(func() {
			errs[i] = f.pump(w.to, w.from, w.count, w.lim)
			if w.from == box {
				f.uploaded.Store(true)
			}
			if errs[i] != nil {
				abort(box)
				abort(out)
			}
		})
	}
	both.Wait()
	stop() // or the end of the flow would be taken for a cut
	reason, errno := "fin", ""
	for _, err := range errs {
		if err != nil && !errors.Is(err, errAborted) {
			reason, errno = "reset", errnoName(err)
		}
	}
	f.finish(reason, errno)
}

func (f *flow) pump(to, from *net.TCPConn, count *atomic.Uint64, lim *rate.Limiter) error {
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	for {
		b, k, err := readSome(raw)
		if k > 0 {
			if _, werr := to.Write((*b)[:k]); werr != nil {
				err = werr
			} else {
				count.Add(uint64(k))
			}
		}
		if b != nil {
			chunks.Put(b)
		}
		switch {
		case f.ctx.Err() != nil:
			return errAborted
		case err == io.EOF:
			return closeWrite(to)
		case errors.Is(err, net.ErrClosed):
			return errAborted
		case err != nil:
			return err
		}
		if !rest(f.ctx, f.n.carry(k, lim)) {
			return errAborted
		}
	}
}

// readSome waits until there is something to read, and only then holds a buffer, which is of
// chunks; nil when there is none. At the end it says io.EOF.
func readSome(raw syscall.RawConn) (b *[]byte, k int, err error) {
	rerr := raw.Read(func(fd uintptr) bool {
		b = chunks.Get().(*[]byte)
		for {
			if k, err = syscall.Read(int(fd), *b); err != syscall.EINTR {
				break
			}
		}
		if err == syscall.EAGAIN {
			chunks.Put(b)
			b = nil
			return false
		}
		return true
	})
	switch {
	case rerr != nil:
		err = rerr
	case err == nil && k == 0:
		err = io.EOF
	}
	return b, max(k, 0), err
}
