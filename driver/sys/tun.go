package sys

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TunPath is the device that makes tun interfaces.
const TunPath = "/dev/net/tun"

// VnetHeader is the length of struct virtio_net_hdr, which comes before each packet of an
// [OpenTun] device.
const VnetHeader = 10

// VnetPartial is the header of a packet whose transport's checksum is left to whoever would
// send it on: what ends here needs none (VIRTIO_NET_HDR_F_NEEDS_CSUM, CHECKSUM_PARTIAL). start
// is where the transport's header begins, offset where the sum is in it. A header of zeros
// is of a packet that has all its sums.
func VnetPartial(start, offset int) (h [VnetHeader]byte) {
	h[0] = 1
	binary.NativeEndian.PutUint16(h[6:], uint16(start))
	binary.NativeEndian.PutUint16(h[8:], uint16(offset))
	return h
}

// OpenTun makes a tun interface of that name in the caller's network namespace, which needs
// CAP_NET_ADMIN in it. A read of the descriptor is one packet that the kernel sends, a write
// one that it receives, each behind a [VnetHeader]; checksums of what is sent are left out.
// The interface lives as long as the descriptor.
func OpenTun(name string) (int, error) {
	fd, err := unix.Open(TunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: TunPath, Err: err}
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make a tun interface: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("leave checksums of a tun interface out: %w", err)
	}
	return fd, nil
}

// ConfigureTun gives the interface its addresses, each alone on its link, and makes it the
// way to everywhere. An IPv6 that the kernel does not have is passed over.
func ConfigureTun(name string, mtu int, v4, v6 netip.Addr, v6Route bool) error {
	s4, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(s4)
	set := func(op uint, what string, fill func(*unix.Ifreq) error) error {
		req, err := unix.NewIfreq(name)
		if err == nil {
			err = fill(req)
		}
		if err == nil {
			err = unix.IoctlIfreq(s4, op, req)
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", what, name, err)
		}
		return nil
	}
	mask := [4]byte{255, 255, 255, 255}
	addr := v4.As4()
	for _, step := range []func() error{
		func() error {
			return set(unix.SIOCSIFMTU, "MTU", func(r *unix.Ifreq) error { r.SetUint32(uint32(mtu)); return nil })
		},
		func() error {
			return set(unix.SIOCSIFADDR, "address", func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) })
		},
		func() error {
			return set(unix.SIOCSIFNETMASK, "netmask", func(r *unix.Ifreq) error { return r.SetInet4Addr(mask[:]) })
		},
		func() error {
			return set(unix.SIOCSIFFLAGS, "flags", func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil })
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := defaultRoute4(s4, name); err != nil {
		return err
	}
	s6, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(s6)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s6, unix.SIOCGIFINDEX, req); err != nil {
		return fmt.Errorf("index of %s: %w", name, err)
	}
	index := int32(req.Uint32())
	// struct in6_ifreq (include/uapi/linux/ipv6.h)
	in6 := struct {
		addr   [16]byte
		prefix uint32
		index  int32
	}{v6.As16(), 128, index}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s6), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&in6))); e != 0 {
		return nil // disabled
	}
	if !v6Route {
		return nil
	}
	// struct in6_rtmsg (include/uapi/linux/ipv6_route.h)
	rt := struct {
		dst, src, gateway [16]byte
		kind              uint32
		dstLen, srcLen    uint16
		metric            uint32
		info              uint64
		flags             uint32
		index             int32
	}{metric: 1024, flags: unix.RTF_UP, index: index}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s6), unix.SIOCADDRT, uintptr(unsafe.Pointer(&rt))); e != 0 {
		return fmt.Errorf("IPv6 route by %s: %w", name, e)
	}
	return nil
}

// defaultRoute4 adds a route to everywhere by an interface: struct rtentry of
// include/uapi/linux/route.h.
func defaultRoute4(s int, name string) error {
	dev := append([]byte(name), 0)
	type sockaddr struct {
		family uint16
		data   [14]byte
	}
	rt := struct {
		pad1               uint64
		dst, gateway, mask sockaddr
		flags              uint16
		pad2               int16
		pad3, pad4         uint64
		metric             int16
		dev                *byte
		mtu, window        uint64
		irtt               uint16
	}{dst: sockaddr{family: unix.AF_INET}, mask: sockaddr{family: unix.AF_INET}, flags: unix.RTF_UP, dev: &dev[0]}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCADDRT, uintptr(unsafe.Pointer(&rt))); e != 0 {
		return fmt.Errorf("route by %s: %w", name, e)
	}
	return nil
}

// LetPing lets processes of those groups make ICMP sockets in the caller's network
// namespace, and everybody bind any port (icmp(7), ip(7)). Where the kernel will not, it
// stays as it is.
func LetPing(gid int) {
	for _, r := range []string{"0 4294967294", strconv.Itoa(gid) + " " + strconv.Itoa(gid)} {
		if os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(r), 0) == nil {
			break
		}
	}
	os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
}

// DiagSocket makes a socket that asks after the sockets of the caller's network namespace
// (sock_diag(7)). It works wherever it is taken to.
func DiagSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	// What does not answer must not hold up a packet.
	tv := unix.Timeval{Usec: 200_000}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("setsockopt: %w", err)
	}
	return fd, nil
}

// DiagCookie asks a [DiagSocket] for the cookie ([SocketCookie]) of the socket that has the
// flow local to remote. seq tells the answer from older ones. Calls on one socket exclude
// each other.
func DiagCookie(fd int, tcp bool, local, remote netip.AddrPort, seq uint32) (cookie uint64, ok bool) {
	const (
		byFamily  = 20 // SOCK_DIAG_BY_FAMILY
		sizeReq   = 16 + 56
		atFamily  = 16
		atID      = 16 + 8
		allStates = 0xffffffff
	)
	var req [sizeReq]byte // struct nlmsghdr, struct inet_diag_req_v2
	binary.NativeEndian.PutUint32(req[0:], sizeReq)
	binary.NativeEndian.PutUint16(req[4:], byFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(req[8:], seq)
	req[atFamily], req[atFamily+1] = unix.AF_INET, unix.IPPROTO_UDP
	if tcp {
		req[atFamily+1] = unix.IPPROTO_TCP
	}
	if local.Addr().Is6() {
		req[atFamily] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(req[atFamily+4:], allStates)
	src, dst := local, remote
	if !tcp {
		src, dst = remote, local // net/ipv4/udp_diag.c, udp_dump_one: swapped, for historical reasons
	}
	id := req[atID:] // struct inet_diag_sockid: sport, dport, src[4], dst[4], if, cookie[2]
	binary.BigEndian.PutUint16(id[0:], src.Port())
	binary.BigEndian.PutUint16(id[2:], dst.Port())
	copy(id[4:20], src.Addr().AsSlice())
	copy(id[20:36], dst.Addr().AsSlice())
	for i := 40; i < 48; i++ {
		id[i] = 0xff // INET_DIAG_NOCOOKIE
	}
	if unix.Sendto(fd, req[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return 0, false
	}
	var buf [4096]byte
	for range 16 {
		n, _, err := unix.Recvfrom(fd, buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < 16 {
			return 0, false
		}
		if binary.NativeEndian.Uint32(buf[8:]) != seq {
			continue // of an earlier question that nobody waited for
		}
		if binary.NativeEndian.Uint16(buf[4:]) != byFamily || n < 16+4+48 {
			return 0, false // NLMSG_ERROR: there is none
		}
		id := buf[16+4:] // struct inet_diag_msg: family, state, timer, retrans, then the id
		return uint64(binary.NativeEndian.Uint32(id[40:])) | uint64(binary.NativeEndian.Uint32(id[44:]))<<32, true
	}
	return 0, false
}

// SocketCookie returns what names a socket for as long as the machine runs (SO_COOKIE).
func SocketCookie(fd int) (uint64, error) {
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
}

// SocketProtocol returns a socket's protocol (SO_PROTOCOL).
func SocketProtocol(fd int) (int, error) {
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
}

// TCPRoundTrip returns the smoothed round-trip time of a TCP socket in microseconds
// (tcp(7), TCP_INFO).
func TCPRoundTrip(fd int) (int64, bool) {
	i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return int64(i.Rtt), true
}

// ForbidFragments has a UDP socket say EMSGSIZE of what does not fit the way there, with
// the path's MTU known or not, instead of sending fragments (IP_PMTUDISC_PROBE when the box
// itself forbids them).
func ForbidFragments(fd int, v6, on bool) error {
	level, opt, v := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	if on {
		v = unix.IP_PMTUDISC_DO
	}
	if v6 {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	return unix.SetsockoptInt(fd, level, opt, v)
}

// PathMTU returns the MTU of the way that a connected socket's packets go.
func PathMTU(fd int, v6 bool) (int, bool) {
	level, opt := unix.IPPROTO_IP, unix.IP_MTU
	if v6 {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	n, err := unix.GetsockoptInt(fd, level, opt)
	return n, err == nil
}

// PingSocket makes a socket for echo requests (icmp(7)): any process may whose group the
// sysctl ping_group_range names; root makes a raw one where it does not.
func PingSocket(v6 bool) (fd int, raw bool, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if v6 {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|flags, proto); err == nil {
		return fd, false, nil
	}
	if fd, rerr := unix.Socket(family, unix.SOCK_RAW|flags, proto); rerr == nil {
		return fd, true, nil
	}
	return -1, false, err
}

// Writev is writev(2). It returns how many bytes were written.
func Writev(fd int, parts [][]byte) (int, error) { return unix.Writev(fd, parts) }
