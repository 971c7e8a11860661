# D3, H1: read what no box may see.
import sys
print(open(sys.argv[1], "rb").read(4))
