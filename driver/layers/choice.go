package layers

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// selection is which changes of a box a commit is about, and what it leaves in the layers.
type selection struct {
	x      *commit
	all    []core.Change // parents first
	of     []choice      // of all
	hiding map[string]string
	partly map[string]bool // opaque directories of which something stays in the box
}

type choice struct {
	in     bool
	parted bool // a directory of which something stays in the box
}

// choose marks what is chosen: what the paths name, and the new directories on the way.
func (s *selection) choose() error {
	found := make([]bool, len(s.x.o.Paths))
	var way []int // the new directories that we are in
	for i := range s.all {
		c := &s.all[i]
		for len(way) > 0 && !Under(c.Path, s.all[way[len(way)-1]].Path) {
			way = way[:len(way)-1]
		}
		named := len(s.x.o.Paths) == 0
		for k, p := range s.x.o.Paths {
			if Under(c.Path, p) {
				named, found[k] = true, true
			}
		}
		if len(way) > 0 && c.Kind == core.Deleted { // of what the directory takes the place of
			continue
		}
		if named && s.skip(c) {
			named = false
		}
		if named {
			s.of[i].in = true
			for _, d := range way {
				s.of[d].in = true
			}
		} else if !fresh(c) {
			s.stays(c, way)
		}
		if fresh(c) {
			way = append(way, i)
		}
	}
	way = way[:0]
	for i := range s.all { // new directories that nothing below needed
		c := &s.all[i]
		for len(way) > 0 && !Under(c.Path, s.all[way[len(way)-1]].Path) {
			way = way[:len(way)-1]
		}
		if !fresh(c) {
			continue
		}
		if !s.of[i].in {
			s.stays(c, way)
		}
		way = append(way, i)
	}
	for k, ok := range found {
		if !ok {
			return core.Hint(fmt.Errorf("%s: the box has changed nothing there", s.x.o.Paths[k]), "`sandglass diff "+filepath.Base(string(s.x.b))+"` lists what it changed")
		}
	}
	return nil
}

// stays notes that a change stays in the box, below the new directories way.
func (s *selection) stays(c *core.Change, way []int) {
	for _, d := range way {
		s.of[d].parted = true
	}
	if h := s.hider(path.Dir(c.Path)); h != "" {
		s.partly[h] = true
	}
}

// skip leaves out what no commit can or may apply, and says so in the report.
func (s *selection) skip(c *core.Change) bool {
	say := func(why string) bool {
		s.x.report.Skipped = append(s.x.report.Skipped, Conflict{Path: c.Path, Why: why})
		return true
	}
	if m, ok := s.mask(c.Path); ok {
		switch {
		case !slices.ContainsFunc(s.x.o.Paths, func(p string) bool { return Under(p, m) }):
			return say("a private place, which the box never saw: name it to commit it")
		case c.Kind == core.Deleted:
			return say("a private place: what is there the box never saw")
		case c.Kind == core.Modified:
			s.x.conflict(c.Path, "a private place: the box never saw the real "+thing(c.Was), false)
		}
	}
	if c.Was != nil && c.Was.Type == core.TypeDir && (c.Is == nil || c.Is.Type != core.TypeDir) {
		if m := s.maskBelow(c.Path); m != "" { // naming it does not help: it goes with the rest
			return say("a private place is in it, which the box never saw: " + m)
		}
	}
	if c.Is != nil {
		switch c.Is.Type {
		case core.TypeSocket:
			return say("a socket: nobody listens on it any more")
		case core.TypeDevice:
			return say("a device")
		}
	}
	// A box of an ordinary user shows directories of others as its own, with the bits of
	// what the user may do in them.
	if c.Kind == core.Modified && c.Unread == "" && c.Was.Type == core.TypeDir && c.Is.Type == core.TypeDir && os.Geteuid() != 0 && c.Was.UID != os.Geteuid() {
		return say("a directory of another user, whose mode and owner are not yours to change")
	}
	return false
}

// maskBelow finds a private place that is there, below a path.
func (s *selection) maskBelow(p string) string {
	for _, m := range slices.Sorted(maps.Keys(s.x.masks)) {
		if m != p && Under(m, p) {
			if _, err := os.Lstat(m); err == nil {
				return m
			}
		}
	}
	return ""
}

// mask finds the private place that a path is in.
func (s *selection) mask(p string) (string, bool) {
	for ; ; p = path.Dir(p) {
		if s.x.masks[p] {
			return p, true
		}
		if p == "/" || p == "." {
			return "", false
		}
	}
}

// hider returns the topmost directory, at or above dir in its layer, by which the box hides
// all that the real one has; "" when there is none.
func (s *selection) hider(dir string) string {
	if h, ok := s.hiding[dir]; ok {
		return h
	}
	l, rel := s.x.place(dir)
	h := ""
	if rel != "" {
		if h = s.hider(path.Dir(dir)); h == "" && Opaque(filepath.Join(s.x.b.Upper(l), rel)) {
			if real, err := Lstat(dir); err == nil && real.Type == core.TypeDir {
				h = dir
			}
		}
	}
	s.hiding[dir] = h
	return h
}

// release notes in the journal what the layers are to lose when all is applied.
func (s *selection) release() {
	revealed := map[string]bool{}
	whole := "" // a new directory that goes as one
	for i := range s.all {
		c := &s.all[i]
		if !s.of[i].in || whole != "" && Under(c.Path, whole) {
			continue
		}
		if h := s.hider(path.Dir(c.Path)); h != "" {
			// While it stays opaque, what it has not got is deleted: so it keeps what it has.
			if s.partly[h] {
				continue
			}
			if !revealed[h] {
				revealed[h] = true
				l, rel := s.x.place(h)
				s.x.j.Upper = append(s.x.j.Upper, held{Layer: l.Dir, Rel: []byte(rel), Dir: true, Reveal: true})
			}
		}
		l, rel := s.x.place(c.Path)
		e := held{Layer: l.Dir, Rel: []byte(rel)}
		if c.Is != nil && c.Is.Type == core.TypeDir {
			e.Dir, e.Reveal = true, fresh(c)
			if e.Whole = fresh(c) && !s.of[i].parted; e.Whole {
				whole = c.Path
			}
		}
		s.x.j.Upper = append(s.x.j.Upper, e)
	}
}

// layer finds a layer by its folder.
func (x *commit) layer(dir string) (Layer, bool) {
	i := slices.IndexFunc(x.ls, func(l Layer) bool { return l.Dir == dir })
	if i < 0 || strings.ContainsAny(dir, "/") {
		return Layer{}, false
	}
	return x.ls[i], true
}
