package layers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Changes calls f with each path at which the box differs from the real system as it is
// now, ordered by layer and path, parents before what is in them; in a directory of more
// than [runOfNames] names the order begins anew after so many. The error of f ends it.
//
// It reads the upper layers as overlayfs keeps them (Documentation/filesystems/
// overlayfs.rst): a character device 0:0 is a whiteout, the attribute
// user.overlay.opaque says that nothing of the real directory shows through. Nothing that a
// box can do makes these: its filter refuses device nodes and the attributes, and the
// overlay does not pass them on. A symbolic link in a layer is never followed: what is in a
// layer is reached from an open directory by one name, or beneath it (openat2(2)).
//
// A directory that is deleted is one change, without those of what was in it; a directory
// that takes the place of another one is one, and those of what is in it. Times alone are
// no change, nor is what the sandbox itself has put into the layers.
//
// A directory or file that the box has closed to its own user is opened for as long as it
// is looked at, when no session runs in the box; else the change says that it is unread. A
// directory with a path that no system call takes (PATH_MAX) says so, too.
func (b Dir) Changes(ctx context.Context, f func(*core.Change) error) error {
	return b.ChangesIn(ctx, nil, f)
}

// ChangesIn is [Dir.Changes] of what is at one of the absolute paths or below it, and of
// directories above that the box has deleted or replaced. No paths are all.
func (b Dir) ChangesIn(ctx context.Context, paths []string, f func(*core.Change) error) error {
	ls, err := b.Layers()
	if err != nil {
		return err
	}
	masks, err := b.Masks()
	if err != nil {
		return err
	}
	sort.Slice(ls, func(i, j int) bool { return ls[i].Path < ls[j].Path })
	s := scan{b: b, ctx: ctx, f: f, masks: masks, roots: map[string]bool{}, only: paths, me: os.Geteuid()}
	for _, l := range ls {
		s.roots[l.Path] = true
	}
	for _, l := range ls {
		if s.relates(l.Path) == apart {
			continue
		}
		if err := s.scanLayer(l); err != nil {
			return err
		}
	}
	return nil
}

const (
	// runOfNames is how many names of a directory are in memory at a time, sorted.
	runOfNames = 1 << 15
	// keptOpen is how many levels of a path are kept open on the way down: a path can have
	// more of them than a process may have descriptors.
	keptOpen = 64
	// pathMax is PATH_MAX of linux/limits.h, without the NUL.
	pathMax = 4095
)

type scan struct {
	b     Dir
	ctx   context.Context
	f     func(*core.Change) error
	masks map[string]bool
	roots map[string]bool // of all layers: what is below one of them is in it
	only  []string
	flat  bool // look into no directory: [Dir.Level]
	me    int
	quiet *bool // that no session runs, once that was asked

	layer Layer
	top   *os.File // the layer's upper directory
}

// relation is that of a path to those that were asked for.
type relation int

const (
	apart relation = iota
	above
	within
)

func (s *scan) relates(p string) relation {
	if len(s.only) == 0 {
		return within
	}
	r := apart
	for _, o := range s.only {
		switch {
		case Under(p, o):
			return within
		case Under(o, p):
			r = above
		}
	}
	return r
}

// folder is a directory of an upper layer, and the real one of the same path.
type folder struct {
	path   string
	depth  int
	up     *os.File
	real   *os.File // nil: there is none
	hides  bool     // nothing of the real one shows through
	masked bool     // the sandbox hides the real one from the box: nothing in it was deleted
	list   *os.File // open to list up, until that is done
	closed uint32   // the mode to give back to up, S_IFDIR included; 0: it was left alone
}

// leave gives everything back.
func (d *folder) leave() {
	if d.closed != 0 && d.up != nil {
		syscall.Chmod(procName(d.up, ""), d.closed&0o7777)
	}
	d.shut()
	if d.list != nil {
		d.list.Close()
		d.list = nil
	}
}

// shut closes the places.
func (d *folder) shut() {
	for _, f := range []*os.File{d.up, d.real} {
		if f != nil {
			f.Close()
		}
	}
	d.up, d.real = nil, nil
}

func (s *scan) scanLayer(l Layer) error {
	s.layer = l
	d := &folder{path: l.Path}
	defer d.leave()
	var err error
	if d.up, err = openPlace(s.b.Upper(l)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return s.f(&core.Change{Path: l.Path, Kind: core.Modified, Unread: reason(err)})
	}
	if s.top, err = openPlace(s.b.Upper(l)); err != nil {
		return err
	}
	defer s.top.Close()
	d.real, _ = openReal(l.Path) // nil when it is gone
	for p := l.Path; !d.masked; p = path.Dir(p) {
		d.masked = s.masks[p]
		if p == "/" {
			break
		}
	}
	is, err := stateAt(d.up, "")
	if err != nil {
		return err
	}
	c := &core.Change{Path: l.Path, Kind: core.Modified, Is: is}
	if d.real != nil {
		c.Was, _ = stateAt(d.real, "")
	}
	if err := s.open(d, is); err != nil {
		if d.real != nil && sys.AccessBits(procName(d.real, "."))&5 != 5 { // closed to this user outside, too
			return nil
		}
		c.Unread = reason(err)
	}
	// The sandbox has made it like the real one, with the mode that the layer's record has.
	// Owner and attributes are not looked at, and nothing where the real one is another's.
	if c.Was != nil && l.Mode != 0 && is.Mode != l.Mode&0o7777 && is.Mode != c.Was.Mode && !s.foreign(c.Was) {
		c.Parts = []string{"mode"}
	}
	if (len(c.Parts) > 0 || c.Unread != "") && s.relates(l.Path) == within {
		if err := s.f(c); err != nil {
			return err
		}
	}
	return s.dir(d)
}

// foreign says of a real directory that its attributes are not the box's to change: it is
// another's. The sandbox copies such into a layer, on the way to the user's own.
func (s *scan) foreign(was *core.FileState) bool { return s.me != 0 && was.UID != s.me }

// open opens a directory to list it, and when the box has closed it to its own user and
// nobody runs there, gives that user the right to look for as long as this takes.
func (s *scan) open(d *folder, is *core.FileState) (err error) {
	if s.me != 0 && is.Mode&0o500 != 0o500 && is.UID == s.me && s.noSession() {
		if err := syscall.Chmod(procName(d.up, ""), is.Mode|0o700); err == nil {
			d.closed = syscall.S_IFDIR | is.Mode
		}
	}
	if s.me != 0 && d.closed == 0 && is.Mode&0o100 == 0 {
		return syscall.EACCES // its names alone tell nothing
	}
	d.list, err = openBeneath(d.up, "", syscall.O_RDONLY|syscall.O_DIRECTORY)
	return err
}

func (s *scan) noSession() bool {
	if s.quiet == nil {
		refs, err := s.b.Running()
		quiet := err == nil && len(refs) == 0
		s.quiet = &quiet
	}
	return *s.quiet
}

// dir scans what is in a directory that open has opened.
func (s *scan) dir(d *folder) error {
	if d.list == nil || s.flat {
		return nil
	}
	own, more, err := names(d.list)
	hidden := hiddenNames{}
	if d.hides && d.real != nil && !d.masked {
		if hidden.list, _ = openBeneath(d.real, "", syscall.O_RDONLY|syscall.O_DIRECTORY); hidden.list != nil {
			defer hidden.list.Close()
			hidden.more = true
		}
	}
	for err == nil {
		if !more && d.list != nil {
			d.list.Close()
			d.list = nil
			if first := hidden.next(d); len(own) > 0 {
				own = append(own, first...)
				slices.Sort(own)
			} else {
				own = first
			}
		}
		for _, n := range own {
			if err := s.ctx.Err(); err != nil {
				return context.Cause(s.ctx)
			}
			if p := path.Join(d.path, n); !s.roots[p] { // what an earlier layer had here moved into that one
				if err := s.entry(d, n, p); err != nil {
					return err
				}
			}
			if d.up == nil && !s.reopen(d) {
				return nil // gone since
			}
		}
		switch {
		case more:
			own, more, err = names(d.list)
		case hidden.more:
			own = hidden.next(d)
		default:
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // removed since
		return nil
	}
	return fmt.Errorf("list the box's %s: %w", d.path, err)
}

// names reads the next run of names, and says whether there are more.
func names(list *os.File) (ns []string, more bool, err error) {
	ns, err = list.Readdirnames(runOfNames)
	if err == io.EOF {
		err = nil
	}
	slices.Sort(ns)
	return ns, len(ns) == runOfNames, err
}

// hiddenNames lists what is in a real directory and not in the box's own in its place.
type hiddenNames struct {
	list *os.File
	more bool
}

func (h *hiddenNames) next(d *folder) (out []string) {
	if !h.more {
		return nil
	}
	ns, more, err := names(h.list)
	h.more = more && err == nil
	for _, n := range ns {
		if _, err := sys.StatAt(int(d.up.Fd()), n); errors.Is(err, fs.ErrNotExist) {
			out = append(out, n)
		}
	}
	return out
}

// reopen opens again what [scan.enter] has shut.
func (s *scan) reopen(d *folder) bool {
	var err error
	if d.up, err = openBeneath(s.top, below(d.path, s.layer.Path), sys.OPath|syscall.O_DIRECTORY); err != nil {
		return false
	}
	d.real, _ = openReal(d.path)
	return true
}

// entry compares one name in a directory.
func (s *scan) entry(d *folder, name, p string) error {
	rel := s.relates(p)
	if rel == apart {
		return nil
	}
	c := &core.Change{Path: p, Kind: core.Modified}
	if d.real != nil {
		c.Was, _ = stateAt(d.real, name)
	}
	var err error
	switch c.Is, err = stateAt(d.up, name); {
	case errors.Is(err, fs.ErrNotExist) && !d.hides:
		return nil // gone since
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		c.Unread = reason(err)
		return s.f(c)
	case c.Is == nil || whiteoutAt(d.up, name, c.Is):
		if c.Was == nil || d.masked || s.masks[p] {
			return nil
		}
		c.Kind, c.Is = core.Deleted, nil
		return s.f(c)
	}
	opaque := c.Is.Type == core.TypeDir && Opaque(procName(d.up, name))
	if c.Was == nil {
		c.Kind = core.Added
	} else if c.Parts, err = s.parts(d, name, c, opaque); err != nil {
		c.Unread = reason(err)
	}
	var sub *folder
	if c.Is.Type == core.TypeDir {
		sub = &folder{path: p, depth: d.depth + 1, hides: d.hides || opaque, masked: d.masked || s.masks[p]}
		defer sub.leave()
		if err := s.enter(d, sub, name, c); err != nil {
			c.Unread = reason(err)
		}
	}
	if c.Kind == core.Added || len(c.Parts) > 0 || c.Unread != "" {
		if rel == within || len(c.Parts) == 1 && c.Parts[0] == "type" {
			if err := s.f(c); err != nil {
				return err
			}
		}
	}
	if sub == nil || sub.list == nil {
		return nil
	}
	if d.depth > keptOpen && d.list == nil {
		d.shut()
	}
	return s.dir(sub)
}

var errTooDeep = errors.New("the paths of what is in it are too long for any program (PATH_MAX)")

// enter opens a directory in d that c is of.
func (s *scan) enter(d, sub *folder, name string, c *core.Change) (err error) {
	if len(sub.path) > pathMax {
		return errTooDeep
	}
	if sub.up, err = openBeneath(d.up, name, sys.OPath|syscall.O_DIRECTORY); err != nil {
		return err
	}
	if c.Was != nil && c.Was.Type == core.TypeDir {
		sub.real, _ = openBeneath(d.real, name, sys.OPath|syscall.O_DIRECTORY)
	}
	return s.open(sub, c.Is)
}

// parts says in what a path differs that both have.
func (s *scan) parts(d *folder, name string, c *core.Change, opaque bool) ([]string, error) {
	if c.Is.Type == core.TypeDir && c.Was.Type == core.TypeDir && !opaque && s.foreign(c.Was) {
		return nil, nil
	}
	real, up := procName(d.real, name), procName(d.up, name)
	parts, err := differ(real, c.Was, up, c.Is, s.openOwn)
	if s.layer.Frame && d.depth == 0 { // the box has it from the frame, which has neither owner nor attributes
		parts = slices.DeleteFunc(parts, func(part string) bool {
			return part == "owner" && c.Is.UID == s.me || part == "xattrs" && !hasOther(xattrs(up), xattrs(real))
		})
	}
	return parts, err
}

// hasOther says whether a has anything that is not in b.
func hasOther(a, b map[string][]byte) bool {
	for n, v := range a {
		if w, ok := b[n]; !ok || !sameValue(v, w) {
			return true
		}
	}
	return false
}

// openOwn opens a regular file of a layer to read, also one that the box has closed.
func (s *scan) openOwn(p string) (*os.File, error) {
	f, err := OpenRegular(p)
	if errors.Is(err, fs.ErrPermission) && s.noSession() {
		return openClosed(p)
	}
	return f, err
}

// openClosed is [OpenRegular] of what its owner may not read; see [readClosed].
func openClosed(p string) (*os.File, error) {
	place, err := os.OpenFile(p, sys.OPath|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	is, err := stateAt(place, "")
	if err != nil || is.Type != core.TypeFile {
		return nil, &fs.PathError{Op: "open", Path: p, Err: syscall.EACCES}
	}
	return readClosed(place, is)
}

// procName is a path of name in an open directory for calls that take no descriptor: it
// leads there whatever has become of the directory's own path. The name "" is for calls that
// follow links and stands for the directory itself; so does "." for those that do not.
func procName(dir *os.File, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd()))
	if name == "" {
		return p
	}
	return p + "/" + name
}

// openBeneath opens rel below an open directory, through no link.
func openBeneath(dir *os.File, rel string, flags int) (*os.File, error) {
	fd, err := sys.OpenBeneath(int(dir.Fd()), rel, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// openPlace opens a directory of the sandbox's own to go on from there.
func openPlace(p string) (*os.File, error) {
	return os.OpenFile(p, sys.OPath|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
}

// openReal is openPlace of a real directory, through no link on the whole way.
func openReal(p string) (*os.File, error) {
	root, err := openPlace("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return openBeneath(root, below(p, "/"), sys.OPath|syscall.O_DIRECTORY)
}

// below is p as seen from dir, which it is under.
func below(p, dir string) string { return strings.TrimPrefix(strings.TrimPrefix(p, dir), "/") }

// reason is what the kernel said, without the path.
func reason(err error) string {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no.Error()
	}
	return err.Error()
}

// stateAt is [Lstat] of a name in an open directory, "" for that itself.
func stateAt(dir *os.File, name string) (*core.FileState, error) {
	st, err := sys.StatAt(int(dir.Fd()), name)
	if err != nil {
		return nil, err
	}
	f := StateOf(st)
	if f.Type == core.TypeSymlink {
		if f.Link, err = os.Readlink(procName(dir, name)); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func whiteoutAt(dir *os.File, name string, s *core.FileState) bool {
	if s.Type != core.TypeDevice {
		return false
	}
	_, rdev, err := sys.Lstat(int(dir.Fd()), name)
	return err == nil && rdev == 0
}

// Lstat reports on a path without following it.
func Lstat(p string) (*core.FileState, error) {
	fi, err := os.Lstat(p)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, &fs.PathError{Op: "lstat", Path: p, Err: errors.ErrUnsupported}
	}
	f := StateOf(st)
	if f.Type == core.TypeSymlink {
		if f.Link, err = os.Readlink(p); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Whiteout says whether what an upper layer has at up, with that state, stands for a
// deleted file.
func Whiteout(up string, s *core.FileState) bool {
	if s.Type != core.TypeDevice {
		return false
	}
	_, rdev, err := sys.Lstat(-100, up)
	return err == nil && rdev == 0
}

// Opaque says whether a directory of an upper layer hides the real one.
func Opaque(up string) bool {
	v, err := sys.Lgetxattr(up, "user.overlay.opaque")
	return err == nil && string(v) == "y"
}

// Differ says in what the box's version at up differs from the real file at real.
func Differ(real string, was *core.FileState, up string, is *core.FileState) (parts []string, err error) {
	return differ(real, was, up, is, OpenRegular)
}

func differ(real string, was *core.FileState, up string, is *core.FileState, open func(string) (*os.File, error)) (parts []string, err error) {
	if was.Type != is.Type {
		return []string{"type"}, nil
	}
	switch is.Type {
	case core.TypeFile:
		same := was.Size == is.Size
		if same && is.Size > 0 {
			same, err = sameContent(real, up, open)
		}
		if !same && err == nil {
			parts = append(parts, "content")
		}
	case core.TypeSymlink:
		if was.Link != is.Link {
			parts = append(parts, "link")
		}
	}
	if was.Mode != is.Mode && is.Type != core.TypeSymlink {
		parts = append(parts, "mode")
	}
	if was.UID != is.UID || was.GID != is.GID {
		parts = append(parts, "owner")
	}
	if !maps.EqualFunc(xattrs(real), xattrs(up), sameValue) {
		parts = append(parts, "xattrs")
	}
	return parts, err
}

// sameValue takes one that cannot be read, which is nil, for the same.
func sameValue(a, b []byte) bool { return a == nil || b == nil || bytes.Equal(a, b) }

// Xattrs returns the extended attributes of a path that are its own, as far as they can be
// read: the user's, access lists and file capabilities. Not those by which the overlay
// keeps its state, nor labels that a machine's own rules give a file by its place
// (security.selinux): a box has no way to set them.
func Xattrs(p string) map[string][]byte {
	out := xattrs(p)
	maps.DeleteFunc(out, func(_ string, v []byte) bool { return v == nil })
	return out
}

// xattrs is Xattrs with nil for what cannot be read.
func xattrs(p string) map[string][]byte {
	names, err := sys.Llistxattr(p)
	if err != nil {
		return nil
	}
	var out map[string][]byte
	for _, n := range names {
		own := strings.HasPrefix(n, "user.") && !strings.HasPrefix(n, "user.overlay.")
		if !own && n != "system.posix_acl_access" && n != "system.posix_acl_default" && n != "security.capability" {
			continue
		}
		v, err := sys.Lgetxattr(p, n)
		if errors.Is(err, syscall.ENODATA) { // gone since
			continue
		}
		if err != nil {
			v = nil
		}
		if out == nil {
			out = map[string][]byte{}
		}
		out[n] = v
	}
	return out
}

var compareBuffers = sync.Pool{New: func() any { return new([2][64 << 10]byte) }}

// sameContent compares two regular files of one size.
func sameContent(a, b string, openB func(string) (*os.File, error)) (bool, error) {
	fa, err := OpenRegular(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := openB(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	buf := compareBuffers.Get().(*[2][64 << 10]byte)
	defer compareBuffers.Put(buf)
	ba, bb := buf[0][:], buf[1][:]
	for {
		na, ea := io.ReadFull(fa, ba)
		nb, eb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		if ea == io.EOF || ea == io.ErrUnexpectedEOF {
			return eb == ea, nil
		}
		if err := errors.Join(ea, eb); err != nil {
			return false, err
		}
	}
}

// OpenRegular opens a regular file for reading and nothing else: no link, and no FIFO that
// one would wait for. Its access time stays where that is the caller's to say.
func OpenRegular(p string) (*os.File, error) {
	const noatime = syscall.O_NOATIME
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|noatime, 0)
	if errors.Is(err, syscall.EPERM) { // not the owner
		f, err = os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: p, Err: errors.New("not a regular file")}
	}
	return f, nil
}

// Place finds where a layer keeps the box's version of an absolute path: the layer with
// the longest path above it. rel is the path below that layer, "" for the layer itself.
func Place(ls []Layer, p string) (l Layer, rel string, ok bool) {
	for _, o := range ls {
		if Under(p, o.Path) && (!ok || len(o.Path) > len(l.Path)) {
			l, ok = o, true
		}
	}
	return l, strings.TrimPrefix(strings.TrimPrefix(p, l.Path), "/"), ok
}

// Under says whether p is dir or below it.
func Under(p, dir string) bool {
	return p == dir || dir == "/" || len(p) > len(dir) && p[len(dir)] == '/' && strings.HasPrefix(p, dir)
}

// Masks are the paths whose whiteouts the sandbox itself has put into the layers, so that
// the box does not see what is there: they are no changes.
func (b Dir) Masks() (map[string]bool, error) {
	var ps [][]byte // any bytes
	if err := b.readJSON("masks.json", &ps); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, p := range ps {
		out[string(p)] = true
	}
	return out, nil
}

// readJSON reads a record of the box's folder; one that is not there leaves v as it is.
func (b Dir) readJSON(name string, v any) error {
	data, err := os.ReadFile(b.At(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", b.At(name), err)
	}
	return nil
}

// StateOf puts what stat(2) has told into the domain's words.
func StateOf(st *syscall.Stat_t) *core.FileState {
	f := &core.FileState{Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Size: st.Size, MTime: time.Unix(st.Mtim.Unix()), CTime: time.Unix(st.Ctim.Unix()),
		Inode: st.Ino, Dev: uint64(st.Dev), Links: uint64(st.Nlink)}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		f.Type = core.TypeFile
	case syscall.S_IFDIR:
		f.Type = core.TypeDir
	case syscall.S_IFLNK:
		f.Type = core.TypeSymlink
	case syscall.S_IFIFO:
		f.Type = core.TypeFIFO
	case syscall.S_IFSOCK:
		f.Type = core.TypeSocket
	default:
		f.Type = core.TypeDevice
	}
	return f
}
