package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Dir is a box's folder on disk:
//
//	layers.json     which directory of the real tree has which layer
//	layers/N/upper  what the box changed below that directory, as overlayfs keeps it
//	layers/N/work   overlayfs's own
//	layers/N/path   which directory that is, should layers.json be lost
//	layers/N/frame  the bare frame of a directory with mount points further down
//	manifest        what the upper layers were like when the last session had ended
//	layers/trash    what was discarded and is not removed yet
//	mnt             where the box's root is put together (empty outside the box)
//	history/        what was there before each operation, see history.go
//	objects/        old contents of files and those of snapshots, by their hash
//	snapshots/NAME  a kept state: what the layers had at each path
//	rollback/       one that counts and is not finished; rollback.new/ one that does not count yet
//	run/lock        held while the box's mounts are made
//	commit/         the journal of a commit, and what is known of the last ones
//	run/ID.json     a running session; locked while it lives
//	run/changed     the filter of changed paths, shared by the box's sessions
type Dir string

// Layer is the box's own copy-on-write layer of one real directory.
type Layer struct {
	Path  string `json:"path"`
	Dir   string `json:"dir"`
	Frame bool   `json:"frame,omitempty"`
	Mode  uint32 `json:"mode,omitempty"` // st_mode of upper when it was made; 0: not known
	Over  bool   `json:"over,omitempty"` // mounted over the layer of a directory above
}

func (b Dir) At(parts ...string) string {
	return filepath.Join(append([]string{string(b)}, parts...)...)
}

func (b Dir) Upper(l Layer) string { return b.At("layers", l.Dir, "upper") }
func (b Dir) Work(l Layer) string  { return b.At("layers", l.Dir, "work") }
func (b Dir) Frame(l Layer) string { return b.At("layers", l.Dir, "frame") }

// Layers returns the record of the box's layers, none for a box that never ran.
func (b Dir) Layers() ([]Layer, error) {
	data, err := os.ReadFile(b.At("layers.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ls []Layer
	if err := json.Unmarshal(data, &ls); err != nil {
		return nil, core.Hint(fmt.Errorf("read %s: %w", b.At("layers.json"), err), "the record of the box's layers is damaged; its files are in layers/*/upper")
	}
	return ls, nil
}

// WriteAtomic replaces the file at path whole or not at all.
func WriteAtomic(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// SessionRef names a running session.
type SessionRef struct {
	ID         core.SessionID `json:"id"`
	Supervisor int            `json:"supervisor"` // PID
	Init       int            `json:"init"`       // PID, outside
	Net        core.Net       `json:"net"`
	Shares     bool           `json:"shares,omitempty"`  // they are read
	Damaged    bool           `json:"damaged,omitempty"` // the box's view is read-only
}

// Lock takes the box's lock; the caller closes the file to give it back.
func (b Dir) Lock() (*os.File, error) {
	if err := os.MkdirAll(b.At("run"), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(b.At("run", "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := sys.Flock(f, true, true); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// Register records a running session. The file stays locked until it is closed.
func (b Dir) Register(ref SessionRef) (*os.File, error) {
	f, err := os.OpenFile(b.At("run", string(ref.ID)+".json"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := sys.Flock(f, true, false); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := json.NewEncoder(f).Encode(ref); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Running lists the sessions that live, and clears away the records of the dead.
func (b Dir) Running() ([]SessionRef, error) {
	names, err := filepath.Glob(b.At("run", "*.json"))
	if err != nil {
		return nil, err
	}
	var refs []SessionRef
	for _, n := range names {
		f, err := os.Open(n)
		if err != nil {
			continue
		}
		if sys.Flock(f, false, false) == nil { // its owner is gone
			os.Remove(n)
			f.Close()
			continue
		}
		var ref SessionRef
		if json.NewDecoder(io.LimitReader(f, 4096)).Decode(&ref) == nil {
			refs = append(refs, ref)
		}
		f.Close()
	}
	return refs, nil
}

// Remove removes the box's layers and everything else in its folder. It refuses while a
// session runs there.
func (b Dir) Remove() error {
	l, err := b.Lock()
	if err != nil {
		return err
	}
	defer l.Close()
	refs, err := b.Running()
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		return core.Hint(fmt.Errorf("remove box %s: %d sessions run in it", filepath.Base(string(b)), len(refs)), "end them first")
	}
	if err := b.Recover(); err != nil { // its journal alone knows what a commit has put aside
		return err
	}
	return RemoveTree(string(b))
}

// RemoveTree removes dir and all below it, also directories that lack the bits to
// list or change them: a box may leave such behind.
func RemoveTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			if fi, e := d.Info(); e == nil && fi.Mode().Perm()&0o700 != 0o700 {
				os.Chmod(p, 0o700)
				if err != nil {
					return filepath.SkipDir // listed by the next round
				}
			}
		}
		return nil
	})
	for range 64 { // each round opens at least one more level of such directories
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	}
	return err
}

// Size returns what the box's upper layers hold: bytes on disk and files, the whiteouts of
// deleted ones included, but not what hides private places, nor the directories that lead
// there. Old versions and snapshots are [Dir.Held]. With an error it is what could be seen: a box may have closed directories.
func (b Dir) Size() (bytes int64, files int, err error) {
	ls, err := b.Layers()
	if err != nil {
		return 0, 0, err
	}
	masks, err := b.Masks()
	if err != nil {
		return 0, 0, err
	}
	planted := map[string]bool{} // with the way there
	for m := range masks {
		for ; !planted[m] && m != "/"; m = path.Dir(m) {
			planted[m] = true
		}
	}
	var unread error
	for _, l := range ls {
		filepath.WalkDir(b.Upper(l), func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == b.Upper(l) {
				// A layer of a folder that is closed to its user is so from the beginning.
				if err != nil && p != b.Upper(l) && !errors.Is(err, fs.ErrNotExist) {
					unread = err
				}
				return nil
			}
			if fi, err := d.Info(); err == nil {
				if at := path.Join(l.Path, p[len(b.Upper(l)):]); !planted[at] || !d.IsDir() && !masks[at] || masks[at] && fi.Mode()&fs.ModeCharDevice == 0 {
					files++
				}
				if st, ok := fi.Sys().(*syscall.Stat_t); ok {
					bytes += st.Blocks * 512
				}
			}
			return nil
		})
	}
	return bytes, files, unread
}
