# F1: send a server outside a datagram without a connection, in each of the ways there are.
import ctypes, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if sys.argv[2] == "sendto":
    s.sendto(b"attacked", sys.argv[1])
else:
    s.sendmsg([b"attacked"], [], 0, sys.argv[1])
