package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
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
func (b Dir) Level(ctx context.Context, dir, after string, limit int) (out core.ChangeLevel, err error) {
	v, err := b.view(ctx, dir)
	if err != nil {
		return out, err
	}
	defer v.close()
	for {
		names, err := v.names(after)
		if err != nil {
			return out, err
		}
		for _, n := range names {
			if len(out.Nodes) == limit || ctx.Err() != nil {
				out.More = true
				return out, nil
			}
			after, out.After = n, n
			node, err := v.node(n)
			if errors.Is(err, ctx.Err()) && err != nil {
				out.More = true
				return out, nil
			}
			if err != nil {
				return out, err
			}
			if node.Change != nil || node.Inside {
				out.Nodes = append(out.Nodes, node)
			}
		}
		if len(names) < namesAtOnce {
			return out, nil
		}
	}
}

// namesAtOnce is how many names of a directory are looked at before it is listed again for
// the next: a box can make any number of them.
const namesAtOnce = 4096

// Change returns what the box changed at one path; nil when nothing.
func (b Dir) Change(ctx context.Context, p string) (*core.Change, error) {
	if p == "/" {
		return nil, nil
	}
	v, err := b.view(ctx, path.Dir(p))
	if err != nil {
		return nil, err
	}
	defer v.close()
	n, err := v.node(path.Base(p))
	return n.Change, err
}

// view is one directory of a box: what its layers hold of it, over the real one.
type view struct {
	scan
	at     string  // the directory
	d      *folder // nil where the box has no such directory
	layers []Layer
	found  *core.Change // by the scan
}

func (v *view) close() {
	if v.d != nil {
		v.d.leave()
	}
	if v.top != nil {
		v.top.Close()
	}
}

func (b Dir) view(ctx context.Context, dir string) (*view, error) {
	if !path.IsAbs(dir) || path.Clean(dir) != dir {
		return nil, fmt.Errorf("%q is not a clean absolute path", core.Shorten(dir, 200))
	}
	v := &view{at: dir, scan: scan{b: b, ctx: ctx, flat: true, roots: map[string]bool{}, me: os.Geteuid()}}
	v.f = func(c *core.Change) error { v.found = c; return nil }
	var err error
	if v.layers, err = b.Layers(); err != nil {
		return nil, err
	}
	for _, l := range v.layers {
		v.roots[l.Path] = true
	}
	if v.masks, err = b.Masks(); err != nil {
		return nil, err
	}
	var rel string
	var ok bool
	if v.layer, rel, ok = Place(v.layers, dir); !ok {
		return v, nil
	}
	if err := v.descend(dir, rel); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// descend opens the directory in its layer, step by step, as a scan comes to it.
func (v *view) descend(dir, rel string) error {
	top, err := openPlace(v.b.Upper(v.layer))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	v.top = top
	d := &folder{path: dir}
	for p := dir; !d.masked; p = path.Dir(p) {
		d.masked = v.masks[p]
		if p == "/" {
			break
		}
	}
	at := v.layer.Path
	for _, name := range strings.Split(rel, "/") {
		if name == "" {
			break
		}
		at = path.Join(at, name)
		d.depth++
		here, err := openBeneath(v.top, below(at, v.layer.Path), sys.OPath|syscall.O_DIRECTORY)
		if err != nil { // not there, not a directory, or a link that the box has planted
			return nil
		}
		real, _ := openReal(at)
		d.hides = d.hides || real == nil || Opaque(procName(here, "."))
		here.Close()
		if real != nil {
			real.Close()
		}
	}
	if d.up, err = openBeneath(v.top, rel, sys.OPath|syscall.O_DIRECTORY); err != nil {
		return nil
	}
	d.real, _ = openReal(dir)
	is, err := stateAt(d.up, "")
	if err == nil {
		err = v.open(d, is)
	}
	if err != nil {
		d.leave()
		if rel == "" { // closed to this user outside, too: what there is, is in other layers
			return nil
		}
		return fmt.Errorf("list the box's %s: %w", dir, err)
	}
	v.d = d
	return nil
}

// names lists, sorted, the next names after one at which the directory may differ.
func (v *view) names(after string) ([]string, error) {
	var all []string
	for p := range v.roots { // the layers of folders further down
		if dir := v.at; p != dir && Under(p, dir) {
			n, _, _ := strings.Cut(below(p, dir), "/")
			all = append(all, n)
		}
	}
	all = firstAfter(after, all)
	if v.d == nil {
		return all, nil
	}
	lists := []*os.File{v.d.list}
	if v.d.hides && v.d.real != nil && !v.d.masked {
		if hidden, _ := openBeneath(v.d.real, "", syscall.O_RDONLY|syscall.O_DIRECTORY); hidden != nil {
			defer hidden.Close()
			lists = append(lists, hidden)
		}
	}
	for _, list := range lists {
		if _, err := list.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		for {
			ns, more, err := names(list)
			if err != nil {
				return nil, fmt.Errorf("list the box's %s: %w", v.d.path, err)
			}
			if all = firstAfter(after, append(all, ns...)); !more {
				break
			}
		}
	}
	return all, nil
}

// firstAfter sorts names and keeps the first of those after one.
func firstAfter(after string, names []string) []string {
	names = slices.DeleteFunc(names, func(n string) bool { return n <= after })
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), namesAtOnce)]
}

func (v *view) node(name string) (core.ChangeNode, error) {
	p := path.Join(v.at, name)
	n := core.ChangeNode{Name: name}
	for _, l := range v.layers { // its own layer, or those of what is below it
		n.Inside = n.Inside || Under(l.Path, p) && filled(v.b.Upper(l))
	}
	v.found = nil
	if v.roots[p] {
		return v.rootNode(n, p)
	}
	if v.d == nil {
		return n, nil
	}
	if err := v.entry(v.d, name, p); err != nil {
		return n, err
	}
	n.Change = v.found
	if is, err := stateAt(v.d.up, name); err == nil && is.Type == core.TypeDir {
		up := procName(v.d.up, name)
		n.Inside = n.Inside || filled(up) || Opaque(up) && v.d.real != nil && !v.masks[p] && filled(procName(v.d.real, name))
	}
	return n, nil
}

// rootNode is the node of a directory that has a layer of its own.
func (v *view) rootNode(n core.ChangeNode, p string) (core.ChangeNode, error) {
	for _, l := range v.layers {
		if l.Path != p {
			continue
		}
		s := v.scan
		s.top, s.f = nil, v.f
		if err := s.scanLayer(l); err != nil {
			return n, err
		}
	}
	n.Change = v.found
	return n, nil
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

// XattrsOf returns the extended attributes of the box's own version of a path, or of the
// real one.
func (b Dir) XattrsOf(ctx context.Context, p string, own bool) map[string][]byte {
	dir := path.Dir(p)
	if !own {
		real, err := openReal(dir)
		if err != nil {
			return nil
		}
		defer real.Close()
		return Xattrs(procName(real, path.Base(p)))
	}
	v, err := b.view(ctx, dir)
	if err != nil {
		return nil
	}
	defer v.close()
	if v.d == nil || v.roots[p] {
		return nil
	}
	return Xattrs(procName(v.d.up, path.Base(p)))
}
