package layers

import (
	"path"
	"path/filepath"
	"time"

	"github.com/sandglass/sandglass/core"
)

// maxMoved bounds what is written down of one tree that is copied, maxMovedDepth how deep it is.
const (
	maxMoved      = 1 << 20
	maxMovedDepth = 512
)

// Moves is Rename for a tree that cannot be renamed, as real directories cannot: from is
// about to be copied to to, which is not there yet, and then emptied and removed. The box's
// own files are not copied but get their new name beside the old one, and stay the same
// files: so each of them is a rename, and their content need not be kept. All else that the
// upper layer has below from is written down as what goes.
func (h *History) Moves(t time.Time, from, to string) {
	h.use.RLock()
	defer h.use.RUnlock()
	if h.fds == nil {
		return
	}
	i, rel, ok := h.place(from)
	j, rel2, ok2 := h.place(to)
	if !ok || !ok2 || rel == "" || rel2 == "" || i != j {
		return
	}
	h.parents(t, i, rel)
	h.parents(t, i, rel2)
	was, _ := h.look(i, rel2, to, false)
	h.append(&record{kind: recTouch, time: t, path: to, was: was})
	left := maxMoved
	if !h.moves(t, i, rel, from, to, &left, 0) {
		h.append(&record{kind: recGap, time: time.Now(), why: "a directory with very many files, or very deep, was renamed"})
	}
	h.forget()
}

// moves writes down what is in a directory before the directory itself: undoing goes the
// other way. It returns false when there is too much.
func (h *History) moves(t time.Time, i int, rel, from, to string, left *int, depth int) bool {
	if *left--; *left < 0 || depth > maxMovedDepth {
		return false
	}
	was, _ := h.look(i, rel, from, false)
	was.meta = true
	switch {
	case depth > 0 && was.kind == absent: // gone this moment
		return true
	case was.kind == present && was.state.Type == core.TypeFile:
		h.append(&record{kind: recRename, time: t, path: from, path2: to, was: was})
		return true
	case was.kind == present && was.state.Type == core.TypeDir:
		d, err := h.b.openDir(filepath.Join(h.b.Upper(h.layers[i]), rel))
		if err != nil {
			return false
		}
		defer d.Close()
		for {
			ents, err := d.ReadDir(256)
			for _, e := range ents {
				if !h.moves(t, i, path.Join(rel, e.Name()), path.Join(from, e.Name()), path.Join(to, e.Name()), left, depth+1) {
					return false
				}
			}
			if err != nil { // the end
				break
			}
		}
	}
	h.append(&record{kind: recTouch, time: t, path: from, was: was})
	return true
}
