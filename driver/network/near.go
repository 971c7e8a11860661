package network

import (
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// neighbourhood is what the machine's interfaces and routes say of addresses.
func neighbourhood() (h core.Neighbourhood) {
	as, err := net.InterfaceAddrs()
	if err != nil {
		// Nothing is known to be near, so everything is taken to be.
		h.OnLink = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		return h
	}
	for _, a := range as {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		h.Own = append(h.Own, p.Addr().Unmap().WithZone(""))
		h.OnLink = append(h.OnLink, p.Masked())
	}
	h.OnLink = append(h.OnLink, onLink(routes("route"), routes("ipv6_route"))...)
	return h
}

// maxRouteTable bounds what is read of a table of routes. A machine with more is a router.
const maxRouteTable = 1 << 20

// routes reads a table of routes of the calling thread's network namespace.
func routes(name string) string {
	f, err := os.Open("/proc/thread-self/net/" + name)
	if err != nil {
		return "" // without IPv6 there is none
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRouteTable))
	if err != nil {
		return ""
	}
	return string(b)
}

// onLink returns what is reached without a router by the tables of /proc/net/route and
// ipv6_route (proc_net(5)). An address alone does not tell: one that DHCPv6 gave is of 128
// bits, whatever else is on its link. A route to the half of everything, and more than that, is a
// tunnel's that carries the Internet.
func onLink(v4, v6 string) (ps []netip.Prefix) {
	const gateway, reject = 0x2, 0x200 // RTF_GATEWAY, RTF_REJECT
	const least4, least6 = 8, 16
	for line := range strings.Lines(v4) {
		f := strings.Fields(line) // Iface Destination Gateway Flags RefCnt Use Metric Mask
		if len(f) < 8 {
			continue
		}
		dst, e1 := strconv.ParseUint(f[1], 16, 32)
		flags, e2 := strconv.ParseUint(f[3], 16, 32)
		mask, e3 := strconv.ParseUint(f[7], 16, 32)
		if e1 != nil || e2 != nil || e3 != nil || flags&(gateway|reject) != 0 {
			continue
		}
		var a, m [4]byte // written as the machine has them
		binary.NativeEndian.PutUint32(a[:], uint32(dst))
		binary.NativeEndian.PutUint32(m[:], uint32(mask))
		if bits, _ := net.IPMask(m[:]).Size(); bits >= least4 {
			ps = append(ps, netip.PrefixFrom(netip.AddrFrom4(a), bits))
		}
	}
	for line := range strings.Lines(v6) {
		f := strings.Fields(line) // destination, bits, source, bits, next hop, metric, references, use, flags, interface
		if len(f) < 10 || f[9] == "lo" {
			continue
		}
		a, e1 := hex.DecodeString(f[0])
		bits, e2 := strconv.ParseUint(f[1], 16, 8)
		flags, e3 := strconv.ParseUint(f[8], 16, 32)
		if e1 != nil || e2 != nil || e3 != nil || len(a) != 16 || bits < least6 || bits > 128 || flags&(gateway|reject) != 0 {
			continue
		}
		ps = append(ps, netip.PrefixFrom(netip.AddrFrom16([16]byte(a)), int(bits)))
	}
	return ps
}
