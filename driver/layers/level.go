package layers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Level returns what is directly in the directory dir of a tree of the box's changes: at
// most limit names, those after the name after. It looks at that directory alone, so that
// it takes as long for a box of a million changes as for one of ten.
//
// When ctx ends it returns what it has found, with More.
func (b Dir) Level(ctx context.Context, dir, after string, limit int) (core.ChangeLevel, error) {
	v, err := b.view(dir)
	if err != nil {
		return core.ChangeLevel{}, err
	}
	defer v.close()
	names, err := v.names()
	if err != nil {
		return core.ChangeLevel{}, err
	}
	var out core.ChangeLevel
	at, _ := slices.BinarySearch(names, after)
	if at < len(names) && names[at] == after {
		at++
	}
	for _, n := range names[at:] {
		if len(out.Nodes) == limit || ctx.Err() != nil {
			out.More = true
			break
		}
		out.After = n
		if node := v.node(n); node.Change != nil || node.Inside {
			out.Nodes = append(out.Nodes, node)
		}
	}
	return out, nil
}

// Change returns what the box changed at one path; nil when nothing.
func (b Dir) Change(p string) (*core.Change, error) {
	if p == "/" {
		return nil, nil
	}
	v, err := b.view(path.Dir(p))
	if err != nil {
		return nil, err
	}
	defer v.close()
	return v.node(path.Base(p)).Change, nil
}

// view is one directory of a box: what its layers hold of it, over the real one.
type view struct {
	b     Dir
	real  string
	masks map[string]bool
	roots map[string]Layer
	up    *os.File // the upper layer's; nil where it has none
	hides bool     // nothing of the real directory shows through
}

func (v *view) close() {
	if v.up != nil {
		v.up.Close()
	}
}

func (b Dir) view(dir string) (*view, error) {
	if dir == "" || dir[0] != '/' || path.Clean(dir) != dir {
		return nil, fmt.Errorf("%q is no absolute path", core.Shorten(dir, 200))
	}
	ls, err := b.Layers()
	if err != nil {
		return nil, err
	}
	v := &view{b: b, real: dir, roots: map[string]Layer{}}
	for _, l := range ls {
		v.roots[l.Path] = l
	}
	if v.masks, err = b.Masks(); err != nil {
		return nil, err
	}
	if l, rel, ok := Place(ls, dir); ok {
		v.up, v.hides, err = descend(b.Upper(l), l.Path, rel)
	}
	return v, err
}

// descend opens a directory of an upper layer for its names, step by step: a link on the
// way, which the box may have planted there while this looks, leads nowhere. It returns
// nil where the layer has no such directory.
func descend(upper, real, rel string) (up *os.File, hides bool, err error) {
	fd, err := sys.OpenPath(-1, upper, syscall.O_DIRECTORY|syscall.O_NOFOLLOW)
	for _, name := range strings.Split(rel, "/") {
		if err != nil || name == "" {
			break
		}
		next, oerr := sys.OpenPath(fd, name, syscall.O_DIRECTORY|syscall.O_NOFOLLOW)
		syscall.Close(fd)
		if fd, err = next, oerr; err != nil {
			break
		}
		real = path.Join(real, name)
		was, rerr := Lstat(real)
		hides = hides || Opaque(fdPath(fd)) || rerr != nil || was.Type != core.TypeDir
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return nil, hides, nil
	case err != nil:
		return nil, hides, &fs.PathError{Op: "open", Path: real, Err: err}
	}
	// Opened anew for its names, through the descriptor: the place stays the one that was found.
	f, err := os.OpenFile(fdPath(fd), os.O_RDONLY|syscall.O_DIRECTORY, 0)
	syscall.Close(fd)
	if err != nil {
		return nil, hides, &fs.PathError{Op: "open", Path: real, Err: errors.Unwrap(err)}
	}
	return f, hides, nil
}

// fdPath names what is behind a descriptor; a path below it begins there and nowhere else.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// names lists, sorted, the names at which the directory may differ.
func (v *view) names() ([]string, error) {
	seen := map[string]bool{}
	if v.up != nil {
		own, err := v.up.Readdirnames(-1)
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: v.real, Err: errors.Unwrap(err)}
		}
		for _, n := range own {
			seen[n] = true
		}
		if v.hides {
			for _, e := range hidden(v.real, seen) {
				seen[e.Name()] = true
			}
		}
	}
	for p := range v.roots { // the layers of folders further down
		if p != v.real && Under(p, v.real) {
			n, _, _ := strings.Cut(strings.TrimPrefix(p[len(v.real):], "/"), "/")
			seen[n] = true
		}
	}
	names := make([]string, 0, len(seen))
	for n := range seen {
		names = append(names, n)
	}
	sort.Strings(names)
	return names, nil
}

func (v *view) node(name string) core.ChangeNode {
	real := path.Join(v.real, name)
	n := core.ChangeNode{Name: name}
	for p, l := range v.roots { // its own layer, or that of something below it
		n.Inside = n.Inside || Under(p, real) && filled(v.b.Upper(l))
	}
	if _, root := v.roots[real]; root || v.up == nil {
		return n
	}
	up := fdPath(int(v.up.Fd())) + "/" + name
	n.Change = v.b.compare(up, real, v.hides, v.masks[real])
	if is, err := Lstat(up); err == nil && is.Type == core.TypeDir {
		n.Inside = n.Inside || filled(up) || Opaque(up) && filled(real)
	}
	return n
}

// compare says what an upper layer changed at one path; nil when nothing.
func (b Dir) compare(up, real string, hides, masked bool) *core.Change {
	was, err := Lstat(real)
	if err != nil {
		was = nil
	}
	is, err := Lstat(up)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !hides:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		is = nil
	case err != nil:
		return &core.Change{Path: real, Kind: core.Modified, Was: was, Unread: errors.Unwrap(err).Error()}
	}
	if is == nil || Whiteout(up, is) {
		if was == nil || masked {
			return nil
		}
		return &core.Change{Path: real, Kind: core.Deleted, Was: was}
	}
	c := &core.Change{Path: real, Kind: core.Added, Was: was, Is: is}
	if was == nil {
		return c
	}
	c.Kind = core.Modified
	if c.Parts, err = Differ(real, was, up, is); err != nil {
		c.Unread = err.Error()
	}
	if len(c.Parts) == 0 && c.Unread == "" {
		return nil
	}
	return c
}

// filled says whether a directory has anything in it, or cannot be looked into.
func filled(dir string) bool {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) > 0
}
