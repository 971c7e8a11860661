package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// changed knows what the box itself has changed, so that the log can tell a read of
// the real file from a read of the box's own. Every change passes the supervisor
// before it happens and is put into a Bloom filter, which all sessions of the box
// share through a mapped file: constant memory whatever the box does, and no false
// "unchanged". A hit is checked against the upper layer, which is the truth.
type changed struct {
	words  []uint64
	unmap  func() error
	layers []layers.Layer // longest path first
	fds    []int          // of their upper directories

	forget  func() // the manifest: the session has to do with a file that the box holds
	touched atomic.Bool
}

const (
	filterBytes = 1 << 20 // 8 Mi bits: at 500,000 changed paths one read in twenty is checked for nothing
	filterHash  = 4
)

// openChanged opens the box's filter, filling a new one from the upper layers. A
// session that does not see changes (observe: lean) sets all of it, so that every
// read is checked; the box's next session that runs alone makes it anew.
func openChanged(b boxDir, layers []layers.Layer, lean, alone bool) (*changed, error) {
	file := b.At("run", "changed")
	f, err := os.OpenFile(file, os.O_RDWR, 0o600)
	fill := errors.Is(err, fs.ErrNotExist)
	if fill {
		f, err = os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != filterBytes {
		fill = true
	}
	if err := reserve(f, filterBytes, fill); err != nil {
		return nil, fmt.Errorf("make the filter of changed paths: %w", err)
	}
	c := &changed{layers: layers}
	if c.words, c.unmap, err = sys.MapShared(f, filterBytes); err != nil {
		return nil, err
	}
	switch {
	case lean:
		for i := range c.words {
			atomic.StoreUint64(&c.words[i], ^uint64(0))
		}
		fill = false
	case alone && c.words[0] == ^uint64(0):
		clear(c.words)
		fill = true
	}
	for _, l := range layers {
		fd, err := sys.OpenPath(-1, b.Upper(l), syscall.O_DIRECTORY)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("open %s: %w", b.Upper(l), err)
		}
		c.fds = append(c.fds, fd)
	}
	if fill {
		for _, l := range layers {
			up := b.Upper(l)
			filepath.WalkDir(up, func(p string, d fs.DirEntry, err error) error {
				if p != up {
					c.set(hashPath(path.Join(l.Path, p[len(up):])))
				}
				return nil
			})
		}
	}
	return c, nil
}

// reserve makes f size bytes long, with room on the disk for all of them: a page of a
// mapped file for which there is none is a SIGBUS (mmap(2)), and the box fills the disk
// when it likes.
func reserve(f *os.File, size int64, fresh bool) error {
	err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, syscall.EOPNOTSUPP) && fresh {
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt(make([]byte, size), 0)
		}
	} else if errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil
	}
	if err == nil {
		err = f.Truncate(size)
	}
	return err
}

func (c *changed) close() {
	for _, fd := range c.fds {
		sys.CloseFD(fd)
	}
	if c.unmap != nil {
		c.unmap()
	}
}

// FNV-1a, 64 bits.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func hashPath(p string) uint64 {
	h := uint64(fnvOffset)
	for i := range len(p) {
		h = (h ^ uint64(p[i])) * fnvPrime
	}
	return h
}

// hashTree is the key under which a whole subtree counts as changed.
func hashTree(h uint64) uint64 { return h * fnvPrime } // that of p and a NUL, which no path has

func (c *changed) set(h uint64) {
	for i := range uint64(filterHash) {
		bit := (h + i*(h>>32|1)) % (filterBytes * 8)
		atomic.OrUint64(&c.words[bit/64], 1<<(bit%64))
	}
}

func (c *changed) has(h uint64) bool {
	for i := range uint64(filterHash) {
		bit := (h + i*(h>>32|1)) % (filterBytes * 8)
		if atomic.LoadUint64(&c.words[bit/64])&(1<<(bit%64)) == 0 {
			return false
		}
	}
	return true
}

// mark notes that the box is about to change p, and with it the directory it is in.
func (c *changed) mark(p string) {
	if top, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/"); !ownPlaces["/"+top] { // those are in no layer
		c.touch()
	}
	c.set(hashPath(p))
	c.set(hashPath(path.Dir(p)))
}

// markTree notes that p, with all below it, is about to be the box's: it is renamed
// there.
func (c *changed) markTree(p string) {
	c.mark(p)
	c.set(hashTree(hashPath(p)))
}

// is says whether what p names is the box's own: in its upper layer, as itself or as
// a whiteout.
func (c *changed) is(p string) bool {
	h, hit := uint64(fnvOffset), false
	for i := range len(p) {
		if p[i] == '/' && i > 0 && c.has(hashTree(h)) {
			hit = true
			break
		}
		h = (h ^ uint64(p[i])) * fnvPrime
	}
	if (hit || c.has(h) || c.has(hashTree(h))) && c.inUpper(p) {
		c.touch() // reading moves its access time
		return true
	}
	return false
}

// touch notes that the session changes or reads a file that the box holds.
func (c *changed) touch() {
	if !c.touched.Load() && !c.touched.Swap(true) && c.forget != nil {
		c.forget()
	}
}

// inUpper asks the upper layer itself.
func (c *changed) inUpper(p string) bool {
	fd, rel, ok := c.upper(p)
	if ok {
		_, _, err := sys.Lstat(fd, rel)
		ok = err == nil
	}
	return ok
}

// upperInode is which file the upper layer has for p. The overlay may give two names of one
// such file different inode numbers: those that it knew before it made the file.
func (c *changed) upperInode(p string) (ino uint64, ok bool) {
	fd, rel, ok := c.upper(p)
	if !ok {
		return 0, false
	}
	st, err := sys.StatxAt(fd, rel)
	return st.Ino, err == nil
}

// upper finds where p is in an upper layer; not ok for a layer's root, which is always there.
func (c *changed) upper(p string) (fd int, rel string, ok bool) {
	for i, l := range c.layers {
		if under(p, l.Path) {
			rel = strings.TrimPrefix(p[len(strings.TrimSuffix(l.Path, "/")):], "/")
			return c.fds[i], rel, rel != ""
		}
	}
	return -1, "", false
}
