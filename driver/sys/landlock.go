package sys

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights and scopes of linux/landlock.h, in the order in which the kernel learnt them.
const (
	LandlockWrite      = unix.LANDLOCK_ACCESS_FS_WRITE_FILE // ABI 1
	LandlockRemoveDir  = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR
	LandlockRemoveFile = unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	LandlockMakeChar   = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR
	LandlockMakeDir    = unix.LANDLOCK_ACCESS_FS_MAKE_DIR
	LandlockMakeFile   = unix.LANDLOCK_ACCESS_FS_MAKE_REG
	LandlockMakeSocket = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
	LandlockMakeFIFO   = unix.LANDLOCK_ACCESS_FS_MAKE_FIFO
	LandlockMakeBlock  = unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	LandlockMakeLink   = unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	LandlockRefer      = unix.LANDLOCK_ACCESS_FS_REFER            // ABI 2, Linux 5.19
	LandlockConnectTCP = unix.LANDLOCK_ACCESS_NET_CONNECT_TCP     // ABI 4, Linux 6.7
	LandlockIoctl      = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV        // ABI 5, Linux 6.10
	LandlockAbstract   = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET // ABI 6, Linux 6.12
	LandlockSignal     = unix.LANDLOCK_SCOPE_SIGNAL
)

// LandlockRules is a set of rules: what is denied, and where it is not.
type LandlockRules struct {
	Files  uint64 // rights over files, denied but below the places that have them
	Net    uint64 // rights over TCP ports, denied for all
	Scopes uint64 // what stays among the processes of the domain
	Places []LandlockPlace
}

// LandlockPlace is a file or directory with the rights that hold for all below it.
type LandlockPlace struct {
	Path   string
	Rights uint64
}

// LandlockABI returns the version of the kernel's Landlock; an error when it has none,
// was started without it, or somebody's filter hides it.
func LandlockABI() (int, error) {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0, e
	}
	return int(v), nil
}

// LandlockSelf puts the calling thread, and whatever it executes or makes, under r for
// ever (landlock_restrict_self(2)). The goroutine must be locked to its thread, which
// must have no_new_privs. Links are not followed in the last part of a place's path.
func LandlockSelf(r LandlockRules) error {
	// A kernel that knows fewer fields than these takes them as long as they are zero.
	attr := unix.LandlockRulesetAttr{Handled_access_fs: r.Files, Handled_access_net: r.Net, Scoped: r.Scopes}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if e != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", e)
	}
	defer unix.Close(int(fd))
	for _, p := range r.Places {
		if err := landlockPlace(fd, p); err != nil {
			return err
		}
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return fmt.Errorf("landlock_restrict_self: %w", e)
	}
	return nil
}

func landlockPlace(rules uintptr, p LandlockPlace) error {
	fd, err := unix.Open(p.Path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", p.Path, err)
	}
	defer unix.Close(fd)
	// struct landlock_path_beneath_attr is packed: 12 bytes, which the Go one begins with.
	attr := unix.LandlockPathBeneathAttr{Allowed_access: p.Rights, Parent_fd: int32(fd)}
	if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0); e != 0 {
		return fmt.Errorf("landlock_add_rule %s: %w", p.Path, e)
	}
	return nil
}
