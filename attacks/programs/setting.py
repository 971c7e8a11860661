# C2, E5, H8: open a setting of the kernel to change it. (That is all: it is the machine's.)
import os, sys
os.open(sys.argv[1], os.O_WRONLY)
