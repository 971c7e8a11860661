package sys

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MountFlag is a set of MS_* flags of mount(2).
type MountFlag uintptr

// The mount flags in use.
const (
	NoSuid  MountFlag = unix.MS_NOSUID
	NoDev   MountFlag = unix.MS_NODEV
	NoExec  MountFlag = unix.MS_NOEXEC
	RdOnly  MountFlag = unix.MS_RDONLY
	Bind    MountFlag = unix.MS_BIND
	Rec     MountFlag = unix.MS_REC
	Private MountFlag = unix.MS_PRIVATE
)

// Mount is mount(2). The error names what was mounted where.
func Mount(source, target, fstype string, flags MountFlag, data string) error {
	if err := unix.Mount(source, target, fstype, uintptr(flags), data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}

// BindReadOnly binds source on target and makes the new mount, and all below it when
// deep, read-only (mount_setattr(2), Linux 5.12): the flags that a user namespace
// locked stay as they are.
func BindReadOnly(source, target string, deep bool) error {
	flags, at := uintptr(unix.MS_BIND), uint(0)
	if deep {
		flags |= unix.MS_REC
		at = unix.AT_RECURSIVE
	}
	if err := unix.Mount(source, target, "", flags, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, at, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// MakeReadOnly makes the mount at target read-only.
func MakeReadOnly(target string) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, target, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// Unmount detaches the mount on target, following no symbolic link (umount2(2)).
func Unmount(target string) error {
	return unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// PivotInto makes dir the root of the mount namespace and detaches the old root.
func PivotInto(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("chdir %s: %w", dir, err)
	}
	// "." twice puts the old root on top of the new one: pivot_root(2), NOTES.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// AccessBits returns the rwx bits (0 to 7) that the caller effectively has on path,
// without following a last symbolic link.
func AccessBits(path string) uint32 {
	var bits uint32
	for _, b := range []uint32{unix.R_OK, unix.W_OK, unix.X_OK} {
		if unix.Faccessat(unix.AT_FDCWD, path, b, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW) == nil {
			bits |= b
		}
	}
	return bits
}

// Owner returns the user and group of a file.
func Owner(fi os.FileInfo) (uid, gid int) {
	if st, ok := fi.Sys().(*unixStat); ok {
		return int(st.Uid), int(st.Gid)
	}
	return -1, -1
}

// LoopbackUp brings the loopback interface of the current network namespace up.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// FSType returns the magic number of the file system that path is on (statfs(2)).
func FSType(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Type), nil
}

// Magic numbers of file systems that cannot hold an upper layer.
const (
	MagicOverlay = unix.OVERLAYFS_SUPER_MAGIC
	MagicNFS     = unix.NFS_SUPER_MAGIC
)

// Umask sets the file mode creation mask and returns the one before.
func Umask(m int) int { return unix.Umask(m) }

// SetName names the calling thread in /proc and ps.
func SetName(name string) {
	var b [16]byte
	copy(b[:15], name)
	unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}
