# F10: put input into a terminal as if it had been typed (TIOCSTI): with "high", with bits set
# that a filter may look at and the kernel does not. With "linux", the console's TIOCLINUX.
import ctypes, os, sys
main, term = os.openpty()
libc = ctypes.CDLL(None, use_errno=True)
request = {"plain": 0x5412, "high": 0xdead00005412, "linux": 0x541c}[sys.argv[1]]
if libc.syscall(16 if os.uname().machine == "x86_64" else 29, term, ctypes.c_ulong(request), ctypes.c_char_p(b"x")) != 0:
    sys.exit("ioctl: errno %d" % ctypes.get_errno())
