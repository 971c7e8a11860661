package driver

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// relays carry the bytes of granted connections, to and fro. The box gets one end of a pair
// of sockets, the supervisor is connected to the server outside: so bytes pass and nothing
// else. A descriptor that a server sends along (SCM_RIGHTS, unix(7)) is closed by the kernel
// when it is not received: with one of a directory the box would have the real tree.
type relays struct {
	mu   sync.Mutex
	open map[net.Conn]bool
	over bool
	wg   sync.WaitGroup
}

const (
	maxRelays = 512      // connections at a time, of a session
	maxPacket = 64 << 10 // bytes of a message of SOCK_SEQPACKET
)

// relay performs a connect that the policy grants.
func (s *supervisor) relay(p peerCall, op *core.Operation, where whereabouts) answer {
	flags, ok := sys.DescriptorFlags(int(s.n.TID), int(p.fd))
	if !ok {
		return answer{errno: syscall.EBADF, ops: [2]*core.Operation{s.failed(op, syscall.EBADF)}}
	}
	op.Detail["how"] = "by the supervisor"
	return s.onTheirs(p, op, where, func(sock int, addr []byte) performed {
		family, kind, err := sys.SocketKind(sock)
		if err != nil || family != syscall.AF_UNIX {
			return performed{errno: syscall.EINVAL}
		}
		if kind != syscall.SOCK_STREAM && kind != syscall.SOCK_SEQPACKET {
			// Of datagrams the box has no address that one could answer to.
			return performed{errno: sys.Connect(sock, addr)}
		}
		op.Detail["how"] = "bytes carried by the supervisor"
		fd, e := s.relays.connect(addr, kind, flags&syscall.O_NONBLOCK)
		if e != 0 {
			return performed{errno: e}
		}
		return performed{replace: true, fd: fd, at: int(p.fd), cloexec: flags&syscall.O_CLOEXEC != 0}
	})
}

// connect connects to addr and returns the box's end of a pair that leads there. nonblock is
// O_NONBLOCK or 0: of the box's end, and of the connecting.
func (r *relays) connect(addr []byte, kind, nonblock int) (fd int, e syscall.Errno) {
	out, err := sys.UnixSocket(kind, nonblock)
	if err != nil {
		return -1, syscall.ENOBUFS
	}
	if e := sys.Connect(out, addr); e != 0 {
		sys.CloseFD(out)
		return -1, e
	}
	ours, theirs, err := sys.UnixPair(kind, nonblock)
	if err != nil {
		sys.CloseFD(out)
		return -1, syscall.ENOBUFS
	}
	a, b := connOf(ours), connOf(out)
	if a == nil || b == nil || !r.carry(a, b, kind) {
		for _, c := range []net.Conn{a, b} {
			if c != nil {
				c.Close()
			}
		}
		sys.CloseFD(theirs)
		return -1, syscall.EAGAIN
	}
	return theirs, 0
}

// connOf takes a socket over; nil when that fails.
func connOf(fd int) *net.UnixConn {
	f := os.NewFile(uintptr(fd), "relay")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil
	}
	return u
}

// carry begins to carry bytes between a and b; false when there are too many already.
func (r *relays) carry(a, b *net.UnixConn, kind int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || len(r.open) >= 2*maxRelays {
		return false
	}
	if r.open == nil {
		r.open = map[net.Conn]bool{}
	}
	r.open[a], r.open[b] = true, true
	var both sync.WaitGroup
	for _, way := range [][2]*net.UnixConn{{a, b}, {b, a}} {
		both.Go(func() {
			if kind == syscall.SOCK_STREAM {
				io.Copy(way[1], plainReader{way[0]}) // either end may go at any time
			} else {
				copyPackets(way[1], way[0])
			}
			way[1].CloseWrite()
		})
	}
	r.wg.Go(func() {
		both.Wait()
		r.mu.Lock()
		delete(r.open, a)
		delete(r.open, b)
		r.mu.Unlock()
		a.Close()
		b.Close()
	})
	return true
}

// plainReader has nothing but Read: no splice(2), which could not leave behind what comes
// with the bytes.
type plainReader struct{ io.Reader }

func copyPackets(to, from *net.UnixConn) {
	buf := make([]byte, maxPacket)
	for {
		n, err := from.Read(buf)
		if err != nil || n == 0 {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// close ends all connections.
func (r *relays) close() {
	r.mu.Lock()
	r.over = true
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
