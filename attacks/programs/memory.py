# E2: write into the memory of a process outside (process_vm_writev(2)).
import ctypes, sys
pid, addr = int(sys.argv[1]), int(sys.argv[2])
class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
libc = ctypes.CDLL(None, use_errno=True)
data = ctypes.create_string_buffer(b"attacked", 8)
local, remote = Iovec(ctypes.addressof(data), 8), Iovec(addr, 8)
if libc.process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) != 8:
    sys.exit("process_vm_writev: errno %d" % ctypes.get_errno())
