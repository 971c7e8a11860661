package sys

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ThreadFD copies descriptor fd of the thread tid, which may have a table of its own
// (PIDFD_THREAD, Linux 6.9; before, that of its process is looked at). The caller closes it.
// Whether the thread is still the one that was meant is for the caller to ask.
func ThreadFD(tid, fd int) (int, error) {
	const thread = unix.O_EXCL // PIDFD_THREAD
	pidfd, err := unix.PidfdOpen(tid, thread)
	if err != nil {
		if pidfd, err = unix.PidfdOpen(tid, 0); err != nil {
			return -1, err
		}
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// DescriptorFlags returns the O_* flags of descriptor fd of the thread tid, with O_CLOEXEC
// when it is set (proc_pid_fdinfo(5)).
func DescriptorFlags(tid, fd int) (int, bool) {
	f, err := os.Open("/proc/" + strconv.Itoa(tid) + "/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var b [512]byte // pos and flags come first
	read, err := f.Read(b[:])
	if err != nil {
		return 0, false
	}
	for l := range strings.Lines(string(b[:read])) {
		if v, ok := strings.CutPrefix(l, "flags:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return int(n), err == nil
		}
	}
	return 0, false
}

// SocketKind returns the family and type of a socket (SO_DOMAIN, SO_TYPE).
func SocketKind(fd int) (family, kind int, err error) {
	if family, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return 0, 0, err
	}
	kind, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return family, kind, err
}

// UnixSocket makes a Unix socket of that type; flags are SOCK_*.
func UnixSocket(kind, flags int) (int, error) {
	return unix.Socket(unix.AF_UNIX, kind|flags|unix.SOCK_CLOEXEC, 0)
}

// UnixPair makes a pair of connected Unix sockets of that type: flags, which are SOCK_*, are of
// the second alone.
func UnixPair(kind, flags int) (a, b int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	if flags&unix.SOCK_NONBLOCK != 0 {
		if err := unix.SetNonblock(fds[1], true); err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
			return -1, -1, err
		}
	}
	return fds[0], fds[1], nil
}

// Connect is connect(2) with an address as the kernel takes it. It may block.
func Connect(fd int, addr []byte) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(addr))), uintptr(len(addr)))
	return e
}

// SendTo is sendto(2) with an address as the kernel takes it. It may block.
func SendTo(fd int, data []byte, flags int, addr []byte) (int, syscall.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data)),
		uintptr(flags), uintptr(unsafe.Pointer(unsafe.SliceData(addr))), uintptr(len(addr)))
	return int(n), e
}

// UnixAddr is a struct sockaddr_un for a path, or for an abstract name after '@'.
// A path of more than 107 bytes does not fit: see [FDAddr].
func UnixAddr(name string) []byte {
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	if strings.HasPrefix(name, "@") {
		return append(append(b, 0), name[1:]...)
	}
	return append(append(b, name...), 0)
}

// FDAddr is the address of the socket behind a descriptor that was opened with O_PATH.
func FDAddr(fd int) []byte { return UnixAddr("/proc/self/fd/" + strconv.Itoa(fd)) }

// OpenInRoot opens path as a place (O_PATH) below the directory root as a process with
// that root would, without following a last symbolic link or any magic one (openat2(2)).
func OpenInRoot(root int, path string) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
}

// Mode returns the type and mode bits of an open file.
func Mode(fd int) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Mode, err
}

// OpenDevice opens the device node path for reading, or for what mode (O_ACCMODE bits) says:
// never waiting, never as a controlling terminal, and never what is not a character device.
func OpenDevice(path string, mode int, nonblock bool) (int, error) {
	place, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(place)
	var st unix.Stat_t
	if err := unix.Fstat(place, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return -1, unix.ENODEV
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(place), mode&unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if !nonblock {
		if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
			unix.FcntlInt(uintptr(fd), unix.F_SETFL, fl&^unix.O_NONBLOCK)
		}
	}
	return fd, nil
}

// FamilyName and SocketTypeName return the names of socket(2)'s first two arguments, or
// the number.
func FamilyName(f int) string {
	if n, ok := familyNames[f]; ok {
		return n
	}
	return "family " + strconv.Itoa(f)
}

var familyNames = map[int]string{unix.AF_UNSPEC: "AF_UNSPEC", unix.AF_UNIX: "AF_UNIX", unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6",
	unix.AF_AX25: "AF_AX25", unix.AF_IPX: "AF_IPX", unix.AF_APPLETALK: "AF_APPLETALK", unix.AF_X25: "AF_X25", unix.AF_KEY: "AF_KEY",
	unix.AF_NETLINK: "AF_NETLINK", unix.AF_PACKET: "AF_PACKET", unix.AF_RDS: "AF_RDS", unix.AF_PPPOX: "AF_PPPOX", unix.AF_LLC: "AF_LLC",
	unix.AF_IB: "AF_IB", unix.AF_CAN: "AF_CAN", unix.AF_TIPC: "AF_TIPC", unix.AF_BLUETOOTH: "AF_BLUETOOTH", unix.AF_IUCV: "AF_IUCV",
	unix.AF_RXRPC: "AF_RXRPC", unix.AF_PHONET: "AF_PHONET", unix.AF_CAIF: "AF_CAIF", unix.AF_ALG: "AF_ALG", unix.AF_NFC: "AF_NFC",
	unix.AF_VSOCK: "AF_VSOCK", unix.AF_KCM: "AF_KCM", unix.AF_QIPCRTR: "AF_QIPCRTR", unix.AF_SMC: "AF_SMC", unix.AF_XDP: "AF_XDP"}

// SocketTypeName is FamilyName of socket(2)'s second argument.
func SocketTypeName(t int) string {
	switch t &^ (unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK) {
	case unix.SOCK_STREAM:
		return "SOCK_STREAM"
	case unix.SOCK_DGRAM:
		return "SOCK_DGRAM"
	case unix.SOCK_RAW:
		return "SOCK_RAW"
	case unix.SOCK_SEQPACKET:
		return "SOCK_SEQPACKET"
	case unix.SOCK_RDM:
		return "SOCK_RDM"
	}
	return "type " + strconv.Itoa(t)
}

// ListenTCP listens on an address of the caller's network namespace.
func ListenTCP(a netip.AddrPort) (int, error) {
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(a.Port())}
	if a.Addr().Is4() {
		sa.(*unix.SockaddrInet4).Addr = a.Addr().As4()
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
