package layers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// The manifest is what the upper layers looked like when the box's last session had ended.
// What differs from it when the next one begins somebody outside has done: the sandbox
// itself forgets it ([Dir.ForgetManifest]) before it changes anything, and writes another.
//
// It is a stream of entries in the order of the walk, so that neither writing nor comparing
// holds more than the names of the directories on the way in memory:
//
//	"sandglass manifest 1\n"
//	an entry: how many bytes of its key are those of the one before, how many follow, these;
//	          type and mode, owner, group, device, size, inode, mtime, ctime, atime (varints)
//	SHA-256 of all before, 32 bytes
//
// The sum finds a file that was cut short or damaged. It is no signature: who may change
// the layers unseen may write a manifest as well.
const (
	manifestName  = "manifest"
	manifestMagic = "sandglass manifest 1\n"
)

// ErrManifest is a manifest that is damaged: nothing can be told from it.
var ErrManifest = errors.New("the record of the box's last stop is damaged")

// OutsideChange is what somebody outside did to what the box holds while it did not run.
type OutsideChange struct {
	Path string    // absolute, in the box's view
	What string    // "added", "modified", "deleted", "metadata", "read"
	When time.Time // the latest such moment that the file system knows
}

// kept is one entry of a manifest.
type kept struct {
	key    string // the layer's folder, and the path below it
	mode   uint32 // st_mode
	uid    uint32
	gid    uint32
	rdev   uint64
	size   int64
	inode  uint64
	mtime  int64 // nanoseconds
	ctime  int64
	atime  int64
	closed bool // a directory that its owner may not list
}

func (k *kept) is(t uint32) bool { return k.mode&syscall.S_IFMT == t }

func keptOf(key string, st *syscall.Stat_t) kept {
	return kept{key: key, mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: uint64(st.Rdev), size: st.Size, inode: st.Ino,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), atime: st.Atim.Nano()}
}

// held walks all that the upper layers hold: parents before what is in them, siblings by
// name. No link is followed, and nothing is opened but directories.
func (b Dir) held(ctx context.Context, ls []Layer) iter.Seq2[kept, error] {
	return func(yield func(kept, error) bool) {
		ls = slices.Clone(ls)
		slices.SortFunc(ls, func(x, y Layer) int { return strings.Compare(x.Dir, y.Dir) })
		for _, l := range ls {
			if !holds(ctx, b.Upper(l), l.Dir, yield) {
				return
			}
		}
	}
}

// holds yields a path and all below it.
func holds(ctx context.Context, p, key string, yield func(kept, error) bool) bool {
	var st syscall.Stat_t
	if err := syscall.Lstat(p, &st); err != nil {
		return true // gone since, in a directory that its owner may not search, or deeper than a path can name
	}
	k := keptOf(key, &st)
	var names []string
	if k.is(syscall.S_IFDIR) {
		if err := ctx.Err(); err != nil {
			return yield(kept{}, err)
		}
		var err error
		if names, err = listDir(p); err != nil {
			k.closed, names = true, nil
		}
	}
	if !yield(k, nil) {
		return false
	}
	for _, n := range names {
		if !holds(ctx, p+"/"+n, key+"/"+n, yield) {
			return false
		}
	}
	return true
}

// listDir returns the names in a directory, sorted.
func listDir(p string) ([]string, error) {
	fd, err := syscall.Open(p, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NOATIME|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.EPERM) { // another's
		fd, err = syscall.Open(p, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// ForgetManifest is called before the sandbox itself changes what the box holds, or lets
// the box do so.
func (b Dir) ForgetManifest() error {
	if err := os.Remove(b.At(manifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// HasManifest says whether the box has changed nothing since its manifest was written.
func (b Dir) HasManifest() bool {
	_, err := os.Lstat(b.At(manifestName))
	return err == nil
}

// WriteManifest records the state of the upper layers. The caller holds the box's lock, and
// no session runs. Cost: one lstat(2) for each file that the box holds.
//
// The next read of a file from outside must move its access time. Most file systems are
// mounted relatime: it moves then when it is not later than the last change of the file
// or of its attributes (relatime_need_update, fs/inode.c). So where it is later now, it is
// set back to the modification time, which itself is a change of the attributes.
func (b Dir) WriteManifest(ctx context.Context) (err error) {
	ls, err := b.Layers()
	if err != nil || ls == nil {
		return err
	}
	f, err := os.CreateTemp(string(b), ".manifest.*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := newManifestWriter(f)
	for k, err := range b.held(ctx, ls) {
		if err != nil {
			return err
		}
		if k.is(syscall.S_IFREG) && k.atime > k.ctime {
			b.readable(&k, ls)
		}
		w.add(&k)
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	// Not synced: after a loss of power it may be damaged, which is found, and costs one
	// comparison. Every session that ends would wait for the disk.
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), b.At(manifestName))
}

// readable sets a file's access time back, so that the next read shows. Where it may not,
// as with a file of another owner, reads of it do not show for a day.
func (b Dir) readable(k *kept, ls []Layer) {
	p := b.upperOf(k.key, ls)
	if err := sys.TimesAt(-100, p, k.mtime, k.mtime); err != nil {
		return
	}
	var st syscall.Stat_t
	if syscall.Lstat(p, &st) == nil {
		*k = keptOf(k.key, &st)
	}
}

func (b Dir) upperOf(key string, ls []Layer) string {
	dir, rel, _ := strings.Cut(key, "/")
	return filepath.Join(b.At("layers", dir, "upper"), rel)
}

// pathOf is the path in the box's view.
func pathOf(key string, ls []Layer) string {
	dir, rel, _ := strings.Cut(key, "/")
	for _, l := range ls {
		if l.Dir == dir {
			return path.Join(l.Path, rel)
		}
	}
	return "/" + rel
}

// CompareManifest calls f with what somebody outside did to the upper layers since the
// box's last session ended. Nothing is said of a box that runs, or whose last session did not
// come to its end. The error of f ends it; [ErrManifest] says that nothing can be told.
func (b Dir) CompareManifest(ctx context.Context, f func(OutsideChange) error) error {
	ls, err := b.Layers()
	if err != nil {
		return err
	}
	return b.compare(ctx, ls, func(c *OutsideChange, _ *kept) error { return f(*c) })
}

// compare is CompareManifest; is is what there is now, nil when nothing is.
func (b Dir) compare(ctx context.Context, ls []Layer, f func(c *OutsideChange, is *kept) error) error {
	m, err := os.OpenFile(b.At(manifestName), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer m.Close()
	size, err := checkManifest(m)
	if err != nil {
		return err
	}
	c := comparison{b: b, ls: ls, f: f}
	next, stop := iter.Pull2(b.held(ctx, ls))
	defer stop()
	r := newManifestReader(io.NewSectionReader(m, 0, size))
	is, iserr, more := next()
	was, waserr := r.next()
	for more || waserr == nil {
		if more && iserr != nil {
			return iserr
		}
		if waserr != nil && waserr != io.EOF {
			return waserr
		}
		order := 0
		switch {
		case waserr != nil:
			order = -1
		case !more:
			order = 1
		default:
			order = compareKeys(is.key, was.key)
		}
		var err error
		switch {
		case order < 0:
			err = c.added(&is)
		case order > 0:
			err = c.deleted(&was)
		default:
			err = c.both(&was, &is)
		}
		if err != nil {
			return err
		}
		if order <= 0 {
			is, iserr, more = next()
		}
		if order >= 0 {
			was, waserr = r.next()
		}
	}
	return c.dirs("")
}

// comparison says what differs, in the order of the walk.
type comparison struct {
	b     Dir
	ls    []Layer
	f     func(*OutsideChange, *kept) error
	skip  string    // nothing is said of what is below
	stack []changed // directories on the way whose entries have come or gone
}

// changed is a directory whose modification time has moved. That is explained when
// something in it is new or gone; otherwise something was there for a while.
type changed struct {
	is        kept
	explained bool
}

func inTree(key, dir string) bool {
	return dir != "" && len(key) > len(dir) && key[len(dir)] == '/' && key[:len(dir)] == dir
}

// dirs says what is left to say of the directories that key is not in.
func (c *comparison) dirs(key string) error {
	for len(c.stack) > 0 {
		top := c.stack[len(c.stack)-1]
		if inTree(key, top.is.key) {
			return nil
		}
		c.stack = c.stack[:len(c.stack)-1]
		if !top.explained {
			if err := c.say("modified", top.is.key, top.is.mtime, &top.is); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparison) say(what, key string, when int64, is *kept) error {
	return c.f(&OutsideChange{Path: pathOf(key, c.ls), What: what, When: time.Unix(0, when)}, is)
}

// entry notes that something of that key has come, gone or changed its place.
func (c *comparison) entry(key string) {
	if n := len(c.stack); n > 0 && path.Dir(key) == c.stack[n-1].is.key {
		c.stack[n-1].explained = true
	}
}

func (c *comparison) added(is *kept) error {
	if err := c.dirs(is.key); err != nil || inTree(is.key, c.skip) {
		return err
	}
	if !strings.Contains(is.key, "/") {
		c.skip = is.key // a layer that is new: a mount point has appeared
		return nil
	}
	c.entry(is.key)
	return c.say("added", is.key, is.ctime, is)
}

func (c *comparison) deleted(was *kept) error {
	if err := c.dirs(was.key); err != nil || inTree(was.key, c.skip) {
		return err
	}
	c.entry(was.key)
	c.skip = was.key // with all that was in it
	when := was.ctime
	var st syscall.Stat_t
	if syscall.Lstat(filepath.Dir(c.b.upperOf(was.key, c.ls)), &st) == nil {
		when = st.Mtim.Nano()
	}
	return c.say("deleted", was.key, when, nil)
}

func (c *comparison) both(was, is *kept) error {
	if err := c.dirs(is.key); err != nil || inTree(is.key, c.skip) {
		return err
	}
	if is.mode&syscall.S_IFMT != was.mode&syscall.S_IFMT {
		c.entry(is.key)
		if was.is(syscall.S_IFDIR) {
			c.skip = was.key
		}
		return c.say("modified", is.key, is.ctime, is)
	}
	attrs := is.mode != was.mode || is.uid != was.uid || is.gid != was.gid
	switch is.mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		if is.closed || was.closed {
			c.skip = is.key
		}
		// Its ctime moves with its mtime; alone it is a change of attributes.
		if attrs || is.ctime != was.ctime && is.mtime == was.mtime {
			if err := c.say("metadata", is.key, is.ctime, is); err != nil {
				return err
			}
		}
		if is.mtime != was.mtime && !is.closed && !was.closed {
			c.stack = append(c.stack, changed{is: *is, explained: attrs})
		}
	case syscall.S_IFCHR, syscall.S_IFBLK:
		// Whiteouts are links to one inode (fs/overlayfs/dir.c, ovl_whiteout): its times tell nothing.
		if attrs || is.rdev != was.rdev {
			return c.say("modified", is.key, is.ctime, is)
		}
	default:
		switch {
		case is.inode != was.inode || is.size != was.size || is.mtime != was.mtime:
			if is.inode != was.inode {
				c.entry(is.key)
			}
			return c.say("modified", is.key, is.ctime, is)
		case attrs || is.ctime != was.ctime:
			return c.say("metadata", is.key, is.ctime, is)
		case is.is(syscall.S_IFREG) && is.atime > was.atime:
			return c.say("read", is.key, is.atime, is)
		}
	}
	return nil
}

// compareKeys orders keys as the walk does: component by component.
func compareKeys(x, y string) int {
	n := min(len(x), len(y))
	for i := range n {
		a, b := x[i], y[i]
		if a == b {
			continue
		}
		switch {
		case a == '/':
			return -1
		case b == '/':
			return 1
		case a < b:
			return -1
		}
		return 1
	}
	return len(x) - len(y)
}

type manifestWriter struct {
	w    *bufio.Writer
	sum  hash.Hash
	last string
	buf  []byte
}

func newManifestWriter(w io.Writer) *manifestWriter {
	m := &manifestWriter{sum: sha256.New()}
	m.w = bufio.NewWriterSize(io.MultiWriter(w, m.sum), 1<<16)
	m.w.WriteString(manifestMagic)
	return m
}

// add writes an entry. An error shows in close.
func (m *manifestWriter) add(k *kept) {
	n := 0
	for n < min(len(k.key), len(m.last)) && k.key[n] == m.last[n] {
		n++
	}
	b := binary.AppendUvarint(m.buf[:0], uint64(n))
	b = binary.AppendUvarint(b, uint64(len(k.key)-n))
	b = append(b, k.key[n:]...)
	closed := uint64(0)
	if k.closed {
		closed = 1
	}
	for _, v := range []uint64{uint64(k.mode), closed, uint64(k.uid), uint64(k.gid), k.rdev, k.inode} {
		b = binary.AppendUvarint(b, v)
	}
	for _, v := range []int64{k.size, k.mtime, k.ctime, k.atime} {
		b = binary.AppendVarint(b, v)
	}
	m.w.Write(b)
	m.buf, m.last = b, k.key
}

func (m *manifestWriter) close() error {
	if err := m.w.Flush(); err != nil {
		return err
	}
	m.w.Write(m.sum.Sum(nil))
	return m.w.Flush()
}

// checkManifest returns how many bytes of entries there are before the sum, when it is right.
func checkManifest(f *os.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	n := fi.Size() - sha256.Size
	if !fi.Mode().IsRegular() || n < int64(len(manifestMagic)) {
		return 0, ErrManifest
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, n)); err != nil {
		return 0, err
	}
	var sum [sha256.Size]byte
	if _, err := f.ReadAt(sum[:], n); err != nil {
		return 0, err
	}
	if !bytes.Equal(h.Sum(nil), sum[:]) {
		return 0, ErrManifest
	}
	return n, nil
}

type manifestReader struct {
	r    *bufio.Reader
	last []byte
	err  error
}

func newManifestReader(r io.Reader) *manifestReader {
	m := &manifestReader{r: bufio.NewReaderSize(r, 1<<16)}
	magic := make([]byte, len(manifestMagic))
	if _, err := io.ReadFull(m.r, magic); err != nil || string(magic) != manifestMagic {
		m.err = ErrManifest
	}
	return m
}

// maxKey is longer than any path below an upper layer that could be walked by its name.
const maxKey = 1 << 20

// next returns the next entry, io.EOF after the last.
func (m *manifestReader) next() (k kept, err error) {
	if m.err != nil {
		return k, m.err
	}
	defer func() {
		if err != nil {
			if err != io.EOF {
				err = ErrManifest
			}
			m.err = err
		}
	}()
	same, err := binary.ReadUvarint(m.r)
	if err != nil {
		return k, err
	}
	n, err := binary.ReadUvarint(m.r)
	if err != nil || same > uint64(len(m.last)) || n > maxKey {
		return k, ErrManifest
	}
	m.last = append(m.last[:same], make([]byte, n)...)
	if _, err := io.ReadFull(m.r, m.last[same:]); err != nil {
		return k, ErrManifest
	}
	var u [6]uint64
	for i := range u {
		if u[i], err = binary.ReadUvarint(m.r); err != nil {
			return k, ErrManifest
		}
	}
	var s [4]int64
	for i := range s {
		if s[i], err = binary.ReadVarint(m.r); err != nil {
			return k, ErrManifest
		}
	}
	return kept{key: string(m.last), mode: uint32(u[0]), closed: u[1] == 1, uid: uint32(u[2]), gid: uint32(u[3]), rdev: u[4], inode: u[5],
		size: s[0], mtime: s[1], ctime: s[2], atime: s[3]}, nil
}
