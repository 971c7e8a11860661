package layers

import (
	"encoding/binary"
	"errors"
	"hash"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// removeTree removes name in the directory dirfd with all that is in it, following no link
// and leaving the file system at no mount point. Directories that are closed to their owner
// are opened first.
func removeTree(dirfd int, name string) error {
	err := sys.RemoveAt(dirfd, name, false)
	if !errors.Is(err, syscall.EISDIR) {
		return err
	}
	fd, err := openToChange(dirfd, name)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	for {
		names, rerr := d.Readdirnames(256)
		for _, n := range names {
			if err := removeTree(fd, n); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if len(names) == 0 {
			if rerr != nil && rerr != io.EOF {
				return rerr
			}
			break
		}
	}
	return sys.RemoveAt(dirfd, name, true)
}

// openToChange opens a directory to list it and change what is in it.
func openToChange(dirfd int, name string) (int, error) {
	st, err := sys.StatAt(dirfd, name)
	if err != nil {
		return -1, err
	}
	if st.Mode&0o700 != 0o700 {
		place, err := sys.OpenBeneath(dirfd, name, sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return -1, err
		}
		err = sys.ChmodFD(place, st.Mode&0o7777|0o700)
		sys.CloseFD(place)
		if err != nil {
			return -1, err
		}
	}
	return sys.SameMountDir(dirfd, name)
}

// treeState tells one state of all that is below a real directory from another one.
type treeState struct {
	Sum  uint64
	Last time.Time // the latest change of anything in it
}

// errMounted says that something is mounted below a directory.
var errMounted = errors.New("a file system is mounted in it")

// stateOfTree walks the real directory name in dirfd.
func stateOfTree(dirfd int, name string) (treeState, error) {
	h := fnv.New64a()
	t := treeState{}
	err := t.walk(h, dirfd, name)
	t.Sum = h.Sum64()
	return t, err
}

func (t *treeState) walk(h hash.Hash64, dirfd int, name string) error {
	fd, err := sys.SameMountDir(dirfd, name)
	if errors.Is(err, syscall.EXDEV) {
		return errMounted
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	var sum uint64 // the order of a directory is nobody's promise
	for _, n := range names {
		st, err := sys.StatAt(fd, n)
		if err != nil {
			return &fs.PathError{Op: "lstat", Path: path.Join(name, n), Err: err}
		}
		one := fnv.New64a()
		one.Write([]byte(n))
		changed := st.Ctim.Nano()
		if st.Nlink > 1 && st.Mode&syscall.S_IFMT != syscall.S_IFDIR { // the rename of another of its names is one
			changed = st.Mtim.Nano()
		}
		for _, v := range []int64{int64(st.Ino), int64(st.Mode), st.Size, changed} {
			binary.Write(one, binary.LittleEndian, v)
		}
		sum += one.Sum64()
		if c := time.Unix(st.Ctim.Unix()); c.After(t.Last) {
			t.Last = c
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			if err := t.walk(h, fd, n); err != nil {
				return err
			}
		}
	}
	return binary.Write(h, binary.LittleEndian, sum)
}
