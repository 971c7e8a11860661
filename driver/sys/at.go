package sys

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Calls on what lies in an open directory. None follows a symbolic link in the last
// component of a name.

// RealDir opens an absolute path as a directory (O_PATH) on whose way no symbolic link
// lies: ELOOP where there is one (openat2(2), Linux 5.6).
func RealDir(path string) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
}

// SameMountDir opens the directory name of dirfd to read it. EXDEV where another file
// system, or another part of the same one, is mounted on it.
func SameMountDir(dirfd int, name string) (int, error) {
	return unix.Openat2(dirfd, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
}

// CreateAt makes a file that was not there, for its owner alone, and opens it.
func CreateAt(dirfd int, name string) (*os.File, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Born returns when an inode was made (STATX_BTIME), and false where the file system does
// not keep that. A name of "" stands for dirfd itself.
func Born(dirfd int, name string) (time.Time, bool) {
	var st unix.Statx_t
	if unix.Statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st) != nil || st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}, false
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)), true
}

// RenameNew renames within a directory, onto a name that nobody has: EEXIST else.
func RenameNew(dirfd int, from, to string) error {
	err := unix.Renameat2(dirfd, from, dirfd, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // a file system without it
		if _, serr := StatAt(dirfd, to); serr != unix.ENOENT {
			return unix.EEXIST
		}
		return unix.Renameat(dirfd, from, dirfd, to)
	}
	return err
}

// Exchange lets two names in a directory change places, at once. EINVAL where the file
// system cannot.
func Exchange(dirfd int, a, b string) error {
	return unix.Renameat2(dirfd, a, dirfd, b, unix.RENAME_EXCHANGE)
}

// OwnFD changes the owner of what fd is open on, also with O_PATH; -1 leaves one as it is.
func OwnFD(fd, uid, gid int) error { return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH) }

// TimesAt sets the times of name in dirfd, nanoseconds since 1970.
func TimesAt(dirfd int, name string, atime, mtime int64) error {
	return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{unix.NsecToTimespec(atime), unix.NsecToTimespec(mtime)}, unix.AT_SYMLINK_NOFOLLOW)
}

// What follows takes any descriptor, also one that was opened with O_PATH, where the calls
// of that name answer EBADF: by its entry in /proc (open(2), O_PATH).

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// ChmodFD changes the mode of what fd is open on.
func ChmodFD(fd int, mode uint32) error { return unix.Chmod(fdPath(fd), mode) }

// TimesFD sets the times of what fd is open on, nanoseconds since 1970.
func TimesFD(fd int, atime, mtime int64) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(fd), []unix.Timespec{unix.NsecToTimespec(atime), unix.NsecToTimespec(mtime)}, 0)
}

// XattrsFD returns the extended attributes of what fd is open on. One that goes away
// meanwhile is left out.
func XattrsFD(fd int) (map[string][]byte, error) {
	p := fdPath(fd)
	n, err := unix.Listxattr(p, nil)
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]byte, 1<<16) // XATTR_LIST_MAX
	if n, err = unix.Listxattr(p, names); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	value := make([]byte, 1<<16) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		n, err := unix.Getxattr(p, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[name] = append([]byte{}, value[:n]...)
	}
	return out, nil
}

// SetXattrFD and RemoveXattrFD change an extended attribute of what fd is open on.
func SetXattrFD(fd int, name string, value []byte) error {
	return unix.Setxattr(fdPath(fd), name, value, 0)
}

func RemoveXattrFD(fd int, name string) error { return unix.Removexattr(fdPath(fd), name) }

// SyncFS writes out the file system that dirfd is on, a directory where it is no file to read: syncfs(2), which tells
// of what failed to be written since Linux 5.8.
func SyncFS(dirfd int) error {
	err := unix.Syncfs(dirfd)
	if err != unix.EBADF { // as of one that was opened with O_PATH
		return err
	}
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
