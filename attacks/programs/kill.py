# E1: end a process outside by its number.
import os, signal, sys
os.kill(int(sys.argv[1]), signal.SIGKILL)
