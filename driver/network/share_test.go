package network

import (
	"sync"
	"syscall"
	"testing"

	"github.com/sandglass/sandglass/core"
)

// sharing starts the network of a session whose box shares one in dir; with the device, when
// it is the first.
func sharing(t *testing.T, dir string, first bool) *Network {
	t.Helper()
	p, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Tun: -1, Diag: -1, Share: dir, Policy: func() *core.Policy { return p }, Log: func(*core.Operation) {}}
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
		ns := []*Network{sharing(t, dir, true), sharing(t, dir, false), sharing(t, dir, false)}
		var over sync.WaitGroup
		for _, n := range ns {
			over.Go(n.Close)
		}
		over.Wait()
	}
}
