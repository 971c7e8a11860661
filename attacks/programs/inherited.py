# B5, F9: write by a descriptor of a file outside that whoever started us left open.
import os
os.write(9, b"attacked")
