package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Open opens the box's own version of a regular file, or the real one, to read it. Neither
// through a symbolic link on the whole way, so that no link of the box's leads to a file that
// is not the box's. What is not a regular file is not opened. The box has a version of its own
// only of what it changed: fs.ErrNotExist else. The caller closes the file.
func (b Dir) Open(p string, own bool) (*os.File, *core.FileState, error) {
	if !path.IsAbs(p) || path.Clean(p) != p {
		return nil, nil, fmt.Errorf("open %q: not a clean absolute path", p)
	}
	top, rel := "/", below(p, "/")
	if own {
		ls, err := b.Layers()
		if err != nil {
			return nil, nil, err
		}
		l, r, ok := Place(ls, p)
		if !ok {
			return nil, nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
		}
		top, rel = b.Upper(l), r
	}
	f, is, err := openIn(top, rel, own)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: p, Err: bare(err)}
	}
	return f, is, nil
}

// openIn opens a regular file below a directory: first as a place, to see what it is.
func openIn(top, rel string, own bool) (*os.File, *core.FileState, error) {
	dir, err := openPlace(top)
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	place, err := openBeneath(dir, rel, sys.OPath)
	if err != nil {
		return nil, nil, err
	}
	defer place.Close()
	is, err := stateAt(place, "")
	if err != nil {
		return nil, nil, err
	}
	switch is.Type {
	case core.TypeFile:
	case core.TypeDevice:
		if own { // a whiteout
			return nil, nil, fs.ErrNotExist
		}
		fallthrough
	default:
		return nil, nil, errors.New("not a regular file")
	}
	f, err := openRead(procName(place, ""))
	if own && errors.Is(err, fs.ErrPermission) {
		f, err = readClosed(place, is)
	}
	return f, is, err
}

// openRead opens what was looked at before, and leaves its access time where that is the
// caller's to say.
func openRead(p string) (*os.File, error) {
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOATIME, 0)
	if errors.Is(err, syscall.EPERM) { // not the owner
		f, err = os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	return f, err
}

// readClosed opens a regular file of a layer that its owner, who is the caller, may not
// read: with another mode for that moment.
func readClosed(place *os.File, is *core.FileState) (*os.File, error) {
	at := procName(place, "")
	if err := syscall.Chmod(at, is.Mode|0o400); err != nil {
		return nil, err
	}
	defer syscall.Chmod(at, is.Mode)
	return openRead(at)
}
