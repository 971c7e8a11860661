# E2: the same as a debugger would (ptrace(2): attach, poke).
import ctypes, os, sys
pid, addr = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype, libc.ptrace.argtypes = ctypes.c_long, [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
if libc.ptrace(16, pid, None, None) != 0:  # PTRACE_ATTACH
    sys.exit("attach: errno %d" % ctypes.get_errno())
os.waitpid(pid, 0x40000000)  # __WALL
libc.ptrace(5, pid, ctypes.c_void_p(addr), ctypes.c_void_p(int.from_bytes(b"attacked", sys.byteorder)))  # PTRACE_POKEDATA
libc.ptrace(17, pid, None, None)  # PTRACE_DETACH
