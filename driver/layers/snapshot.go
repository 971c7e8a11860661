package layers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// A snapshot is a manifest, snapshots/NAME: a line of JSON, then a record for each path of
// the upper layers. The contents are in the box's store of contents: so a second snapshot
// costs what has changed since the first, and a file that is as it was then is not read.

// snapshotHead is the first line of a manifest.
type snapshotHead struct {
	Version int `json:"version"`
	core.Snapshot
}

const (
	snapshotVersion = 1
	maxSnapshotHead = 4096
	maxSnapshots    = 4096
)

func errNoSnapshot(name string) error {
	return core.Hint(fmt.Errorf("snapshot %q: %w", core.Shorten(name, 80), core.ErrNotFound), "`sandglass snapshot BOX --list` lists them")
}

// Snapshot keeps the box's state under a name. While a session runs it is one of what is
// there when each file is read.
func (b Dir) Snapshot(ctx context.Context, name string) (core.Snapshot, error) {
	s := core.Snapshot{Name: name, Time: time.Now().UTC()}
	if err := core.CheckSnapshotName(name); err != nil {
		return s, err
	}
	lock, err := b.Lock()
	if err != nil {
		return s, err
	}
	defer lock.Close()
	refs, err := b.Running()
	if err != nil {
		return s, err
	}
	if s.Live = len(refs) > 0; !s.Live {
		if err := b.settle(); err != nil {
			return s, err
		}
	}
	if _, err := os.Lstat(b.At("snapshots", name)); err == nil {
		return s, core.Hint(fmt.Errorf("snapshot %s: there is one of this name", name), "give another name, or remove it: `sandglass snapshot BOX --rm "+name+"`")
	}
	if err := os.MkdirAll(b.At("snapshots"), 0o700); err != nil {
		return s, err
	}
	known, n, err := b.knownContents()
	if err != nil {
		return s, err
	}
	if n >= maxSnapshots {
		return s, core.Hint(fmt.Errorf("there are %d snapshots", n), "remove some: `sandglass snapshot BOX --rm NAME`")
	}
	m, err := b.now(ctx)
	if err != nil {
		return s, err
	}
	masks, err := b.Masks()
	if err != nil {
		return s, err
	}
	tmp, err := os.CreateTemp(b.At("snapshots"), ".new-*")
	if err != nil {
		return s, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	// The records come first in time and second in the file: the head has their number.
	w := bufio.NewWriter(tmp)
	t := taking{b: b, m: m, w: w, store: b.objects(), known: known, masks: masks, s: &s, roots: map[string]bool{}, done: map[*content]bool{}}
	if _, err := w.Write(make([]byte, maxSnapshotHead)); err != nil {
		return s, err
	}
	if err := t.all(); err != nil {
		return s, err
	}
	if err := w.Flush(); err != nil {
		return s, err
	}
	head, err := json.Marshal(snapshotHead{snapshotVersion, s})
	if err != nil {
		return s, err
	}
	if _, err := tmp.WriteAt(append(head, '\n'), 0); err != nil {
		return s, err
	}
	if err := sys.SyncFS(int(tmp.Fd())); err != nil {
		return s, err
	}
	if err := os.Rename(tmp.Name(), b.At("snapshots", name)); err != nil {
		return s, err
	}
	if err := syncDir(b.At("snapshots")); err != nil {
		return s, err
	}
	all, err := b.Snapshots()
	for _, x := range all {
		if x.Name == name {
			return x, err
		}
	}
	return s, err
}

// taking is a snapshot being taken.
type taking struct {
	b     Dir
	m     *image
	w     io.Writer
	buf   []byte
	store *objects
	known map[version]*entry
	masks map[string]bool
	roots map[string]bool
	done  map[*content]bool
	s     *core.Snapshot
}

func (t *taking) all() error {
	for _, l := range t.m.layers {
		t.roots[l.Path] = true
	}
	for i := len(t.m.layers) - 1; i >= 0; i-- { // shortest path first
		if err := t.node(t.m.roots[i], t.m.layers[i].Path); err != nil {
			return err
		}
	}
	return nil
}

func (t *taking) node(n *node, p string) error {
	if n.kind == whiteout && t.masks[p] {
		return nil
	}
	r := record{kind: recTouch, time: t.s.Time, path: p, was: entry{kind: n.kind, state: n.st(), xattrs: n.xattrs, opaque: n.opaque}}
	if n.file != nil {
		if err := t.keep(n.file); err != nil {
			return err
		}
		r.was.xattrs, r.was.hash, r.was.why = n.file.xattrs, n.file.id, n.file.lost
		r.was.kept = n.file.lost == ""
		if !r.was.kept {
			t.s.Missing++
		}
	}
	if !t.roots[p] {
		t.s.Files++
	}
	t.buf = appendRecord(t.buf[:0], &r)
	if len(t.buf) > maxRecord {
		return fmt.Errorf("snapshot: the attributes of %s are too large", p)
	}
	if _, err := t.w.Write(t.buf); err != nil {
		return err
	}
	if !n.dir() {
		return nil
	}
	kids, err := t.m.children(n)
	if errors.Is(err, fs.ErrNotExist) && t.s.Live {
		return nil
	}
	if err != nil {
		return err
	}
	names := make([]string, 0, len(kids))
	for k := range kids {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		if q := path.Join(p, k); !t.roots[q] {
			if err := t.node(kids[k], q); err != nil {
				return err
			}
		}
		delete(kids, k) // so that a million files are not all in memory
	}
	return nil
}

// keep has the content of a file in the store.
func (t *taking) keep(c *content) error {
	if t.done[c] {
		return nil
	}
	if c.state.Links > 1 {
		t.done[c] = true
	}
	if e := t.known[version{0, c.state.Inode}]; e != nil && e.state.Size == c.state.Size && e.state.MTime.Equal(c.state.MTime) && e.state.CTime.Equal(c.state.CTime) {
		if _, ok := t.store.has(e.hash); ok {
			c.id = e.hash
			return nil
		}
	}
	f, err := t.b.openFile(c.src)
	if err != nil {
		c.lost = "cannot be read: " + causeOf(unwrapped(err))
		return nil
	}
	defer f.Close()
	for { // a small file that grows while it is read is tried as a large one
		if c.id, _, _, err = t.store.put(f, c.state.Size, 0); errors.Is(err, errTooLarge) {
			c.state.Size = smallFile + 1
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			continue
		}
		break
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", c.src, err)
	}
	return nil
}

func unwrapped(err error) error {
	if e := errors.Unwrap(err); e != nil {
		return e
	}
	return err
}

// knownContents are the files of the box's snapshots by their inodes: one that is as it was
// then has the content that it had. Those of the youngest snapshot count.
func (b Dir) knownContents() (map[version]*entry, int, error) {
	names, err := b.snapshotNames()
	if err != nil {
		return nil, 0, err
	}
	out := map[version]*entry{}
	when := map[version]time.Time{}
	for _, name := range names {
		s, err := b.readSnapshot(name, func(r *record) error {
			e := r.was
			if !e.kept || r.time.Sub(e.state.CTime) < racy {
				return nil
			}
			v := version{0, e.state.Inode}
			if w, ok := when[v]; !ok || r.time.After(w) {
				out[v], when[v] = &e, r.time
			}
			return nil
		})
		if err != nil {
			return nil, 0, fmt.Errorf("snapshot %s: %w", s.Name, err)
		}
	}
	return out, len(names), nil
}

func (b Dir) snapshotNames() ([]string, error) {
	ents, err := os.ReadDir(b.At("snapshots"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range ents {
		if core.CheckSnapshotName(e.Name()) == nil && e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readSnapshot calls f with each record of a snapshot.
func (b Dir) readSnapshot(name string, f func(*record) error) (core.Snapshot, error) {
	s := core.Snapshot{Name: name}
	if err := core.CheckSnapshotName(name); err != nil {
		return s, err
	}
	file, err := OpenRegular(b.At("snapshots", name))
	if errors.Is(err, fs.ErrNotExist) {
		return s, errNoSnapshot(name)
	}
	if err != nil {
		return s, err
	}
	defer file.Close()
	damaged := core.Hint(fmt.Errorf("snapshot %s: %s is damaged", name, file.Name()), "`sandglass snapshot BOX --rm "+name+"` removes it")
	r := bufio.NewReaderSize(file, 256<<10)
	raw := make([]byte, maxSnapshotHead)
	if _, err := io.ReadFull(r, raw); err != nil {
		return s, damaged
	}
	line, _, ok := strings.Cut(string(raw), "\n")
	var head snapshotHead
	if !ok || json.Unmarshal([]byte(line), &head) != nil || head.Version != snapshotVersion || head.Name != name {
		return s, damaged
	}
	n := 0
	whole, err := readRecords(r, func(rec *record) error { n++; return f(rec) })
	if err != nil {
		return head.Snapshot, err
	}
	if !whole || n < head.Files {
		return head.Snapshot, damaged
	}
	return head.Snapshot, nil
}

// Snapshots lists the box's snapshots with their sizes, the oldest first.
func (b Dir) Snapshots() ([]core.Snapshot, error) {
	names, err := b.snapshotNames()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	users := map[objectID]int{} // by how many snapshots
	contents := make([]map[objectID]bool, len(names))
	out := make([]core.Snapshot, len(names))
	for i, name := range names {
		contents[i] = map[objectID]bool{}
		out[i], err = b.readSnapshot(name, func(r *record) error {
			if r.was.kept && !contents[i][r.was.hash] {
				contents[i][r.was.hash] = true
				users[r.was.hash]++
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	rs, _, _, err := b.records()
	if err != nil {
		return nil, err
	}
	versions := usage(rs).objects
	store := b.objects()
	for i := range out {
		for id := range contents[i] {
			size, _ := store.has(id)
			if users[id] > 1 || versions[id] != nil {
				out[i].Shared += size
			} else {
				out[i].Bytes += size
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Time.Before(out[j].Time) })
	return out, nil
}

// snapshotObjects are the contents that the snapshots need.
func (b Dir) snapshotObjects() (map[objectID]bool, error) {
	names, err := b.snapshotNames()
	if err != nil {
		return nil, err
	}
	out := map[objectID]bool{}
	for _, name := range names {
		if _, err := b.readSnapshot(name, func(r *record) error {
			if r.was.kept {
				out[r.was.hash] = true
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// RemoveSnapshot removes a snapshot, and the contents that nothing else needs.
func (b Dir) RemoveSnapshot(name string) error {
	if err := core.CheckSnapshotName(name); err != nil {
		return err
	}
	lock, err := b.Lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.Remove(b.At("snapshots", name)); errors.Is(err, fs.ErrNotExist) {
		return errNoSnapshot(name)
	} else if err != nil {
		return err
	}
	return b.sweep()
}

// sweep removes the contents that nothing needs any more. The box's lock is held.
func (b Dir) sweep() error {
	live, err := b.snapshotObjects()
	if err != nil {
		return err
	}
	rs, _, _, err := b.records()
	if err != nil {
		return err
	}
	for id := range usage(rs).objects {
		live[id] = true
	}
	_, err = b.objects().sweep(live)
	return err
}

// snapshotImage is the state that a snapshot keeps.
func (b Dir) snapshotImage(ctx context.Context, name string) (*image, error) {
	m, err := b.now(ctx)
	if err != nil {
		return nil, err
	}
	for i, r := range m.roots { // a layer that is younger than the snapshot was empty
		m.roots[i] = &node{kind: present, state: r.state, xattrs: r.xattrs, opaque: r.opaque, loaded: true, kids: map[string]*node{}}
	}
	roots := map[string]int{}
	for i, l := range m.layers {
		roots[l.Path] = i
	}
	m.files = map[uint64]*content{}
	_, err = b.readSnapshot(name, func(r *record) error {
		e := &r.was
		if i, ok := roots[r.path]; ok && e.kind == present {
			n := m.roots[i]
			n.state, n.xattrs, n.opaque = e.state, e.xattrs, e.opaque
			return nil
		}
		n := &node{kind: e.kind, state: e.state, xattrs: e.xattrs, opaque: e.opaque, loaded: true}
		if e.kind == absent {
			return nil
		}
		if e.kind == present && e.state.Type == core.TypeFile {
			c := m.files[e.state.Inode]
			if c == nil || e.state.Links <= 1 {
				c = &content{state: e.state, xattrs: e.xattrs, id: e.hash}
				if !e.kept {
					c.lost = e.why
				}
				m.files[e.state.Inode] = c
			}
			n.file = c
		}
		return m.put(r.path, n)
	})
	return m, err
}

// Held says how much the box's folder holds beside its layers, in bytes: old versions of
// its files, and what its snapshots have for themselves.
func (b Dir) Held() (versions, snapshots int64, err error) {
	rs, _, _, err := b.records()
	if err != nil {
		return 0, 0, err
	}
	u := usage(rs)
	err = b.objects().each(func(id objectID, fi fs.FileInfo) error {
		if u.objects[id] != nil {
			versions += fi.Size()
		} else {
			snapshots += fi.Size()
		}
		return nil
	})
	return versions, snapshots, err
}
