# F5: connect to a server on the loopback interface.
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
s.send(b"attacked")
