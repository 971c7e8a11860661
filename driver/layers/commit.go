package layers

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// CommitOptions say what of a box is applied to the real system.
type CommitOptions struct {
	// Paths are absolute and clean: each stands for itself and what is below it. None:
	// everything that the box changed. Directories that the box added on the way to one
	// are part of it.
	Paths []string
	// Force goes on over the conflicts that are not hard, and with set-user-ID bits.
	Force bool
	// DryRun plans only.
	DryRun bool
	// Expect is the digest of the report that a person has agreed to: when the plan has
	// become another one, nothing is done. "": any.
	Expect string
	// Progress is told how many paths of how many are written. May be nil.
	Progress func(done, total int)
}

// CommitReport says what a commit does, or has done.
type CommitReport struct {
	Changes  []core.Change // as [Dir.Changes] orders them
	Counts   core.ChangeCounts
	Warnings []Conflict // of what is done all the same
	Skipped  []Conflict // what is not part of it, and stays in the box
	Left     []Conflict // what is done but not tidied up
	Digest   string
}

// Conflict is a path that stands in the way of a commit, and why.
type Conflict struct {
	Path string
	Why  string
	Hard bool // Force does not help
}

// ConflictError says that a commit would undo what somebody else did. Nothing has been
// changed.
type ConflictError struct{ Conflicts []Conflict }

func (e *ConflictError) Error() string {
	c := e.Conflicts[0]
	if n := len(e.Conflicts) - 1; n > 0 {
		return fmt.Sprintf("%s: %s; and %d more conflicts", c.Path, c.Why, n)
	}
	return c.Path + ": " + c.Why
}

// maxCommit bounds the changes of one commit: a box can make any number of files.
const maxCommit = 1 << 20

// Commit applies what the box changed to the real system: all of it or nothing, also when
// the machine stops meanwhile ([Dir.Recover]). What is applied leaves the box, which shows
// the real files there from then on. A report comes with a [*ConflictError] too.
//
// The real system is changed in the directories themselves, which are opened without
// following a symbolic link and must be the ones that were planned with: what a box, or
// anybody, puts in their place leads nowhere. The new content is written beside its
// target, then takes its name by a rename within the directory. So another name of a file
// that is replaced keeps the old content, and so does who has it open.
//
// A real file is in conflict when it is not what it was when the box first changed it, as
// [Dir.Bases] knows it, or else when its change time is not before the birth of the box's
// own version: the copy that the first change made. A program that writes a new file and
// renames it over the old one gives its version a later birth, and a change outside before
// that is not seen without that record.
func (b Dir) Commit(ctx context.Context, o CommitOptions) (*CommitReport, error) {
	x := &commit{b: b, ctx: ctx, o: o}
	return x.run()
}

// commit is one run.
type commit struct {
	b      Dir
	ctx    context.Context
	o      CommitOptions
	ls     []Layer
	masks  map[string]bool
	bases  map[string]*core.FileState
	known  map[string]*core.FileState
	report CommitReport
	bad    []Conflict

	works  []work
	index  map[string]int // of j.Dirs, by path
	j      *journal
	dirs   *dirs
	uppers map[string]int // descriptors of the layers' upper directories
	linked map[ident]link
	done   int
	left   []Conflict

	// step is called before each thing that is done to a disk; only tests set it.
	step func(what string)
}

func (x *commit) at(what string) {
	if x.step != nil {
		x.step(what)
	}
}

// work is one step of the journal, with what it comes from.
type work struct {
	s      step
	change *core.Change
	inside []*core.Change // of a new directory, parents first
	layer  Layer
	rel    string
	tree   treeState // of a directory that goes away
}

func (x *commit) run() (*CommitReport, error) {
	lock, err := x.b.Lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	defer x.close()
	name := filepath.Base(string(x.b))
	refs, err := x.b.Running()
	if err != nil {
		return nil, err
	}
	if n := len(refs); n > 0 {
		return nil, core.Hint(errors.New("a session runs in it, and goes on changing files"), "`sandglass box show "+name+"` says which; end it first")
	}
	if err := x.b.Refuse("commit"); err != nil {
		return nil, err
	}
	if err := x.resume(); err != nil {
		return nil, err
	}
	if err := x.b.FinishRollback(); err != nil {
		return nil, err
	}
	if err := x.plan(); err != nil {
		return nil, err
	}
	if len(x.bad) > 0 {
		return &x.report, &ConflictError{x.bad}
	}
	if x.o.DryRun || len(x.works) == 0 {
		return &x.report, nil
	}
	if x.o.Expect != "" && x.o.Expect != x.report.Digest {
		return &x.report, core.Hint(errors.New("it is not what it was when it was looked at: the box or the real files have changed"), "look at it again")
	}
	if err := x.b.Forget("changes were committed"); err != nil {
		return nil, err
	}
	if err := x.carryOut(); err != nil {
		return nil, err
	}
	x.report.Left = x.left
	return &x.report, nil
}

func (x *commit) close() {
	if x.dirs != nil {
		x.dirs.close()
	}
	for _, fd := range x.uppers {
		sys.CloseFD(fd)
	}
	clear(x.uppers)
}

// carryOut stages, seals, applies and finishes. When something fails, what was done is
// undone.
func (x *commit) carryOut() error {
	x.j.Token = rand.Text()
	x.at("write the journal")
	if err := x.j.write(x.b, journalStaging); err != nil {
		return errors.Join(fmt.Errorf("write the journal: %w", err), x.b.clearJournal())
	}
	sealed := false
	err := x.stage()
	if err == nil {
		x.at("seal the journal")
		if err = x.j.write(x.b, journalSealed); err != nil {
			err = fmt.Errorf("write the journal: %w", err)
		}
		sealed = true // perhaps
	}
	if err == nil {
		err = x.ctx.Err()
	}
	if err == nil {
		err = x.apply()
	}
	if err == nil {
		err = x.mark()
	}
	if err != nil {
		if uerr := x.undo(sealed); uerr != nil {
			return errors.Join(err, core.Hint(uerr, "what it put aside is beside the files, in names with .sandglass-"+x.j.Token))
		}
		return err
	}
	return x.finish()
}

// mark makes the commit one: see journal.go.
func (x *commit) mark() error {
	x.at("mark the journal committed")
	from, to := x.b.journalPath(journalSealed), x.b.journalPath(journalCommitted)
	err := os.Rename(from, to)
	if err == nil {
		x.at("sync the journal")
		if err = syncDir(x.b.At("commit")); err != nil { // it may not stay: nothing may be removed yet
			err = errors.Join(err, os.Rename(to, from))
		}
	}
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// plan finds out what there is to do and what stands in the way.
func (x *commit) plan() (err error) {
	if x.ls, err = x.b.Layers(); err != nil {
		return err
	}
	if x.masks, err = x.b.Masks(); err != nil {
		return err
	}
	if x.known, err = x.b.known(); err != nil {
		return err
	}
	if k, ok := any(x.b).(knower); ok {
		if x.bases, err = k.Bases(); err != nil {
			return err
		}
	}
	x.uppers, x.linked, x.index = map[string]int{}, map[ident]link{}, map[string]int{}
	x.j = &journal{Version: 1, Force: x.o.Force}
	x.dirs = newDirs(x.j)
	for _, p := range x.o.Paths {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fmt.Errorf("%s: not an absolute, clean path", p)
		}
	}
	var all []core.Change
	err = x.b.Changes(x.ctx, func(c *core.Change) error {
		if len(all) == maxCommit {
			return core.Hint(fmt.Errorf("more than %d changes", maxCommit), "commit them in parts: name paths")
		}
		all = append(all, *c)
		return nil
	})
	if err != nil {
		return err
	}
	s := selection{x: x, all: all, of: make([]choice, len(all)), hiding: map[string]string{}, partly: map[string]bool{}}
	if err := s.choose(); err != nil {
		return err
	}
	for i := range all {
		if s.of[i].in {
			x.report.Changes = append(x.report.Changes, all[i])
			x.report.Counts.Add(all[i].Kind)
		}
	}
	if err := x.makeSteps(&s); err != nil {
		return err
	}
	s.release()
	x.report.Digest = digest(x.report.Changes)
	return nil
}

// fresh says whether a change brings a directory where there is none.
func fresh(c *core.Change) bool {
	return c.Is != nil && c.Is.Type == core.TypeDir && (c.Was == nil || c.Was.Type != core.TypeDir)
}

// place finds where the box keeps its version of a path.
func (x *commit) place(p string) (l Layer, rel string) {
	l, rel, _ = Place(x.ls, p)
	return l, rel
}

func (x *commit) conflict(p, why string, hard bool) {
	if hard || !x.o.Force {
		x.bad = append(x.bad, Conflict{p, why, hard})
	} else {
		x.report.Warnings = append(x.report.Warnings, Conflict{Path: p, Why: why})
	}
}

// makeSteps makes the steps of what was chosen, and checks each for conflicts.
func (x *commit) makeSteps(s *selection) error {
	var works []work
	root := -1 // of works: the new directory that we are in
	for i := range s.all {
		c := &s.all[i]
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if root >= 0 && !Under(c.Path, works[root].change.Path) {
			root = -1
		}
		if !s.of[i].in {
			continue
		}
		x.checkOwn(c)
		if root >= 0 {
			works[root].inside = append(works[root].inside, c)
			continue
		}
		w := work{change: c}
		w.layer, w.rel = x.place(c.Path)
		if !x.prepare(&w) {
			continue
		}
		works = append(works, w)
		if fresh(c) {
			root = len(works) - 1
		}
	}
	// A directory's own mode comes last, that of its parent after it: they may close it.
	x.works = slices.DeleteFunc(slices.Clone(works), func(w work) bool { return w.s.Op == opAlter })
	for i := len(works) - 1; i >= 0; i-- {
		if works[i].s.Op == opAlter {
			x.works = append(x.works, works[i])
			x.openLater(&works[i])
		}
	}
	for i := range x.works {
		x.j.Steps = append(x.j.Steps, x.works[i].s)
	}
	return nil
}

// checkOwn checks what the box itself brings.
func (x *commit) checkOwn(c *core.Change) {
	if c.Unread != "" {
		x.conflict(c.Path, "the box's version cannot be looked at: "+c.Unread, true)
		return
	}
	if home := x.home(); Under(c.Path, home) || c.Is == nil && Under(home, c.Path) {
		x.conflict(c.Path, "it is the sandbox's own", true)
	}
	if c.Is != nil && c.Is.Type != core.TypeDir {
		if what := core.Persists(c.Path); what != "" {
			x.report.Warnings = append(x.report.Warnings, Conflict{Path: c.Path, Why: "it runs, or is trusted, outside of the box later: " + what})
		}
	}
	if c.Is == nil || c.Is.Type != core.TypeFile {
		return
	}
	if c.Is.Mode&0o4000 != 0 {
		x.conflict(c.Path, "it has the set-user-ID bit: whoever starts it gets its owner's rights", false)
	} else if c.Is.Mode&0o2010 == 0o2010 {
		x.conflict(c.Path, "it has the set-group-ID bit: whoever starts it gets its group's rights", false)
	}
	l, rel := x.place(c.Path)
	if _, err := sys.Lgetxattr(filepath.Join(x.b.Upper(l), rel), "security.capability"); err == nil {
		x.conflict(c.Path, "it has capabilities: whoever starts it gets them", false)
	}
}

// home is the folder of the sandbox's state that the box is in.
func (x *commit) home() string {
	if boxes := filepath.Dir(string(x.b)); filepath.Base(boxes) == "boxes" {
		return filepath.Dir(boxes)
	}
	return string(x.b)
}

// prepare looks at the real side of a step. It returns false when there is no such step.
func (x *commit) prepare(w *work) bool {
	c := w.change
	dir, ok := x.realDir(path.Dir(c.Path))
	if !ok {
		return false
	}
	w.s.Dir, w.s.Name = dir, []byte(path.Base(c.Path))
	fd, err := x.dirs.open(dir)
	if err == nil {
		w.s.Old, err = identOf(fd, w.s.name())
	}
	if err != nil {
		x.conflict(c.Path, why(err), true)
		return false
	}
	w.s.Op, w.s.State = opReplace, c.Was
	switch {
	case c.Was == nil:
		w.s.Op = opPlace
	case c.Is == nil:
		w.s.Op = opRemove
	case c.Was.Type == core.TypeDir && c.Is.Type == core.TypeDir:
		w.s.Op = opAlter
	}
	if (w.s.Old == ident{}) != (c.Was == nil) || c.Was != nil && w.s.Old.Ino != c.Was.Inode {
		x.conflict(c.Path, "it changes in this moment", true)
		return false
	}
	if c.Was != nil && c.Was.Type == core.TypeDir && w.s.Op != opAlter {
		if w.tree, err = stateOfTree(fd, w.s.name()); err != nil {
			x.conflict(c.Path, why(err), true)
			return false
		}
	}
	if reason := x.changedSince(w); reason != "" {
		x.conflict(c.Path, reason, false)
	}
	if w.s.Op == opAlter {
		err = x.readMeta(w, fd)
	}
	if err != nil {
		x.conflict(c.Path, why(err), true)
		return false
	}
	return true
}

// realDir enters a real directory into the journal. A conflict when it is not there.
func (x *commit) realDir(p string) (int, bool) {
	if i, ok := x.index[p]; ok {
		return i, i >= 0
	}
	x.index[p] = -1
	fd, err := sys.RealDir(p)
	switch {
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		x.conflict(p, "the directory is not one now: something else, or a symbolic link, is there or on the way to it", true)
		return -1, false
	case errors.Is(err, fs.ErrNotExist):
		x.conflict(p, "the directory is gone", true)
		return -1, false
	case err != nil:
		x.conflict(p, why(err), true)
		return -1, false
	}
	defer sys.CloseFD(fd)
	id, err := identOf(fd, "")
	if err == nil {
		var st *syscall.Stat_t
		if st, err = sys.StatAt(fd, ""); err == nil {
			x.j.Dirs = append(x.j.Dirs, realDir{Path: []byte(p), ID: id, Mode: st.Mode & 0o7777, ATime: st.Atim.Nano(), MTime: st.Mtim.Nano()})
			x.index[p] = len(x.j.Dirs) - 1
			return x.index[p], true
		}
	}
	x.conflict(p, why(err), true)
	return -1, false
}

// openLater notes that a directory, which its owner may not write in but is to be allowed
// to, is opened to him before anything is written in it.
func (x *commit) openLater(w *work) {
	const wx = 0o300
	if i, ok := x.index[w.change.Path]; ok && i >= 0 && os.Geteuid() != 0 && w.change.Was.UID == os.Geteuid() && w.s.Was.Mode&wx != wx && w.s.Is.Mode&wx == wx {
		x.j.Dirs[i].Open = true
	}
}

// knower is who knows what the real files were when the box first changed them; nil of one
// that was not there.
type knower interface {
	Bases() (map[string]*core.FileState, error)
}

// changedSince says why the real thing is not what the box knew, "" when it is.
func (x *commit) changedSince(w *work) string {
	c := w.change
	up := filepath.Join(x.b.Upper(w.layer), w.rel)
	base, ok := x.known[c.Path]
	if ok = ok && againstBase(w, base) == ""; !ok {
		base, ok = x.bases[c.Path]
	}
	if ok {
		if reason := againstBase(w, base); reason != "" || w.tree.Last.IsZero() {
			return reason
		}
		return x.treeSince(w)
	}
	if c.Was == nil {
		// A directory that was copied up has this attribute also where the lower file system
		// has no handles (fs/overlayfs/copy_up.c, ovl_set_origin), and no box moves one.
		if _, err := sys.Lgetxattr(up, "user.overlay.origin"); err == nil && c.Is.Type == core.TypeDir {
			return "the real directory is gone since the box changed something in it"
		}
		return ""
	}
	if w.tree.Last.Before(c.Was.CTime) {
		w.tree.Last = c.Was.CTime
	}
	return x.treeSince(w)
}

// treeSince compares the last change of the real thing, and of what is in it, with the birth
// of the box's version.
func (x *commit) treeSince(w *work) string {
	born, ok := x.bornAbove(w)
	if !ok {
		return "the box's disk does not tell when the box first changed it"
	}
	if !w.tree.Last.Before(born) {
		return "the real " + thing(w.change.Was) + " has changed since the box first changed it"
	}
	return ""
}

// againstBase compares with what is on record.
func againstBase(w *work, base *core.FileState) string {
	was := w.change.Was
	switch {
	case base == nil && was == nil:
		return ""
	case base == nil:
		return "there was no " + thing(was) + " when the box made it"
	case was == nil:
		return "the real " + thing(base) + " is gone since the box first changed it"
	case w.s.Op == opAlter:
		if base.Type == was.Type && base.Mode == was.Mode && base.UID == was.UID && base.GID == was.GID {
			return ""
		}
	case base.Inode == was.Inode && base.CTime.Equal(was.CTime) && base.Size == was.Size:
		return ""
	}
	return "the real " + thing(base) + " has changed since the box first changed it"
}

func thing(s *core.FileState) string {
	if s.Type == core.TypeSymlink {
		return "symbolic link"
	}
	return string(s.Type)
}

// bornAbove returns when the box made its version of a path, or what hides the real one.
func (x *commit) bornAbove(w *work) (time.Time, bool) {
	upper := x.b.Upper(w.layer)
	for rel := w.rel; rel != "" && rel != "."; rel = path.Dir(rel) {
		at := filepath.Join(upper, rel)
		if _, err := Lstat(at); err == nil {
			return sys.Born(cwd, at)
		}
	}
	return time.Time{}, false
}

// cwd is AT_FDCWD.
const cwd = -100

// digest identifies a plan.
func digest(cs []core.Change) string {
	h := sha256.New()
	for i := range cs {
		c := &cs[i]
		fmt.Fprintf(h, "%c %q %s %s\n", c.Kind, c.Path, stateText(c.Was), stateText(c.Is))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func stateText(s *core.FileState) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%s %o %d:%d %d %d %d %q", s.Type, s.Mode, s.UID, s.GID, s.Size, s.MTime.UnixNano(), s.Inode, s.Link)
}

// why is the reason in an error whose path is told beside it.
func why(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
