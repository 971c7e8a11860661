package layers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// objectID is the SHA-256 of a content.
type objectID [sha256.Size]byte

func (id objectID) String() string { return hex.EncodeToString(id[:]) }

// objects is the box's store of contents, by their hash: objects/ab/cdef..., each once,
// whoever refers to it. A file there is 0400 and never changes. It has no index: what is
// referred to by no record and no snapshot any more is swept.
type objects struct {
	dir     string
	noClone atomic.Bool // the file system shares no blocks
	serial  atomic.Uint64
}

func (b Dir) objects() *objects { return &objects{dir: b.At("objects")} }

func (o *objects) path(id objectID) string {
	s := id.String()
	return filepath.Join(o.dir, s[:2], s[2:])
}

// has says whether the content is there, and how large it is.
func (o *objects) has(id objectID) (size int64, ok bool) {
	st, err := sys.StatAt(-100, o.path(id))
	if err != nil {
		return 0, false
	}
	return st.Size, true
}

// errTooLarge says that a file has grown above what may be kept of it.
var errTooLarge = errors.New("larger than what is kept of one file")

// put keeps what f has from where it is, at most limit bytes; 0 is no limit. fresh says
// that there was no such content. Small contents are read once and written once; of a
// large one the store shares the blocks where the file system can.
func (o *objects) put(f *os.File, size, limit int64) (id objectID, n int64, fresh bool, err error) {
	if size <= smallFile {
		return o.putSmall(f)
	}
	tmp, err := o.temp()
	if err != nil {
		return id, 0, false, err
	}
	defer func() {
		if tmp != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	h := sha256.New()
	cloned := false
	if !o.noClone.Load() {
		if err := sys.CloneFile(int(tmp.Fd()), int(f.Fd())); err == nil {
			cloned = true
		} else if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOTTY) || errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EINVAL) {
			o.noClone.Store(true)
		}
	}
	if cloned {
		// What is hashed is the copy, which nobody changes.
		n, err = copySparse(nil, tmp, h, limit)
	} else {
		n, err = copySparse(tmp, f, h, limit)
	}
	if err != nil {
		return id, 0, false, err
	}
	h.Sum(id[:0])
	fresh, err = o.place(tmp.Name(), id)
	if err == nil && fresh {
		tmp.Close()
		tmp = nil
	}
	return id, n, fresh, err
}

// smallFile is the size up to which a file is kept on the supervisor's own thread: some
// hundred microseconds at most.
const smallFile = 256 << 10

func (o *objects) putSmall(f *os.File) (id objectID, n int64, fresh bool, err error) {
	data, err := io.ReadAll(io.LimitReader(f, smallFile+1))
	if err != nil {
		return id, 0, false, err
	}
	if len(data) > smallFile { // it has grown this moment
		return id, 0, false, errTooLarge
	}
	id = sha256.Sum256(data)
	n = int64(len(data))
	now := time.Now()
	if os.Chtimes(o.path(id), now, now) == nil { // the sweep leaves it
		return id, n, false, nil
	}
	tmp, err := o.temp()
	if err != nil {
		return id, n, false, err
	}
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		fresh, err = o.place(tmp.Name(), id)
	}
	if err != nil || !fresh {
		os.Remove(tmp.Name())
	}
	return id, n, fresh, err
}

// temp makes a file that becomes an object.
func (o *objects) temp() (*os.File, error) {
	for made := false; ; made = true {
		name := filepath.Join(o.dir, "tmp-"+strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(o.serial.Add(1), 36)+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
		if errors.Is(err, fs.ErrNotExist) && !made {
			if err = os.MkdirAll(o.dir, 0o700); err == nil {
				continue
			}
		}
		return f, err
	}
}

// place makes tmp the object of that hash; fresh is false when there is one.
func (o *objects) place(tmp string, id objectID) (fresh bool, err error) {
	to := o.path(id)
	for made := false; ; made = true {
		// link(2) and not rename(2): it says when there is one.
		switch err = os.Link(tmp, to); {
		case err == nil:
			return true, os.Remove(tmp)
		case errors.Is(err, fs.ErrExist):
			now := time.Now()
			return false, os.Chtimes(to, now, now) // the sweep leaves it
		case errors.Is(err, fs.ErrNotExist) && !made:
			if err = os.Mkdir(filepath.Dir(to), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
				continue
			}
		}
		return false, err
	}
}

// open opens a content for reading. Whether it is what its name says is seen at the end:
// reading it gives an error then.
func (o *objects) open(id objectID) (io.ReadCloser, error) {
	f, err := OpenRegular(o.path(id))
	if err != nil {
		return nil, err
	}
	return &object{f: f, h: sha256.New(), id: id}, nil
}

type object struct {
	f  *os.File
	h  hash.Hash
	id objectID
}

func (o *object) Read(p []byte) (int, error) {
	n, err := o.f.Read(p)
	o.h.Write(p[:n])
	if err == io.EOF && !bytes.Equal(o.h.Sum(nil), o.id[:]) {
		return n, fmt.Errorf("read %s: the content is not what was kept", o.f.Name())
	}
	return n, err
}

func (o *object) Close() error { return o.f.Close() }

// each calls f with every object and its size on disk.
func (o *objects) each(f func(id objectID, fi fs.FileInfo) error) error {
	dirs, err := os.ReadDir(o.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !d.IsDir() || len(d.Name()) != 2 {
			continue
		}
		ents, err := os.ReadDir(filepath.Join(o.dir, d.Name()))
		if err != nil {
			return err
		}
		for _, e := range ents {
			var id objectID
			raw, err := hex.DecodeString(d.Name() + e.Name())
			if err != nil || len(raw) != len(id) {
				continue
			}
			copy(id[:], raw)
			fi, err := e.Info()
			if err != nil {
				continue // gone since
			}
			if err := f(id, fi); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepAge is how old something must be before the sweep takes it: a session may have
// found a content there and be about to write the record that refers to it.
const sweepAge = time.Minute

// sweep removes the contents that are not in live, and what was never finished. It returns
// the bytes of those that stay.
func (o *objects) sweep(live map[objectID]bool) (bytes int64, err error) {
	old := time.Now().Add(-sweepAge)
	err = o.each(func(id objectID, fi fs.FileInfo) error {
		if !live[id] && fi.ModTime().Before(old) {
			return ignoreGone(os.Remove(o.path(id)))
		}
		bytes += fi.Size()
		return nil
	})
	tmps, _ := filepath.Glob(filepath.Join(o.dir, "tmp-*"))
	for _, t := range tmps {
		if fi, e := os.Lstat(t); e == nil && fi.ModTime().Before(old) {
			os.Remove(t)
		}
	}
	return bytes, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// copySparse copies r to w, which may be nil, and to h, at most limit bytes (0: all). What
// is zero becomes a hole.
func copySparse(w *os.File, r io.Reader, h io.Writer, limit int64) (n int64, err error) {
	const block = 64 << 10
	buf := make([]byte, 256<<10)
	hole := false
	for {
		k, err := io.ReadFull(r, buf)
		if k > 0 {
			if n += int64(k); limit > 0 && n > limit {
				return n, errTooLarge
			}
			if h != nil {
				h.Write(buf[:k])
			}
			for at := 0; w != nil && at < k; at += block {
				part := buf[at:min(at+block, k)]
				if hole = zero(part); hole {
					_, err := w.Seek(int64(len(part)), io.SeekCurrent)
					if err != nil {
						return n, err
					}
				} else if _, err := w.Write(part); err != nil {
					return n, err
				}
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			if hole {
				err = w.Truncate(n)
			} else {
				err = nil
			}
			return n, err
		case err != nil:
			return n, err
		}
	}
}

func zero(b []byte) bool {
	for len(b) >= len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

var zeros [4096]byte
