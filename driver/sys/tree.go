package sys

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows works below directory descriptors, a component at a time, so that nothing
// that a box renames or links meanwhile leads it elsewhere.

// DirInRoot opens the directory path as a place, as if root were "/" (openat2(2), Linux
// 5.6), following no symbolic or magic link.
func DirInRoot(root int, path string) (int, error) {
	return openat2(root, path, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

// OpenIn opens name in the directory dir: no link, and nothing that is on another mount
// (EXDEV).
func OpenIn(dir int, name string, flags int) (int, error) {
	return openat2(dir, name, flags|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

// PlaceOnly is O_PATH.
const PlaceOnly = unix.O_PATH

func openat2(dir int, path string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	for range 64 {
		fd, err := unix.Openat2(dir, path, &how)
		if err != unix.EAGAIN && err != unix.EINTR { // EAGAIN: something was renamed somewhere meanwhile
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// Names calls f with what is in an open directory, "." and ".." left out, until f says no.
func Names(dir int, f func(name string) error) error {
	if _, err := unix.Seek(dir, 0, 0); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
	}
}

// OpenNameless makes a regular file without a name in dir (O_TMPFILE), to be given one by
// [LinkOpen].
func OpenNameless(dir int) (int, error) {
	return unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
}

// LinkOpen gives the open file fd another name, or its first.
func LinkOpen(fd, dir int, name string) error {
	return unix.Linkat(unix.AT_FDCWD, selfFD(fd), dir, name, unix.AT_SYMLINK_FOLLOW)
}

// selfFD is a path of what this process's descriptor fd stands for.
func selfFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// Statx is what statx(2) says of a node.
type Statx struct {
	Mode          uint32 // with the type
	UID, GID      uint32
	Nlink         uint32
	Ino           uint64
	Size          int64
	Dev           uint64
	Mount         uint64 // which mount it is on; 0 where the kernel does not say (before Linux 5.8)
	ATime, MTime  syscall.Timespec
	Fixed, Append bool // the immutable and the append-only flag: chattr(1)
}

// StatxAt reports on name in dir without following it, on dir itself when name is "".
func StatxAt(dir int, name string) (s Statx, err error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return s, err
	}
	s = Statx{Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Nlink: st.Nlink, Ino: st.Ino, Size: int64(st.Size), Dev: unix.Mkdev(st.Dev_major, st.Dev_minor),
		ATime: timespec(st.Atime), MTime: timespec(st.Mtime),
		Fixed: st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0, Append: st.Attributes&unix.STATX_ATTR_APPEND != 0}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		s.Mount = st.Mnt_id
	}
	return s, nil
}

func timespec(t unix.StatxTimestamp) (ts syscall.Timespec) {
	return syscall.NsecToTimespec(t.Sec*1e9 + int64(t.Nsec))
}

// Rename2 is renameat2(2).
func Rename2(olddir int, oldname string, newdir int, newname string, flags uint32) error {
	return unix.Renameat2(olddir, oldname, newdir, newname, uint(flags))
}

// The flags of [Rename2].
const (
	RenameNoreplace = unix.RENAME_NOREPLACE
	RenameExchange  = unix.RENAME_EXCHANGE
)

// Chown, Chmod and SetTimes change what fd stands for, which must be opened, not a place
// alone.
func Chown(fd int, uid, gid uint32) error { return unix.Fchown(fd, int(uid), int(gid)) }

// Chmod sets the low twelve bits of the mode.
func Chmod(fd int, mode uint32) error { return unix.Fchmod(fd, mode&0o7777) }

// SetTimes sets the times of access and change, to the nanosecond.
func SetTimes(fd int, atime, mtime syscall.Timespec) error {
	ts := [2]unix.Timespec{unix.Timespec(atime), unix.Timespec(mtime)}
	// A path of nil means the descriptor itself: futimens(3).
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// Truncate sets the size of an open file.
func Truncate(fd int, size int64) error { return unix.Ftruncate(fd, size) }

// NextData finds the next stretch of fd that is no hole, at or after off: from begin to
// end, which is size at most. ok is false when there is none.
func NextData(fd int, off, size int64) (begin, end int64, ok bool, err error) {
	if off >= size {
		return 0, 0, false, nil
	}
	begin, err = unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO || err == nil && begin >= size:
		return 0, 0, false, nil
	case err == unix.EINVAL:
		return off, size, true, nil // a file system that knows no holes
	case err != nil:
		return 0, 0, false, err
	}
	if end, err = unix.Seek(fd, begin, unix.SEEK_HOLE); err != nil {
		return 0, 0, false, err
	}
	return begin, min(end, size), true, nil
}

// CopyRange copies up to n bytes of in to out, both at off, sharing blocks where the file
// system can (copy_file_range(2)). It returns 0 at the end of in.
func CopyRange(in, out int, off int64, n int, buf []byte) (int, error) {
	ri, wo := off, off
	k, err := unix.CopyFileRange(in, &ri, out, &wo, n, 0)
	switch err {
	case unix.EXDEV, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS:
	default:
		return k, err
	}
	if k, err = unix.Pread(in, buf[:min(n, len(buf))], off); err != nil || k == 0 {
		return k, err
	}
	for done := 0; done < k; {
		w, err := unix.Pwrite(out, buf[done:k], off+int64(done))
		if err != nil {
			return done, err
		}
		done += w
	}
	return k, nil
}

// XattrNames lists the extended attributes of an open file or directory.
func XattrNames(fd int) ([]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16) // XATTR_LIST_MAX
	if n, err = unix.Flistxattr(fd, buf); err != nil || n == 0 {
		return nil, err
	}
	var names []string
	for b := buf[:n]; len(b) > 0; {
		name := unix.ByteSliceToString(b)
		names = append(names, name)
		b = b[min(len(b), len(name)+1):]
	}
	return names, nil
}

// Xattr returns an attribute of an open file or directory.
func Xattr(fd int, name string) ([]byte, error) {
	buf := make([]byte, 1<<16) // XATTR_SIZE_MAX
	n, err := unix.Fgetxattr(fd, name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// SetXattr sets an attribute of an open file or directory.
func SetXattr(fd int, name string, value []byte) error {
	return unix.Fsetxattr(fd, name, value, 0)
}

// RemoveXattr removes one.
func RemoveXattr(fd int, name string) error { return unix.Fremovexattr(fd, name) }

// Capabilities of capabilities(7) that [KeepCaps] takes.
const (
	CapChown   = unix.CAP_CHOWN
	CapFowner  = unix.CAP_FOWNER
	CapFsetid  = unix.CAP_FSETID
	CapSetfcap = unix.CAP_SETFCAP
)

// KeepCaps makes those the only capabilities of the calling thread that count, as far as
// it has them: the others stay permitted. The goroutine must be locked to its thread, and
// end with it.
func KeepCaps(caps ...uintptr) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[0].Effective, data[1].Effective = 0, 0
	for _, c := range caps {
		data[c/32].Effective |= 1 << (c % 32) & data[c/32].Permitted
	}
	return unix.Capset(&hdr, &data[0])
}
