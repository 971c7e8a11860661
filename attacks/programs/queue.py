# F6: find a program outside's semaphores or queue by their key, or its POSIX queue by its name.
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
how, key = sys.argv[1], sys.argv[2]
if how == "sem":
    r = libc.semget(int(key), 1, 0)
elif how == "msg":
    r = libc.msgget(int(key), 0)
else:
    r = libc.syscall(240 if os.uname().machine == "x86_64" else 180, key.encode(), os.O_RDWR, 0, None)  # mq_open
if r < 0:
    sys.exit("errno %d" % ctypes.get_errno())
