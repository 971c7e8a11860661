# F9: take a descriptor from a process outside (pidfd_getfd(2)), and write by it.
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(438, os.pidfd_open(int(sys.argv[1])), int(sys.argv[2]), 0)
if fd < 0:
    sys.exit("pidfd_getfd: errno %d" % ctypes.get_errno())
os.write(fd, b"attacked")
