# F1, F2: connect to a server outside: its path, or @ and an abstract name.
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1].replace("@", "\0", 1) if sys.argv[1][0] == "@" else sys.argv[1])
s.send(b"attacked")
