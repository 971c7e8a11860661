package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// The journal of a commit is a file in the box's folder commit/, on disk before what it
// speaks of is done. Its name says how far the commit is:
//
//	staging    new content is being written beside its targets; nothing is applied
//	sealed     all of it is on disk; some of it may be applied
//	committed  all is applied; the old versions and what the box held of it are being removed
//
// From sealed to committed it goes by one rename, which needs no room on the disk: that is
// the moment of the commit. Before it a crash is followed by undoing, from it on by
// finishing; both can be begun again however often they are cut short, because each step is
// known by the inode that a name has, not by having been done.
const (
	journalStaging   = "staging"
	journalSealed    = "sealed"
	journalCommitted = "committed"
)

// maxJournal bounds what is read of one.
const maxJournal = 1 << 30

type journal struct {
	Version int       `json:"version"`
	Token   string    `json:"token"` // in the names of what is made beside the targets
	Force   bool      `json:"force,omitempty"`
	Dirs    []realDir `json:"dirs"`
	Steps   []step    `json:"steps"`
	Upper   []held    `json:"upper"` // parents first
}

// realDir is a directory of the real system in which something is changed.
type realDir struct {
	Path  []byte `json:"path"`
	ID    ident  `json:"id"`
	Mode  uint32 `json:"mode"` // as it was; of a directory that was opened to its owner for the commit
	ATime int64  `json:"atime"`
	MTime int64  `json:"mtime"`
	Open  bool   `json:"open,omitempty"` // its owner may not write in it, but is to be
}

// step is one name that is changed.
type step struct {
	Op   stepOp `json:"op"`
	Dir  int    `json:"dir"` // of Dirs
	Name []byte `json:"name"`
	Old  ident  `json:"old,omitzero"` // of what has the name before
	New  ident  `json:"new,omitzero"` // of what is to have it; known when the journal is sealed
	// State is what was planned with, nil where the name was free.
	State *core.FileState `json:"state,omitempty"`
	Was   *meta           `json:"was,omitempty"`
	Is    *meta           `json:"is,omitempty"`
}

type stepOp string

const (
	opPlace   stepOp = "place"   // a name that nobody has
	opReplace stepOp = "replace" // one thing by another
	opRemove  stepOp = "remove"
	opAlter   stepOp = "alter" // mode, owner and attributes of a directory, from Was to Is
)

// held is what the box's layer holds of a path that is committed.
type held struct {
	Layer string `json:"layer"` // Layer.Dir
	Rel   []byte `json:"rel"`
	Dir   bool   `json:"dir,omitempty"`
	// Whole: all below it is committed too. Reveal: the directory stays, and from now on the
	// real one shows through.
	Whole  bool `json:"whole,omitempty"`
	Reveal bool `json:"reveal,omitempty"`
	Keep   bool `json:"keep,omitempty"`
}

// ident tells an inode from another one, also after a restart of the machine, which may
// give file systems other device numbers.
type ident struct {
	Ino  uint64 `json:"ino"`
	Born int64  `json:"born,omitempty"` // ns, 0 where the file system does not tell
}

// meta is what can be changed of a directory in place.
type meta struct {
	Mode   uint32            `json:"mode"`
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

// identOf identifies name in dirfd, with "" dirfd itself; the zero ident: nothing is there.
func identOf(dirfd int, name string) (ident, error) {
	st, err := sys.StatAt(dirfd, name)
	if errors.Is(err, fs.ErrNotExist) {
		return ident{}, nil
	}
	if err != nil {
		return ident{}, err
	}
	id := ident{Ino: st.Ino}
	if t, ok := sys.Born(dirfd, name); ok {
		id.Born = t.UnixNano()
	}
	return id, nil
}

// fresh and aside are the names beside a target: of its new content, and of the old one
// where the two cannot change places.
func (j *journal) fresh(i int) string { return ".sandglass-" + j.Token + "-" + strconv.Itoa(i) + "n" }
func (j *journal) aside(i int) string { return ".sandglass-" + j.Token + "-" + strconv.Itoa(i) + "o" }

func (s *step) name() string                 { return string(s.Name) }
func (j *journal) path(s *step) string       { return path.Join(string(j.Dirs[s.Dir].Path), s.name()) }
func (b Dir) journalPath(name string) string { return b.At("commit", name) }

// write puts the journal on disk under a name.
func (j *journal) write(b Dir, name string) error {
	if err := os.MkdirAll(b.At("commit"), 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if len(data) > maxJournal {
		return core.Hint(fmt.Errorf("the journal is larger than %d MiB", maxJournal>>20), "commit it in parts: name paths")
	}
	if err := WriteAtomic(b.journalPath(name), data, 0o600); err != nil {
		return err
	}
	return syncDir(b.At("commit"))
}

// readJournal reads the journal that is in force, nil when there is none.
func (b Dir) readJournal() (*journal, string, error) {
	for _, name := range []string{journalCommitted, journalSealed, journalStaging} {
		f, err := os.Open(b.journalPath(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		defer f.Close()
		var j journal
		err = json.NewDecoder(io.LimitReader(f, maxJournal)).Decode(&j)
		if err == nil && j.Version != 1 {
			err = fmt.Errorf("version %d is unknown", j.Version)
		}
		if err == nil {
			err = j.check()
		}
		if err != nil {
			return nil, "", core.Hint(fmt.Errorf("read %s: %w", f.Name(), err), "a commit was cut short; what it made has names with .sandglass- in them")
		}
		return &j, name, nil
	}
	return nil, "", nil
}

// check holds a journal to what the code relies on, should somebody have written in it.
func (j *journal) check() error {
	if len(j.Token) < 16 {
		return errors.New("no token")
	}
	for i := range j.Steps {
		s := &j.Steps[i]
		if n := s.name(); s.Dir < 0 || s.Dir >= len(j.Dirs) || n == "" || n == ".." || path.Base(n) != n {
			return fmt.Errorf("step %d is none", i)
		}
	}
	return nil
}

// clear removes all journals, that in force last.
func (b Dir) clearJournal() error {
	for _, name := range []string{journalStaging, journalSealed, journalCommitted} {
		if err := os.Remove(b.journalPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(b.At("commit")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Recover ends a commit that was cut short: it is undone, or, where all of it was applied
// already, finished. The caller holds the box's lock, and no session runs. It costs three
// looks for a file where there is nothing to do. An error says what is not as it should be
// and keeps the journal, so that it can be tried again.
func (b Dir) Recover() error { return (&commit{b: b}).resume() }

// resume is Recover.
func (x *commit) resume() error {
	b := x.b
	j, state, err := b.readJournal()
	if err != nil || j == nil {
		return err
	}
	x.j, x.dirs = j, newDirs(j)
	defer x.close()
	if state == journalCommitted {
		err = x.finish()
	} else {
		err = x.undo(state == journalSealed)
	}
	if err != nil {
		return core.Hint(fmt.Errorf("a commit of box %s was cut short: %w", filepath.Base(string(b)), err),
			"what it put aside is beside the files, in names with .sandglass-"+j.Token)
	}
	return nil
}

// undo brings the real system back to what it was before the commit. applied says that
// some of the steps may have been taken.
func (x *commit) undo(applied bool) error {
	var failed []error
	fail := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
	}
	steps := x.j.Steps
	if applied { // directories first, and open to their owner, so that what is in them can be undone
		for i := range steps {
			if steps[i].Op == opAlter {
				x.at("undo alter")
				fail("put "+x.j.path(&steps[i])+" back", x.undoAlter(&steps[i], 0o700))
			}
		}
	}
	for i := len(steps) - 1; i >= 0; i-- {
		s := &steps[i]
		if s.Op == opAlter {
			continue
		}
		dir, err := x.dirs.open(s.Dir)
		if err != nil {
			if applied || !gone(err) { // nothing but what was never finished lies in one that is gone
				failed = append(failed, err)
			}
			continue
		}
		if applied {
			x.at("undo " + string(s.Op))
			if err := x.undoStep(i, dir); err != nil {
				fail("put "+x.j.path(s)+" back", err)
				continue
			}
		}
		x.at("remove what is staged")
		id, err := identOf(dir, x.j.fresh(i))
		switch {
		case err != nil || id == ident{}:
		case applied && id != s.New:
			err = errors.New("it is not what was put there")
		default:
			err = removeTree(dir, x.j.fresh(i))
		}
		fail("remove "+path.Join(string(x.j.Dirs[s.Dir].Path), x.j.fresh(i)), err)
	}
	for i := len(x.j.Dirs) - 1; i >= 0; i-- {
		d := &x.j.Dirs[i]
		dir, err := x.dirs.open(i)
		if err != nil {
			continue
		}
		x.at("times of a directory")
		sys.TimesFD(dir, d.ATime, d.MTime) // another owner's cannot be set, and were changed by us alone
		if d.Open {
			fail("mode of "+string(d.Path), sys.ChmodFD(dir, d.Mode))
		}
	}
	if applied {
		for i := len(steps) - 1; i >= 0; i-- {
			if steps[i].Op == opAlter {
				fail("put "+x.j.path(&steps[i])+" back", x.undoAlter(&steps[i], 0))
			}
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	x.at("note what is known")
	if err := x.noteUndone(); err != nil {
		return err
	}
	x.at("remove the journal")
	return x.b.clearJournal()
}

// gone says that a directory is not where it was.
func gone(err error) bool {
	var m *movedError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errors.As(err, &m)
}

// undoAlter gives a directory back what it had, and to its owner the bits of more too.
func (x *commit) undoAlter(s *step, more uint32) error {
	dir, err := x.dirs.open(s.Dir)
	if err != nil {
		return err
	}
	fd, err := sys.OpenBeneath(dir, s.name(), sys.OPath)
	if err != nil {
		return err
	}
	defer sys.CloseFD(fd)
	if id, err := identOf(fd, ""); err != nil || id != s.Old {
		return errors.Join(err, &movedError{x.j.path(s)})
	}
	was := *s.Was
	was.Mode |= more
	return was.set(fd)
}

func (x *commit) undoStep(i, dir int) error {
	s := &x.j.Steps[i]
	name, fresh, aside := s.name(), x.j.fresh(i), x.j.aside(i)
	has, err := identOf(dir, name)
	if err != nil {
		return err
	}
	put, err := identOf(dir, aside)
	if err != nil {
		return err
	}
	none := ident{}
	if s.Op == opPlace && has == s.New && has != none {
		return sys.RenameNew(dir, name, fresh)
	}
	if s.Op == opReplace && has == s.New {
		beside, err := identOf(dir, fresh)
		if err != nil {
			return err
		}
		if beside != none { // they changed places
			return sys.Exchange(dir, name, fresh)
		}
		if err := sys.RenameNew(dir, name, fresh); err != nil {
			return err
		}
	}
	if put != none { // whatever it is: it was moved there by us
		return sys.RenameNew(dir, aside, name)
	}
	return nil
}

// finish does what is left to do of a commit that is applied: it removes the old versions,
// and from the box what is now in the real system.
func (x *commit) finish() error {
	for i := range x.j.Steps {
		s := &x.j.Steps[i]
		dir, err := x.dirs.open(s.Dir)
		if err != nil {
			x.leave(path.Join(string(x.j.Dirs[s.Dir].Path), x.j.fresh(i)), err)
			continue
		}
		for _, name := range []string{x.j.fresh(i), x.j.aside(i)} {
			x.at("remove the old version")
			id, err := identOf(dir, name)
			if err == nil && id == s.Old && id != (ident{}) {
				err = removeTree(dir, name)
			} else if err == nil && id != (ident{}) {
				err = errors.New("it is not what was put there")
			}
			if err != nil {
				x.leave(path.Join(string(x.j.Dirs[s.Dir].Path), name), err)
			}
		}
	}
	if err := x.release(); err != nil {
		return err
	}
	x.at("note what is known")
	if err := x.noteDone(); err != nil {
		return err
	}
	if x.b.HasManifest() { // what the layers lost was not taken from outside
		x.at("write the manifest")
		if err := x.b.WriteManifest(context.Background()); err != nil {
			return err
		}
	}
	x.at("remove the journal")
	return x.b.clearJournal()
}

// leave notes an old version that could not be removed: the commit is done all the same.
func (x *commit) leave(p string, err error) {
	if !gone(err) {
		x.left = append(x.left, Conflict{Path: p, Why: "the old version could not be removed: " + why(err)})
	}
}

// dirs opens the directories of a journal, and knows whether they are still the same ones.
type dirs struct {
	j   *journal
	fds map[int]int // descriptors
}

// maxOpenDirs bounds how many are kept open.
const maxOpenDirs = 512

func newDirs(j *journal) *dirs { return &dirs{j: j, fds: map[int]int{}} }

func (d *dirs) close() {
	for _, fd := range d.fds {
		sys.CloseFD(fd)
	}
	clear(d.fds)
}

// movedError says that a directory is not the one it was.
type movedError struct{ path string }

func (e *movedError) Error() string { return e.path + ": another directory is in its place" }

// open returns the directory, which stays the caller's to close.
func (d *dirs) open(i int) (int, error) {
	if fd, ok := d.fds[i]; ok {
		return fd, nil
	}
	fd, err := d.find(i)
	if err != nil {
		return -1, err
	}
	if len(d.fds) >= maxOpenDirs {
		for k, old := range d.fds {
			sys.CloseFD(old)
			delete(d.fds, k)
			break
		}
	}
	d.fds[i] = fd
	return fd, nil
}

// find opens the directory by its path. No link is followed; it must be the one that it was.
func (d *dirs) find(i int) (int, error) {
	p := string(d.j.Dirs[i].Path)
	fd, err := sys.RealDir(p)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	id, err := identOf(fd, "")
	if err == nil && id != d.j.Dirs[i].ID {
		err = &movedError{p}
	}
	if err != nil {
		sys.CloseFD(fd)
		return -1, err
	}
	return fd, nil
}

// same says whether the directory is still where it was.
func (d *dirs) same(i int) error {
	fd, err := d.find(i)
	if err != nil {
		return err
	}
	sys.CloseFD(fd)
	return nil
}
