package layers

import (
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// release removes from the layers what is in the real system now.
func (x *commit) release() error {
	var err error
	if x.ls == nil {
		if x.ls, err = x.b.Layers(); err != nil {
			return err
		}
	}
	if x.uppers == nil {
		x.uppers = map[string]int{}
	}
	for i := len(x.j.Upper) - 1; i >= 0; i-- {
		h := &x.j.Upper[i]
		l, ok := x.layer(h.Layer)
		if !ok || len(h.Rel) == 0 || strings.Contains("/"+string(h.Rel)+"/", "/../") {
			continue
		}
		if err := x.releaseOne(l, string(h.Rel), h); err != nil {
			x.left = append(x.left, Conflict{Path: path.Join(l.Path, string(h.Rel)), Why: "it could not be removed from the box: " + why(err)})
		}
	}
	return nil
}

func (x *commit) releaseOne(l Layer, rel string, h *held) error {
	root, err := x.upper(l)
	if err != nil {
		return err
	}
	dir, err := sys.OpenBeneath(root, path.Dir(rel), sys.OPath|syscall.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // removed already
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.CloseFD(dir)
	name := path.Base(rel)
	x.at("release " + rel)
	remove := func() error {
		switch {
		case h.Whole:
			return removeTree(dir, name)
		case h.Dir:
			return x.reveal(l, rel, dir, name, h.Reveal)
		}
		return sys.RemoveAt(dir, name, false)
	}
	err = opened(dir, remove)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil && path.Dir(rel) != "." {
		x.releaseParents(l, path.Dir(rel))
	}
	return err
}

// reveal lets the real directory show through one of a layer, and removes that if it says
// nothing else.
func (x *commit) reveal(l Layer, rel string, dir int, name string, clear bool) error {
	if clear {
		fd, err := sys.OpenBeneath(dir, name, sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = opened(fd, func() error { return sys.RemoveXattrFD(fd, "user.overlay.opaque") })
		sys.CloseFD(fd)
		if err != nil && !errors.Is(err, syscall.ENODATA) {
			return err
		}
	}
	x.removeEmpty(l, rel, dir, name)
	return nil
}

// releaseParents removes the directories of a layer, from rel on up, that are empty and as
// the real ones are: they were copied up for what was in them.
func (x *commit) releaseParents(l Layer, rel string) {
	root, err := x.upper(l)
	if err != nil {
		return
	}
	for ; rel != "." && rel != ""; rel = path.Dir(rel) {
		dir, err := sys.OpenBeneath(root, path.Dir(rel), sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return
		}
		ok := x.removeEmpty(l, rel, dir, path.Base(rel))
		sys.CloseFD(dir)
		if !ok {
			return
		}
	}
}

func (x *commit) removeEmpty(l Layer, rel string, dir int, name string) bool {
	up, real := filepath.Join(x.b.Upper(l), rel), path.Join(l.Path, rel)
	is, err := Lstat(up)
	if err != nil || is.Type != core.TypeDir || Opaque(up) {
		return false
	}
	was, err := Lstat(real)
	if err != nil || was.Type != core.TypeDir {
		return false
	}
	if parts, err := Differ(real, was, up, is); err != nil || len(parts) > 0 {
		return false
	}
	return opened(dir, func() error { return sys.RemoveAt(dir, name, true) }) == nil
}

// opened does something in a directory of a layer that may be closed to its owner.
func opened(dir int, do func() error) error {
	err := do()
	if !errors.Is(err, syscall.EACCES) {
		return err
	}
	st, serr := sys.StatAt(dir, "")
	if serr != nil || sys.ChmodFD(dir, st.Mode&0o7777|0o700) != nil {
		return err
	}
	err = do()
	if cerr := sys.ChmodFD(dir, st.Mode&0o7777); err == nil {
		err = cerr
	}
	return err
}
