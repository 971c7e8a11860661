# H1 to H6: open a device and read of it.
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
print(len(os.read(fd, 8192)))
