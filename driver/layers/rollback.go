package layers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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

// A rollback makes the upper layers what they were: what an [image] says. It is made
// ready in rollback.new: the files that have to come to be, and a plan, which lists each
// path that differs with what it is to be. The renaming to rollback is the moment at which
// it counts; from then on a crash at any point is followed by its being done again, whole,
// before the box is used: to make a path what it is already changes nothing. No session
// runs meanwhile, and no link of the box's is followed.
//
// A rollback is an operation like others in the box's history: it can be undone.

// RollbackOptions say to where a box goes back: to a snapshot, or to a time.
type RollbackOptions struct {
	Snapshot string
	Time     time.Time
	// Force leaves the files whose content of then was not kept as they are. Without it
	// nothing is done when there are any.
	Force bool
	// DryRun only finds out what would be done.
	DryRun bool
}

// RollbackReport says what was done, or would be.
type RollbackReport struct {
	Changes []core.Change // of the box, against what it was before; Was and Is are the box's own
	Lost    []string      // paths whose content of then was not kept
	Counts  core.ChangeCounts
}

// LostError says that a rollback would not bring everything back.
type LostError struct{ Paths []string }

func (e *LostError) Error() string {
	const most = 5
	shown := e.Paths[:min(most, len(e.Paths))]
	more := ""
	if n := len(e.Paths) - len(shown); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("the content of %s%s was not kept", strings.Join(shown, ", "), more)
}

// Rollback makes the box what it was when the snapshot was taken.
func (b Dir) Rollback(ctx context.Context, name string) (core.ChangeCounts, error) {
	r, err := b.Return(ctx, RollbackOptions{Snapshot: name})
	if err != nil {
		return core.ChangeCounts{}, err
	}
	return r.Counts, nil
}

// RollbackTo makes the box what it was at the time t.
func (b Dir) RollbackTo(ctx context.Context, t time.Time) (core.ChangeCounts, error) {
	r, err := b.Return(ctx, RollbackOptions{Time: t})
	if err != nil {
		return core.ChangeCounts{}, err
	}
	return r.Counts, nil
}

// Return makes the box what it was. It refuses while a session runs in it.
func (b Dir) Return(ctx context.Context, o RollbackOptions) (report *RollbackReport, err error) {
	lock, err := b.Lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	refs, err := b.Running()
	if err != nil {
		return nil, err
	}
	if len(refs) > 0 && !o.DryRun {
		return nil, core.Hint(fmt.Errorf("roll back: %d sessions run in the box", len(refs)), "end them first: `sandglass kill`")
	}
	if len(refs) == 0 {
		if err := b.Refuse("roll back"); err != nil {
			return nil, err
		}
		if err := b.settle(); err != nil {
			return nil, err
		}
	}
	m, err := b.target(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &rollback{b: b, m: m, ctx: ctx, report: &RollbackReport{}, roots: map[string]bool{}}
	if r.masks, err = b.Masks(); err != nil {
		return nil, err
	}
	if err := r.plan(); err != nil {
		return nil, err
	}
	if o.DryRun {
		return r.report, nil
	}
	if len(r.report.Lost) > 0 && !o.Force {
		return nil, core.Hint(&LostError{r.report.Lost}, "--force rolls back the rest, and leaves these as they are")
	}
	if len(r.steps) == 0 {
		return r.report, nil
	}
	if err := r.ready(); err != nil {
		os.RemoveAll(b.At("rollback.new"))
		return nil, err
	}
	if err := r.remember(); err != nil {
		os.RemoveAll(b.At("rollback.new"))
		return nil, err
	}
	return r.report, b.alter(func() error {
		if err := os.Rename(b.At("rollback.new"), b.At("rollback")); err != nil {
			return err
		}
		if err := syncDir(string(b)); err != nil {
			return err
		}
		return b.FinishRollback()
	})
}

func (b Dir) target(ctx context.Context, o RollbackOptions) (*image, error) {
	if o.Snapshot != "" {
		return b.snapshotImage(ctx, o.Snapshot)
	}
	p, err := b.Past(ctx, o.Time)
	if err != nil {
		return nil, err
	}
	return p.m, nil
}

type rollback struct {
	b      Dir
	m      *image
	ctx    context.Context
	report *RollbackReport
	masks  map[string]bool
	roots  map[string]bool
	steps  []*record // recTouch: path is to be was; why of a file is the name under which it is ready
	files  []*content
}

// plan finds what differs.
func (r *rollback) plan() error {
	if r.m.linked {
		if err := r.m.loadAll(); err != nil {
			return err
		}
	}
	for _, l := range r.m.layers {
		r.roots[l.Path] = true
	}
	order := make([]int, len(r.m.layers))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(i, j int) bool { return r.m.layers[order[i]].Path < r.m.layers[order[j]].Path })
	for _, i := range order {
		up := r.b.Upper(r.m.layers[i])
		cur, err := Lstat(up)
		if err != nil {
			return err
		}
		if err := r.dir(r.m.roots[i], up, r.m.layers[i].Path, cur); err != nil {
			return err
		}
	}
	sort.Slice(r.report.Changes, func(i, j int) bool { return r.report.Changes[i].Path < r.report.Changes[j].Path })
	sort.Strings(r.report.Lost)
	for _, c := range r.report.Changes {
		r.report.Counts.Add(c.Kind)
	}
	return nil
}

func (r *rollback) step(p string, n *node, stage string) *record {
	s := &record{kind: recTouch, path: p}
	if n != nil {
		s.was = entry{kind: n.kind, state: n.st(), opaque: n.opaque, xattrs: n.xattrs, why: stage}
		if n.file != nil {
			s.was.xattrs = n.file.xattrs
		}
	}
	r.steps = append(r.steps, s)
	return s
}

func (r *rollback) change(p string, was *node, n *node, parts ...string) {
	c := core.Change{Path: p, Kind: core.Modified, Parts: parts}
	if was != nil {
		c.Was = was.st()
	}
	if n != nil {
		c.Is = n.st()
	}
	switch {
	case was == nil && n.kind == whiteout, n == nil && was.kind == present, n != nil && n.kind == whiteout:
		c.Kind = core.Deleted
	case was == nil, was.kind == whiteout && n != nil:
		c.Kind = core.Added
	case n == nil: // the real file shows through again
		c.Kind = core.Added
	}
	r.report.Changes = append(r.report.Changes, c)
}

// dir compares a directory with the one that is on disk; disk is "" when there is none.
func (r *rollback) dir(n *node, disk, p string, cur *core.FileState) error {
	at := len(r.steps)
	r.steps = append(r.steps, nil) // the directory, before what is in it, if anything differs
	attrs := disk == "" || !sameAttrs(n, cur) || n.opaque != Opaque(disk) || !maps.EqualFunc(n.xattrs, Xattrs(disk), bytes.Equal)
	if attrs && disk != "" && n.state.Inode == 0 { // a root of which nothing is known
		attrs = false
	}
	if n.src != disk || n.loaded || disk == "" {
		if err := r.inDir(n, disk, p); err != nil {
			return err
		}
	}
	if len(r.steps) == at+1 && !attrs {
		r.steps = r.steps[:at]
		return nil
	}
	if n.state.Inode == 0 && cur != nil {
		n.state = cur
		n.xattrs, n.opaque = Xattrs(disk), Opaque(disk)
	}
	r.steps[at] = &record{kind: recTouch, path: p, was: entry{kind: present, state: n.state, opaque: n.opaque, xattrs: n.xattrs}}
	if attrs && disk != "" && (cur.Mode != n.state.Mode || cur.UID != n.state.UID || cur.GID != n.state.GID) {
		r.change(p, &node{kind: present, state: cur}, n, "mode")
	}
	return nil
}

func (r *rollback) inDir(n *node, disk, p string) error {
	kids, err := r.m.children(n)
	if err != nil {
		return err
	}
	now := map[string]*node{}
	if disk != "" {
		d := &image{b: r.b, files: map[uint64]*content{}, ctx: r.ctx}
		if now, err = d.children(&node{src: disk}); err != nil {
			return err
		}
	}
	names := map[string]bool{}
	for k := range kids {
		names[k] = true
	}
	for k := range now {
		names[k] = true
	}
	for _, k := range sortedNames(names) {
		q := path.Join(p, k)
		if r.roots[q] || r.masks[q] && (now[k] != nil && now[k].kind == whiteout) {
			continue
		}
		at := ""
		if disk != "" {
			at = filepath.Join(disk, k)
		}
		if err := r.entry(kids[k], now[k], at, q); err != nil {
			return err
		}
	}
	return nil
}

func sortedNames(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (r *rollback) entry(n, cur *node, disk, p string) error {
	switch {
	case n == nil:
		r.step(p, nil, "")
		r.change(p, cur, nil)
		return nil
	case n.kind == whiteout:
		if cur == nil || cur.kind != whiteout {
			r.step(p, n, "")
			r.change(p, cur, n)
		}
		return nil
	case n.dir():
		if !cur.dir() {
			r.change(p, cur, n)
			return r.dir(n, "", p, nil)
		}
		return r.dir(n, disk, p, cur.state)
	case n.file != nil:
		return r.file(n, cur, disk, p)
	}
	if cur == nil || cur.kind != present || cur.file != nil || cur.state.Type != n.state.Type || cur.state.Link != n.state.Link || !sameAttrs(n, cur.state) {
		r.step(p, n, "")
		r.change(p, cur, n)
	}
	return nil
}

func (r *rollback) file(n, cur *node, disk, p string) error {
	c := n.file
	if cur != nil && cur.file != nil {
		f := cur.file.state
		unchanged := c.state.Inode == f.Inode && c.state.Size == f.Size && c.state.MTime.Equal(f.MTime) && c.state.CTime.Equal(f.CTime)
		if !unchanged && c.src == "" && c.lost == "" && c.state.Size == f.Size && c.state.Links == f.Links {
			unchanged = r.holds(disk, c.id) // an earlier rollback has made it
		}
		if unchanged && c.src == "" {
			c.src, c.inode = disk, f.Inode // other names that have to be made are of this file
		}
		if c.src == disk || unchanged || c.src != "" && c.inode == f.Inode {
			if sameAttrs(n, f) && maps.EqualFunc(c.xattrs, cur.file.xattrs, bytes.Equal) {
				return nil
			}
			r.step(p, n, "")
			if c.state.Mode != f.Mode || c.state.UID != f.UID || c.state.GID != f.GID {
				r.change(p, cur, n, "mode")
			}
			return nil
		}
	}
	if c.lost == "" && c.src == "" {
		if _, ok := r.b.objects().has(c.id); !ok {
			c.lost = errMadeRoom.Error()
		}
	}
	if c.lost != "" {
		r.report.Lost = append(r.report.Lost, p)
		return nil
	}
	if c.stage == "" {
		c.stage = strconv.Itoa(len(r.files))
		r.files = append(r.files, c)
	}
	r.step(p, n, c.stage)
	r.change(p, cur, n, "content")
	return nil
}

// holds says whether a file of the layers has that content.
func (r *rollback) holds(disk string, id objectID) bool {
	f, err := r.b.openFile(disk)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	_, err = copySparse(nil, f, h, 0)
	return err == nil && objectID(h.Sum(nil)) == id
}

// sameAttrs compares the mode, owner and time of a node with those on disk.
func sameAttrs(n *node, cur *core.FileState) bool {
	s := n.st()
	return (s.Mode == cur.Mode || s.Type == core.TypeSymlink) && s.UID == cur.UID && s.GID == cur.GID && s.MTime.Equal(cur.MTime)
}

// ready makes the files that have to come to be, and the plan.
func (r *rollback) ready() error {
	dir := r.b.At("rollback.new")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, c := range r.files {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.stage(c, filepath.Join(dir, c.stage)); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "plan"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	var buf []byte
	for _, s := range r.steps {
		if buf = appendRecord(buf[:0], s); len(buf) > maxRecord {
			return fmt.Errorf("roll back %s: its attributes are too large", s.path)
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return sys.SyncFS(int(f.Fd()))
}

// stage makes a content a file of its own, or a name of the one that has it now.
func (r *rollback) stage(c *content, to string) error {
	if c.src != "" {
		f, err := r.b.openLayers(c.src, sys.OPath)
		if err != nil {
			return err
		}
		defer f.Close()
		dir, err := sys.OpenPath(-1, filepath.Dir(to), syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer sys.CloseFD(dir)
		return sys.LinkOpen(int(f.Fd()), dir, filepath.Base(to))
	}
	in, err := r.b.objects().open(c.id)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = copySparse(out, in, nil, 0)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// remember writes down what the rollback is about to change, so that it can be undone.
func (r *rollback) remember() error {
	if !r.b.hasHistory() {
		return nil
	}
	ls := append([]Layer(nil), r.m.layers...)
	h, err := OpenHistory(r.b, ls, "rollback", core.Limits{}, "")
	if err != nil {
		return err
	}
	defer h.Close()
	t := time.Now()
	for _, s := range r.steps {
		toDir := s.was.kind == present && s.was.state.Type == core.TypeDir
		if err := h.rememberTree(t, s.path, toDir); err != nil {
			return err
		}
	}
	return nil
}

// rememberTree writes down what is at p, and below it when it is a directory that does not
// stay.
func (h *History) rememberTree(t time.Time, p string, stays bool) error {
	i, rel, ok := h.place(p)
	if !ok {
		return nil
	}
	was, fd := h.look(i, rel, p, true)
	if was.kind == present && was.state.Type == core.TypeDir && !stays {
		d, err := h.b.openDir(filepath.Join(h.b.Upper(h.layers[i]), rel))
		if err != nil {
			return err
		}
		ents, err := d.ReadDir(-1)
		d.Close()
		if err != nil {
			return err
		}
		for _, e := range ents {
			if err := h.rememberTree(t, path.Join(p, e.Name()), false); err != nil {
				return err
			}
		}
	}
	if fd >= 0 {
		if _, later := h.keep(i, fd, &was); later != nil {
			later()
		}
	} else if was.kind == present && was.state.Type == core.TypeDir {
		was.meta = true
	}
	h.append(&record{kind: recTouch, time: t, path: p, was: was})
	return nil
}

// FinishRollback does a rollback that counts already and was cut short, and clears away
// one that was not made ready. The box's lock is held and no session runs.
func (b Dir) FinishRollback() error {
	if err := os.RemoveAll(b.At("rollback.new")); err != nil {
		return err
	}
	f, err := os.Open(b.At("rollback", "plan"))
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(b.At("rollback"))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	ls, err := b.Layers()
	if err != nil {
		return err
	}
	sort.SliceStable(ls, func(i, j int) bool { return len(ls[i].Path) > len(ls[j].Path) })
	a := apply{b: b, layers: ls}
	defer a.close()
	if err := a.open(); err != nil {
		return err
	}
	whole, err := readRecords(bufio.NewReader(f), func(s *record) error {
		if rollbackStep != nil {
			if err := rollbackStep(); err != nil {
				return err
			}
		}
		return a.put(s)
	})
	if err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	if !whole {
		return core.Hint(fmt.Errorf("roll back: %s is damaged", f.Name()), "the box is between two states: `sandglass diff` shows what it has; remove the file to leave it so")
	}
	for i := len(a.attrs) - 1; i >= 0; i-- { // a directory after what is in it: that changes its time
		if rollbackStep != nil {
			if err := rollbackStep(); err != nil {
				return err
			}
		}
		if err := a.attributes(a.attrs[i]); err != nil {
			return fmt.Errorf("roll back: %w", err)
		}
	}
	// What the sessions knew of changed paths is another now.
	if err := ignoreGone(os.Remove(b.At("run", "changed"))); err != nil {
		return err
	}
	if err := sys.SyncFS(int(f.Fd())); err != nil {
		return err
	}
	// The plan goes last but for its folder: without it, the rest is only cleared away.
	if err := os.Remove(b.At("rollback", "plan")); err != nil {
		return err
	}
	return os.RemoveAll(b.At("rollback"))
}

// rollbackStep is called before each step; only tests set it.
var rollbackStep func() error

// apply does the steps of a plan. Doing one again changes nothing.
type apply struct {
	b      Dir
	layers []Layer
	fds    []int
	stage  int
	attrs  []*record
}

func (a *apply) open() (err error) {
	a.stage = -1
	for _, l := range a.layers {
		fd, err := sys.OpenPath(-1, a.b.Upper(l), syscall.O_DIRECTORY|syscall.O_NOFOLLOW)
		if err != nil {
			return err
		}
		a.fds = append(a.fds, fd)
	}
	a.stage, err = sys.OpenPath(-1, a.b.At("rollback"), syscall.O_DIRECTORY|syscall.O_NOFOLLOW)
	return err
}

func (a *apply) close() {
	for _, fd := range a.fds {
		sys.CloseFD(fd)
	}
	if a.stage >= 0 {
		sys.CloseFD(a.stage)
	}
}

// at opens the directory that p is in. For the root of a layer name is "".
func (a *apply) at(p string) (dir *os.File, name string, err error) {
	for i, l := range a.layers {
		if !Under(p, l.Path) {
			continue
		}
		rel := strings.TrimPrefix(p[len(strings.TrimSuffix(l.Path, "/")):], "/")
		if rel == "" {
			fd, err := sys.OpenBeneath(a.fds[i], ".", sys.OPath|syscall.O_DIRECTORY)
			if err != nil {
				return nil, "", err
			}
			return os.NewFile(uintptr(fd), p), "", nil
		}
		fd, err := sys.OpenBeneath(a.fds[i], path.Dir(rel), sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return nil, "", &fs.PathError{Op: "open", Path: path.Dir(p), Err: err}
		}
		return os.NewFile(uintptr(fd), path.Dir(p)), path.Base(rel), nil
	}
	return nil, "", fmt.Errorf("%s is in no layer", p)
}

func (a *apply) put(s *record) error {
	dir, name, err := a.at(s.path)
	if err != nil {
		if s.was.kind == absent && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
			return nil
		}
		return err
	}
	defer dir.Close()
	d := int(dir.Fd())
	if s.was.kind == present {
		a.attrs = append(a.attrs, s)
	}
	if name == "" {
		return openUp(fdPath(dir))
	}
	cur, err := sys.StatAt(d, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "lstat", Path: s.path, Err: err}
	}
	isDir := err == nil && cur.Mode&syscall.S_IFMT == syscall.S_IFDIR
	toDir := s.was.kind == present && s.was.state.Type == core.TypeDir
	if isDir && toDir {
		return openUp(fdPath(dir) + "/" + name)
	}
	if isDir {
		if err := RemoveTree(fdPath(dir) + "/" + name); err != nil {
			return err
		}
	} else if err == nil && (s.was.kind != present || s.was.why == "" && s.was.state.Type != core.TypeFile || toDir) {
		if err := sys.RemoveAt(d, name, false); err != nil {
			return &fs.PathError{Op: "remove", Path: s.path, Err: err}
		}
	}
	if err := a.make(s, d, name); err != nil {
		return &fs.PathError{Op: "restore", Path: s.path, Err: err}
	}
	return nil
}

// openUp lets the box's own user list and change a directory, until its attributes are set.
func openUp(p string) error {
	fi, err := os.Lstat(p + "/.")
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o700 != 0o700 {
		return os.Chmod(p, 0o700)
	}
	return nil
}

func (a *apply) make(s *record, dir int, name string) error {
	switch {
	case s.was.kind == absent:
		return nil
	case s.was.kind == whiteout:
		return sys.MakeWhiteout(dir, name)
	}
	switch s.was.state.Type {
	case core.TypeDir:
		return sys.MakeDir(dir, name, 0o700)
	case core.TypeSymlink:
		return sys.MakeSymlink(s.was.state.Link, dir, name)
	case core.TypeFIFO:
		return sys.MakeNode(dir, name, syscall.S_IFIFO, 0o600)
	case core.TypeSocket:
		return sys.MakeNode(dir, name, syscall.S_IFSOCK, 0o600)
	case core.TypeFile:
		if s.was.why == "" {
			return nil // its content is right
		}
		// A second name, so that doing it again finds the first.
		tmp := s.was.why + ".name"
		if err := ignoreGone(sys.RemoveAt(a.stage, tmp, false)); err != nil {
			return err
		}
		if err := sys.LinkAt(a.stage, s.was.why, a.stage, tmp); err != nil {
			return err
		}
		return sys.RenameAt(a.stage, tmp, dir, name)
	}
	return fmt.Errorf("a %s is not made in a box", s.was.state.Type)
}

// attributes gives what is at a path its owner, mode, attributes and time.
func (a *apply) attributes(s *record) error {
	dir, name, err := a.at(s.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	d, st, p := int(dir.Fd()), s.was.state, fdPath(dir)
	if name == "" {
		name = "."
	}
	p += "/" + name
	if err := sys.OwnAt(d, name, st.UID, st.GID); err != nil && os.Geteuid() == 0 {
		return &fs.PathError{Op: "chown", Path: s.path, Err: err}
	}
	if st.Type != core.TypeSymlink {
		if err := setXattrs(p, s.was.xattrs, st.Type == core.TypeDir, s.was.opaque); err != nil {
			return &fs.PathError{Op: "setxattr", Path: s.path, Err: err}
		}
		if err := syscall.Chmod(p, st.Mode); err != nil { // after chown, which takes set-user-ID away
			return &fs.PathError{Op: "chmod", Path: s.path, Err: err}
		}
	}
	if err := sys.TouchAt(d, name, st.MTime); err != nil {
		return &fs.PathError{Op: "utimensat", Path: s.path, Err: err}
	}
	return nil
}

// setXattrs makes the extended attributes of p, which is no link, these. The overlay's own
// are left alone but for a directory's being opaque.
func setXattrs(p string, want map[string][]byte, dir, opaque bool) error {
	for n := range Xattrs(p) {
		if _, ok := want[n]; !ok {
			if err := sys.Lremovexattr(p, n); err != nil {
				return err
			}
		}
	}
	for n, v := range want {
		if old, err := sys.Lgetxattr(p, n); err == nil && bytes.Equal(old, v) {
			continue
		}
		if err := sys.Lsetxattr(p, n, v); err != nil {
			return err
		}
	}
	const name = "user.overlay.opaque"
	switch {
	case !dir || opaque == Opaque(p):
		return nil
	case opaque:
		return sys.Lsetxattr(p, name, []byte("y"))
	}
	return sys.Lremovexattr(p, name)
}
