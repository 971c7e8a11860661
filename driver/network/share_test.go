package network

import (
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// sharing starts the network of a session whose box shares one in dir; with the device, when
// it is the first.
func sharing(t *testing.T, dir string, first bool, log func(*core.Operation), rules ...string) *Network {
	t.Helper()
	p, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if err := p.Network.AddRule(r, false); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Tun: -1, Diag: -1, Share: dir, Policy: func() *core.Policy { return p }, Log: log}
	if first {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		o.Tun = fds[0]
		t.Cleanup(func() { syscall.Close(fds[1]) })
	}
	n, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Sessions of one box that end at the same time end, though one of them is just taking over
// the device of another.
func TestSharedNetworksEndTogether(t *testing.T) {
	for range 150 {
		dir := t.TempDir()
		quiet := func(*core.Operation) {}
		ns := []*Network{sharing(t, dir, true, quiet), sharing(t, dir, false, quiet), sharing(t, dir, false, quiet)}
		var over sync.WaitGroup
		for _, n := range ns {
			over.Go(n.Close)
		}
		over.Wait()
	}
}

// What a session may do none of the others does under its policy: a packet whose socket is
// closed already is nobody's, and an echo request is of who reached for its address.
func TestAPolicyIsOfOneSession(t *testing.T) {
	dir := t.TempDir()
	ops := make(chan core.Operation, 16)
	log := func(op *core.Operation) { ops <- *op }
	first := sharing(t, dir, true, log, "allow 127.0.0.1")
	defer first.Close()
	second := sharing(t, dir, false, log)
	defer second.Close()
	to := netip.MustParseAddrPort("127.0.0.1:9")
	ping := echoReply(Box4, to.Addr(), 9, 1, []byte("data"))
	ping[sizeIPv4] = 8
	second.Saw(0, "icmp", netip.AddrPortFrom(to.Addr(), 0), Owner{PID: 2})
	for _, b := range [][]byte{udpPacket(netip.AddrPortFrom(Box4, 4000), to, []byte("x")), tcpSYN(to, 4001), ping} {
		first.receive([sys.VnetHeader]byte{}, b)
		if op := <-ops; op.Verdict != core.Blocked {
			t.Errorf("on record: %+v", op)
		}
	}
}
