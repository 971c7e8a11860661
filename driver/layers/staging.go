package layers

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// link is where a file with several names in the box is staged.
type link struct {
	dir  int    // of the journal
	path string // below it
}

// stage writes all new content beside its targets, and to the disk.
func (x *commit) stage() error {
	for i := range x.j.Dirs {
		if d := &x.j.Dirs[i]; d.Open {
			fd, err := x.dirs.open(i)
			if err != nil {
				return err
			}
			x.at("open a directory to its owner")
			if err := sys.ChmodFD(fd, d.Mode|0o700); err != nil {
				return &fs.PathError{Op: "chmod", Path: string(d.Path), Err: err}
			}
		}
	}
	for i := range x.works {
		w := &x.works[i]
		if w.s.Op == opPlace || w.s.Op == opReplace {
			if err := x.stageStep(i, w); err != nil {
				return err
			}
		}
		if w.s.Op != opPlace && w.s.Op != opReplace {
			x.tell()
		}
	}
	return x.sync()
}

func (x *commit) tell() {
	x.done++
	if x.o.Progress != nil {
		x.o.Progress(x.done, len(x.report.Changes))
	}
}

func (x *commit) stageStep(i int, w *work) error {
	dir, err := x.dirs.open(w.s.Dir)
	if err != nil {
		return err
	}
	if err := x.dirs.same(w.s.Dir); err != nil {
		return err
	}
	name := x.j.fresh(i)
	if !fresh(w.change) {
		err = x.make(dir, name, link{w.s.Dir, name}, w.change)
	} else {
		err = x.makeDir(dir, name, w)
	}
	if err != nil {
		return err
	}
	w.s.New, err = identOf(dir, name)
	x.j.Steps[i].New = w.s.New
	return failure("lstat", w.change.Path, err)
}

// failure names the path that is being committed, nil when err is.
func failure(op, p string, err error) error {
	var pe *fs.PathError
	if err == nil || errors.As(err, &pe) && pe.Path == p {
		return err
	}
	return &fs.PathError{Op: op, Path: p, Err: err}
}

// makeDir makes a new directory with all that comes in it. What is open in it at a time is
// one descriptor for each level.
func (x *commit) makeDir(dir int, name string, w *work) error {
	type level struct {
		fd     int
		change *core.Change
		path   string // as it is staged, below the real directory
	}
	var levels []level
	defer func() {
		for _, l := range levels {
			sys.CloseFD(l.fd)
		}
	}()
	enter := func(at int, name, staged string, c *core.Change) error {
		x.at("make directory " + c.Path)
		if err := sys.MakeDir(at, name, 0o700); err != nil {
			return &fs.PathError{Op: "mkdir", Path: c.Path, Err: err}
		}
		fd, err := sys.OpenBeneath(at, name, sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return &fs.PathError{Op: "open", Path: c.Path, Err: err}
		}
		levels = append(levels, level{fd, c, staged})
		return nil
	}
	leave := func() error {
		l := levels[len(levels)-1]
		levels = levels[:len(levels)-1]
		defer sys.CloseFD(l.fd)
		x.tell()
		return x.dress(l.fd, l.change)
	}
	if err := enter(dir, name, name, w.change); err != nil {
		return err
	}
	for _, c := range w.inside {
		for !Under(c.Path, levels[len(levels)-1].change.Path) {
			if err := leave(); err != nil {
				return err
			}
		}
		top := levels[len(levels)-1]
		base := path.Base(c.Path)
		var err error
		if c.Is.Type == core.TypeDir {
			err = enter(top.fd, base, top.path+"/"+base, c)
		} else {
			err = x.make(top.fd, base, link{w.s.Dir, top.path + "/" + base}, c)
		}
		if err != nil {
			return err
		}
	}
	for len(levels) > 0 {
		if err := leave(); err != nil {
			return err
		}
	}
	return nil
}

// make makes a copy of what the box has at a path, no directory, as name in dir.
func (x *commit) make(dir int, name string, at link, c *core.Change) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	defer x.tell()
	switch c.Is.Type {
	case core.TypeFile:
		return x.makeFile(dir, name, at, c)
	case core.TypeSymlink:
		x.at("make symbolic link " + c.Path)
		if err := sys.MakeSymlink(c.Is.Link, dir, name); err != nil {
			return &fs.PathError{Op: "symlink", Path: c.Path, Err: err}
		}
		if err := sys.OwnAt(dir, name, c.Is.UID, c.Is.GID); err != nil && !errors.Is(err, syscall.EPERM) {
			return &fs.PathError{Op: "chown", Path: c.Path, Err: err}
		}
		t := c.Is.MTime.UnixNano()
		return failure("utimensat", c.Path, sys.TimesAt(dir, name, t, t))
	case core.TypeFIFO:
		x.at("make FIFO " + c.Path)
		if err := sys.MakeNode(dir, name, syscall.S_IFIFO, 0o600); err != nil {
			return &fs.PathError{Op: "mkfifo", Path: c.Path, Err: err}
		}
		fd, err := sys.OpenBeneath(dir, name, sys.OPath)
		if err != nil {
			return &fs.PathError{Op: "open", Path: c.Path, Err: err}
		}
		defer sys.CloseFD(fd)
		return x.dress(fd, c)
	}
	return &fs.PathError{Op: "make", Path: c.Path, Err: errors.ErrUnsupported}
}

func (x *commit) makeFile(dir int, name string, at link, c *core.Change) error {
	const how = syscall.O_RDONLY | syscall.O_NONBLOCK
	src, err := x.openOwn(c.Path, how|syscall.O_NOATIME) // a read that shows is one from outside
	if errors.Is(err, syscall.EPERM) {
		src, err = x.openOwn(c.Path, how)
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: c.Path, Err: err}
	}
	in := os.NewFile(uintptr(src), c.Path)
	defer in.Close()
	st, err := sys.StatAt(src, "")
	if err == nil && (st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Ino != c.Is.Inode || st.Size != c.Is.Size) {
		err = errors.New("the box's version changes in this moment")
	}
	if err != nil {
		return failure("open", c.Path, err)
	}
	key := ident{Ino: st.Ino, Born: int64(st.Dev)}
	if st.Nlink > 1 {
		if first, ok := x.linked[key]; ok {
			if done, err := x.linkTo(first, dir, name, c); done || err != nil {
				return err
			}
		}
	}
	x.at("make file " + c.Path)
	out, err := sys.CreateAt(dir, name)
	if err != nil {
		return &fs.PathError{Op: "create", Path: c.Path, Err: err}
	}
	defer out.Close()
	x.at("fill file " + c.Path)
	if err := x.copy(out, in, st.Size); err != nil {
		return &fs.PathError{Op: "write", Path: c.Path, Err: bare(err)}
	}
	if err := x.dress(int(out.Fd()), c); err != nil {
		return err
	}
	if st.Nlink > 1 {
		x.linked[key] = at
	}
	return failure("close", c.Path, out.Close())
}

// bare takes the path of a staged file out of an error.
func bare(err error) error {
	var p *fs.PathError
	var s *os.SyscallError
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &s):
		return s.Err
	}
	return err
}

// linkTo makes another name of a file that is staged. done is false where the two places
// can have no file in common: then it is copied.
func (x *commit) linkTo(first link, dir int, name string, c *core.Change) (done bool, err error) {
	fd, err := x.dirs.find(first.dir)
	if err != nil {
		return false, err
	}
	defer sys.CloseFD(fd)
	from, base := fd, first.path
	if d := path.Dir(first.path); d != "." {
		if from, err = sys.OpenBeneath(fd, d, sys.OPath|syscall.O_DIRECTORY); err != nil {
			return false, &fs.PathError{Op: "open", Path: c.Path, Err: err}
		}
		defer sys.CloseFD(from)
		base = path.Base(first.path)
	}
	x.at("link file " + c.Path)
	err = sys.LinkAt(from, base, dir, name)
	if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EMLINK) || errors.Is(err, syscall.EPERM) {
		return false, nil
	}
	return err == nil, failure("link", c.Path, err)
}

// copy copies size bytes, sharing blocks where the file system can, and leaving holes holes.
func (x *commit) copy(out, in *os.File, size int64) error {
	if sys.CloneFile(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	const chunk = 64 << 20
	for off := int64(0); off < size; {
		begin, end, ok, err := sys.NextData(int(in.Fd()), off, size)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if _, err := in.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		for begin < end {
			if err := x.ctx.Err(); err != nil {
				return err
			}
			n, err := io.CopyN(out, in, min(chunk, end-begin))
			if err != nil {
				return err
			}
			begin += n
		}
		off = max(end, off+1)
	}
	return out.Truncate(size)
}

// upper opens a layer's upper directory.
func (x *commit) upper(l Layer) (int, error) {
	if fd, ok := x.uppers[l.Dir]; ok {
		return fd, nil
	}
	fd, err := sys.OpenPath(-1, x.b.Upper(l), syscall.O_DIRECTORY|syscall.O_NOFOLLOW)
	if err == nil {
		x.uppers[l.Dir] = fd
	}
	return fd, err
}

// openOwn opens the box's version of a path, following no link.
func (x *commit) openOwn(p string, flags int) (int, error) {
	l, rel := x.place(p)
	fd, err := x.upper(l)
	if err != nil {
		return -1, err
	}
	return sys.OpenBeneath(fd, rel, flags)
}

// dress gives what is staged the owner, attributes, mode and times of the box's version.
func (x *commit) dress(fd int, c *core.Change) error {
	src, err := x.openOwn(c.Path, sys.OPath)
	if err != nil {
		return &fs.PathError{Op: "open", Path: c.Path, Err: err}
	}
	defer sys.CloseFD(src)
	m, err := metaOf(src)
	if err != nil {
		return failure("getxattr", c.Path, err)
	}
	st, err := sys.StatAt(src, "")
	if err != nil {
		return failure("lstat", c.Path, err)
	}
	x.at("dress " + c.Path)
	if err := m.set(fd); err != nil {
		return failure("chmod", c.Path, err)
	}
	return failure("utimensat", c.Path, sys.TimesFD(fd, st.Atim.Nano(), st.Mtim.Nano()))
}

// metaOf reads mode, owner and attributes.
func metaOf(fd int) (*meta, error) {
	st, err := sys.StatAt(fd, "")
	if err != nil {
		return nil, err
	}
	m := &meta{Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid)}
	if m.Xattrs, err = sys.XattrsFD(fd); err != nil {
		return nil, err
	}
	for n := range m.Xattrs {
		if overlays(n) {
			delete(m.Xattrs, n)
		}
	}
	return m, nil
}

// overlays says whether an attribute is the overlay's own.
func overlays(name string) bool {
	return strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "trusted.overlay.")
}

// set changes what fd is open on to be as m says, as far as the caller may: an owner that
// he may not give stays, and then the set-ID bits, which would be another's, are left out.
// What a security module thinks of a file is its own affair.
func (m *meta) set(fd int) error {
	st, err := sys.StatAt(fd, "")
	if err != nil {
		return err
	}
	mode := m.Mode
	if int(st.Uid) != m.UID || int(st.Gid) != m.GID {
		if err = sys.OwnFD(fd, m.UID, m.GID); errors.Is(err, syscall.EPERM) {
			if int(st.Uid) != m.UID {
				mode &^= 0o4000
			}
			if int(st.Gid) != m.GID {
				if err := sys.OwnFD(fd, -1, m.GID); err != nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
					mode &^= 0o2000
				}
			}
		} else if err != nil {
			return err
		}
	}
	has, err := sys.XattrsFD(fd)
	if err != nil {
		return err
	}
	for n := range has {
		_, keep := m.Xattrs[n]
		if keep || overlays(n) || !strings.HasPrefix(n, "user.") && !strings.HasPrefix(n, "system.posix_acl_") {
			continue
		}
		if err := sys.RemoveXattrFD(fd, n); err != nil {
			return err
		}
	}
	for n, v := range m.Xattrs {
		if old, ok := has[n]; ok && bytes.Equal(old, v) {
			continue
		}
		if err := sys.SetXattrFD(fd, n, v); err != nil && !strings.HasPrefix(n, "security.") && !strings.HasPrefix(n, "trusted.") {
			return err
		}
	}
	return sys.ChmodFD(fd, mode)
}

// readMeta reads what a directory has and is to have.
func (x *commit) readMeta(w *work, dir int) error {
	real, err := sys.OpenBeneath(dir, w.s.name(), sys.OPath|syscall.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer sys.CloseFD(real)
	if w.s.Was, err = metaOf(real); err != nil {
		return err
	}
	own, err := x.openOwn(w.change.Path, sys.OPath)
	if err != nil {
		return err
	}
	defer sys.CloseFD(own)
	w.s.Is, err = metaOf(own)
	return err
}

// sync has all file systems that are written to written out.
func (x *commit) sync() error {
	seen := map[uint64]bool{}
	for i := range x.j.Dirs {
		fd, err := x.dirs.open(i)
		if err != nil {
			return err
		}
		st, err := sys.StatAt(fd, "")
		if err != nil {
			return failure("lstat", string(x.j.Dirs[i].Path), err)
		}
		if dev := uint64(st.Dev); !seen[dev] {
			x.at("sync")
			err := sys.SyncFS(fd)
			if errors.Is(err, syscall.EACCES) { // a directory that may not be listed: another one, then
				continue
			}
			if err != nil {
				return failure("syncfs", string(x.j.Dirs[i].Path), err)
			}
			seen[dev] = true
		}
	}
	return nil
}
