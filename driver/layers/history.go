package layers

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// History writes down what was at a path of a box before each operation that changes it,
// and keeps the old content of its file: an undo log. One History is one session's. All
// that it is told comes before the operation, so what it wrote may be of one that the
// kernel then refused: whoever undoes it looks at what is there.
//
//	history/T-ID   records of session ID, from time T on (nanoseconds, hexadecimal)
//	history/size   bytes of the contents kept, shared by the box's sessions
//	history/lock   held to remove what is old
//
// What a box has changed is looked at in its upper layers, never by a path that the box
// could have put a link into.
type History struct {
	b       Dir
	session core.SessionID
	limits  core.Limits
	layers  []Layer // longest path first
	fds     []int
	store   *objects
	size    []uint64 // shared: the bytes kept
	unmap   func() error

	use    sync.RWMutex // held to read while the upper layers are looked at, so that they stay open
	mu     sync.Mutex
	file   *os.File
	wrote  int64 // bytes in file
	buf    []byte
	unseen string               // why not all is told
	gap    string               // what is to be said before the next record
	last   map[version]version2 // what was kept last
	dirs   map[string]struct{}  // directories that the upper layers have
	looks  map[string]look      // how paths were found last

	thinning sync.Mutex
}

// version names a file of a layer, version2 a state of it.
type version struct {
	layer int
	inode uint64
}

type version2 struct {
	size         int64
	mtime, ctime time.Time
	id           objectID
}

// look is how a path was found, and when.
type look struct {
	when time.Time
	kind entryKind
}

const (
	historyFile  = 4 << 20  // a file of records is this long, or a record longer
	historyFiles = 64 << 20 // all of them together
	maxRemember  = 1 << 13  // files, directories or paths that are remembered
	// racy is how old a file's last change must be for its times to tell it from the next
	// one: the kernel stamps with the time of its last tick (4 ms at 250 Hz).
	racy = 20 * time.Millisecond
	// lookAgain is how long one and the same operation on a path that is not there is not
	// written down a second time: the first may not have come to be yet.
	lookAgain = 20 * time.Millisecond
)

// OpenHistory begins the history of a session. ls are the layers of its mounts, with the
// longest path first. unseen says why not all that the session does will be told; "" when
// it will.
func OpenHistory(b Dir, ls []Layer, session core.SessionID, limits core.Limits, unseen string) (*History, error) {
	h := &History{b: b, session: session, limits: limits, layers: ls, store: b.objects(), last: map[version]version2{}, dirs: map[string]struct{}{}, looks: map[string]look{}}
	if err := os.MkdirAll(b.At("history"), 0o700); err != nil {
		return nil, err
	}
	began := !b.hasHistory()
	if err := h.openSize(); err != nil {
		return nil, err
	}
	for _, l := range ls {
		fd, err := sys.OpenPath(-1, b.Upper(l), syscall.O_DIRECTORY)
		if err != nil {
			h.Close()
			return nil, fmt.Errorf("open %s: %w", b.Upper(l), err)
		}
		h.fds = append(h.fds, fd)
	}
	blind, err := h.b.unseen(true)
	switch {
	case err != nil:
		h.Close()
		return nil, err
	case unseen != "":
		h.unseen = unseen
		if err := os.WriteFile(b.At("history", unseenPrefix+string(session)), nil, 0o600); err != nil {
			h.Close()
			return nil, err
		}
	case began:
		h.append(&record{kind: recGap, time: time.Now(), why: "it begins then"})
	case blind:
		h.append(&record{kind: recGap, time: time.Now(), why: "a session was not watched"})
	}
	return h, nil
}

// unseenPrefix begins the name of what stands in the history for a session that does not
// tell it everything, while it runs.
const unseenPrefix = "unseen-"

// unseen says whether there is a session that does not tell the history everything. With
// dead those that do not run any more are meant, and cleared away: what they did until now
// is not known.
func (b Dir) unseen(dead bool) (bool, error) {
	names, err := filepath.Glob(b.At("history", unseenPrefix+"*"))
	if err != nil || len(names) == 0 {
		return false, err
	}
	if !dead {
		return true, nil
	}
	refs, err := b.Running()
	if err != nil {
		return false, err
	}
	running := map[string]bool{}
	for _, r := range refs {
		running[string(r.ID)] = true
	}
	found := false
	for _, n := range names {
		if !running[strings.TrimPrefix(filepath.Base(n), unseenPrefix)] {
			found = true
			if err := ignoreGone(os.Remove(n)); err != nil {
				return false, err
			}
		}
	}
	return found, nil
}

// openSize maps the counter of kept bytes, counting them when it is not there.
func (h *History) openSize() error {
	f, err := os.OpenFile(h.b.At("history", "size"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const page = 4096
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	fresh := fi.Size() < page
	if fresh {
		if _, err := f.WriteAt(make([]byte, page), 0); err != nil { // so that no page of it lacks room on the disk
			return err
		}
	}
	if h.size, h.unmap, err = sys.MapShared(f, page); err != nil {
		return err
	}
	if fresh {
		var n uint64
		h.store.each(func(_ objectID, fi fs.FileInfo) error { n += uint64(fi.Size()); return nil })
		atomic.StoreUint64(&h.size[0], n)
	}
	return nil
}

// Close ends the history of the session. Nothing is told it any more.
func (h *History) Close() {
	if h.unseen != "" && h.fds != nil {
		h.append(&record{kind: recGap, time: time.Now(), why: h.unseen})
		if h.gap == "" { // else whoever comes next says so
			os.Remove(h.b.At("history", unseenPrefix+string(h.session)))
		}
	}
	h.use.Lock()
	defer h.use.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.fds {
		sys.CloseFD(fd)
	}
	h.fds = nil
	if h.unmap != nil {
		h.unmap()
		h.unmap, h.size = nil, nil
	}
	if h.file != nil {
		h.file.Close()
		h.file = nil
	}
}

// Doing is what is about to be done to a path.
type Doing byte

const (
	Comes      Doing = iota // something is made there
	Writes                  // its content may change
	Goes                    // it is removed
	GoesDir                 // it is removed, if it is an empty directory
	Attributes              // all but its content may change
)

// Kept is what was kept of a file before an operation.
type Kept struct {
	Version string // how its content is called; "" when there was none to keep
	Why     string // it was not kept
	Limit   bool   // it was not kept because the box's kept versions take all the room that they may
}

// Touch writes down what is at path before something is done to it at the time t. When
// that takes longer than the caller may wait, later does the rest, on any goroutine: the
// operation must wait for it.
func (h *History) Touch(t time.Time, p string, d Doing) (k Kept, later func() Kept) {
	h.use.RLock()
	defer h.use.RUnlock()
	i, rel, ok := h.place(p)
	if !ok || h.fds == nil {
		return Kept{}, nil
	}
	if rel == "" && d != Attributes {
		return Kept{}, nil // a layer's root is always there
	}
	if d == Goes || d == GoesDir {
		h.mu.Lock()
		delete(h.looks, p)
		h.mu.Unlock()
	}
	if d == Comes {
		if st, err := sys.StatAt(h.fds[i], rel); err == nil && !(st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0) {
			return Kept{}, nil // it is there: refused, or opened only
		}
	}
	was, fd := h.look(i, rel, p, d == Writes || d == Goes)
	done := func(k Kept) Kept {
		h.parents(t, i, rel)
		h.append(&record{kind: recTouch, time: t, path: p, was: was})
		return k
	}
	switch {
	case was.kind == absent && was.state == nil && (d == Goes || d == GoesDir || d == Attributes), was.kind == whiteout && d != Comes && d != Writes:
		return Kept{}, nil // there is nothing to do it to
	case fd < 0:
		if (d == Comes || d == Writes) && h.again(p, &was) {
			return Kept{}, nil
		}
		if d == GoesDir && was.kind == present && (was.state.Type != core.TypeDir || !h.emptied(t, i, rel, p)) {
			return Kept{}, nil
		}
		was.meta = d == Attributes || d == Comes
		return done(Kept{Why: was.why}), nil
	}
	k, later = h.keep(i, fd, &was)
	if later == nil {
		return done(k), nil
	}
	keep := later // which is the result's name
	return Kept{}, h.whileOpen(func() Kept { return done(keep()) })
}

// Rename is Touch for a renaming of from to to, or for an exchange of the two.
func (h *History) Rename(t time.Time, from, to string, exchange bool) (k Kept, later func() Kept) {
	h.use.RLock()
	defer h.use.RUnlock()
	if h.fds == nil {
		return Kept{}, nil
	}
	i, rel, ok := h.place(from)
	j, rel2, ok2 := h.place(to)
	if !ok || !ok2 || rel == "" || rel2 == "" || i != j { // between two file systems: the kernel refuses
		return Kept{}, nil
	}
	r := &record{kind: recRename, time: t, path: from, path2: to}
	r.was, _ = h.look(i, rel, from, false)
	if r.was.kind == whiteout || r.was.kind == absent && r.was.state == nil {
		return Kept{}, nil
	}
	var fd int
	r.was2, fd = h.look(i, rel2, to, !exchange)
	r.was.meta, r.was2.meta = true, exchange
	done := func(k Kept) Kept {
		h.parents(t, i, rel)
		h.parents(t, i, rel2)
		h.append(r)
		h.forget()
		return k
	}
	if fd < 0 {
		if s := r.was2.state; !exchange && r.was2.kind == present && s.Type == core.TypeDir && !h.emptied(t, i, rel2, to) {
			return Kept{}, nil
		}
		return done(Kept{}), nil
	}
	k, later = h.keep(i, fd, &r.was2)
	if later == nil {
		return done(k), nil
	}
	keep := later // which is the result's name
	return Kept{}, h.whileOpen(func() Kept { return done(keep()) })
}

// whileOpen is f where the history still is: a session that ends does not wait for all that
// it has asked for.
func (h *History) whileOpen(f func() Kept) func() Kept {
	return func() Kept {
		h.use.RLock()
		defer h.use.RUnlock()
		if h.fds == nil {
			return Kept{Why: "the session has ended"}
		}
		return f()
	}
}

// forget drops what is known of paths: a directory has moved, with all below it.
func (h *History) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.dirs)
	clear(h.looks)
}

// place finds the layer of a path and where it is in it.
func (h *History) place(p string) (layer int, rel string, ok bool) {
	for i, l := range h.layers {
		if Under(p, l.Path) {
			return i, strings.TrimPrefix(p[len(strings.TrimSuffix(l.Path, "/")):], "/"), true
		}
	}
	return 0, "", false
}

// look finds out what the upper layer has at rel. With content a regular file is opened;
// fd is -1 when there is none, or when its content cannot be read: then why says so.
func (h *History) look(i int, rel, p string, content bool) (was entry, fd int) {
	st, err := sys.StatAt(h.fds[i], rel)
	if err != nil { // most often: the box had nothing there
		real, err := sys.StatAt(-100, p)
		if err == nil {
			was.state = StateOf(real)
		}
		return was, -1
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0 {
		return entry{kind: whiteout}, -1
	}
	node, err := sys.OpenBeneath(h.fds[i], rel, sys.OPath)
	if err != nil { // it went this moment, or there is a link on the way
		return was, -1
	}
	defer sys.CloseFD(node)
	if st, err = sys.StatAt(node, ""); err != nil {
		return was, -1
	}
	was = entry{kind: present, state: StateOf(st)}
	at := "/proc/self/fd/" + strconv.Itoa(node)
	was.xattrs, was.opaque = h.xattrs(at, was.state)
	if was.state.Type == core.TypeSymlink {
		if was.state.Link, err = sys.ReadlinkOf(node); err != nil {
			was.state.Link = ""
		}
	}
	if !content || was.state.Type != core.TypeFile {
		return was, -1
	}
	fd, err = sys.OpenBeneath(h.fds[i], rel, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOATIME)
	if errors.Is(err, syscall.EPERM) {
		fd, err = sys.OpenBeneath(h.fds[i], rel, syscall.O_RDONLY|syscall.O_NONBLOCK)
	}
	if errors.Is(err, syscall.EACCES) {
		// A box may take its own user the right to read a file, and then remove it. The
		// owner may give it back: for this moment.
		if os.Chmod(at, os.FileMode(st.Mode&0o777)|0o400) == nil {
			fd, err = sys.OpenBeneath(h.fds[i], rel, syscall.O_RDONLY|syscall.O_NONBLOCK)
			syscall.Chmod(at, st.Mode&0o7777)
		}
	}
	if err == nil {
		if now, e := sys.StatAt(fd, ""); e != nil || now.Ino != st.Ino {
			sys.CloseFD(fd)
			err = syscall.ESTALE
		}
	}
	if err != nil {
		was.why = "cannot be read: " + sys.ErrnoName(err)
		return was, -1
	}
	return was, fd
}

// maxXattrs bounds the attributes of one entry in a record.
const maxXattrs = 64 << 10

func (h *History) xattrs(at string, s *core.FileState) (x map[string][]byte, opaque bool) {
	if s.Type == core.TypeSymlink {
		return nil, false
	}
	names, err := sys.Listxattr(at)
	if err != nil {
		return nil, false
	}
	room := maxXattrs
	for _, n := range names {
		v, err := sys.Getxattr(at, n)
		if err != nil {
			continue
		}
		if n == "user.overlay.opaque" {
			opaque = string(v) == "y"
		}
		if strings.HasPrefix(n, "user.overlay.") || strings.HasPrefix(n, "trusted.overlay.") {
			continue
		}
		if room -= len(n) + len(v); room < 0 {
			break
		}
		if x == nil {
			x = map[string][]byte{}
		}
		x[n] = v
	}
	return x, opaque
}

// again says whether path was found the same way a moment ago, and remembers it.
func (h *History) again(p string, was *entry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	l, ok := h.looks[p]
	if ok && l.kind == was.kind && was.kind != present && now.Sub(l.when) < lookAgain {
		return true
	}
	if len(h.looks) >= maxRemember {
		clear(h.looks)
	}
	h.looks[p] = look{now, was.kind}
	return false
}

// parents writes down the directories on the way to rel that the upper layer does not have
// yet: the overlay copies them up.
func (h *History) parents(t time.Time, i int, rel string) {
	dir, ok := cutLast(rel)
	if !ok {
		return
	}
	var missing []string
	h.mu.Lock()
	for dir != "" && h.fds != nil {
		p := path.Join(h.layers[i].Path, dir)
		if _, known := h.dirs[p]; known {
			break
		}
		if len(h.dirs) >= maxRemember {
			clear(h.dirs)
		}
		h.dirs[p] = struct{}{}
		if _, err := sys.StatAt(h.fds[i], dir); err == nil {
			break
		}
		missing = append(missing, p)
		if dir, ok = cutLast(dir); !ok {
			break
		}
	}
	h.mu.Unlock()
	for k := len(missing) - 1; k >= 0; k-- {
		if st, err := sys.StatAt(-100, missing[k]); err == nil {
			h.append(&record{kind: recParent, time: t, path: missing[k], was: entry{state: StateOf(st)}})
		}
	}
}

func cutLast(rel string) (dir string, ok bool) {
	i := strings.LastIndexByte(rel, '/')
	if i < 0 {
		return "", false
	}
	return rel[:i], true
}

// maxWhiteouts bounds what is written down of one directory that goes.
const maxWhiteouts = 1 << 16

// emptied writes down the whiteouts in a directory of the upper layer, which go with it.
// It returns false when there is anything else in it, so that it cannot be removed.
func (h *History) emptied(t time.Time, i int, rel, p string) bool {
	fd, err := sys.OpenBeneath(h.fds[i], rel, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK)
	if err != nil {
		return true // not to be read: what was in it is lost at worst
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	n := 0
	for {
		ents, err := f.ReadDir(256)
		for _, e := range ents {
			st, err := sys.StatAt(fd, e.Name())
			if err != nil {
				continue
			}
			if st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 0 {
				return false
			}
			if n++; n > maxWhiteouts {
				h.append(&record{kind: recGap, time: t, why: "a directory with more than " + strconv.Itoa(maxWhiteouts) + " deleted files was removed"})
				return true
			}
			h.append(&record{kind: recTouch, time: t, path: path.Join(p, e.Name()), was: entry{kind: whiteout}})
		}
		if err != nil {
			h.forget()
			return true
		}
	}
}

// keep keeps the content of a file, which it closes. later is set when that takes long.
func (h *History) keep(i, fd int, was *entry) (k Kept, later func() Kept) {
	s := was.state
	v := version{i, s.Inode}
	h.mu.Lock()
	l, known := h.last[v]
	h.mu.Unlock()
	if known && l.size == s.Size && l.mtime.Equal(s.MTime) && l.ctime.Equal(s.CTime) {
		if _, ok := h.store.has(l.id); ok {
			sys.CloseFD(fd)
			was.hash, was.kept = l.id, true
			return Kept{Version: short(l.id)}, nil
		}
	}
	f := os.NewFile(uintptr(fd), "version")
	if h.limits.VersionFile > 0 && s.Size > h.limits.VersionFile {
		f.Close()
		was.why = "larger than the limit version-file"
		return Kept{Why: was.why}, nil
	}
	full := h.limits.Versions > 0 && int64(atomic.LoadUint64(&h.size[0]))+s.Size > h.limits.Versions
	do := func() Kept {
		defer f.Close()
		if full && !h.thin(s.Size) {
			if was.why = "the limit versions"; s.Size == 0 {
				was.why = ""
			} else {
				return Kept{Why: was.why, Limit: true}
			}
		}
		return h.store1(f, v, was)
	}
	if full || s.Size > smallFile {
		return Kept{}, do
	}
	return do(), nil
}

// store1 puts the content of an open file into the store.
func (h *History) store1(f *os.File, v version, was *entry) Kept {
	began := time.Now()
	id, n, fresh, err := h.store.put(f, was.state.Size, h.limits.VersionFile)
	if err != nil {
		was.why = "cannot be kept: " + causeOf(err)
		return Kept{Why: was.why}
	}
	if fresh {
		h.mu.Lock()
		if h.size != nil { // not closed
			atomic.AddUint64(&h.size[0], uint64(n))
		}
		h.mu.Unlock()
	}
	was.hash, was.kept = id, true
	if st, err := sys.StatAt(int(f.Fd()), ""); err == nil {
		now := StateOf(st)
		s := was.state
		settled := began.Sub(s.CTime) > racy && s.CTime.Equal(now.CTime) && s.Size == now.Size
		h.mu.Lock()
		if len(h.last) >= maxRemember {
			clear(h.last)
		}
		if settled {
			h.last[v] = version2{s.Size, s.MTime, s.CTime, id}
		} else {
			delete(h.last, v)
		}
		h.mu.Unlock()
	}
	return Kept{Version: short(id)}
}

func causeOf(err error) string {
	if n := sys.ErrnoName(err); n != "" {
		return n
	}
	return err.Error()
}

func short(id objectID) string { return id.String()[:12] }

// append writes a record. When that cannot be, the next that can be says so.
func (h *History) append(r *record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fds == nil { // closed
		return
	}
	r.session = h.session
	if h.gap != "" && r.kind != recGap {
		if !h.write(&record{kind: recGap, time: time.Now(), session: h.session, why: h.gap}) {
			return
		}
		h.gap = ""
	}
	if !h.write(r) {
		h.gap = "the disk was full, or the history could not be written"
	} else if r.kind == recGap {
		h.gap = ""
	}
}

func (h *History) write(r *record) bool {
	h.buf = appendRecord(h.buf[:0], r)
	if len(h.buf) > maxRecord {
		return false
	}
	if h.file == nil || h.wrote >= historyFile {
		if h.file != nil {
			h.file.Close()
		}
		var err error
		name := fmt.Sprintf("%016x-%s", time.Now().UnixNano(), h.session)
		if h.file, err = os.OpenFile(h.b.At("history", name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600); err != nil {
			h.file = nil
			return false
		}
		h.wrote = 0
		h.drop()
	}
	n, err := h.file.Write(h.buf)
	h.wrote += int64(n)
	if err != nil && n > 0 { // no half record before the next
		if h.file.Truncate(h.wrote-int64(n)) == nil {
			h.wrote -= int64(n)
		} else {
			h.file.Close()
			h.file = nil
		}
	}
	return err == nil
}

// drop removes the oldest files of records while there are too many, and says how far back
// the history goes then.
func (h *History) drop() {
	fs, err := h.b.historyFiles()
	if err != nil {
		return
	}
	var sum int64
	for _, f := range fs {
		sum += f.size
	}
	for _, f := range fs {
		if sum <= historyFiles || f.session == h.session && f.path == h.file.Name() {
			return
		}
		gap := &record{kind: recGap, time: f.last, session: h.session, why: "older records have made room"}
		b := appendRecord(nil, gap)
		if n, err := h.file.Write(b); err != nil {
			return
		} else {
			h.wrote += int64(n)
		}
		os.Remove(f.path)
		sum -= f.size
	}
}

// Forget says in the history that something was done to the box which is not undone: it
// reaches back to now only. The box's lock is held and no session runs.
func (b Dir) Forget(why string) error {
	if !b.hasHistory() {
		return nil
	}
	f, err := os.OpenFile(b.At("history", fmt.Sprintf("%016x-%s", time.Now().UnixNano(), "forget")), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(appendRecord(nil, &record{kind: recGap, time: time.Now(), why: why}))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

type historyPart struct {
	path    string
	session core.SessionID
	size    int64
	last    time.Time
}

// historyFiles lists the files of records, the oldest first.
func (b Dir) historyFiles() ([]historyPart, error) {
	ents, err := os.ReadDir(b.At("history"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []historyPart
	for _, e := range ents {
		t, id, ok := strings.Cut(e.Name(), "-")
		if !ok || len(t) != 16 || !e.Type().IsRegular() {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			continue // gone since
		}
		out = append(out, historyPart{b.At("history", e.Name()), core.SessionID(id), fi.Size(), fi.ModTime()})
	}
	sort.Slice(out, func(i, j int) bool { return filepath.Base(out[i].path) < filepath.Base(out[j].path) })
	return out, nil
}

func (b Dir) hasHistory() bool {
	fs, err := b.historyFiles()
	return err == nil && len(fs) > 0
}

// records reads the whole history, ordered by time. reach is how far back it goes: what
// was before is not known, because of why.
func (b Dir) records() (rs []*record, reach time.Time, why string, err error) {
	files, err := b.historyFiles()
	if err != nil {
		return nil, reach, "", err
	}
	later := func(t time.Time, because string) {
		if t.After(reach) {
			reach, why = t, because
		}
	}
	if len(files) == 0 {
		return nil, time.Now(), "none was kept", nil
	}
	if blind, err := b.unseen(false); err != nil {
		return nil, reach, "", err
	} else if blind {
		later(time.Now(), "a session is not watched")
	}
	for _, p := range files {
		f, err := OpenRegular(p.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, reach, "", err
		}
		whole, err := readRecords(bufio.NewReaderSize(io.LimitReader(f, 4*historyFile), 256<<10), func(r *record) error {
			if r.kind == recGap {
				later(r.time, r.why)
				return nil
			}
			rs = append(rs, r)
			return nil
		})
		f.Close()
		if err != nil {
			return nil, reach, "", fmt.Errorf("read %s: %w", p.path, err)
		}
		if !whole {
			later(p.last, "a record of it is damaged")
		}
	}
	sort.SliceStable(rs, func(i, j int) bool { return rs[i].time.Before(rs[j].time) })
	return rs, reach, why, nil
}

// Bases returns for each path that the box has changed the state in which the real file
// was when the box first did so, as its supervisor saw it; nil of a path that was not
// there. What is not in it is not known.
func (b Dir) Bases() (map[string]*core.FileState, error) {
	rs, _, _, err := b.records()
	if err != nil {
		return nil, err
	}
	out := map[string]*core.FileState{}
	note := func(p string, e *entry) {
		if e.kind == absent { // each time that the box had nothing there counts anew
			out[p] = e.state
		}
	}
	for _, r := range rs {
		note(r.path, &r.was)
		if r.kind == recRename {
			note(r.path2, &r.was2)
		}
	}
	return out, nil
}

// Base is [Dir.Bases] of one path. It reads the whole history: for many paths, Bases.
func (b Dir) Base(p string) (*core.FileState, bool) {
	m, err := b.Bases()
	if err != nil {
		return nil, false
	}
	s, ok := m[p]
	return s, ok
}
