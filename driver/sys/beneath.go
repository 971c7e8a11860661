package sys

import (
	"errors"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenBeneath opens path below dirfd without following a symbolic link anywhere on the
// way and without leaving dirfd's tree (openat2(2), Linux 5.6). more are O_* flags.
func OpenBeneath(dirfd int, path string, more int) (int, error) {
	if path == "" {
		path = "."
	}
	for range 128 { // EAGAIN: something was renamed during the walk
		fd, err := unix.Openat2(dirfd, path, &unix.OpenHow{Flags: uint64(more|unix.O_CLOEXEC|unix.O_NOFOLLOW) &^ unix.O_LARGEFILE,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// OPath is O_PATH: a descriptor that names a file and reads nothing of it.
const OPath = unix.O_PATH

// StatAt is lstat(2) of path below dirfd; of dirfd itself when path is "".
func StatAt(dirfd int, path string) (*syscall.Stat_t, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Fstatat(dirfd, path, &st, flags); err != nil {
		return nil, err
	}
	return (*syscall.Stat_t)(unsafe.Pointer(&st)), nil // two names of the kernel's struct stat
}

// CloneFile makes dst share the blocks of src (FICLONE), where the file system can.
func CloneFile(dst, src int) error { return unix.IoctlFileClone(dst, src) }

// MakeWhiteout makes the node by which overlayfs knows a deleted file, a character device
// 0:0: no device, so nobody needs a privilege for it (fs/namei.c, vfs_mknod; Linux 5.8).
func MakeWhiteout(dirfd int, name string) error { return unix.Mknodat(dirfd, name, unix.S_IFCHR, 0) }

// MakeNode makes a FIFO or a socket node.
func MakeNode(dirfd int, name string, typ, mode uint32) error {
	return unix.Mknodat(dirfd, name, typ|mode, 0)
}

// MakeDir, MakeSymlink, LinkAt, RenameAt and RemoveAt are the calls of these names below
// directories that the caller has open; a link in the last place is not followed.
func MakeDir(dirfd int, name string, mode uint32) error { return unix.Mkdirat(dirfd, name, mode) }

func MakeSymlink(text string, dirfd int, name string) error {
	return unix.Symlinkat(text, dirfd, name)
}

func LinkAt(from int, old string, to int, name string) error {
	return unix.Linkat(from, old, to, name, 0)
}

func RenameAt(from int, old string, to int, name string) error {
	return unix.Renameat(from, old, to, name)
}

func RemoveAt(dirfd int, name string, dir bool) error {
	flags := 0
	if dir {
		flags = unix.AT_REMOVEDIR
	}
	return unix.Unlinkat(dirfd, name, flags)
}

// OwnAt changes the owner of name below dirfd, of a symbolic link itself.
func OwnAt(dirfd int, name string, uid, gid int) error {
	return unix.Fchownat(dirfd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// TouchAt sets the time of name's last modification, that of a symbolic link itself, and
// leaves the one of its last reading.
func TouchAt(dirfd int, name string, mtime time.Time) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime.UnixNano())}
	return unix.UtimesNanoAt(dirfd, name, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// Lsetxattr and Lremovexattr change an extended attribute of path, that of a symbolic
// link itself.
func Lsetxattr(path, name string, v []byte) error { return unix.Lsetxattr(path, name, v, 0) }

func Lremovexattr(path, name string) error { return unix.Lremovexattr(path, name) }

// Listxattr and Getxattr read the extended attributes of what path leads to.
func Listxattr(path string) ([]string, error) {
	var buf [4096]byte
	b := buf[:]
	n, err := unix.Listxattr(path, b)
	if err == unix.ERANGE {
		b = make([]byte, 1<<16) // XATTR_LIST_MAX
		n, err = unix.Listxattr(path, b)
	}
	if err != nil || n == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00"), nil
}

func Getxattr(path, name string) ([]byte, error) {
	var buf [256]byte
	b := buf[:]
	n, err := unix.Getxattr(path, name, b)
	if err == unix.ERANGE {
		b = make([]byte, 1<<16) // XATTR_SIZE_MAX
		n, err = unix.Getxattr(path, name, b)
	}
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), b[:n]...), nil
}

// ReadlinkOf reads the symbolic link that fd, opened with [OPath], is.
func ReadlinkOf(fd int) (string, error) {
	var b [4097]byte
	n, e := ReadlinkAt(fd, []byte{0}, b[:])
	if e != 0 {
		return "", e
	}
	return string(b[:n]), nil
}
