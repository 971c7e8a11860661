# F8: make a socket of a family that leads past the network namespace or into old code.
import socket, sys
socket.socket(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
