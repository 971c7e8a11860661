package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNamesOfAnAddress(t *testing.T) {
	n, at := newNames(), time.Unix(1e9, 0)
	a, b := netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5")
	expect := func(now time.Time, addr netip.Addr, want ...string) {
		t.Helper()
		if got := n.of(now, addr); !slices.Equal(got, want) {
			t.Errorf("%s after %s is %q, want %q", addr, now.Sub(at), got, want)
		}
	}
	n.bind(at, a, time.Second, "one.example", "cdn.example")
	n.bind(at, netip.MustParseAddr("::ffff:203.0.113.5"), time.Hour, "two.example")
	n.bind(at, b, 1000*time.Hour, "three.example")
	expect(at, a, "two.example", "one.example", "cdn.example")
	expect(at.Add(9*time.Minute), a, "two.example", "one.example", "cdn.example")
	expect(at.Add(11*time.Minute), a, "two.example")
	expect(at.Add(61*time.Minute), a)
	expect(at.Add(23*time.Hour), b, "three.example")
	expect(at.Add(25*time.Hour), b)

	n.bind(at, a, time.Hour, "x.example")
	n.bind(at, a, time.Second, "y.example")
	n.bind(at, a, time.Second, "x.example") // an answer takes nothing back that another gave
	expect(at, a, "x.example", "y.example")
	expect(at.Add(30*time.Minute), a, "x.example")
	n.bind(at, a, time.Hour)
	n.bind(at, netip.Addr{}, time.Hour, "z.example")
	expect(at, a, "x.example", "y.example")
	for i := range 40 {
		n.bind(at, a, time.Hour, fmt.Sprintf("n%d.example", i))
	}
	if got := n.of(at, a); len(got) != maxBoundNames || got[0] != "n39.example" || got[15] != "n24.example" {
		t.Errorf("of 40 names there are %d: %q", len(got), got)
	}
}

func TestNamesAreBounded(t *testing.T) {
	n, at := newNames(), time.Unix(1e9, 0)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range maxBoundAddrs + 10 {
		n.bind(at, addr(i), time.Hour, "a.example")
	}
	if len(n.byAddr) != maxBoundAddrs || n.order.Len() != maxBoundAddrs || n.of(at, addr(9)) != nil || n.of(at, addr(10)) == nil {
		t.Errorf("%d addresses are kept, %d in order", len(n.byAddr), n.order.Len())
	}
	for i := range maxBoundAddrs {
		n.bind(at, addr(i), time.Hour, strings.Repeat("a", 200)+fmt.Sprint(i), strings.Repeat("b", 200))
	}
	if n.bytes > maxBoundBytes || len(n.byAddr) < maxBoundBytes/500 {
		t.Errorf("%d bytes of names of %d addresses are kept", n.bytes, len(n.byAddr))
	}
	for _, e := range n.byAddr {
		n.forget(e)
	}
	if n.bytes != 0 {
		t.Errorf("of nothing %d bytes are left", n.bytes)
	}
}

func TestAddressesOfThePool(t *testing.T) {
	n, now := newNames(), time.Unix(1e9, 0)
	first := n.fake("one.example", false)
	if first != netip.MustParseAddr("198.18.0.1") || n.fake("one.example", false) != first || n.fake("two.example", false) == first {
		t.Errorf("the pool begins with %s and is not the name's own", first)
	}
	six := n.fake("one.example", true)
	if !isFake(six) || !isFake(first) || isFake(netip.MustParseAddr("198.20.0.0")) || !slices.Equal(n.of(now, six), []string{"one.example"}) {
		t.Errorf("%s is %q", six, n.of(now, six))
	}
	for _, s := range []string{"198.18.0.0", "198.18.0.3", "198.19.255.255", "fd53:616e:6473:1::", "fd53:616e:6473:1:ffff:ffff:ffff:ffff", "::", "203.0.113.1"} {
		if got := n.of(now, netip.MustParseAddr(s)); got != nil {
			t.Errorf("%s, which was given to nobody, is %q", s, got)
		}
	}
	for i := range maxFakes {
		a := n.fake(fmt.Sprintf("n%d.example", i), i%2 == 0)
		if got := n.of(now, a); len(got) != 1 || got[0] != fmt.Sprintf("n%d.example", i) || !isFake(a) {
			t.Fatalf("%s, the pool's %dth, is %q", a, i, got)
		}
	}
	if got := n.of(now, first); !slices.Equal(got, []string{fmt.Sprintf("n%d.example", maxFakes-2)}) || len(n.byName) != maxFakes || len(n.pool) != maxFakes {
		t.Errorf("a pool that came round has %q first, %d names", got, len(n.byName))
	}
}

func TestNamesByManyAtOnce(t *testing.T) {
	n, now := newNames(), time.Unix(1e9, 0)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 500 {
				a := netip.AddrFrom4([4]byte{20, 0, byte(i % 7), byte(g)})
				n.bind(now, a, time.Hour, fmt.Sprintf("n%d.example", i))
				if len(n.of(now, a)) == 0 || len(n.of(now, n.fake(fmt.Sprint(i), g%2 == 0))) != 1 {
					t.Error("a name was lost")
				}
			}
		})
	}
	all.Wait()
}
