package layers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/settings"
)

// Settings says which settings differ where c is a change of a file of them. ok is false when
// it is none, or one that cannot be read as such: then the file is bytes.
func (b Dir) Settings(c *core.Change) (cs []settings.Change, kind string, ok bool, err error) {
	was, wasKind, wasOK, err := b.database(c.Path, c.Was, false)
	if err != nil || !wasOK {
		return nil, "", false, err
	}
	is, isKind, isOK, err := b.database(c.Path, c.Is, true)
	if err != nil || !isOK || wasKind == "" && isKind == "" || wasKind != "" && isKind != "" && wasKind != isKind {
		return nil, "", false, err
	}
	if kind = isKind; kind == "" {
		kind = wasKind
	}
	return settings.Compare(was, is), kind, true, nil
}

// database reads one version of a file of settings: none, of no kind, where there is no file.
func (b Dir) database(path string, s *core.FileState, own bool) (db settings.Database, kind string, ok bool, err error) {
	if s == nil {
		return nil, "", true, nil
	}
	if s.Type != core.TypeFile || s.Size > settings.MaxFile {
		return nil, "", false, nil
	}
	f, _, err := b.Open(path, own)
	if errors.Is(err, fs.ErrNotExist) { // gone since, or only its attributes differ
		return nil, "", false, nil
	}
	if err != nil {
		return nil, "", false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, settings.MaxFile+1))
	if err != nil {
		return nil, "", false, fmt.Errorf("read %s: %w", path, err)
	}
	db, kind, ok = settings.Decode(path, data)
	return db, kind, ok, nil
}
