package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// image is a state of the box's upper layers, in memory: the one that is on disk with
// operations undone, or the one that a snapshot keeps. Directories are read from the disk
// when they are looked into, so that an image costs what differs.
type image struct {
	b      Dir
	layers []Layer // longest path first
	roots  []*node
	files  map[uint64]*content // by inode: the names of a file share it
	linked bool                // a file with several names was changed: all names must be found
	ctx    context.Context
}

// node is what an image has at a path.
type node struct {
	kind   entryKind // present or whiteout
	state  *core.FileState
	xattrs map[string][]byte
	opaque bool
	file   *content         // of a regular file: its state and content
	kids   map[string]*node // of a directory, when it is loaded
	src    string           // of a directory: where its content is on disk; "": nowhere
	loaded bool
}

// content is a regular file, which may have several names.
type content struct {
	state  *core.FileState
	xattrs map[string][]byte
	src    string   // where it is on disk, "" when it is not there any more as it was
	inode  uint64   // there
	id     objectID // else
	lost   string   // it is nowhere: why
	stage  string   // the name under which it is made ready, see rollback.go
}

func (n *node) st() *core.FileState {
	if n.file != nil {
		return n.file.state
	}
	return n.state
}

func (n *node) dir() bool {
	return n != nil && n.kind == present && n.file == nil && n.state.Type == core.TypeDir
}

// now is the image of what is on disk.
func (b Dir) now(ctx context.Context) (*image, error) {
	ls, err := b.Layers()
	if err != nil {
		return nil, err
	}
	sort.SliceStable(ls, func(i, j int) bool { return len(ls[i].Path) > len(ls[j].Path) })
	m := &image{b: b, layers: ls, files: map[uint64]*content{}, ctx: ctx}
	for _, l := range ls {
		up := b.Upper(l)
		n, err := m.read(up, up)
		if errors.Is(err, fs.ErrNotExist) {
			n = &node{kind: present, state: &core.FileState{Type: core.TypeDir}, loaded: true, kids: map[string]*node{}}
		} else if err != nil {
			return nil, err
		}
		m.roots = append(m.roots, n)
	}
	return m, nil
}

// read makes a node of what is on disk at p, and is reached by way of at: an open
// directory, so that no link of the box's is followed.
func (m *image) read(p, at string) (*node, error) {
	s, err := Lstat(at)
	if err != nil {
		return nil, err
	}
	if Whiteout(at, s) {
		return &node{kind: whiteout}, nil
	}
	if s.Type == core.TypeFile {
		if c := m.files[s.Inode]; c != nil && s.Links > 1 {
			return &node{kind: present, file: c}, nil
		}
		c := &content{state: s, xattrs: Xattrs(at), src: p, inode: s.Inode}
		m.files[s.Inode] = c
		return &node{kind: present, file: c}, nil
	}
	n := &node{kind: present, state: s, loaded: true}
	if s.Type == core.TypeDir {
		n.src, n.loaded, n.opaque, n.xattrs = p, false, Opaque(at), Xattrs(at)
	}
	return n, nil
}

// children returns what is in a directory.
func (m *image) children(n *node) (map[string]*node, error) {
	if n.loaded {
		if n.kids == nil {
			n.kids = map[string]*node{}
		}
		return n.kids, nil
	}
	if err := m.ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := m.b.openDir(n.src)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	ents, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	kids := make(map[string]*node, len(ents))
	for _, e := range ents {
		k, err := m.read(filepath.Join(n.src, e.Name()), fdPath(dir)+"/"+e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		kids[e.Name()] = k
	}
	n.kids, n.loaded = kids, true
	return kids, nil
}

// find returns the directory of p in the image with the last name of p. dir is nil when it
// is not there.
func (m *image) find(p string) (dir *node, name string, err error) {
	for i, l := range m.layers {
		if !Under(p, l.Path) {
			continue
		}
		rel := strings.TrimPrefix(p[len(strings.TrimSuffix(l.Path, "/")):], "/")
		n := m.roots[i]
		if rel == "" {
			return nil, "", nil
		}
		for {
			first, rest, more := strings.Cut(rel, "/")
			if !more {
				return n, first, nil
			}
			kids, err := m.children(n)
			if err != nil {
				return nil, "", err
			}
			if n = kids[first]; !n.dir() {
				return nil, "", nil
			}
			rel = rest
		}
	}
	return nil, "", nil
}

// get returns what the image has at p: nil when nothing, the root of a layer included.
func (m *image) get(p string) (*node, error) {
	for i, l := range m.layers {
		if l.Path == p {
			return m.roots[i], nil
		}
	}
	dir, name, err := m.find(p)
	if err != nil || dir == nil {
		return nil, err
	}
	kids, err := m.children(dir)
	return kids[name], err
}

// put makes n what is at p; nil: nothing is.
func (m *image) put(p string, n *node) error {
	dir, name, err := m.find(p)
	if err != nil {
		return err
	}
	if dir == nil {
		if n == nil {
			return nil
		}
		if dir, err = m.makeParents(path.Dir(p)); err != nil || dir == nil {
			return err
		}
		name = path.Base(p)
	}
	kids, err := m.children(dir)
	if err != nil {
		return err
	}
	if n == nil {
		delete(kids, name)
	} else {
		kids[name] = n
	}
	return nil
}

// makeParents makes the directory p in the image, as the real one is.
func (m *image) makeParents(p string) (*node, error) {
	if n, err := m.get(p); err != nil || n.dir() {
		return n, err
	}
	if p == "/" {
		return nil, nil
	}
	n := &node{kind: present, loaded: true, kids: map[string]*node{}}
	if s, err := Lstat(p); err == nil && s.Type == core.TypeDir {
		n.state = s
	} else {
		n.state = &core.FileState{Type: core.TypeDir, Mode: 0o755, UID: os.Geteuid(), GID: os.Getegid(), MTime: time.Now()}
	}
	return n, m.put(p, n)
}

// undo takes an operation back. It goes by what is there: the record may be of an
// operation that was refused.
func (m *image) undo(r *record) error {
	cur, err := m.get(r.path)
	if err != nil {
		return err
	}
	switch r.kind {
	case recParent:
		if !cur.dir() {
			return nil
		}
		kids, err := m.children(cur)
		if err != nil || len(kids) > 0 {
			return err
		}
		return m.put(r.path, nil)
	case recRename:
		other, err := m.get(r.path2)
		if err != nil {
			return err
		}
		first, second := m.back(&r.was, cur, other), m.back(&r.was2, other, cur)
		if err := m.put(r.path, first); err != nil {
			return err
		}
		return m.put(r.path2, second)
	}
	for _, l := range m.layers {
		if l.Path == r.path { // the root of a layer: only its attributes change
			if r.was.kind == present && r.was.state.Type == core.TypeDir {
				m.back(&r.was, cur, nil)
			}
			return nil
		}
	}
	return m.put(r.path, m.back(&r.was, cur, nil))
}

// back returns the node that was e. Of cur and other, which are where it can be, it is the
// one with its inode.
func (m *image) back(e *entry, cur, other *node) *node {
	switch e.kind {
	case absent:
		return nil
	case whiteout:
		return &node{kind: whiteout}
	}
	var n *node
	for _, c := range []*node{cur, other} {
		if n == nil && c != nil && c.kind == present && c.st().Type == e.state.Type && c.st().Inode == e.state.Inode {
			n = c
		}
	}
	if e.state.Type != core.TypeFile {
		if n == nil && cur.dir() && e.state.Type == core.TypeDir && other == nil {
			n = cur
		}
		if n == nil {
			n = &node{kind: present, loaded: true}
		}
		n.state, n.xattrs, n.opaque = e.state, e.xattrs, e.opaque
		return n
	}
	var c *content
	if n != nil {
		c = n.file
	} else if c = m.files[e.state.Inode]; c == nil || e.state.Links <= 1 {
		c = &content{state: &core.FileState{}, lost: "its content was not kept"}
	}
	m.files[e.state.Inode] = c
	same := c.src != "" && c.state.Size == e.state.Size && c.state.MTime.Equal(e.state.MTime) && c.state.CTime.Equal(e.state.CTime)
	switch {
	case e.meta, same:
	case e.kept:
		c.src, c.id, c.lost = "", e.hash, ""
	default:
		if c.src, c.lost = "", e.why; c.lost == "" {
			c.lost = "its content was not kept"
		}
	}
	if c.state = e.state; e.state.Links > 1 {
		m.linked = true
	}
	c.xattrs = e.xattrs
	return &node{kind: present, file: c}
}

// loadAll reads all of the image.
func (m *image) loadAll() error {
	var walk func(n *node) error
	walk = func(n *node) error {
		kids, err := m.children(n)
		if err != nil {
			return err
		}
		for _, k := range kids {
			if k.dir() {
				if err := walk(k); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, r := range m.roots {
		if err := walk(r); err != nil {
			return err
		}
	}
	return nil
}

// Past is a box as it was at an earlier time.
type Past struct{ m *image }

// Past returns the box as it was at the time t: with all undone that came later. Of a file
// that was being written at that time it has what the next operation on it found.
func (b Dir) Past(ctx context.Context, t time.Time) (*Past, error) {
	rs, reach, why, err := b.records()
	if err != nil {
		return nil, err
	}
	if t.Before(reach) {
		return nil, core.Hint(fmt.Errorf("the box's history reaches back to %s only: %s", reach.Local().Format("2006-01-02 15:04:05.000"), why),
			"a time after that, or a snapshot")
	}
	m, err := b.now(ctx)
	if err != nil {
		return nil, err
	}
	for i := len(rs) - 1; i >= 0 && rs[i].time.After(t); i-- {
		if err := m.undo(rs[i]); err != nil {
			return nil, err
		}
	}
	return &Past{m}, nil
}

// Changes is [Dir.Changes] of the box as it was then, against the real system as it is now.
func (p *Past) Changes(ctx context.Context, f func(*core.Change) error) error {
	masks, err := p.m.b.Masks()
	if err != nil {
		return err
	}
	s := pastScan{m: p.m, ctx: ctx, f: f, masks: masks, roots: map[string]bool{}}
	for _, l := range p.m.layers {
		s.roots[l.Path] = true
	}
	order := make([]int, len(p.m.layers))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(i, j int) bool { return p.m.layers[order[i]].Path < p.m.layers[order[j]].Path })
	for _, i := range order {
		if err := s.dir(p.m.roots[i], p.m.layers[i].Path, false); err != nil {
			return err
		}
	}
	return nil
}

// ChangesIn is [Past.Changes] of these absolute paths and of what is below them; of all
// when there are none.
func (p *Past) ChangesIn(ctx context.Context, paths []string, f func(*core.Change) error) error {
	return p.Changes(ctx, func(c *core.Change) error {
		if len(paths) > 0 && !underAny(c.Path, paths) {
			return nil
		}
		return f(c)
	})
}

// ChangesAt is [Past.Changes] at t.
func (b Dir) ChangesAt(ctx context.Context, t time.Time, f func(*core.Change) error) error {
	p, err := b.Past(ctx, t)
	if err != nil {
		return err
	}
	return p.Changes(ctx, f)
}

type pastScan struct {
	m     *image
	ctx   context.Context
	f     func(*core.Change) error
	masks map[string]bool
	roots map[string]bool
}

func (s *pastScan) dir(n *node, real string, hides bool) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	kids, err := s.m.children(n)
	if err != nil {
		return s.f(&core.Change{Path: real, Kind: core.Modified, Unread: err.Error()})
	}
	var names []string
	own := map[string]bool{}
	for k := range kids {
		own[k] = true
		names = append(names, k)
	}
	if hides {
		ents, _ := os.ReadDir(real)
		for _, e := range ents {
			if !own[e.Name()] {
				names = append(names, e.Name())
			}
		}
	}
	sort.Strings(names)
	for _, k := range names {
		p := path.Join(real, k)
		if s.roots[p] {
			continue
		}
		if err := s.entry(kids[k], p); err != nil {
			return err
		}
	}
	return nil
}

func (s *pastScan) entry(n *node, real string) error {
	was, err := Lstat(real)
	if err != nil {
		was = nil
	}
	if n == nil || n.kind == whiteout {
		if was == nil || s.masks[real] {
			return nil
		}
		return s.f(&core.Change{Path: real, Kind: core.Deleted, Was: was})
	}
	c := core.Change{Path: real, Kind: core.Added, Was: was, Is: n.st()}
	if n.file != nil && n.file.lost != "" {
		c.Unread = n.file.lost
	}
	if was != nil {
		c.Kind = core.Modified
		var err error
		if c.Parts, err = s.m.differ(real, was, n); err != nil && c.Unread == "" {
			c.Unread = err.Error()
		}
	}
	if c.Kind == core.Added || len(c.Parts) > 0 || c.Unread != "" {
		if err := s.f(&c); err != nil {
			return err
		}
	}
	if !n.dir() {
		return nil
	}
	return s.dir(n, real, was != nil && was.Type == core.TypeDir && n.opaque)
}

// differ is [Differ] with a node in the place of the box's version.
func (m *image) differ(real string, was *core.FileState, n *node) (parts []string, err error) {
	is := n.st()
	if was.Type != is.Type {
		return []string{"type"}, nil
	}
	xattrs := n.xattrs
	switch is.Type {
	case core.TypeFile:
		xattrs = n.file.xattrs
		same := was.Size == is.Size
		if same && n.file.lost == "" {
			same, err = m.sameContent(real, n.file)
		}
		if !same {
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
	if !maps.EqualFunc(Xattrs(real), xattrs, bytes.Equal) {
		parts = append(parts, "xattrs")
	}
	return parts, err
}

func (m *image) sameContent(real string, c *content) (bool, error) {
	a, err := OpenRegular(real)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := m.open(c)
	if err != nil {
		return false, err
	}
	defer b.Close()
	ba, bb := make([]byte, 128<<10), make([]byte, 128<<10)
	for {
		na, ea := io.ReadFull(a, ba)
		nb, eb := io.ReadFull(b, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		for _, err := range []error{ea, eb} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if ea != nil || eb != nil {
			return ea == eb, nil
		}
	}
}

// open opens the content of a file in the image.
func (m *image) open(c *content) (io.ReadCloser, error) {
	switch {
	case c.lost != "":
		return nil, errors.New(c.lost)
	case c.src != "":
		return m.b.openFile(c.src)
	}
	r, err := m.b.objects().open(c.id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMadeRoom
	}
	return r, err
}

var errMadeRoom = errors.New("this version has made room for others")

// Open opens a regular file as the box had it then: its own version, or the real file
// where it had none.
func (p *Past) Open(name string) (io.ReadCloser, *core.FileState, error) {
	notThere := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	n, err := p.m.get(name)
	if err != nil {
		return nil, nil, err
	}
	if n == nil {
		for dir := path.Dir(name); ; dir = path.Dir(dir) {
			d, err := p.m.get(dir)
			if err != nil {
				return nil, nil, err
			}
			if d != nil && (!d.dir() || d.opaque) {
				return nil, nil, notThere
			}
			if dir == "/" || d != nil && p.isRoot(dir) {
				break
			}
		}
		f, err := OpenRegular(name)
		if err != nil {
			return nil, nil, err
		}
		fi, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		return f, StateOf(fi.Sys().(*syscall.Stat_t)), nil
	}
	if n.kind == whiteout {
		return nil, nil, notThere
	}
	if n.file == nil {
		return nil, nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	r, err := p.m.open(n.file)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return r, n.file.state, nil
}

func (p *Past) isRoot(dir string) bool {
	for _, l := range p.m.layers {
		if l.Path == dir {
			return true
		}
	}
	return false
}

// OpenAt is [Past.Open] at t.
func (b Dir) OpenAt(name string, t time.Time) (io.ReadCloser, *core.FileState, error) {
	p, err := b.Past(context.Background(), t)
	if err != nil {
		return nil, nil, err
	}
	return p.Open(name)
}

// openLayers opens src, a path below the box's folder of layers, without following a link
// of the box's. A FIFO is not waited for.
func (b Dir) openLayers(src string, flags int) (*os.File, error) {
	rel, ok := strings.CutPrefix(src, b.At("layers")+"/")
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: src, Err: errors.New("not in the box's layers")}
	}
	root, err := sys.OpenPath(-1, b.At("layers"), syscall.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer sys.CloseFD(root)
	if flags&sys.OPath == 0 { // which takes no other
		flags |= syscall.O_NONBLOCK
	}
	fd, err := sys.OpenBeneath(root, rel, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: src, Err: err}
	}
	return os.NewFile(uintptr(fd), src), nil
}

// openFile opens a regular file of the layers for reading.
func (b Dir) openFile(src string) (*os.File, error) {
	f, err := b.openLayers(src, syscall.O_RDONLY|syscall.O_NOATIME)
	if errors.Is(err, syscall.EPERM) {
		f, err = b.openLayers(src, syscall.O_RDONLY)
	}
	if errors.Is(err, syscall.EACCES) {
		f, err = b.openClosed(src, syscall.O_RDONLY, 0o400)
	}
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: src, Err: errors.New("not a regular file")}
	}
	return f, nil
}

// openDir opens a directory of the layers.
func (b Dir) openDir(src string) (*os.File, error) {
	f, err := b.openLayers(src, syscall.O_RDONLY|syscall.O_DIRECTORY)
	if errors.Is(err, syscall.EACCES) {
		f, err = b.openClosed(src, syscall.O_RDONLY|syscall.O_DIRECTORY, 0o500)
	}
	return f, err
}

// openClosed opens what a box has closed to its own user, whose file it is: for the moment
// of the opening its mode is another.
func (b Dir) openClosed(src string, flags int, bits uint32) (*os.File, error) {
	node, err := b.openLayers(src, sys.OPath)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	st, err := sys.StatAt(int(node.Fd()), "")
	if err != nil {
		return nil, err
	}
	at := fdPath(node)
	if err := syscall.Chmod(at, st.Mode&0o7777|bits); err != nil {
		return nil, &fs.PathError{Op: "open", Path: src, Err: syscall.EACCES}
	}
	f, err := b.openLayers(src, flags)
	syscall.Chmod(at, st.Mode&0o7777)
	return f, err
}

// fdPath is a path that leads to an open file, whatever has become of its name.
func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
