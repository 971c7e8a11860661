# F1, F2: several datagrams in one call (sendmmsg(2)): the first to a socket of one's own,
# the last to a server outside, a path or @ and an abstract name.
import ctypes, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
own.bind(sys.argv[2])
def address(name):
    b = struct.pack("H", socket.AF_UNIX) + name.replace("@", "\0", 1).encode()
    return ctypes.create_string_buffer(b, len(b) + (name[0] == "/")), len(b) + (name[0] == "/")
data = ctypes.create_string_buffer(b"attacked", 8)
iov = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(data), 8))
names = [address(sys.argv[2]), address(sys.argv[1])]
msgs = b"".join(struct.pack("PIxxxxPNPNiIII", ctypes.addressof(a), n, ctypes.addressof(iov), 1, 0, 0, 0, 0, 0, 0)[:64] for a, n in names)
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n = libc.sendmmsg(s.fileno(), ctypes.create_string_buffer(msgs, len(msgs)), 2, 0)
sys.exit("sent %d, errno %d" % (n, ctypes.get_errno()) if n < 2 else 0)
