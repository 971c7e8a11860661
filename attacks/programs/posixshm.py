# F6: write POSIX shared memory of a program outside.
import sys
open(sys.argv[1], "r+b").write(b"attacked")
