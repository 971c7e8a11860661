# H1: make a node of a disk or of memory oneself, and open that.
import os, stat, sys
os.mknod(sys.argv[1], 0o600 | stat.S_IFCHR, os.makedev(1, 5))
print(os.read(os.open(sys.argv[1], os.O_RDONLY), 4))
