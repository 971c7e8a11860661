package driver

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"sort"
	"strconv"
	"strings"
)

// mountEntry is one line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	id, parent int
	dev        string // major:minor
	root       string // the mount's root within its file system
	point      string
	readOnly   bool
	fstype     string
}

// parseMountinfo reads a mountinfo file. A line that it does not understand is an
// error: a mount that is not understood could be passed into the box.
func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var out []mountEntry
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 1<<16), 1<<20)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		sep := -1
		for i, w := range f {
			if i >= 6 && w == "-" {
				sep = i
				break
			}
		}
		if len(f) < 6 || sep < 0 || sep+3 >= len(f)+1 || sep+1 >= len(f) {
			return nil, fmt.Errorf("mountinfo: cannot read line %q", sc.Text())
		}
		id, err1 := strconv.Atoi(f[0])
		parent, err2 := strconv.Atoi(f[1])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("mountinfo: cannot read line %q", sc.Text())
		}
		e := mountEntry{id: id, parent: parent, dev: f[2], root: unescapeMount(f[3]), point: unescapeMount(f[4]), fstype: f[sep+1]}
		for o := range strings.SplitSeq(f[5], ",") {
			e.readOnly = e.readOnly || o == "ro"
		}
		if sep+3 < len(f) {
			for o := range strings.SplitSeq(f[sep+3], ",") {
				e.readOnly = e.readOnly || o == "ro"
			}
		}
		out = append(out, e)
	}
	return out, sc.Err()
}

// unescapeMount undoes the octal escapes of mountinfo (\040 for a space).
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// visibleMounts returns, by mount point, the mounts that a path walk from the root
// meets: not those that another mount covers.
func visibleMounts(all []mountEntry) map[string]mountEntry {
	type at struct {
		parent int
		point  string
	}
	children := map[at]mountEntry{} // the last one mounted at a place of a parent
	byID := map[int]bool{}
	for _, e := range all {
		byID[e.id] = true
	}
	var root mountEntry
	for _, e := range all {
		if e.point == "/" && (!byID[e.parent] || e.parent == e.id) {
			root = e
			continue
		}
		children[at{e.parent, e.point}] = e
	}
	descend := func(m mountEntry, point string) mountEntry {
		for range len(all) { // mounts stacked on one another
			c, ok := children[at{m.id, point}]
			if !ok {
				break
			}
			m = c
		}
		return m
	}
	top := descend(root, "/")
	out := map[string]mountEntry{"/": top}
	for _, e := range all {
		if e.point == "/" {
			continue
		}
		m := top
		for i := 1; i <= len(e.point); i++ {
			if i == len(e.point) || e.point[i] == '/' {
				m = descend(m, e.point[:i])
			}
		}
		if m.id == e.id {
			out[e.point] = e
		}
	}
	return out
}

// fsKind says what a file system's type means for a box.
type fsKind int

const (
	fsUnknown fsKind = iota // masked: what is not known is not passed
	fsLocal                 // an overlay makes it safe
	fsImage                 // read-only by its nature, cannot hold live sockets
	fsShare                 // reaches other machines or a program outside, or is plugged in: see shares.go
	fsPseudo                // the kernel's own: masked but where the box gets its own
)

var fsKinds = func() map[string]fsKind {
	m := map[string]fsKind{}
	for k, names := range map[fsKind]string{
		fsLocal:  "ext2 ext3 ext4 xfs btrfs zfs f2fs tmpfs ramfs overlay vfat msdos exfat ntfs3 bcachefs jfs jffs2 ubifs reiserfs nilfs2 hfs hfsplus rootfs",
		fsImage:  "squashfs erofs iso9660 udf cramfs romfs",
		fsShare:  "nfs nfs4 cifs smb3 smbfs 9p afs ceph coda ncpfs ocfs2 gfs2 lustre virtiofs vboxsf prl_fs davfs",
		fsPseudo: "proc sysfs devtmpfs devpts cgroup cgroup2 securityfs debugfs tracefs bpf mqueue hugetlbfs binfmt_misc configfs fusectl efivarfs pstore nsfs rpc_pipefs selinuxfs pidfs resctrl",
	} {
		for n := range strings.FieldsSeq(names) {
			m[n] = k
		}
	}
	return m
}()

// stepKind says how a place of the box's view is made.
type stepKind string

const (
	stepOverlay stepKind = "overlay" // the real directory below, the box's own above
	stepFrame   stepKind = "frame"   // a directory with mount points further down: an overlay on a copy of its bare frame
	stepImage   stepKind = "image"   // bound, read-only
	stepMask    stepKind = "mask"    // an empty, read-only directory
	stepShare   stepKind = "share"   // a share, bound read-only
	// Of private places that a grant opens, see private.go.
	stepVeil     stepKind = "veil"      // the box's own over a skeleton of the real directory
	stepVeilFile stepKind = "veil-file" // the skeleton of a file, read-only
)

// planStep is one mount of the box's view, made in the order of the plan.
type planStep struct {
	Kind     stepKind
	Path     string   // absolute, where in the box and where outside
	ReadOnly bool     // refused with EROFS, as outside
	Why      string   // for masks: what was masked
	Points   []string // for frames: the names of directories that a later step mounts on
	Blind    []string // for frames: the names of those where a look may wait for ever
	Share    string   // of a share, masked or not: its type
	Dev      string   // and its device
	Hide     []string // for frames: the names of files that are private
	Roots    []string // for veils: what the skeleton has
	Over     bool     // it is mounted over the layer of a directory above, in which the box may have put anything
}

// ownPlaces are the directories that the box gets instead of the real ones.
var ownPlaces = map[string]bool{"/proc": true, "/sys": true, "/dev": true, "/run": true}

// under says whether p is dir or below it.
func under(p, dir string) bool {
	return p == dir || dir == "/" || len(p) > len(dir) && p[len(dir)] == '/' && strings.HasPrefix(p, dir)
}

// planMounts makes the plan of a box's view from the visible mounts. An ordinary user
// cannot put an overlay on a directory with mount points below it: the kernel locked
// them together when the user namespace was made (fs/namespace.c, has_locked_children).
// So such a directory becomes a frame, and everything in it a step of its own. splits
// are directories that an earlier session of the box already made frames of or
// overlaid for themselves: their layers must stay where they are.
//
// list lists the subdirectories of a directory, and says whether it is one; it is only
// asked about local file systems, and never about one that may hang. A file that is a
// mount point needs no step: the frame it is in holds a copy of what is seen there.
func planMounts(vis map[string]mountEntry, splits []string, hide []string, list func(string) (subs []string, isDir bool, err error)) ([]planStep, error) {
	frames := map[string]bool{"/": true}
	kind := mountKind
	var points []string
	for p := range vis {
		points = append(points, p)
	}
	sort.Strings(points)
	covered := func(p string) bool { // below something that is not passed at all
		for d := p; ; d = path.Dir(d) {
			if ownPlaces[d] {
				return true
			}
			if e, ok := vis[d]; ok && d != p && kind(e) != fsLocal {
				return true
			}
			if d == "/" {
				return false
			}
		}
	}
	var steps []planStep
	roots := map[string]planStep{}
	for _, p := range points {
		if p == "/" || covered(p) {
			continue
		}
		e := vis[p]
		s := planStep{Path: p, ReadOnly: e.readOnly}
		switch kind(e) {
		case fsLocal:
			if _, isDir, err := list(p); err == nil && !isDir {
				for d := path.Dir(p); d != "/"; d = path.Dir(d) {
					frames[d] = true
				}
				continue
			}
			s.Kind = stepOverlay
		case fsImage:
			s.Kind = stepImage
		default:
			if s.Kind, s.Why = stepMask, e.fstype; kind(e) == fsShare {
				s.Share, s.Dev = e.fstype, e.dev
			}
		}
		roots[p] = s
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			frames[d] = true
		}
	}
	for _, p := range splits {
		if p == "/" || covered(p) || roots[p].Kind == stepMask || roots[p].Kind == stepImage {
			continue
		}
		if _, ok := roots[p]; !ok {
			roots[p] = planStep{Kind: stepOverlay, Path: p, ReadOnly: mountOf(vis, p).readOnly}
		}
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			frames[d] = true
		}
	}
	// Every directory in a frame that is not a frame or mount itself gets an overlay.
	var names []string
	for d := range frames {
		names = append(names, d)
	}
	sort.Strings(names)
	for _, d := range names {
		m := mountOf(vis, d)
		s := roots[d]
		if s.Kind == stepMask || s.Kind == stepImage {
			continue
		}
		s = planStep{Kind: stepFrame, Path: d, ReadOnly: m.readOnly && d != "/"}
		subs, _, err := list(d)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", d, err)
		}
		in := map[string]bool{}
		for _, n := range subs {
			p := path.Join(d, n)
			if d == "/" && ownPlaces[p] {
				continue
			}
			in[n] = true
			if _, ok := roots[p]; !ok && !frames[p] {
				roots[p] = planStep{Kind: stepOverlay, Path: p, ReadOnly: m.readOnly}
			}
		}
		for p := range roots {
			if path.Dir(p) == d {
				in[path.Base(p)] = true
			}
		}
		for p := range frames {
			if p != "/" && path.Dir(p) == d {
				in[path.Base(p)] = true
			}
		}
		if d == "/" {
			for p := range ownPlaces {
				in[path.Base(p)] = true
			}
		}
		for n := range in {
			s.Points = append(s.Points, n)
		}
		sort.Strings(s.Points)
		roots[d] = s
	}
	for _, s := range roots {
		steps = append(steps, s)
	}
	sort.Slice(steps, func(i, j int) bool { return steps[i].Path < steps[j].Path })
	for _, h := range hidden(vis, hide) {
		if !covered(h) {
			steps = append(steps, planStep{Kind: stepMask, Path: h, Why: hideReason})
		}
	}
	return steps, nil
}

// hideReason marks masks over the sandbox's own state.
const hideReason = "sandglass"

// mountOf returns the mount that p is on.
func mountOf(vis map[string]mountEntry, p string) mountEntry {
	for {
		if e, ok := vis[p]; ok {
			return e
		}
		if p == "/" || p == "." || p == "" { // the latter two: p was not absolute
			return mountEntry{}
		}
		p = path.Dir(p)
	}
}

// hidden returns every path under which one of the places in hide can be reached: the
// same directory may be visible through other mounts of its file system (bind mounts).
func hidden(vis map[string]mountEntry, hide []string) []string {
	out := map[string]bool{}
	for _, h := range hide {
		out[h] = true
		own := mountOf(vis, h)
		inFS := path.Join(own.root, strings.TrimPrefix(h, own.point)) // where it is within the file system
		if own.point == "/" {
			inFS = path.Join(own.root, h)
		}
		for _, e := range vis {
			if e.dev == own.dev && e.id != own.id && under(e.root, inFS) && e.root != inFS { // a mount of something in it
				out[e.point] = true
			}
			if e.dev == own.dev && under(inFS, e.root) {
				p := path.Join(e.point, strings.TrimPrefix(inFS, e.root))
				if e.root == "/" {
					p = path.Join(e.point, inFS)
				}
				if mountOf(vis, p).id == e.id {
					out[p] = true
				}
			}
		}
	}
	var ps []string
	for p := range out {
		ps = append(ps, p)
	}
	sort.Strings(ps)
	return ps
}
