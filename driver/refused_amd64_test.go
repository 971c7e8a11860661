package driver

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

func init() { programs["refused"] = refused }

// refused makes calls that no box may make, by number: the wrappers of a library might
// not reach the kernel.
func refused() {
	str := func(s string) uintptr { p, _ := syscall.BytePtrFromString(s); return uintptr(unsafe.Pointer(p)) }
	expect := func(name string, want syscall.Errno, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, e := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != want {
			fmt.Fprintf(os.Stderr, "%s: %v, want %v\n", name, e, want)
			os.Exit(1)
		}
	}
	expect("mount", syscall.EPERM, syscall.SYS_MOUNT, str("none"), str("/mnt"), str("tmpfs"))
	expect("umount2", syscall.EPERM, syscall.SYS_UMOUNT2, str("/mnt"))
	expect("chroot", syscall.EPERM, syscall.SYS_CHROOT, str("/"))
	expect("unshare", syscall.EPERM, syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER)
	expect("unshare", syscall.EPERM, syscall.SYS_UNSHARE, syscall.CLONE_NEWNET|0x80)
	expect("clone", syscall.EPERM, syscall.SYS_CLONE, syscall.CLONE_NEWUSER|uintptr(syscall.SIGCHLD))
	clone3 := [11]uint64{syscall.CLONE_NEWNS}
	expect("clone3", syscall.EPERM, 435, uintptr(unsafe.Pointer(&clone3)), 88)
	clone3[0] = 0
	expect("clone3 without a namespace", syscall.ENOSYS, 435, uintptr(unsafe.Pointer(&clone3)), 88)
	expect("io_uring_setup", syscall.ENOSYS, 425, 8, 0)
	expect("name_to_handle_at", syscall.EOPNOTSUPP, 303, ^uintptr(99), str("/etc"))
	expect("open_by_handle_at", syscall.EPERM, 304, 0)
	expect("getpid of the x32 table", syscall.ENOSYS, 0x40000000|39)
	fmt.Println("end")
}
