package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// boxDir is a box's folder on disk:
//
//	layers.json     which directory of the real tree has which layer
//	layers/N/upper  what the box changed below that directory, as overlayfs keeps it
//	layers/N/work   overlayfs's own
//	layers/N/frame  the bare frame of a directory with mount points further down
//	mnt             where the box's root is put together (empty outside the box)
//	run/lock        held while the box's mounts are made
//	run/ID.json     a running session; locked while it lives
//	run/changed     the filter of changed paths, shared by the box's sessions
type boxDir string

// layer is the box's own copy-on-write layer of one real directory.
type layer struct {
	Path  string `json:"path"`
	Dir   string `json:"dir"`
	Frame bool   `json:"frame,omitempty"`
}

func (b boxDir) at(parts ...string) string {
	return filepath.Join(append([]string{string(b)}, parts...)...)
}

func (b boxDir) upper(l layer) string { return b.at("layers", l.Dir, "upper") }
func (b boxDir) work(l layer) string  { return b.at("layers", l.Dir, "work") }
func (b boxDir) frame(l layer) string { return b.at("layers", l.Dir, "frame") }

// layers returns the record of the box's layers, none for a box that never ran.
func (b boxDir) layers() ([]layer, error) {
	data, err := os.ReadFile(b.at("layers.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ls []layer
	if err := json.Unmarshal(data, &ls); err != nil {
		return nil, core.Hint(fmt.Errorf("read %s: %w", b.at("layers.json"), err), "the record of the box's layers is damaged; its files are in layers/*/upper")
	}
	return ls, nil
}

// prepare makes sure that every overlay and frame of the plan has a layer, and
// returns the record, sorted so that the longest path comes first, and the files of
// frames that are too large to copy: they are to be bound, read-only.
func (b boxDir) prepare(steps []planStep) (ls []layer, large []string, err error) {
	for _, d := range []string{"layers", "mnt", "run"} {
		if err := os.MkdirAll(b.at(d), 0o700); err != nil {
			return nil, nil, err
		}
	}
	ls, err = b.layers()
	if err != nil {
		return nil, nil, err
	}
	known, changed := map[string]int{}, false
	for i, l := range ls {
		known[l.Path] = i
	}
	for _, s := range steps {
		if s.Kind != stepOverlay && s.Kind != stepFrame {
			continue
		}
		i, ok := known[s.Path]
		if !ok {
			l := layer{Path: s.Path, Dir: strconv.Itoa(len(ls))}
			if err := b.makeLayer(l, ls); err != nil {
				return nil, nil, err
			}
			i, changed = len(ls), true
			known[s.Path], ls = i, append(ls, l)
		}
		if f := s.Kind == stepFrame; ls[i].Frame != f {
			ls[i].Frame, changed = f, true
		}
		if ls[i].Frame {
			big, err := b.makeFrame(ls[i], s)
			if err != nil {
				return nil, nil, err
			}
			large = append(large, big...)
		}
	}
	if changed {
		data, err := json.MarshalIndent(ls, "", " ")
		if err != nil {
			return nil, nil, err
		}
		if err := writeAtomic(b.at("layers.json"), data, 0o600); err != nil {
			return nil, nil, err
		}
	}
	ls = slices.Clone(ls)
	sort.SliceStable(ls, func(i, j int) bool { return len(ls[i].Path) > len(ls[j].Path) })
	return ls, large, nil
}

// makeLayer makes the folders of a new layer. What an earlier layer of a directory
// above already holds of it moves over: a mount point has appeared below that directory.
func (b boxDir) makeLayer(l layer, older []layer) error {
	for _, d := range []string{b.at("layers", l.Dir), b.work(l)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for _, o := range older {
		if o.Path != l.Path && under(l.Path, o.Path) {
			rel := strings.TrimPrefix(strings.TrimPrefix(l.Path, o.Path), "/")
			if held, ok := folderIn(b.upper(o), rel); ok {
				return os.Rename(held, b.upper(l))
			}
		}
	}
	return makeLike(l.Path, b.upper(l))
}

// folderIn finds the folder that an upper layer holds at rel. Everything in a layer is
// the box's: a link on the way there would lead to a real folder, and is not followed.
func folderIn(upper, rel string) (path string, ok bool) {
	path = upper
	for name := range strings.SplitSeq(rel, "/") {
		path = filepath.Join(path, name)
		if fi, err := os.Lstat(path); err != nil || !fi.IsDir() {
			return "", false
		}
	}
	return path, true
}

// makeLike makes the directory dir with the mode, time and, where that is possible, the
// owner of the real directory. An overlay shows the attributes of its upper root: so
// where the owner must be the caller instead, his bits become what he effectively
// may do in the real one.
func makeLike(real, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	mode := fs.FileMode(0o555)
	fi, err := os.Lstat(real)
	if err == nil {
		mode = fi.Mode() & modeBits
		uid, gid := sys.Owner(fi)
		if err := os.Chown(dir, uid, gid); err != nil && uid != os.Geteuid() {
			mode = mode&^0o700 | fs.FileMode(sys.AccessBits(real))<<6
		}
		if err := os.Chtimes(dir, fi.ModTime(), fi.ModTime()); err != nil {
			return err
		}
	}
	return os.Chmod(dir, mode)
}

// modeBits are the bits of a directory's mode that its layer has too.
const modeBits = fs.ModePerm | fs.ModeSticky | fs.ModeSetgid

// reach makes the directories on the way to dir in its layer, as far as they are real
// ones, down to the last of another owner. One whose owner is not mapped cannot be
// copied up by the kernel (EOVERFLOW), so a user's folder below root's, as in /var/tmp,
// could not be written in: with the way there already in the upper layer it can. What
// the box has put in the way stays. Before the overlay is mounted only. layers has the
// longest path first.
func (b boxDir) reach(layers []layer, dir string) error {
	for _, l := range layers {
		if !under(dir, l.Path) {
			continue
		}
		var way []string
		foreign := 0
		real := l.Path
		for name := range strings.SplitSeq(strings.TrimPrefix(strings.TrimPrefix(dir, l.Path), "/"), "/") {
			real = filepath.Join(real, name)
			fi, err := os.Lstat(real)
			if err != nil || !fi.IsDir() {
				break
			}
			way = append(way, name)
			if uid, _ := sys.Owner(fi); uid != os.Geteuid() {
				foreign = len(way)
			}
		}
		real, up := l.Path, b.upper(l)
		for _, name := range way[:foreign] {
			real, up = filepath.Join(real, name), filepath.Join(up, name)
			if fi, err := os.Lstat(up); err == nil {
				if !fi.IsDir() {
					return nil // a whiteout, a file, or a link to follow out of the layer
				}
				continue
			}
			parent := filepath.Dir(up)
			fi, err := os.Lstat(parent)
			if err != nil {
				return err
			}
			// Its bits are those of the real one, which may be nobody's to write.
			if err := os.Chmod(parent, 0o700); err != nil {
				return err
			}
			if err := makeLike(real, up); err != nil {
				return err
			}
			if err := os.Chmod(parent, fi.Mode()&modeBits); err != nil {
				return err
			}
			if err := os.Chtimes(parent, fi.ModTime(), fi.ModTime()); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// maxFrameFile is the largest file that is copied into a frame; a larger one is
// bound, read-only.
const maxFrameFile = 1 << 20

// makeFrame makes the bare frame of a directory: its subdirectories, empty, to mount
// on, its symbolic links, and copies of its small files; large ones are empty there.
func (b boxDir) makeFrame(l layer, s planStep) (large []string, err error) {
	dir := b.frame(l)
	if err := removeTree(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	ents, err := os.ReadDir(s.Path)
	if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) { // gone since: a mount point may
		return nil, err
	}
	points := map[string]bool{}
	for _, p := range s.Points {
		points[p] = true
	}
	for _, e := range ents {
		to, from := filepath.Join(dir, e.Name()), filepath.Join(s.Path, e.Name())
		switch t := e.Type(); {
		case t.IsDir():
			continue
		case t&fs.ModeSymlink != 0:
			if link, err := os.Readlink(from); err == nil {
				if err := os.Symlink(link, to); err != nil {
					return nil, err
				}
			}
		case t.IsRegular():
			whole, err := copyIntoFrame(from, to)
			if err != nil {
				return nil, err
			}
			if !whole {
				large = append(large, from)
			}
			delete(points, e.Name())
		}
	}
	for p := range points {
		if err := makeLike(filepath.Join(s.Path, p), filepath.Join(dir, p)); err != nil {
			return nil, err
		}
	}
	return large, makeLike(s.Path, dir)
}

// copyIntoFrame copies a file, or makes an empty one and returns false when it is
// larger than [maxFrameFile].
func copyIntoFrame(from, to string) (whole bool, err error) {
	in, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return true, os.WriteFile(to, nil, 0) // there, and unreadable, as outside
	}
	if err != nil {
		return false, err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return false, err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fi.Mode().Perm())
	if err != nil {
		return false, err
	}
	whole = fi.Size() <= maxFrameFile
	if whole {
		_, err = io.Copy(out, io.LimitReader(in, maxFrameFile))
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chtimes(to, fi.ModTime(), fi.ModTime())
	}
	return whole, err
}

// writeAtomic replaces the file at path whole or not at all.
func writeAtomic(path string, data []byte, mode fs.FileMode) error {
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
}

// lock takes the box's lock; the caller closes the file to give it back.
func (b boxDir) lock() (*os.File, error) {
	if err := os.MkdirAll(b.at("run"), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(b.at("run", "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := sys.Flock(f, true, true); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// register records a running session. The file stays locked until it is closed.
func (b boxDir) register(ref SessionRef) (*os.File, error) {
	f, err := os.OpenFile(b.at("run", string(ref.ID)+".json"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
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

// running lists the sessions that live, and clears away the records of the dead.
func (b boxDir) running() ([]SessionRef, error) {
	names, err := filepath.Glob(b.at("run", "*.json"))
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

// Running lists the sessions that run in the box of that folder.
func Running(dir string) ([]SessionRef, error) { return boxDir(dir).running() }

// RemoveBox removes the box's layers and everything else in its folder. It refuses
// while a session runs there.
func RemoveBox(dir string) error {
	b := boxDir(dir)
	l, err := b.lock()
	if err != nil {
		return err
	}
	defer l.Close()
	refs, err := b.running()
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		return core.Hint(fmt.Errorf("remove box %s: %d sessions run in it", filepath.Base(dir), len(refs)), "end them first")
	}
	return removeTree(dir)
}

// removeTree removes dir and all below it, also directories that lack the bits to
// list or change them: a box may leave such behind.
func removeTree(dir string) error {
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

// BoxSize returns what the box's upper layers hold: bytes on disk and files, whiteouts
// included. With an error it is what could be seen: a box may have closed directories.
func BoxSize(dir string) (bytes int64, files int, err error) {
	b := boxDir(dir)
	ls, err := b.layers()
	if err != nil {
		return 0, 0, err
	}
	var unread error
	for _, l := range ls {
		filepath.WalkDir(b.upper(l), func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == b.upper(l) {
				// A layer of a folder that is closed to its user is so from the beginning.
				if err != nil && p != b.upper(l) && !errors.Is(err, fs.ErrNotExist) {
					unread = err
				}
				return nil
			}
			if fi, err := d.Info(); err == nil {
				files++
				if st, ok := fi.Sys().(*syscall.Stat_t); ok {
					bytes += st.Blocks * 512
				}
			}
			return nil
		})
	}
	return bytes, files, unread
}
