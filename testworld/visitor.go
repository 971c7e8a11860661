package testworld

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Visit is a program that reaches for somebody in the ways that programs do and in those
// that only hostile ones do: run without a box it is the control. It prints one line that
// says what came of it, as an errno's name where there was one:
//
//	visit tcp ADDR PORT TEXT          connect and send
//	visit fastopen ADDR PORT TEXT     send with the connection's first packet (tcp(7))
//	visit udp ADDR PORT TEXT          send a datagram, and wait a moment for the answer
//	visit sendto ADDR PORT TEXT       a datagram of a socket that is not connected
//	visit ping ADDR TEXT              an echo request that carries TEXT
//	visit raw ADDR TEXT               the same by a raw socket
//	visit packet TEXT                 a frame by a packet socket
//	visit dns ADDR NAME               one question by UDP
//	visit tls ADDR PORT NAME TEXT     a request by TLS, which says NAME
//	visit http ADDR PORT NAME TEXT    a request by HTTP, which says NAME
//	visit quic ADDR PORT NAME CA N    N bytes there and back by QUIC
//	visit half ADDR PORT N            N bytes, the end of them, and then the answer
//	visit download ADDR PORT N        N bytes of those that come
//	visit scan PORTS ADDR...          the ports that are open
//	visit many N ADDR PORT            N connections at once, all held
//	visit rate N WORKERS ADDR PORT    N connections one after another
func Visit() {
	if err := visit(os.Args[1:]); err != nil {
		fmt.Println(errnoName(err))
		os.Exit(1)
	}
}

// patience bounds every wait for somebody who may never answer.
const patience = 3 * time.Second

func visit(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: see the source")
	}
	do, args := args[0], args[1:]
	switch do {
	case "scan":
		return scan(args[0], args[1:])
	case "packet":
		return sendFrame(args[0])
	case "many", "rate":
		return flows(do, args)
	}
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	args = args[1:]
	switch do {
	case "ping", "raw":
		return ping(addr, args[0], do == "raw")
	case "dns":
		return askDNS(addr, args[0])
	}
	n, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return err
	}
	port, args := uint16(n), args[1:]
	at := netip.AddrPortFrom(addr, port)
	switch do {
	case "tcp":
		fd, err := connect(at, syscall.SOCK_STREAM)
		if err != nil {
			return err
		}
		if _, err := syscall.Write(fd, []byte(args[0])); err != nil {
			return err
		}
		fmt.Println("connected")
	case "fastopen", "sendto":
		return sendTo(at, args[0], do == "fastopen")
	case "udp":
		fd, err := connect(at, syscall.SOCK_DGRAM)
		if err != nil {
			return err
		}
		if _, err := syscall.Write(fd, []byte(args[0])); err != nil {
			return err
		}
		return awaitDatagram(fd)
	case "tls", "http":
		return request(at, do == "tls", args[0], args[1])
	case "quic":
		size, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return err
		}
		said, err := quicEcho(at.String(), args[0], args[1], size)
		if err != nil {
			return err
		}
		fmt.Println(said)
	case "half", "download":
		size, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		return transfer(at, do, size)
	default:
		return fmt.Errorf("%s: unknown", do)
	}
	return nil
}

// sockaddr is an address as it is, also an IPv4 address that is written as IPv6. What is
// link-local is so on that link.
func sockaddr(at netip.AddrPort) (family int, sa syscall.Sockaddr) {
	a := at.Addr()
	if a.Is4() {
		return syscall.AF_INET, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: a.As4()}
	}
	sa6 := &syscall.SockaddrInet6{Port: int(at.Port()), Addr: a.As16()}
	if a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
		if ifi, err := firstLink(); err == nil {
			sa6.ZoneId = uint32(ifi.Index)
		}
	}
	return syscall.AF_INET6, sa6
}

func firstLink() (net.Interface, error) {
	ifis, err := net.Interfaces()
	if err != nil {
		return net.Interface{}, err
	}
	at := -1
	for i, ifi := range ifis {
		if ifi.Flags&net.FlagBroadcast != 0 { // an Ethernet before a tunnel
			return ifi, nil
		}
		if ifi.Flags&net.FlagLoopback == 0 && at < 0 {
			at = i
		}
	}
	if at < 0 {
		return net.Interface{}, syscall.ENODEV
	}
	return ifis[at], nil
}

// connect is connect(2) that gives up after a while (EINPROGRESS, socket(7)).
func connect(at netip.AddrPort, kind int) (fd int, err error) {
	family, sa := sockaddr(at)
	if fd, err = syscall.Socket(family, kind|syscall.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	for opt, wait := range map[int]time.Duration{syscall.SO_SNDTIMEO: 5 * patience, syscall.SO_RCVTIMEO: patience} {
		// A router says that a host is unreachable once a second when many ask
		// (net.ipv4.route.error_cost), and the kernel asks again after 1, 2, 4 ... seconds.
		tv := syscall.NsecToTimeval(int64(wait))
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, opt, &tv); err != nil {
			syscall.Close(fd)
			return -1, err
		}
	}
	for {
		if err = syscall.Connect(fd, sa); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sendTo(at netip.AddrPort, text string, fastOpen bool) error {
	family, sa := sockaddr(at)
	kind, flags := syscall.SOCK_DGRAM, 0
	if fastOpen {
		const msgFastOpen = 0x20000000
		kind, flags = syscall.SOCK_STREAM, msgFastOpen
	}
	fd, err := syscall.Socket(family, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	tv := syscall.NsecToTimeval(int64(patience))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &tv); err != nil {
		return err
	}
	if at.Addr().IsMulticast() || at.Addr() == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_BROADCAST, 1); err != nil {
			return err
		}
	}
	if err := syscall.Sendto(fd, []byte(text), flags, sa); err != nil {
		return err
	}
	if fastOpen { // what became of the connection is known once it was tried
		fmt.Println("sent")
		return nil
	}
	return awaitDatagram(fd)
}

// awaitDatagram waits a moment for an answer, or for the error that came instead.
func awaitDatagram(fd int) error {
	tv := syscall.NsecToTimeval(int64(time.Second))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	n, _, err := syscall.Recvfrom(fd, make([]byte, 64<<10), 0)
	switch err {
	case nil:
		fmt.Println("answer", n)
		return nil
	case syscall.EAGAIN:
		fmt.Println("no answer")
		return nil
	}
	return err
}

// ping sends one echo request.
func ping(to netip.Addr, text string, raw bool) error {
	family, sa := sockaddr(netip.AddrPortFrom(to, 0))
	kind, proto, request := syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP, byte(8)
	if family == syscall.AF_INET6 {
		proto, request = syscall.IPPROTO_ICMPV6, 128
	}
	if raw {
		kind = syscall.SOCK_RAW
	}
	fd, err := syscall.Socket(family, kind|syscall.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	b := append([]byte{request, 0, 0, 0, 0, 1, 0, 1}, text...)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		sum += w
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	if err := syscall.Sendto(fd, b, 0, sa); err != nil {
		return err
	}
	return awaitDatagram(fd)
}

// sendFrame sends an IPv4 packet to everybody on the first link.
func sendFrame(text string) error {
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifi, err := firstLink()
	if err != nil {
		return err
	}
	b := append([]byte{0x45, 0, 0, byte(28 + len(text)), 0, 0, 0, 0, 64, syscall.IPPROTO_UDP, 0, 0, 198, 51, 100, 2, 203, 0, 113, 10, 0, 9, 0, 99, 0, byte(8 + len(text)), 0, 0}, text...)
	sa := &syscall.SockaddrLinklayer{Protocol: 0x0008, Ifindex: ifi.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := syscall.Sendto(fd, b, 0, sa); err != nil {
		return err
	}
	fmt.Println("sent")
	return nil
}

// askDNS asks for an address by UDP.
func askDNS(server netip.Addr, name string) error {
	fd, err := connect(netip.AddrPortFrom(server, 53), syscall.SOCK_DGRAM)
	if err != nil {
		return err
	}
	q := append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, encodeName(name)...)
	if _, err := syscall.Write(fd, append(q, 0, typeA, 0, 1)); err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	n, _, err := syscall.Recvfrom(fd, b, 0)
	if err == syscall.EAGAIN {
		fmt.Println("no answer")
		return nil
	}
	if err != nil || n < 12 {
		return err
	}
	fmt.Printf("rcode %d, %d answers\n", b[3]&15, binary.BigEndian.Uint16(b[6:]))
	return nil
}

// request sends a request for /TEXT that says it is for name, and prints the answer's
// status. Who is there is not checked: an exfiltrating program would not.
func request(at netip.AddrPort, secure bool, name, text string) error {
	c, err := net.DialTimeout("tcp", at.String(), patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if secure {
		t := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err := t.Handshake(); err != nil {
			return err
		}
		c = t
	}
	if _, err := fmt.Fprintf(c, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", text, name); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Println(strings.TrimSpace(line))
	return nil
}

func sumOf(r io.Reader) (sum string, n int64, err error) {
	h := sha256.New()
	n, err = io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), n, err
}

func transfer(at netip.AddrPort, do string, size int64) error {
	c, err := net.DialTimeout("tcp", at.String(), patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if do == "download" {
		n, err := io.Copy(io.Discard, io.LimitReader(c, size))
		fmt.Println(n)
		return err
	}
	if _, err := io.Copy(c, io.LimitReader(&Stream{}, size)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(c, 64<<10))
	fmt.Print(string(answer))
	return err
}

// scan tries every port of every address and prints those where somebody is.
func scan(ports string, addrs []string) error {
	var at []netip.AddrPort
	for _, a := range addrs {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return err
		}
		for p := range strings.SplitSeq(ports, ",") {
			first, last, _ := strings.Cut(p, "-")
			f, err := strconv.ParseUint(first, 10, 16)
			if err != nil {
				return err
			}
			l := f
			if last != "" {
				if l, err = strconv.ParseUint(last, 10, 16); err != nil {
					return err
				}
			}
			for ; f <= l; f++ {
				at = append(at, netip.AddrPortFrom(addr, uint16(f)))
			}
		}
	}
	var next atomic.Int64
	var mu sync.Mutex
	var open []string
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(at)) {
					return
				}
				fd, err := connect(at[i], syscall.SOCK_STREAM)
				if err != nil {
					continue
				}
				syscall.Close(fd)
				mu.Lock()
				open = append(open, at[i].String())
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(open)
	fmt.Printf("%d tried, open: %s\n", len(at), strings.Join(open, " "))
	return nil
}

// flows opens many connections, all at once or one after another.
func flows(do string, args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	workers := 64
	if do == "rate" {
		if workers, err = strconv.Atoi(args[1]); err != nil {
			return err
		}
		args = args[1:]
	}
	at := net.JoinHostPort(args[1], args[2])
	if lim := (syscall.Rlimit{}); syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim) == nil && lim.Cur < lim.Max {
		lim.Cur = lim.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
	}
	var left atomic.Int64
	left.Store(int64(n))
	conns := make([]net.Conn, n)
	errs := make(chan error, workers)
	began := time.Now()
	for range workers {
		go func() {
			hello := make([]byte, 5)
			for i := left.Add(-1); i >= 0; i = left.Add(-1) {
				c, err := net.DialTimeout("tcp", at, 20*time.Second)
				if err == nil {
					_, err = io.ReadFull(c, hello)
				}
				if err != nil {
					errs <- fmt.Errorf("connection %d: %w", n-int(i), err)
					return
				}
				if conns[i] = c; do == "rate" {
					c.Close()
				}
			}
			errs <- nil
		}()
	}
	for range workers {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	if err != nil {
		return err
	}
	fmt.Println(n, time.Since(began).Nanoseconds())
	if do == "many" { // until nobody wants them any more
		io.Copy(io.Discard, os.Stdin)
		for i, c := range conns {
			if _, err := c.Write([]byte("x")); err != nil {
				return fmt.Errorf("connection %d did not stay: %w", i, err)
			}
		}
		fmt.Println("all held")
	}
	return nil
}

// errnoName is the errno in err by its name, else what err says.
func errnoName(err error) string {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return err.Error()
	}
	for name, known := range map[string]syscall.Errno{"ECONNREFUSED": syscall.ECONNREFUSED, "EHOSTUNREACH": syscall.EHOSTUNREACH, "ENETUNREACH": syscall.ENETUNREACH,
		"ETIMEDOUT": syscall.ETIMEDOUT, "EINPROGRESS": syscall.EINPROGRESS, "EAGAIN": syscall.EAGAIN, "ECONNRESET": syscall.ECONNRESET, "EPIPE": syscall.EPIPE,
		"EPERM": syscall.EPERM, "EACCES": syscall.EACCES, "EADDRNOTAVAIL": syscall.EADDRNOTAVAIL, "EAFNOSUPPORT": syscall.EAFNOSUPPORT, "EMSGSIZE": syscall.EMSGSIZE,
		"EPROTONOSUPPORT": syscall.EPROTONOSUPPORT, "ENOSYS": syscall.ENOSYS, "ENODEV": syscall.ENODEV, "EINVAL": syscall.EINVAL, "EMFILE": syscall.EMFILE} {
		if e == known {
			return name
		}
	}
	return fmt.Sprintf("errno %d: %v", int(e), e)
}
