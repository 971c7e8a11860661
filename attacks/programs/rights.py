# F9: be sent a directory outside over a granted socket (SCM_RIGHTS), and write a file below it.
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
fd = socket.recv_fds(s, 16, 1)[1][0]
os.write(os.open("canary", os.O_WRONLY, dir_fd=fd), b"attacked")
