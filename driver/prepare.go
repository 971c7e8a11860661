package driver

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// boxDir is a box's folder while its mounts are made.
type boxDir struct{ layers.Dir }

// prepare makes sure that every overlay and frame of the plan has a layer, and
// returns the record, sorted so that the longest path comes first, and the files of
// frames that are too large to copy: they are to be bound, read-only. hide is in no skeleton.
func (b boxDir) prepare(steps []planStep, hide []string) (ls []layers.Layer, large []string, err error) {
	for _, d := range []string{"layers", "mnt", "run"} {
		if err := os.MkdirAll(b.At(d), 0o700); err != nil {
			return nil, nil, err
		}
	}
	ls, err = b.Layers()
	if err != nil {
		return nil, nil, err
	}
	known, changed := map[string]int{}, false
	for i, l := range ls {
		known[l.Path] = i
	}
	for _, s := range steps {
		if s.Kind != stepOverlay && s.Kind != stepFrame && s.Kind != stepVeil {
			continue
		}
		i, ok := known[s.Path]
		if !ok {
			l := layers.Layer{Path: s.Path, Dir: strconv.Itoa(len(ls))}
			if err := b.makeLayer(&l, ls); err != nil {
				return nil, nil, err
			}
			i, changed = len(ls), true
			known[s.Path], ls = i, append(ls, l)
		}
		if f := s.Kind == stepFrame; ls[i].Frame != f || ls[i].Over != s.Over {
			ls[i].Frame, ls[i].Over, changed = f, s.Over, true
		}
		if s.Kind == stepVeil {
			if err := b.makeSkeleton(s.Path, b.Frame(ls[i]), s.Roots, hide); err != nil {
				return nil, nil, err
			}
		}
		if ls[i].Frame {
			big, err := makeFrame(b.Frame(ls[i]), s)
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
		if err := layers.WriteAtomic(b.At("layers.json"), data, 0o600); err != nil {
			return nil, nil, err
		}
	}
	ls = slices.Clone(ls)
	sortLayers(ls)
	return ls, large, nil
}

// sortLayers puts the longest path first.
func sortLayers(ls []layers.Layer) {
	sort.SliceStable(ls, func(i, j int) bool { return len(ls[i].Path) > len(ls[j].Path) })
}

// makeLayer makes the folders of a new layer. What an earlier layer of a directory
// above already holds of it moves over: a mount point has appeared below that directory.
func (b boxDir) makeLayer(l *layers.Layer, older []layers.Layer) error {
	for _, d := range []string{b.At("layers", l.Dir), b.Work(*l)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := b.NotePlace(*l); err != nil {
		return err
	}
	for _, o := range older {
		if o.Path != l.Path && under(l.Path, o.Path) {
			rel := strings.TrimPrefix(strings.TrimPrefix(l.Path, o.Path), "/")
			if held, ok := folderIn(b.Upper(o), rel); ok {
				if err := b.ForgetManifest(); err != nil {
					return err
				}
				if err := os.Rename(held, b.Upper(*l)); err != nil {
					return err
				}
				// What is below it is decided by the mount from now on.
				if layers.Opaque(b.Upper(*l)) {
					return sys.Lremovexattr(b.Upper(*l), opaqueAttr)
				}
				return nil
			}
		}
	}
	if err := makeLike(l.Path, b.Upper(*l)); err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(b.Upper(*l), &st); err != nil {
		return err
	}
	l.Mode = st.Mode
	return nil
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
func (b boxDir) reach(layers []layers.Layer, dir string) error {
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
		real, up := l.Path, b.Upper(l)
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
			if err := b.ForgetManifest(); err != nil {
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
func makeFrame(dir string, s planStep) (large []string, err error) {
	if err := layers.RemoveTree(dir); err != nil {
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
		if slices.Contains(s.Hide, e.Name()) {
			continue
		}
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
		case t.IsRegular() && slices.Contains(s.Blind, e.Name()):
			if err := os.WriteFile(to, nil, 0); err != nil {
				return nil, err
			}
			delete(points, e.Name())
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
		if slices.Contains(s.Blind, p) {
			if err := os.Mkdir(filepath.Join(dir, p), 0o755); err != nil {
				return nil, err
			}
			continue
		}
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
