package layers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Changes calls f with each path at which the box differs from the real system as it is
// now, ordered by layer and path, parents before what is in them. The error of f ends it.
//
// It reads the upper layers as overlayfs keeps them (Documentation/filesystems/
// overlayfs.rst): a character device 0:0 is a whiteout, the attribute
// user.overlay.opaque says that nothing of the real directory shows through. Nothing that a
// box can do makes these: its filter refuses device nodes and the attributes, and the
// overlay does not pass them on. A symbolic link in a layer is never followed.
//
// A directory that is deleted is one change, without those of what was in it; a directory
// that takes the place of another one is one, and those of what is in it.
func (b Dir) Changes(ctx context.Context, f func(*core.Change) error) error {
	ls, err := b.Layers()
	if err != nil {
		return err
	}
	masks, err := b.Masks()
	if err != nil {
		return err
	}
	sort.Slice(ls, func(i, j int) bool { return ls[i].Path < ls[j].Path })
	for _, l := range ls {
		s := scan{b: b, ctx: ctx, f: f, masks: masks, layer: l, roots: map[string]bool{}}
		for _, o := range ls {
			s.roots[o.Path] = true
		}
		if err := s.dir(b.Upper(l), l.Path, false); err != nil {
			return err
		}
	}
	return nil
}

type scan struct {
	b     Dir
	ctx   context.Context
	f     func(*core.Change) error
	masks map[string]bool
	layer Layer
	roots map[string]bool // of all layers: what is below one of them is in it
}

// dir scans a directory of the upper layer. hides says that nothing of the real directory
// real shows through.
func (s *scan) dir(up, real string, hides bool) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	ents, err := os.ReadDir(up)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || up == s.b.Upper(s.layer) { // that of a folder that is closed to its user is so too
			return nil
		}
		return s.f(&core.Change{Path: real, Kind: core.Modified, Unread: errors.Unwrap(err).Error()})
	}
	own := map[string]bool{}
	for _, e := range ents {
		own[e.Name()] = true
	}
	if hides {
		ents = append(ents, hidden(real, own)...)
		sort.Slice(ents, func(i, j int) bool { return ents[i].Name() < ents[j].Name() })
	}
	for _, e := range ents {
		p := path.Join(real, e.Name())
		if s.roots[p] { // what an earlier layer had here moved into that one
			continue
		}
		if err := s.entry(filepath.Join(up, e.Name()), p, own[e.Name()]); err != nil {
			return err
		}
	}
	return nil
}

// hidden lists what is in the real directory and not among own.
func hidden(real string, own map[string]bool) (out []fs.DirEntry) {
	ents, err := os.ReadDir(real)
	if err != nil {
		return nil
	}
	for _, e := range ents {
		if !own[e.Name()] {
			out = append(out, e)
		}
	}
	return out
}

func (s *scan) entry(up, real string, there bool) error {
	was, err := Lstat(real)
	if err != nil {
		was = nil
	}
	var is *core.FileState
	if there {
		if is, err = Lstat(up); errors.Is(err, fs.ErrNotExist) {
			return nil // gone since
		} else if err != nil {
			return s.f(&core.Change{Path: real, Kind: core.Modified, Was: was, Unread: err.Error()})
		}
	}
	if is == nil || Whiteout(up, is) {
		if was == nil || s.masks[real] {
			return nil
		}
		return s.f(&core.Change{Path: real, Kind: core.Deleted, Was: was})
	}
	c := core.Change{Path: real, Kind: core.Added, Was: was, Is: is}
	if was != nil {
		c.Kind = core.Modified
		if c.Parts, err = Differ(real, was, up, is); err != nil {
			c.Unread = err.Error()
		}
	}
	if c.Kind == core.Added || len(c.Parts) > 0 || c.Unread != "" {
		if err := s.f(&c); err != nil {
			return err
		}
	}
	if is.Type != core.TypeDir {
		return nil
	}
	// Where a mask was, the box did not see what its own directory now hides.
	return s.dir(up, real, was != nil && was.Type == core.TypeDir && Opaque(up) && !s.masks[real])
}

// Lstat reports on a path without following it.
func Lstat(p string) (*core.FileState, error) {
	fi, err := os.Lstat(p)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, &fs.PathError{Op: "lstat", Path: p, Err: errors.ErrUnsupported}
	}
	f := StateOf(st)
	if f.Type == core.TypeSymlink {
		if f.Link, err = os.Readlink(p); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Whiteout says whether what an upper layer has at up, with that state, stands for a
// deleted file.
func Whiteout(up string, s *core.FileState) bool {
	if s.Type != core.TypeDevice {
		return false
	}
	_, rdev, err := sys.Lstat(-100, up)
	return err == nil && rdev == 0
}

// Opaque says whether a directory of an upper layer hides the real one.
func Opaque(up string) bool {
	v, err := sys.Lgetxattr(up, "user.overlay.opaque")
	return err == nil && string(v) == "y"
}

// Differ says in what the box's version at up differs from the real file at real.
func Differ(real string, was *core.FileState, up string, is *core.FileState) (parts []string, err error) {
	if was.Type != is.Type {
		return []string{"type"}, nil
	}
	switch is.Type {
	case core.TypeFile:
		same := was.Size == is.Size
		if same {
			same, err = sameContent(real, up)
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
	if !maps.EqualFunc(Xattrs(real), Xattrs(up), bytes.Equal) {
		parts = append(parts, "xattrs")
	}
	return parts, err
}

// Xattrs returns the extended attributes of a path that are its own: without those by
// which the overlay keeps its state. nil where there are none or they cannot be read.
func Xattrs(p string) map[string][]byte {
	names, err := sys.Llistxattr(p)
	if err != nil {
		return nil
	}
	var out map[string][]byte
	for _, n := range names {
		if strings.HasPrefix(n, "user.overlay.") || strings.HasPrefix(n, "trusted.overlay.") {
			continue
		}
		if v, err := sys.Lgetxattr(p, n); err == nil {
			if out == nil {
				out = map[string][]byte{}
			}
			out[n] = v
		}
	}
	return out
}

// sameContent compares two regular files of one size.
func sameContent(a, b string) (bool, error) {
	fa, err := OpenRegular(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := OpenRegular(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	const chunk = 128 << 10
	ba, bb := make([]byte, chunk), make([]byte, chunk)
	for {
		na, ea := io.ReadFull(fa, ba)
		nb, eb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		if ea == io.EOF || ea == io.ErrUnexpectedEOF {
			return eb == ea, nil
		}
		if err := errors.Join(ea, eb); err != nil {
			return false, err
		}
	}
}

// OpenRegular opens a regular file for reading and nothing else: no link, and no FIFO that
// one would wait for. Its access time stays where that is the caller's to say.
func OpenRegular(p string) (*os.File, error) {
	const noatime = syscall.O_NOATIME
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|noatime, 0)
	if errors.Is(err, syscall.EPERM) { // not the owner
		f, err = os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: p, Err: errors.New("not a regular file")}
	}
	return f, nil
}

// Place finds where a layer keeps the box's version of an absolute path: the layer with
// the longest path above it. rel is the path below that layer, "" for the layer itself.
func Place(ls []Layer, p string) (l Layer, rel string, ok bool) {
	for _, o := range ls {
		if Under(p, o.Path) && (!ok || len(o.Path) > len(l.Path)) {
			l, ok = o, true
		}
	}
	return l, strings.TrimPrefix(strings.TrimPrefix(p, l.Path), "/"), ok
}

// Under says whether p is dir or below it.
func Under(p, dir string) bool {
	return p == dir || dir == "/" || len(p) > len(dir) && p[len(dir)] == '/' && strings.HasPrefix(p, dir)
}

// Masks are the paths whose whiteouts the sandbox itself has put into the layers, so that
// the box does not see what is there: they are no changes.
func (b Dir) Masks() (map[string]bool, error) {
	var ps [][]byte // any bytes
	if err := b.readJSON("masks.json", &ps); err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, p := range ps {
		out[string(p)] = true
	}
	return out, nil
}

// readJSON reads a record of the box's folder; one that is not there leaves v as it is.
func (b Dir) readJSON(name string, v any) error {
	data, err := os.ReadFile(b.At(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", b.At(name), err)
	}
	return nil
}

// StateOf puts what stat(2) has told into the domain's words.
func StateOf(st *syscall.Stat_t) *core.FileState {
	f := &core.FileState{Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Size: st.Size, MTime: time.Unix(st.Mtim.Unix()), CTime: time.Unix(st.Ctim.Unix()),
		Inode: st.Ino, Dev: uint64(st.Dev), Links: uint64(st.Nlink)}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		f.Type = core.TypeFile
	case syscall.S_IFDIR:
		f.Type = core.TypeDir
	case syscall.S_IFLNK:
		f.Type = core.TypeSymlink
	case syscall.S_IFIFO:
		f.Type = core.TypeFIFO
	case syscall.S_IFSOCK:
		f.Type = core.TypeSocket
	default:
		f.Type = core.TypeDevice
	}
	return f
}
