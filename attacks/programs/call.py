# H7, C3, E5: call the kernel, with arguments that do no harm. Whatever the answer is but
# "not permitted" and "no such call", the call was looked at.
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
args = []
for a in sys.argv[2:]:
    if a == "buffer":
        args.append(ctypes.create_string_buffer(256))
    elif a.startswith("text:"):
        args.append(ctypes.c_char_p(a[5:].encode()))
    elif a.startswith("hex:"):
        args.append(ctypes.create_string_buffer(bytes.fromhex(a[4:]), 256))
    else:
        args.append(ctypes.c_long(int(a, 0)))
r = libc.syscall(ctypes.c_long(int(sys.argv[1], 0)), *args)
e = ctypes.get_errno()
if r < 0 and e in (1, 3, 13, 38, 95):  # EPERM, ESRCH, EACCES, ENOSYS, EOPNOTSUPP
    sys.exit("errno %d" % e)
print("result", r, "errno", e if r < 0 else 0)
