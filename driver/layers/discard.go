package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Discard throws the box's version of the absolute paths away, with all that is below them,
// so that the real files show again; no paths are the whole box. It returns how many changes
// that were. It refuses while a session runs in the box, whose overlays would not like it
// (overlayfs.rst, "Changes to underlying filesystems").
//
// Each path goes at once, by a rename out of its layer; what was renamed is then removed at
// leisure, and what a crash has left of it by the next Discard. When ctx ends, or something
// fails, some of the paths are gone and the others are as they were.
//
// What the sandbox hides from the box stays hidden.
func (b Dir) Discard(ctx context.Context, paths []string) (n core.ChangeCounts, err error) {
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p {
			return n, fmt.Errorf("discard %q: not a clean absolute path", p)
		}
	}
	l, err := b.Lock()
	if err != nil {
		return n, err
	}
	defer l.Close()
	refs, err := b.Running()
	if err != nil {
		return n, err
	}
	if name := filepath.Base(string(b)); len(refs) > 0 {
		return n, core.Hint(fmt.Errorf("discard changes of box %s: a session runs in it", name), "end it first: `sandglass kill "+name+"`")
	}
	if err := b.Refuse("discard"); err != nil {
		return n, err
	}
	if err := b.settle(); err != nil {
		return n, err
	}
	if err := b.ChangesIn(ctx, paths, func(c *core.Change) error {
		if len(paths) == 0 || underAny(c.Path, paths) {
			n.Add(c.Kind)
		}
		return nil
	}); err != nil {
		return core.ChangeCounts{}, err
	}
	d := discard{b: b, ctx: ctx}
	if d.ls, err = b.Layers(); err == nil {
		d.masks, err = b.Masks()
	}
	if err == nil && len(d.ls) > 0 {
		d.trash, err = b.openTrash()
	}
	if err != nil {
		return core.ChangeCounts{}, err
	}
	if d.trash != nil {
		defer d.trash.Close()
	}
	if err := b.Forget("changes were discarded"); err != nil {
		return core.ChangeCounts{}, err
	}
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	return n, b.alter(func() (err error) {
		for _, p := range paths {
			if err = d.path(p); err != nil {
				err = fmt.Errorf("discard %s: %w", p, err)
				break
			}
		}
		if d.trash != nil {
			err = errors.Join(err, d.sweep())
		}
		return err
	})
}

func underAny(p string, dirs []string) bool {
	for _, d := range dirs {
		if Under(p, d) {
			return true
		}
	}
	return false
}

// openTrash opens the folder for what is to be removed. It is on the layers' file system.
func (b Dir) openTrash() (*os.File, error) {
	p := b.At("layers", "trash")
	if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return openPlace(p)
}

type discard struct {
	b     Dir
	ctx   context.Context
	ls    []Layer
	masks map[string]bool
	trash *os.File
	seq   int
}

// path discards p in the layer that holds it, and every layer below p.
func (d *discard) path(p string) error {
	found := false
	for _, l := range d.ls {
		if Under(l.Path, p) {
			found = true
			if err := d.layer(l); err != nil {
				return err
			}
		}
	}
	l, rel, ok := Place(d.ls, p)
	if ok && rel != "" {
		was, err := d.below(l, rel)
		if err != nil {
			return err
		}
		found = found || was
	}
	if !found && p != "/" {
		return core.Hint(fmt.Errorf("the box has not changed it: %w", core.ErrNotFound), "`sandglass diff "+filepath.Base(string(d.b))+"` lists what it has changed")
	}
	return nil
}

// layer empties a layer and makes it like the real directory again.
func (d *discard) layer(l Layer) error {
	up, err := openPlace(d.b.Upper(l))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer up.Close()
	return d.keep(up, l.Path, l.Mode&0o7777)
}

// keep empties a directory of a layer that itself stays, and makes it like the real one, which
// shows through again. mode is for where the real one is another's: see [scan.foreign].
func (d *discard) keep(up *os.File, p string, mode uint32) error {
	if was, err := Lstat(p); err == nil && was.Type == core.TypeDir && (os.Geteuid() == 0 || was.UID == os.Geteuid()) {
		mode = was.Mode
	}
	is, err := stateAt(up, "")
	if err != nil {
		return err
	}
	if mode == 0 {
		mode = is.Mode
	}
	at := procName(up, "")
	if err := syscall.Chmod(at, is.Mode|0o700); err != nil {
		return err
	}
	defer syscall.Chmod(at, mode)
	list, err := openBeneath(up, "", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer list.Close()
	for {
		ns, more, err := names(list)
		if err != nil {
			return err
		}
		for _, n := range ns {
			if err := d.ctx.Err(); err != nil {
				return context.Cause(d.ctx)
			}
			if err := d.drop(up, n, path.Join(p, n)); err != nil {
				return err
			}
		}
		if !more {
			break
		}
	}
	if err := sys.Lremovexattr(procName(up, "."), "user.overlay.opaque"); err != nil && !errors.Is(err, syscall.ENODATA) {
		return err
	}
	return nil
}

// drop takes a name out of a directory of a layer, which the caller may write to.
func (d *discard) drop(up *os.File, name, p string) error {
	is, err := stateAt(up, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	white := whiteoutAt(up, name, is)
	switch {
	case white && d.masks[p]:
		return nil
	case d.masks[p]: // the box has put something there
		if err := d.toTrash(up, name, is); err != nil {
			return err
		}
		return sys.MakeWhiteout(int(up.Fd()), name)
	case is.Type == core.TypeDir && d.masksBelow(p):
		if sub, err := openBeneath(up, name, sys.OPath|syscall.O_DIRECTORY); err == nil {
			defer sub.Close()
			return d.keep(sub, p, 0)
		}
	case white:
		return sys.RemoveAt(int(up.Fd()), name, false)
	}
	return d.toTrash(up, name, is)
}

func (d *discard) masksBelow(p string) bool {
	for m := range d.masks {
		if Under(m, p) {
			return true
		}
	}
	return false
}

// toTrash renames a name of a directory out of it.
func (d *discard) toTrash(dir *os.File, name string, is *core.FileState) error {
	if is.Type == core.TypeDir && is.Mode&0o300 != 0o300 { // rename(2) changes its ".."
		sub, err := openBeneath(dir, name, sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = syscall.Chmod(procName(sub, ""), is.Mode|0o700)
		sub.Close()
		if err != nil {
			return err
		}
	}
	for {
		d.seq++
		as := strconv.Itoa(d.seq)
		if _, err := sys.StatAt(int(d.trash.Fd()), as); !errors.Is(err, fs.ErrNotExist) { // left by a crash
			if err != nil {
				return err
			}
			continue
		}
		return sys.RenameAt(int(dir.Fd()), name, int(d.trash.Fd()), as)
	}
}

// below discards rel in a layer. It returns false where the layer has nothing of it.
func (d *discard) below(l Layer, rel string) (bool, error) {
	dir, p := d.b.Upper(l), l.Path
	up, err := openPlace(dir)
	if err != nil {
		return false, err
	}
	defer func() { up.Close() }()
	hides := false // nothing of the real directory shows through at up
	names := strings.Split(rel, "/")
	for i, name := range names {
		if hides { // so that the real one can show, in this one place
			if err := d.uncover(up, p); err != nil {
				return false, err
			}
			hides = false
		}
		is, err := stateAt(up, name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		p = path.Join(p, name)
		if i == len(names)-1 {
			return true, d.writable(up, func() error { return d.drop(up, name, p) })
		}
		if is.Type != core.TypeDir {
			what := "replaced"
			if whiteoutAt(up, name, is) {
				what = "deleted"
			}
			return false, core.Hint(fmt.Errorf("the box has %s %s, which it is in", what, p), "discard that")
		}
		sub, err := openBeneath(up, name, sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return false, err
		}
		up.Close()
		up = sub
		hides = Opaque(procName(up, "."))
	}
	return false, nil
}

// writable calls f while the caller may write in a directory.
func (d *discard) writable(dir *os.File, f func() error) error {
	is, err := stateAt(dir, "")
	if err != nil {
		return err
	}
	if is.Mode&0o300 == 0o300 {
		return f()
	}
	at := procName(dir, "")
	if err := syscall.Chmod(at, is.Mode|0o300); err != nil {
		return err
	}
	defer syscall.Chmod(at, is.Mode)
	return f()
}

// uncover turns an opaque directory of a layer into one that says the same by a whiteout for
// each name of the real directory that it hides: so one of them can be taken away. Until the
// last step nothing of that means anything.
func (d *discard) uncover(up *os.File, p string) error {
	real, err := openReal(p)
	if err != nil { // none: it hides nothing
		return nil
	}
	defer real.Close()
	list, err := openBeneath(real, "", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer list.Close()
	return d.writable(up, func() error {
		for more := true; more; {
			var ns []string
			if ns, more, err = names(list); err != nil {
				return err
			}
			for _, n := range ns {
				is, err := stateAt(up, n)
				switch {
				case errors.Is(err, fs.ErrNotExist):
					err = sys.MakeWhiteout(int(up.Fd()), n)
				case err == nil && is.Type == core.TypeDir: // below an opaque one it was so too
					err = sys.Lsetxattr(procName(up, n), "user.overlay.opaque", []byte("y"))
				}
				if err != nil {
					return err
				}
			}
		}
		return sys.Lremovexattr(procName(up, "."), "user.overlay.opaque")
	})
}

// sweep removes what is in the trash, however deep that is: a directory that is not empty
// has those in it renamed to the trash, so that nothing is ever more than two levels down.
func (d *discard) sweep() error {
	for {
		list, err := openBeneath(d.trash, "", syscall.O_RDONLY|syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		ns, err := list.Readdirnames(runOfNames)
		list.Close()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, n := range ns {
			if err := d.ctx.Err(); err != nil {
				return context.Cause(d.ctx) // the next Discard goes on with it
			}
			if err := d.remove(n); err != nil {
				return err
			}
		}
	}
}

func (d *discard) remove(name string) error {
	trash := int(d.trash.Fd())
	if err := sys.RemoveAt(trash, name, false); !errors.Is(err, syscall.EISDIR) {
		return err
	}
	dir, err := openBeneath(d.trash, name, sys.OPath|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := syscall.Chmod(procName(dir, ""), 0o700); err != nil {
		return err
	}
	list, err := openBeneath(dir, "", syscall.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer list.Close()
	for {
		ns, err := list.Readdirnames(1024)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for _, n := range ns {
			if err := d.ctx.Err(); err != nil {
				return context.Cause(d.ctx)
			}
			err := sys.RemoveAt(int(dir.Fd()), n, false)
			if errors.Is(err, syscall.EISDIR) {
				if err = sys.RemoveAt(int(dir.Fd()), n, true); errors.Is(err, syscall.ENOTEMPTY) {
					err = d.toTrash(dir, n, &core.FileState{Type: core.TypeDir})
				}
			}
			if err != nil {
				return err
			}
		}
	}
	if err := sys.RemoveAt(trash, name, true); !errors.Is(err, syscall.ENOTEMPTY) { // what the listing missed
		return err
	}
	return nil
}
