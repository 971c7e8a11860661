# E2: the same through /proc/PID/mem.
import os, sys
fd = os.open("/proc/%s/mem" % sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"attacked", int(sys.argv[2]))
