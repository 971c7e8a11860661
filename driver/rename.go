package driver

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// Directories that come from the real tree are renamed here. An unprivileged overlay
// cannot: for that it would have to write into its upper layer where the directory was
// (redirect_dir), and with userxattr it does not, since a box could forge it; it says EXDEV
// (fs/overlayfs/dir.c, ovl_can_move). Programs take a rename in one directory for granted.
//
// So the supervisor copies the tree to a name beside the new one, renames that into place,
// and empties the old one; all of it in the box's own view, through its root, by directory
// descriptors, without a capability. What the box made itself is not copied but
// linked: descriptors, mappings and locks stay with it. What it does not see is not there.
//
// For who looks meanwhile it is not one step: the new directory is there, whole, at once;
// the old one goes afterwards. A process whose working directory, or an open directory, is
// in the old tree stays in what is deleted.

// What is moved at most; of what is more the box hears EXDEV, as the overlay says it, and
// programs copy for themselves.
const (
	moveEntries  = 1 << 20
	moveBytes    = 32 << 30 // of files that have to be copied
	moveDepth    = 256
	movePatience = 10 * time.Minute
	moveChunk    = 4 << 20 // between two looks whether somebody still waits for it
	movePasses   = 16      // over a directory in which the box goes on making files
)

// findEntry resolves a path argument that names an entry of a directory, as rename(2) does:
// a link in the last place is that entry, also with a slash behind it. plain is false for
// what the kernel had better see itself: "." and "..", and what is not there.
func (s *supervisor) findEntry(dirfd int32, addr uint64) (p place, plain bool, slash string, e syscall.Errno) {
	rel, e := s.cstring(addr)
	if e != 0 {
		return place{path: rel}, false, "", e
	}
	name := strings.TrimRight(rel, "/")
	if last := name[strings.LastIndexByte(name, '/')+1:]; last != "" && last != "." && last != ".." {
		plain = !turnsBack(name)
		if name != rel {
			slash = "/"
		}
		rel = name
	}
	p, e = s.walk(dirfd, rel, false, false)
	return p, plain && !p.missing && !p.loop, slash, e
}

// turnsBack says whether a path goes up from something that it went down to: whether that
// was a directory the resolver does not ask.
func turnsBack(p string) bool {
	down := false
	for name := range strings.SplitSeq(p, "/") {
		switch name {
		case "", ".":
		case "..":
			if down {
				return true
			}
		default:
			down = true
		}
	}
	return false
}

// moveTree answers a rename. Where one of the two may be a directory of the real tree it is
// performed; else the kernel does it, as a has it.
func (s *supervisor) moveTree(from, to place, slashes [2]string, flags uint32, a answer) answer {
	m := &mover{from: from.path, to: to.path, slashes: slashes, flags: flags, fromReal: s.isRealDir(from), toReal: flags&sys.RenameExchange != 0 && s.isRealDir(to),
		root: s.paths.root, changed: s.changed, full: s.limits.full, over: s.performer.done, began: s.now}
	if !m.fromReal && !m.toReal || flags&^(sys.RenameExchange|sys.RenameNoreplace) != 0 || s.p.init {
		return a
	}
	if s.keeps(&a, from) {
		m.history = s.history
	}
	id, f, detail := s.n.ID, s.performer, a.ops[0].Detail
	m.waits = func() bool { return f.waits(id) }
	f.moves.Add(1)
	a.dropped = f.moves.Done
	a.do = func() performed {
		defer f.moves.Done()
		defer s.moved.Store(true)
		// What the thread gives up it does not get back: it ends with this goroutine.
		runtime.LockOSThread()
		if err := sys.KeepCaps(); err != nil {
			return performed{proceed: true}
		}
		return m.run(s.moving, detail)
	}
	return a
}

// isRealDir says whether p is a directory outside, too. It may err about one that the box
// has put in the place of a real one: that is found when it is renamed.
func (s *supervisor) isRealDir(p place) bool {
	if p.object || s.spotOf(p) != onOverlay {
		return false
	}
	fi, err := os.Lstat(p.path)
	return err == nil && fi.IsDir()
}

// mover moves one tree, on a thread of its own without capabilities.
type mover struct {
	from, to         string
	slashes          [2]string // what stood behind them: "/", where only a directory was meant
	flags            uint32
	fromReal, toReal bool
	root             int
	changed          *changed
	full             *atomic.Bool
	over             <-chan struct{}
	waits            func() bool
	began            time.Time
	history          *layers.History // nil where nothing is kept

	base    string // what is being copied, in the box's view
	dest    string // and where the copy is
	mount   uint64 // where all of it must be
	uid     uint32
	entries int
	bytes   int64
	top     int                 // the copy's own directory
	links   map[uint64]fileCopy // of files with several names, by inode
	buf     []byte
}

// fileCopy is where a copy is, below that of the directory, and which file it is.
type fileCopy struct {
	rel      string
	ino, dev uint64
}

// moveError is an errno with what it was about.
type moveError struct {
	errno syscall.Errno
	why   string
}

func (e *moveError) Error() string { return e.why }

func (e *moveError) Unwrap() error { return e.errno }

func (m *mover) run(moving chan struct{}, d core.Detail) performed {
	sp, err := sys.DirInRoot(m.root, path.Dir(m.from))
	if err != nil {
		return performed{proceed: true} // not as it was when it was resolved
	}
	defer sys.CloseFD(sp)
	dp, err := sys.DirInRoot(m.root, path.Dir(m.to))
	if err != nil {
		return performed{proceed: true}
	}
	defer sys.CloseFD(dp)
	// The kernel's own word first: it may be possible, and every other refusal is its to say.
	sname, dname := path.Base(m.from), path.Base(m.to)
	m.keep(m.from, m.to, m.flags)
	err = sys.Rename2(sp, sname+m.slashes[0], dp, dname+m.slashes[1], m.flags)
	if err != syscall.EXDEV {
		return performed{errno: errnoOf(err)}
	}
	select {
	case moving <- struct{}{}:
		defer func() { <-moving }()
	case <-m.over:
		return performed{errno: syscall.EXDEV}
	}
	a, err := sys.StatxAt(sp, "")
	b, err2 := sys.StatxAt(dp, "")
	if err != nil || err2 != nil || a.Mount != b.Mount || a.Dev != b.Dev {
		return performed{errno: syscall.EXDEV} // two layers: as across file systems
	}
	m.mount, m.uid = a.Mount, uint32(os.Geteuid())
	if m.flags&sys.RenameExchange != 0 {
		err = m.exchange(sp, sname, dp, dname)
	} else {
		err = m.move(sp, sname, dp, dname)
	}
	if err == nil {
		d["how"], d["entries"] = "copied", strconv.Itoa(m.entries)
		return performed{}
	}
	d["why"] = core.Shorten(err.Error(), 256)
	switch e := errnoOf(err); e {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.ENOTEMPTY, syscall.EEXIST, syscall.ENOTDIR:
		return performed{errno: e}
	}
	return performed{errno: syscall.EXDEV}
}

// keep has the history know of a rename before it is done.
func (m *mover) keep(from, to string, flags uint32) {
	if m.history == nil {
		return
	}
	if _, later := m.history.Rename(time.Now(), from, to, flags&sys.RenameExchange != 0); later != nil {
		later()
	}
}

func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if err != nil && !errors.As(err, &e) {
		e = syscall.EIO
	}
	return e
}

// move makes a copy beside the new name, puts it there and takes the old tree away.
func (m *mover) move(sp int, sname string, dp int, dname string) error {
	if t, err := sys.OpenIn(dp, dname, syscall.O_RDONLY|syscall.O_DIRECTORY); err == nil {
		err = sys.Names(t, func(string) error { return syscall.ENOTEMPTY })
		sys.CloseFD(t)
		if err != nil {
			return err
		}
	}
	c, err := m.copy(sp, sname, m.from, dp, path.Dir(m.to))
	if err != nil {
		return err
	}
	defer c.close()
	m.keep(m.dest, m.to, m.flags)
	if err := sys.Rename2(dp, c.name, dp, dname, m.flags); err != nil {
		m.clear(dp, c.name, 0)
		return err
	}
	m.dest = m.to
	return m.empty(sp, sname, c.src, c.dst)
}

// exchange replaces each of the two that comes from the real tree by a copy of the box's
// own in its place; then the kernel does the rest, in one step.
func (m *mover) exchange(sp int, sname string, dp int, dname string) error {
	if m.fromReal && m.isDir(sp, sname) {
		if err := m.adopt(sp, sname, m.from); err != nil {
			return err
		}
	}
	if m.toReal && m.isDir(dp, dname) {
		if err := m.adopt(dp, dname, m.to); err != nil {
			return err
		}
	}
	m.keep(m.from, m.to, m.flags)
	return sys.Rename2(sp, sname+m.slashes[0], dp, dname+m.slashes[1], m.flags)
}

// isDir says whether the box has a directory there, whatever is there outside.
func (m *mover) isDir(dir int, name string) bool {
	st, err := sys.StatxAt(dir, name)
	return err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR
}

// adopt puts a copy in the place of a directory.
func (m *mover) adopt(dir int, name, at string) error {
	c, err := m.copy(dir, name, at, dir, path.Dir(at))
	if err != nil {
		return err
	}
	defer c.close()
	if err := m.empty(dir, name, c.src, c.dst); err != nil {
		// What is gone already goes back.
		m.drain(c.dst, c.src, "", 0, true)
		m.clear(dir, c.name, 0)
		return err
	}
	m.keep(m.dest, at, 0)
	return sys.Rename2(dir, c.name, dir, name, sys.RenameNoreplace)
}

// treeCopy is a copy of a directory, not yet in its place.
type treeCopy struct {
	name     string
	src, dst int
}

func (c *treeCopy) close() {
	sys.CloseFD(c.src)
	sys.CloseFD(c.dst)
}

// copy copies sp/sname, which the box sees at at, into the directory dp, which it sees at
// beside. Where that fails nothing is left of it.
func (m *mover) copy(sp int, sname, at string, dp int, beside string) (*treeCopy, error) {
	c := &treeCopy{name: fmt.Sprintf(".sandglass-moves-%x-%x", os.Getpid(), m.began.UnixNano())}
	m.base, m.dest, m.links = at, join(beside, c.name), map[uint64]fileCopy{}
	m.changed.markTree(m.dest)
	if m.history != nil {
		m.history.Moves(time.Now(), at, m.dest)
	}
	src, st, err := m.openDir(sp, sname)
	if err != nil {
		return nil, &moveError{errnoOf(err), "open " + at + ": " + err.Error()}
	}
	dst, err := m.makeDir(dp, c.name)
	if err != nil {
		sys.CloseFD(src)
		return nil, err
	}
	c.src, c.dst, m.top = src, dst, dst
	if st.Fixed || st.Append {
		err = syscall.EPERM
	} else if err = m.copyDir(src, dst, "", 0); err == nil {
		err = m.dress(src, dst, st)
	}
	if err != nil {
		c.close()
		m.clear(dp, c.name, 0)
		return nil, err
	}
	return c, nil
}

// goOn says whether one entry, or n bytes, more may be copied.
func (m *mover) goOn(n int) error {
	select {
	case <-m.over:
		return &moveError{syscall.EXDEV, "the session ends"}
	default:
	}
	switch {
	case n == 0 && m.entries%64 == 0 && !m.waits(), n > 0 && !m.waits():
		return &moveError{syscall.EXDEV, "nobody waits for it any more"}
	case m.entries > moveEntries:
		return &moveError{syscall.EXDEV, fmt.Sprintf("more than %d entries", moveEntries)}
	case m.bytes > moveBytes:
		return &moveError{syscall.EXDEV, fmt.Sprintf("more than %d GiB to copy", moveBytes>>30)}
	case time.Since(m.began) > movePatience:
		return &moveError{syscall.EXDEV, "longer than " + movePatience.String()}
	case m.full.Load():
		return &moveError{syscall.EDQUOT, "limit box-size"}
	}
	return nil
}

// openDir opens a directory of the tree and says what it was before it is read.
func (m *mover) openDir(dir int, name string) (fd int, st sys.Statx, err error) {
	const how = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NONBLOCK
	if fd, err = sys.OpenIn(dir, name, how|syscall.O_NOATIME); err == syscall.EPERM { // not the owner
		fd, err = sys.OpenIn(dir, name, how)
	}
	if err != nil {
		return -1, st, err
	}
	if st, err = sys.StatxAt(fd, ""); err == nil && st.Mount != m.mount {
		err = syscall.EXDEV
	}
	if err != nil {
		sys.CloseFD(fd)
	}
	return fd, st, err
}

// makeDir makes a directory and opens it. The box may have put another in its place
// meanwhile: one that is not as a new one is not touched.
func (m *mover) makeDir(dir int, name string) (int, error) {
	if err := sys.MakeDir(dir, name, 0o700); err != nil {
		return -1, err
	}
	fd, st, err := m.openDir(dir, name)
	if err == nil && (st.UID != m.uid || st.Mode&0o777 != 0o700) {
		sys.CloseFD(fd)
		err = syscall.EXDEV
	}
	return fd, err
}

func (m *mover) copyDir(src, dst int, rel string, depth int) error {
	if depth > moveDepth {
		return &moveError{syscall.EXDEV, fmt.Sprintf("deeper than %d", moveDepth)}
	}
	return sys.Names(src, func(name string) error {
		return m.about(path.Join(rel, name), m.copyEntry(src, dst, name, path.Join(rel, name), depth))
	})
}

// about says of an error which entry it is about.
func (m *mover) about(rel string, err error) error {
	var known *moveError
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &moveError{errnoOf(err), join(m.base, rel) + ": " + err.Error()}
}

func (m *mover) copyEntry(src, dst int, name, rel string, depth int) error {
	m.entries++
	if err := m.goOn(0); err != nil {
		return err
	}
	st, err := sys.StatxAt(src, name)
	switch {
	case err == syscall.ENOENT:
		return nil // gone since
	case err != nil:
		return err
	case st.Mount != m.mount:
		return syscall.EXDEV
	case st.Fixed || st.Append:
		return syscall.EPERM // could not be taken away afterwards
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return m.copySub(src, dst, name, rel, depth)
	case syscall.S_IFREG:
		if !m.isUpper(rel) {
			return m.copyFile(src, dst, name, rel, st)
		}
	}
	// The box's own stays the same file. Of what is neither a file nor a directory the
	// overlay makes the copy, with all that belongs to it.
	return sys.LinkAt(src, name, dst, name)
}

func (m *mover) copySub(src, dst int, name, rel string, depth int) error {
	from, st, err := m.openDir(src, name)
	if err != nil {
		return err
	}
	defer sys.CloseFD(from)
	to, err := m.makeDir(dst, name)
	if err != nil {
		return err
	}
	defer sys.CloseFD(to)
	if err := m.copyDir(from, to, rel, depth+1); err != nil {
		return err
	}
	return m.dress(from, to, st)
}

// isUpper says whether the box has its own version of the file. It may err where the box
// changes it meanwhile: then the overlay copies where a copy was to be made here, or what
// was written since is found when the old tree is taken away.
func (m *mover) isUpper(rel string) bool { return m.changed.inUpper(path.Join(m.base, rel)) }

// copyFile copies a real file.
func (m *mover) copyFile(src, dst int, name, rel string, st sys.Statx) error {
	if st.Nlink > 1 {
		if first, ok := m.links[st.Ino]; ok {
			return m.linkCopy(first, dst, name)
		}
	}
	const how = syscall.O_RDONLY | syscall.O_NONBLOCK
	in, err := sys.OpenIn(src, name, how|syscall.O_NOATIME)
	if err == syscall.EPERM {
		in, err = sys.OpenIn(src, name, how)
	}
	if err == syscall.EACCES {
		// Not for its user to read, but maybe to link: the overlay copies it.
		return sys.LinkAt(src, name, dst, name)
	}
	if err != nil {
		return err
	}
	defer sys.CloseFD(in)
	if st, err = sys.StatxAt(in, ""); err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return syscall.EXDEV
	}
	// Without a name until it is whole and has its owner and mode: nobody in the box opens
	// it before.
	out, err := sys.OpenNameless(dst)
	if err != nil {
		return err
	}
	defer sys.CloseFD(out)
	if err := m.fill(in, out, st.Size); err != nil {
		return err
	}
	if err := m.dress(in, out, st); err != nil {
		return err
	}
	if err := linkOwn(out, dst, name); err != nil || st.Nlink == 1 {
		return err
	}
	now, err := sys.StatxAt(out, "")
	m.links[st.Ino] = fileCopy{rel, now.Ino, now.Dev}
	return err
}

// fill copies the content, and leaves holes as they are.
func (m *mover) fill(in, out int, size int64) error {
	for off := int64(0); ; {
		begin, end, ok, err := sys.NextData(in, off, size)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		for off = begin; off < end; {
			if m.buf == nil {
				m.buf = make([]byte, 256<<10)
			}
			n, err := sys.CopyRange(in, out, off, int(min(end-off, moveChunk)), m.buf)
			if err == syscall.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 { // it became shorter
				return sys.Truncate(out, off)
			}
			off += int64(n)
			m.bytes += int64(n)
			if n >= len(m.buf) {
				if err := m.goOn(n); err != nil {
					return err
				}
			}
		}
	}
	return sys.Truncate(out, size)
}

// linkCopy gives the copy of a file that has several names another one.
func (m *mover) linkCopy(c fileCopy, dst int, name string) error {
	fd, err := sys.OpenIn(m.top, c.rel, sys.PlaceOnly)
	if err != nil {
		return err
	}
	defer sys.CloseFD(fd)
	if st, err := sys.StatxAt(fd, ""); err != nil || st.Ino != c.ino || st.Dev != c.dev {
		return syscall.EXDEV // the box has put another in its place
	}
	return linkOwn(fd, dst, name)
}

// linkOwn names a file that was made here, whose owner may be another by now: then the
// kernel asks for a capability (fs.protected_hardlinks, proc_sys_fs(5)).
func linkOwn(fd, dst int, name string) error {
	if err := sys.KeepCaps(sys.CapFowner); err != nil {
		return err
	}
	defer sys.KeepCaps()
	return sys.LinkOpen(fd, dst, name)
}

// dress gives a copy what belongs to the original beside its content: attributes, owner,
// mode, ACLs and times. Both are open, and the copy is one that was made here: only so the
// capabilities that this takes (root's; nobody else has any) can touch nothing else.
func (m *mover) dress(in, out int, st sys.Statx) error {
	names, err := sys.XattrNames(in)
	if err != nil {
		return err
	}
	cur, err := sys.StatxAt(out, "")
	if err != nil {
		return err
	}
	inherited, err := sys.XattrNames(out)
	if err != nil {
		return err
	}
	for _, name := range inherited { // ACLs, from the directory that it was made in
		if strings.HasPrefix(name, "system.") {
			if err := sys.RemoveXattr(out, name); err != nil {
				return err
			}
		}
	}
	if err := copyXattrs(in, out, names, "user."); err != nil {
		return err
	}
	const ids = syscall.S_ISUID | syscall.S_ISGID
	owner := cur.UID != st.UID || cur.GID != st.GID
	if owner || st.Mode&ids != 0 || slices.Contains(names, fileCaps) {
		if err := sys.KeepCaps(sys.CapChown, sys.CapFowner, sys.CapFsetid, sys.CapSetfcap); err != nil {
			return err
		}
		defer sys.KeepCaps()
	}
	if owner {
		if err := sys.Chown(out, st.UID, st.GID); err != nil {
			return err
		}
	}
	if err := sys.Chmod(out, st.Mode); err != nil {
		return err
	}
	for _, kind := range []string{"system.", fileCaps} {
		if err := copyXattrs(in, out, names, kind); err != nil {
			return err
		}
	}
	if now, err := sys.StatxAt(out, ""); err != nil || now.Mode != st.Mode || now.UID != st.UID || now.GID != st.GID {
		return &moveError{syscall.EXDEV, "owner or mode cannot be kept"}
	}
	return sys.SetTimes(out, st.ATime, st.MTime)
}

// fileCaps is the attribute with a program's capabilities (capabilities(7)).
const fileCaps = "security.capability"

// copyXattrs copies the attributes whose names begin with kind.
func copyXattrs(in, out int, names []string, kind string) error {
	for _, name := range names {
		if !strings.HasPrefix(name, kind) {
			continue
		}
		v, err := sys.Xattr(in, name)
		if err == nil {
			err = sys.SetXattr(out, name, v)
		}
		if err != nil {
			return &moveError{errnoOf(err), name + ": " + err.Error()}
		}
	}
	return nil
}

// empty takes the old tree away: src, which is dir/name, whose copy is dst.
func (m *mover) empty(dir int, name string, src, dst int) error {
	for range movePasses {
		if err := m.drain(src, dst, "", 0, false); err != nil {
			return err
		}
		if err := sys.RemoveAt(dir, name, true); err != syscall.ENOTEMPTY {
			return err
		}
	}
	return syscall.ENOTEMPTY
}

// drain removes what is in src and in dst, and moves what is in src alone to dst: what the
// box has made since it was copied. A file that the box has changed since goes too, in the
// place of its copy; not so on the way back, where src is the copy.
func (m *mover) drain(src, dst int, rel string, depth int, back bool) error {
	if depth > 2*moveDepth {
		return syscall.ENAMETOOLONG
	}
	if st, err := sys.StatxAt(src, ""); err == nil && st.UID == m.uid && st.Mode&0o700 != 0o700 {
		sys.Chmod(src, st.Mode|0o700) // its last moments: a rename does not ask what is in it
	}
	for range movePasses {
		left := false
		err := sys.Names(src, func(name string) error {
			left = true
			return m.about(path.Join(rel, name), m.drainEntry(src, dst, name, path.Join(rel, name), depth, back))
		})
		if err != nil || !left {
			return err
		}
	}
	return nil // the box goes on making files: its removal will say so
}

func (m *mover) drainEntry(src, dst int, name, rel string, depth int, back bool) error {
	a, err := sys.StatxAt(src, name)
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	b, err := sys.StatxAt(dst, name)
	there := err == nil
	if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		if there && (back || a.Ino == b.Ino || m.isAsCopied(rel)) {
			return sys.RemoveAt(src, name, false)
		}
		return sys.Rename2(src, name, dst, name, 0)
	}
	if !there {
		return sys.Rename2(src, name, dst, name, sys.RenameNoreplace)
	}
	from, _, err := m.openDir(src, name)
	if err != nil {
		return err
	}
	defer sys.CloseFD(from)
	to, _, err := m.openDir(dst, name)
	if err != nil {
		return err
	}
	defer sys.CloseFD(to)
	if err := m.drain(from, to, rel, depth+1, back); err != nil {
		return err
	}
	if err := sys.RemoveAt(src, name, true); err != nil && err != syscall.ENOTEMPTY {
		return err
	}
	return nil // not empty again: the next pass finds it
}

// isAsCopied says whether the box has not changed a file since it was copied: it is the
// real one still, or the copy is another name of the box's.
func (m *mover) isAsCopied(rel string) bool {
	old, own := m.changed.upperInode(path.Join(m.base, rel))
	now, ok := m.changed.upperInode(path.Join(m.dest, rel))
	return !own || ok && old == now
}

// clear removes a copy that is not wanted, as far as that goes.
func (m *mover) clear(dir int, name string, depth int) {
	fd, st, err := m.openDir(dir, name)
	if err != nil || depth > 2*moveDepth {
		return
	}
	defer sys.CloseFD(fd)
	if st.UID == m.uid && st.Mode&0o700 != 0o700 {
		sys.Chmod(fd, st.Mode|0o700)
	}
	for range movePasses {
		left := false
		sys.Names(fd, func(name string) error {
			left = true
			if sys.RemoveAt(fd, name, false) != nil {
				m.clear(fd, name, depth+1)
			}
			return nil
		})
		if !left {
			break
		}
	}
	sys.RemoveAt(dir, name, true)
}
