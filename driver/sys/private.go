package sys

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// CloneTree makes a detached copy of the mount at path, from there on and without the mounts
// below it, that is read-only and gives no privileges and no devices; noexec: nothing in it is
// executed either. What is opened by way of it cannot be opened again to write: not through
// /proc/self/fd either, which leads to the same mount (open_tree(2), mount_setattr(2),
// Linux 5.12). No symbolic link is followed on the way.
func CloneTree(path string, noexec bool) (int, error) {
	at, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if noexec {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make %s read-only: %w", path, err)
	}
	return fd, nil
}

// MoveOnto mounts what [CloneTree] has made on the place behind target.
func MoveOnto(tree, target int) error {
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// OpenPlainly opens path as a place (O_PATH) below the directory dir, following no symbolic
// link at all and leaving dir by nothing.
func OpenPlainly(dir int, path string) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
}

// OpenBelow opens the regular file path below the directory or file dir for reading,
// following no symbolic link and leaving dir by nothing; "" is dir itself. It waits for
// nothing, and what is no regular file is ENXIO.
func OpenBelow(dir int, path string) (int, error) {
	place := dir
	if path != "" {
		var err error
		if place, err = OpenPlainly(dir, path); err != nil {
			return -1, err
		}
		defer unix.Close(place)
	}
	var st unix.Stat_t
	if err := unix.Fstat(place, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, unix.ENXIO
	}
	// By way of the place that was looked at: it is that file and no other.
	return unix.Open("/proc/self/fd/"+strconv.Itoa(place), unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// Stat is what stat(2) says of what fd stands for.
func Stat(fd int) (st syscall.Stat_t, err error) { return st, syscall.Fstat(fd, &st) }

// StatPath is [Stat] for path, whose last symbolic link is followed: /proc/PID/exe.
func StatPath(path string) (st syscall.Stat_t, err error) { return st, syscall.Stat(path, &st) }

// Sealed makes a file in memory of what in still has, at most most bytes (EFBIG), that
// nobody can change any more (memfd_create(2), F_ADD_SEALS).
func Sealed(name string, in *os.File, most int64, mode uint32) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	buf, n := make([]byte, 128<<10), int64(0)
	for err == nil {
		var k int
		k, err = unix.Read(int(in.Fd()), buf)
		if err == unix.EINTR {
			err = nil
			continue
		}
		if err != nil || k == 0 {
			break
		}
		if n += int64(k); n > most {
			err = unix.EFBIG
			break
		}
		for b := buf[:k]; len(b) > 0 && err == nil; {
			k, err = unix.Write(fd, b)
			b = b[max(k, 0):]
		}
	}
	if err == nil {
		err = unix.Fchmod(fd, mode)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	var ro int
	if err == nil { // for reading, as what it stands for
		ro, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	unix.Close(fd)
	if err != nil {
		return -1, err
	}
	return ro, nil
}

// Executable says whether the file system that path is on lets programs be executed.
func Executable(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Flags&unix.ST_NOEXEC == 0
}
