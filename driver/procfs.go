package driver

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// A fresh /proc shows the session's own processes, but everything else in it is the
// kernel's, the same inside and outside. To uid 0 of the real system it is writable even
// without a capability - sysctl.c's test_perm asks for the id alone - and a box of root
// keeps that id: one line into /proc/sys/kernel/core_pattern would be a program that the
// kernel runs outside; it may even change the mode of its entries, which every /proc of the
// machine has in common. So every entry that is the kernel's is read-only, and what tells of
// its memory or keys is masked. On the caller's network /proc/PID/net is the machine's too,
// and cannot be covered process by process: there, root's /proc is read-only as a whole, and
// what a process writes about itself in it (oom_score_adj) is the price.

// procMasked are the files of /proc that nobody in a box reads, with their surfaces.
var procMasked = map[string]core.Surface{
	"kcore": core.DeviceMemory, "kmsg": core.DeviceMemory, "kpagecgroup": core.DeviceMemory, "kpagecount": core.DeviceMemory,
	"kpageflags": core.DeviceMemory, "slabinfo": core.DeviceMemory, "vmallocinfo": core.DeviceMemory, "pagetypeinfo": core.DeviceMemory,
	"timer_list": core.DeviceMemory, "sched_debug": core.DeviceMemory, "latency_stats": core.DeviceMemory,
	"keys": core.SettingsKeyring, "key-users": core.SettingsKeyring,
}

// procKernel says whether p is a part of /proc that is the kernel's, not a process's:
// name is its first component.
func procKernel(p string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(p, "/proc/")
	if !ok {
		return "", false
	}
	name, _, _ = strings.Cut(rest, "/")
	// self, thread-self, mounts and net lead to the process's own.
	if digits(name) || name == "self" || name == "thread-self" || name == "mounts" || name == "net" {
		return "", false
	}
	return name, true
}

// procReadOnly says whether a box's /proc is read-only as a whole.
func procReadOnly(hostNet bool) bool { return hostNet && os.Getuid() == 0 }

// mountProc mounts a /proc of the session's own on target. By it, while it can still be
// written, the PID namespace is bounded to pidMax, where the kernel has such bounds; 0: it is
// not. whole: nothing in it can be written, see [procReadOnly].
func mountProc(target string, pidMax int64, whole bool) error {
	if err := sys.Mount("proc", target, "proc", sys.NoSuid|sys.NoDev|sys.NoExec, ""); err != nil {
		return err
	}
	if pidMax > 0 && sys.PIDMaxIsPerNamespace() {
		// On a kernel before, this file would be the whole machine's.
		if err := os.WriteFile(target+"/sys/kernel/pid_max", strconv.AppendInt(nil, pidMax, 10), 0); err != nil {
			return fmt.Errorf("bound the number of processes: %w", err)
		}
	}
	ents, err := os.ReadDir(target)
	if err != nil {
		return fmt.Errorf("list the box's /proc: %w", err)
	}
	if whole {
		if err := sys.MakeReadOnly(target); err != nil {
			return err
		}
	}
	for _, e := range ents {
		if _, ok := procKernel("/proc/" + e.Name()); !ok {
			continue
		}
		p := target + "/" + e.Name()
		if _, ok := procMasked[e.Name()]; ok {
			if err := sys.BindReadOnly("/dev/null", p, false); err != nil {
				return err
			}
			continue
		}
		if whole {
			continue
		}
		// A directory may have something writable in it, a file says itself whether it is; but
		// its owner, root, can change that.
		if fi, err := e.Info(); err == nil && os.Getuid() != 0 && !e.IsDir() && fi.Mode()&0o222 == 0 {
			continue
		}
		if err := sys.BindReadOnly(p, p, false); err != nil {
			return err
		}
	}
	return nil
}

// remountProc mounts a /proc of this session's own over that of the box's first session.
// The kernel lets a user namespace have a new one only where it sees another whole
// (fs/namespace.c, mnt_already_visible): so what lies over its parts goes first, in this
// session's copy of the mounts alone.
func remountProc(target string, pidMax int64, whole bool) error {
	ents, err := os.ReadDir(target)
	if err != nil {
		return fmt.Errorf("list the box's /proc: %w", err)
	}
	for _, e := range ents {
		if _, ok := procKernel("/proc/" + e.Name()); ok {
			sys.Unmount(target + "/" + e.Name()) // where nothing lies over it, that is fine
		}
	}
	return mountProc(target, pidMax, whole)
}
