package layers

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/sandglass/sandglass/core"
)

// A commit that is undone leaves the real files as they were, but for their change time,
// which nobody can set back; and where what the box has of a committed path must stay in
// its layer, the real file is younger than that. So that the next commit does not take
// either for somebody else's doing, the states that commits themselves left are on record,
// in commit/known.

type knownFile struct {
	Path  []byte         `json:"path"`
	State core.FileState `json:"state"`
}

func (b Dir) known() (map[string]*core.FileState, error) {
	var fs []knownFile
	if err := b.readJSON("commit/known", &fs); err != nil {
		return nil, err
	}
	out := map[string]*core.FileState{}
	for i := range fs {
		out[string(fs[i].Path)] = &fs[i].State
	}
	return out, nil
}

func (b Dir) writeKnown(m map[string]*core.FileState) error {
	if len(m) == 0 {
		err := os.Remove(b.At("commit", "known"))
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	fs := make([]knownFile, 0, len(m))
	for p, s := range m {
		fs = append(fs, knownFile{[]byte(p), *s})
	}
	data, err := json.Marshal(fs)
	if err != nil {
		return err
	}
	return WriteAtomic(b.At("commit", "known"), data, 0o600)
}

// noteUndone records what was put back, where it is what was planned with.
func (x *commit) noteUndone() error {
	if x.j.Force { // what was planned with may be somebody else's
		return nil
	}
	m, err := x.b.known()
	if err != nil {
		return err
	}
	for i := range x.j.Steps {
		s := &x.j.Steps[i]
		p := x.j.path(s)
		if is, err := Lstat(p); s.State != nil && err == nil && alike(is, s.State) {
			m[p] = is
		}
	}
	return x.b.writeKnown(m)
}

// noteDone records what a commit has made, where the box's layer still has its own.
func (x *commit) noteDone() error {
	m, err := x.b.known()
	if err != nil {
		return err
	}
	for i := range x.j.Steps {
		s := &x.j.Steps[i]
		p := x.j.path(s)
		delete(m, p)
		l, rel, ok := Place(x.ls, p)
		if !ok || s.Op == opRemove {
			continue
		}
		own, err := Lstat(filepath.Join(x.b.Upper(l), rel))
		if err != nil {
			continue
		}
		if is, err := Lstat(p); err == nil && (is.Type == core.TypeDir && own.Type == core.TypeDir || alike(is, own)) {
			m[p] = is
		}
	}
	return x.b.writeKnown(m)
}

// alike says whether two states are of the same content, as far as that shows.
func alike(a, b *core.FileState) bool {
	return a.Type == b.Type && a.Size == b.Size && a.MTime.Equal(b.MTime) && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID
}
