package layers

import (
	"errors"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// apply takes all the steps. It is not cut short: what fails is undone.
func (x *commit) apply() error {
	for i := range x.works {
		w := &x.works[i]
		err := x.dirs.same(w.s.Dir)
		var dir int
		if err == nil {
			dir, err = x.dirs.open(w.s.Dir)
		}
		if err == nil {
			err = x.applyStep(i, w, dir)
		}
		if err != nil {
			return failure("commit", w.change.Path, err)
		}
	}
	return x.sync()
}

// errMeanwhile says that somebody has changed what was planned with.
var errMeanwhile = errors.New("it has changed in this moment")

func (x *commit) applyStep(i int, w *work, dir int) error {
	name, fresh, aside := w.s.name(), x.j.fresh(i), x.j.aside(i)
	if err := x.unchanged(w, dir, name, true); err != nil {
		return err
	}
	switch w.s.Op {
	case opPlace:
		x.at("place " + w.change.Path)
		return sys.RenameNew(dir, fresh, name)
	case opAlter:
		fd, err := sys.OpenBeneath(dir, name, sys.OPath|syscall.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer sys.CloseFD(fd)
		if id, err := identOf(fd, ""); err != nil || id != w.s.Old {
			return errors.Join(err, errMeanwhile)
		}
		x.at("alter " + w.change.Path)
		return w.s.Is.set(fd)
	case opReplace:
		x.at("exchange " + w.change.Path)
		err := sys.Exchange(dir, fresh, name)
		if err == nil {
			return x.unchanged(w, dir, fresh, false)
		}
		if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
			return err
		}
		if err := x.moveAside(dir, name, aside); err != nil {
			return err
		}
		x.at("place " + w.change.Path)
		if err := sys.RenameNew(dir, fresh, name); err != nil {
			return err
		}
	case opRemove:
		if err := x.moveAside(dir, name, aside); err != nil {
			return err
		}
	}
	return x.unchanged(w, dir, aside, false)
}

func (x *commit) moveAside(dir int, name, aside string) error {
	x.at("move aside " + name)
	return sys.RenameNew(dir, name, aside)
}

// unchanged says whether the real thing, which by now may have another name, is still what
// it was planned with. Its change time is that of the rename, then.
func (x *commit) unchanged(w *work, dir int, name string, before bool) error {
	id, err := identOf(dir, name)
	if err != nil {
		return err
	}
	if id != w.s.Old {
		return errMeanwhile
	}
	was := w.change.Was
	if was == nil || w.s.Op == opAlter {
		return nil
	}
	st, err := sys.StatAt(dir, name)
	if err != nil {
		return err
	}
	is := StateOf(st)
	// A file with several names gets another change time by the rename of each.
	if is.Size != was.Size || !is.MTime.Equal(was.MTime) || before && was.Links == 1 && !is.CTime.Equal(was.CTime) {
		return errMeanwhile
	}
	if was.Type == core.TypeDir {
		t, err := stateOfTree(dir, name)
		if err != nil {
			return err
		}
		if t.Sum != w.tree.Sum {
			return errMeanwhile
		}
	}
	return nil
}
