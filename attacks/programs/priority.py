# E1: make a process outside the last in the queue for the processor.
import os, sys
os.setpriority(os.PRIO_PROCESS, int(sys.argv[1]), 19)
