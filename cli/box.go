package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
)

// boxFile is box.json.
type boxFile struct {
	Version int `json:"version"`
	core.Box
}

const (
	boxVersion = 1
	maxBoxFile = 64 << 10
)

// errNoBox says how to go on when there is no box of a name.
func errNoBox(name string) error {
	return core.Hint(fmt.Errorf("box %q: %w", name, core.ErrNotFound), "`sandglass box ls` lists the boxes; `sandglass box create "+name+"` makes this one")
}

// Box reads a box's metadata. The error is core.ErrNotFound when there is none.
func (h Home) Box(name string) (core.Box, error) {
	if err := core.CheckBoxName(name); err != nil {
		return core.Box{}, err
	}
	path := h.path("boxes", name, "box.json")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return core.Box{}, errNoBox(name)
	}
	if err != nil {
		return core.Box{}, fmt.Errorf("box %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBoxFile))
	if err != nil {
		return core.Box{}, fmt.Errorf("box %s: %w", name, err)
	}
	var b boxFile
	if err := json.Unmarshal(data, &b); err != nil {
		return core.Box{}, core.Hint(fmt.Errorf("box %s: %w: read %s: %w", name, errBoxFile, path, err), "`sandglass box repair "+name+"` makes it anew; `sandglass box rm "+name+"` removes the box with everything in it")
	}
	if b.Version != boxVersion {
		return core.Box{}, core.Hint(fmt.Errorf("box %s: version %d of box.json is unknown", name, b.Version), "a newer sandglass made this box: use that one")
	}
	if b.Name != name {
		return core.Box{}, fmt.Errorf("box %s: %s is of a box named %q", name, path, core.Shorten(b.Name, 80))
	}
	return b.Box, nil
}

// CreateBox makes a box, or returns the one that is there already (made false).
func (h Home) CreateBox(name, policy string, now time.Time) (b core.Box, made bool, err error) {
	if b, err = h.Box(name); !errors.Is(err, core.ErrNotFound) {
		return b, false, err
	}
	l, err := lockFile(h.lock(name), lockTry)
	for errors.Is(err, errLocked) {
		// Who holds it makes or removes the box, or looks whether it is there; or has made
		// it in this moment and runs in it for as long as it likes: that is not waited for.
		var shared *fileLock
		if shared, err = lockFile(h.lock(name), lockShared); err != nil {
			break
		}
		b, err = h.Box(name)
		shared.Unlock()
		if !errors.Is(err, core.ErrNotFound) {
			return b, false, err
		}
		l, err = lockFile(h.lock(name), lockTry)
	}
	if err != nil {
		return b, false, homeHint(fmt.Errorf("create box %s: %w", name, err))
	}
	defer l.Unlock()
	if b, err = h.Box(name); !errors.Is(err, core.ErrNotFound) {
		return b, false, err
	}
	b = core.Box{Name: name, Policy: policy, Created: now.UTC()}
	dir := h.box(name)
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) { // a making or a removal that was cut short
		err = nil
	}
	if err == nil {
		err = h.writeBox(b)
	}
	if err != nil {
		os.Remove(dir)
		return b, false, homeHint(fmt.Errorf("create box %s: %w", name, err))
	}
	return b, true, nil
}

// writeBox writes a box's metadata.
func (h Home) writeBox(b core.Box) error {
	data, err := json.MarshalIndent(boxFile{boxVersion, b}, "", "  ")
	if err != nil {
		return err
	}
	return writeAtomic(h.path("boxes", b.Name, "box.json"), append(data, '\n'))
}

// UseBox is CreateBox for a session: the box cannot be removed until the lock, which any
// number of sessions share, is given back.
func (h Home) UseBox(name, policy string, now time.Time) (b core.Box, made bool, l *fileLock, err error) {
	for {
		l, err := lockFile(h.lock(name), lockShared)
		if err != nil {
			return b, false, nil, homeHint(fmt.Errorf("use box %s: %w", name, err))
		}
		b, err := h.Box(name)
		if err == nil {
			return b, made, l, nil
		}
		if errors.Is(err, errBoxFile) { // the driver opens it read-only
			return core.Box{Name: name, Policy: policy, Created: now.UTC()}, false, l, nil
		}
		l.Unlock()
		if !errors.Is(err, core.ErrNotFound) {
			return b, false, nil, err
		}
		if _, made, err = h.CreateBox(name, policy, now); err != nil {
			return b, false, nil, err
		}
	}
}

// RemoveBox removes a box with everything in it, unless a session runs there. remove
// removes the box's folder.
func (h Home) RemoveBox(name string, remove func(dir string) error) error {
	if err := core.CheckBoxName(name); err != nil {
		return err
	}
	dir := h.box(name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return errNoBox(name)
	}
	l, err := lockFile(h.lock(name), lockTry)
	if errors.Is(err, errLocked) {
		return core.Hint(fmt.Errorf("remove box %s: a session runs in it", name), "`sandglass box show "+name+"` says which; end it first")
	}
	if err == nil {
		// box.json goes first: what is left of a removal that is cut short is no box.
		if err = os.Remove(h.path("boxes", name, "box.json")); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = remove(dir)
		}
		if err == nil {
			l.Remove()
			return nil
		}
		l.Unlock()
	}
	return fmt.Errorf("remove box %s: %w", name, err)
}

// BoxNames lists the boxes, sorted.
func (h Home) BoxNames() ([]string, error) {
	es, err := os.ReadDir(h.boxes())
	if err != nil {
		return nil, fmt.Errorf("list boxes: %w", err)
	}
	names := []string{}
	for _, e := range es {
		if core.CheckBoxName(e.Name()) != nil {
			continue
		}
		if _, err := os.Lstat(h.path("boxes", e.Name(), "box.json")); err == nil {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// removeLayers removes what a box holds, and its folder.
func removeLayers(dir string) error { return layers.Dir(dir).Remove() }
