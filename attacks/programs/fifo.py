# F7: feed a program outside that reads a FIFO.
import os, sys
os.write(os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK), b"attacked\n")
