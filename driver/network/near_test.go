package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// What a route leads to without a router is near, whatever the machine's own addresses say:
// behind an address of DHCPv6 is a link, behind an interface that has none a network.
func TestRoutesSayWhatIsNear(t *testing.T) {
	v4 := "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	for _, r := range []struct {
		to    string
		gw    string
		flags int
	}{{"0.0.0.0/0", "198.51.100.1", 3}, {"198.51.100.0/24", "0.0.0.0", 1}, {"203.0.113.128/25", "0.0.0.0", 1}, {"203.0.113.5/32", "198.51.100.1", 7},
		{"0.0.0.0/1", "0.0.0.0", 1}, {"192.0.2.0/24", "0.0.0.0", 0x201}} {
		p := netip.MustParsePrefix(r.to)
		host := func(a netip.Addr) uint32 { b := a.As4(); return binary.NativeEndian.Uint32(b[:]) }
		var m [4]byte
		binary.BigEndian.PutUint32(m[:], uint32(0xffffffff<<(32-p.Bits())))
		v4 += fmt.Sprintf("lan0\t%08X\t%08X\t%04X\t0\t0\t0\t%08X\t0\t0\t0\n", host(p.Addr()), host(netip.MustParseAddr(r.gw)), r.flags, binary.NativeEndian.Uint32(m[:]))
	}
	const none = "00000000000000000000000000000000"
	v6 := ""
	for _, r := range []string{
		"20010db8005100000000000000000002 80 " + none + " 00 " + none + " 00000100 00000001 00000000 00000001     lan0",
		"20010db8005100000000000000000000 40 " + none + " 00 " + none + " 00000400 00000001 00000000 00000001     lan0",
		none + " 00 " + none + " 00 20010db8005100000000000000000001 00000400 00000001 00000000 00000003     lan0",
		"20010db8006000000000000000000000 40 " + none + " 00 20010db8005100000000000000000001 00000400 00000001 00000000 00000003     lan0",
		none + " 00 " + none + " 00 " + none + " ffffffff 00000001 00000000 00200200       lo",
		"20000000000000000000000000000000 03 " + none + " 00 " + none + " 00000400 00000001 00000000 00000001     tun0",
		"a line that is none",
	} {
		v6 += r + "\n"
	}
	var got []string
	for _, p := range onLink(v4, v6) {
		got = append(got, p.String())
	}
	if want := []string{"198.51.100.0/24", "203.0.113.128/25", "2001:db8:51::2/128", "2001:db8:51::/64"}; !slices.Equal(got, want) {
		t.Errorf("near is %q, want %q", got, want)
	}
}
