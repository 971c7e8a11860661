package driver

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// The second wall: Landlock, where the kernel has it. The first are namespaces, mounts and
// the filter; this one asks none of them, so that a mistake in one is caught by the other.
// The command's thread enters a domain that all it makes inherits, and that nothing leaves:
//
//   - no device node is made, and of devices only those of the box's own /dev take an ioctl;
//   - nothing is mounted, moved or unmounted (security/landlock/fs.c, hook_sb_*), and no
//     process out of the domain is traced or read (task.c, hook_ptrace_access_check): the
//     kernel adds both to any rules;
//   - no signal leaves the domain;
//   - nothing is written but in the box's own directories, see below;
//   - on the caller's network, no TCP connection is made, and no abstract socket outside is
//     reached. The supervisor, which connects for the box, is not in the domain; nor is what
//     it opens for it, as Landlock asks when a file is opened.
//
// A domain is of one session. So abstract sockets are not scoped where the network is the
// box's own: a second session in the box would not reach those of the first, and there is
// nobody else to reach. For the same reason LANDLOCK_ACCESS_FS_RESOLVE_UNIX (ABI 9) is not
// used. Ports are left alone for what listens in the box.
//
// Landlock's rules add up from a file to the root of all mounts: what holds for a directory
// cannot be taken back further down. Two things follow, and stay with the first wall alone.
// Who may make files in / itself - root - must have the rights there, so everywhere: writes
// are not restricted in a box of such a caller. (The box's own / does not count: it is its
// user's, who could make the next session's wall lower with a chmod.) And /proc/PID cannot be told from /proc/sys, as processes
// come later than the rules: in /proc, writes are not restricted for anybody.
//
// Reading, executing and truncating are not handled, on purpose: then the kernel need not walk
// a path to its root to open a file for reading. What must not be written cannot be opened to
// be, and what must not be read cannot be said by such rules: the state folder lies in the
// middle of a home.

// landlockABI is the first version that is of use: before, a file could not be renamed or
// linked into another directory in any domain (LANDLOCK_ACCESS_FS_REFER).
const landlockABI = 2

const (
	nodeRights  = sys.LandlockMakeChar | sys.LandlockMakeBlock
	writeRights = sys.LandlockWrite | sys.LandlockRemoveDir | sys.LandlockRemoveFile | sys.LandlockMakeDir | sys.LandlockMakeFile |
		sys.LandlockMakeSocket | sys.LandlockMakeFIFO | sys.LandlockMakeLink
)

// rootEntry is something in the box's root.
type rootEntry struct {
	name string
	dir  bool
}

// landlockRules makes the rules for a kernel of version abi, of at least [landlockABI].
// root lists what is in the box's root where nobody in the box can add to it; nil: somebody can.
func landlockRules(abi int, hostNet bool, root []rootEntry) sys.LandlockRules {
	r := sys.LandlockRules{Files: nodeRights | sys.LandlockRefer, Places: []sys.LandlockPlace{{Path: "/", Rights: sys.LandlockRefer}}}
	dev := uint64(0)
	if abi >= 5 {
		r.Files |= sys.LandlockIoctl
		dev = sys.LandlockIoctl
	}
	if root != nil {
		r.Files |= writeRights
		dev |= writeRights
	}
	if dev != 0 {
		r.Places = append(r.Places, sys.LandlockPlace{Path: "/dev", Rights: dev})
	}
	for _, e := range root {
		switch {
		case e.name == "dev" || e.name == "sys":
		case e.name == "proc" || !e.dir: // of a file there are no other rights
			r.Places = append(r.Places, sys.LandlockPlace{Path: "/" + e.name, Rights: sys.LandlockWrite})
		default:
			r.Places = append(r.Places, sys.LandlockPlace{Path: "/" + e.name, Rights: writeRights})
		}
	}
	if abi >= 4 && hostNet {
		r.Net = sys.LandlockConnectTCP
	}
	if abi >= 6 {
		r.Scopes = sys.LandlockSignal
		if hostNet {
			r.Scopes |= sys.LandlockAbstract
		}
	}
	return r
}

// secondWall says what stands of Landlock around a session.
type secondWall struct {
	ABI    int      // 0: nothing
	Why    string   // why nothing
	Holds  []string // what it holds
	Scoped bool     // neither a TCP connection nor an abstract socket of the caller's network is reached
}

// String is what the session's first operation says of it.
func (w secondWall) String() string {
	if w.ABI == 0 {
		return "none: " + w.Why
	}
	return fmt.Sprintf("abi %d: %s", w.ABI, strings.Join(w.Holds, ", "))
}

// wallOf says what rules hold.
func wallOf(abi int, r sys.LandlockRules) secondWall {
	w := secondWall{ABI: abi, Holds: []string{"device nodes", "mounts", "tracing"}}
	for _, h := range []struct {
		on   bool
		name string
	}{
		{r.Files&sys.LandlockIoctl != 0, "device ioctls"}, {r.Files&sys.LandlockWrite != 0, "writes"},
		{r.Scopes&sys.LandlockSignal != 0, "signals"}, {r.Net != 0, "tcp"}, {r.Scopes&sys.LandlockAbstract != 0, "abstract sockets"},
	} {
		if h.on {
			w.Holds = append(w.Holds, h.name)
		}
	}
	w.Scoped = r.Net&sys.LandlockConnectTCP != 0 && r.Scopes&sys.LandlockAbstract != 0
	return w
}

// enterLandlock puts the calling thread, whose root is the box's, behind the second wall. A
// kernel without Landlock has none; one that has it and fails is an error. openRoot: the
// caller may make files in the root directory.
func enterLandlock(hostNet, openRoot bool, shares []string) (secondWall, error) {
	abi, err := sys.LandlockABI()
	switch {
	case err != nil:
		return secondWall{Why: err.Error()}, nil
	case abi < landlockABI:
		return secondWall{Why: fmt.Sprintf("abi %d cannot move files between directories", abi)}, nil
	}
	var root []rootEntry
	if !openRoot {
		root = rootEntries(shares...)
	}
	r := landlockRules(abi, hostNet, root)
	if err := sys.LandlockSelf(r); err != nil {
		return secondWall{}, core.Hint(err, "the kernel has Landlock, but something refuses it: in a container, its own filter")
	}
	return wallOf(abi, r), nil
}

// rootEntriesMost bounds the entries of a root that get rules of their own.
const rootEntriesMost = 256

// rootEntries lists what is in the root directory, but for shares, which are not to be looked at and
// nobody writes to; nil when that cannot be read or is more
// than a system has there.
func rootEntries(but ...string) (root []rootEntry) {
	ents, err := os.ReadDir("/")
	if err != nil || len(ents) > rootEntriesMost {
		return nil
	}
	for _, e := range ents {
		if e.Type()&fs.ModeSymlink == 0 && !slices.Contains(but, "/"+e.Name()) { // what it leads to has rules where it is
			root = append(root, rootEntry{name: e.Name(), dir: e.IsDir()})
		}
	}
	return root
}
