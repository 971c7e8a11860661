package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/network"
	"github.com/sandglass/sandglass/driver/sys"
)

// network takes the box's tun device over and begins to serve it.
func (r *run) network(ready stageMsg, s *supervisor) (*network.Network, error) {
	tun := -1
	diag, err := sys.PidfdGetfd(r.child.Pidfd, ready.Diag)
	if err == nil && ready.Tun > 0 {
		tun, err = sys.PidfdGetfd(r.child.Pidfd, ready.Tun)
	}
	if err != nil {
		return nil, fmt.Errorf("take the box's network: %w", err)
	}
	return network.Start(network.Options{Tun: tun, Diag: diag, Share: r.b.At("run"), Policy: s.policy.Load, Log: s.journal.add, Guarded: r.o.Guarded,
		Limits: r.o.Policy.Limits, Capture: r.o.Capture, CaptureLimit: r.o.CaptureLimit, Trouble: (&troubles{log: s.journal.add}).add})
}

// troubles puts what goes wrong beside the way on record: a capture that ends on a full disk,
// a device that nobody takes over. The terminal is the command's; the log is there to be
// looked at. A box can bring about some of it, so that only the first few are told.
type troubles struct {
	log func(*core.Operation)
	n   atomic.Int32
}

const maxTroubles = 32

func (t *troubles) add(err error) {
	if t.n.Add(1) > maxTroubles {
		return
	}
	t.log(&core.Operation{Surface: core.SandboxLifecycle, Action: core.ActTrouble, Target: "network", Verdict: core.Allowed, Outcome: core.Performed,
		Rule: "supervisor", Detail: core.Detail{"error": core.Shorten(err.Error(), 512)}})
}

// hasIPv6Route says whether the machine has a way to everywhere over IPv6: a box that had
// one to nowhere would try it first, and wait. See proc_net(5), if_inet6 and ipv6_route.
func hasIPv6Route() bool {
	for line := range strings.Lines(string(readBounded("/proc/net/ipv6_route", 1<<20))) {
		f := strings.Fields(line)
		if len(f) >= 10 && f[0] == strings.Repeat("0", 32) && f[1] == "00" && f[9] != "lo" {
			return true
		}
	}
	return false
}

// resolvConf is the box's resolv.conf: its own resolver, with the search list and the
// options of the real one (resolv.conf(5)).
func resolvConf(real []byte, v6 bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "nameserver %s\n", network.Resolver4)
	for line := range strings.Lines(string(real)) {
		switch key, _, _ := strings.Cut(strings.TrimSpace(line), " "); key {
		case "search", "domain", "options":
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	return b.Bytes()
}

// ownNet judges an address that a socket of the box reaches for by its own network, and
// tells that whose the socket is. What is not refused here may still be there: that is the
// wall, and what is on record. So here nothing is, but what does not get so far.
func (s *supervisor) ownNet(p peerCall, ap netip.AddrPort, local bool) (answer, bool) {
	sock, e := s.theirSocket(p.fd)
	if e != 0 {
		return answer{}, false
	}
	defer sys.CloseFD(sock)
	proto := "udp"
	switch n, err := sys.SocketProtocol(sock); {
	case err != nil:
		return answer{}, true // not a socket: the kernel says so
	case n == protoTCP:
		proto = "tcp"
	case n == protoICMP || n == protoICMPv6:
		proto, ap = "icmp", netip.AddrPortFrom(ap.Addr(), 0)
	}
	cookie, err := sys.SocketCookie(sock)
	if err != nil {
		cookie = 0
	}
	who := network.Owner{PID: s.p.pid, Proc: s.p.id, Exe: s.p.exe}
	s.net.Saw(cookie, proto, ap, who)
	if local {
		return answer{}, false
	}
	if proto != "tcp" && p.act == core.ActConnect {
		return answer{}, true // it sends nothing: getaddrinfo(3) sorts addresses by it
	}
	if sf, rule, refused := s.net.Judge(proto, ap, who); refused {
		return s.refuse(sf, p.act, ap.String(), rule, syscall.EACCES, core.Detail{"call": p.call.String(), "proto": proto}), true
	}
	return answer{}, true
}

// offered lists the ports of this machine's loopback that p lets a box connect to, but for the
// sandbox's own: nobody is to think that he is connected with them.
func (r *run) offered(p *core.Policy) []netip.AddrPort {
	return slices.DeleteFunc(p.Network.Loopback(), func(a netip.AddrPort) bool {
		return r.o.Guarded != nil && slices.Contains(r.o.Guarded(), a.Port())
	})
}

// loopback gives the box, on its own loopback, the ports of this machine's that p lets it
// connect to. A port that it has itself stays its own.
func (r *run) loopback(p *core.Policy) {
	r.giving.Lock()
	defer r.giving.Unlock()
	var fresh []netip.AddrPort
	for _, a := range r.offered(p) {
		if !r.given[a] {
			fresh = append(fresh, a)
		}
	}
	if len(fresh) == 0 {
		return
	}
	select {
	case <-r.listening: // of one that was not waited for
	default:
	}
	if send(r.control, stageMsg{Op: "listen", Addrs: fresh}) != nil {
		return
	}
	select {
	case fds := <-r.listening:
		r.give(r.s.net, fresh, fds)
	case <-time.After(orderPatience):
	}
}

// give hands the box's listening sockets to its network.
func (r *run) give(n *network.Network, addrs []netip.AddrPort, fds []int) {
	for i, fd := range fds {
		if i >= len(addrs) || fd < 0 {
			continue
		}
		if ours, err := sys.PidfdGetfd(r.child.Pidfd, fd); err == nil {
			if r.given == nil {
				r.given = map[netip.AddrPort]bool{}
			}
			r.given[addrs[i]] = true
			n.Give(ours, addrs[i])
		}
	}
}

// networkHint says what to do about a network that could not be made.
func networkHint(why string) string {
	switch {
	case strings.Contains(why, "permission denied"):
		return "as root: chmod 0666 " + sys.TunPath + ", as udev has it on a desktop"
	case strings.Contains(why, "no such file"), strings.Contains(why, "no such device"):
		return "as root: modprobe tun; in a container, give it " + sys.TunPath
	}
	return "`--net none` says that none is wanted"
}

// WriteCapture writes the packets that a session has kept in the file of that name, as one
// pcapng file.
func WriteCapture(w io.Writer, file string) error { return network.WriteCapture(w, file) }

// serves tells the box's network whose a socket is that is about to have an address.
func (s *supervisor) serves(fd int32) {
	sock, e := s.theirSocket(fd)
	if e != 0 {
		return
	}
	defer sys.CloseFD(sock)
	if cookie, err := sys.SocketCookie(sock); err == nil {
		s.net.Serves(cookie, network.Owner{PID: s.p.pid, Proc: s.p.id, Exe: s.p.exe})
	}
}

var errNoNetwork = errors.New("the session has no network of its own")

// cut ends flows of the session.
func (r *run) cut(flow string) error {
	n := r.s.net
	if n == nil {
		return errNoNetwork
	}
	if k := n.Cut(flow); k == 0 && flow != "" {
		return core.Hint(fmt.Errorf("flow %q: %w", core.Shorten(flow, 40), core.ErrNotFound), "`sandglass flows --open` lists those that are open")
	}
	return nil
}

// answer answers a question of the session's.
func (r *run) answer(o Order) error {
	if r.s.warden.asks.answer(o.Ask, o.Allow) {
		return nil
	}
	if n := r.s.net; n == nil || !n.Answer(o.Ask, o.Allow) {
		return core.Hint(fmt.Errorf("question %q: %w", core.Shorten(o.Ask, 40), core.ErrNotFound), "it was answered, or waited too long; `sandglass asks` lists those that wait")
	}
	return nil
}

// questions lists what waits for an answer.
func (r *run) questions() []network.Question {
	qs := r.s.warden.asks.questions()
	if n := r.s.net; n != nil {
		qs = append(qs, n.Questions()...)
	}
	for i := range qs {
		qs[i].Session = r.o.Session.ID
	}
	return slices.Clip(qs)
}
