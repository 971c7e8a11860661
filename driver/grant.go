package driver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// Who may read what is private. A grant names a program; the process that asks must be it, as
// it is in the real tree, and nothing of the box's may be in it: it runs from the unreadable
// copy ([program]), it has executed that itself and was traced by nobody since, all that is
// mapped into it is real, its environment does not lead the linker or an interpreter
// elsewhere, and where it is an interpreter so are its script and all that it has opened.
// What a process that is so says of itself - its maps, its environment, its arguments - can be
// relied on: nobody else can write in its memory. Each refusal says why in the log.

// warden is what the supervisor knows of private places.
type warden struct {
	private
	clones map[string]int // by place: a read-only mount of it that is nowhere else; closed at the session's end
	copies map[fileID]int // the copies of programs, to Programs
	b      boxDir
	asks   fileAsks
	mu     sync.Mutex
	given  map[fileID]string // what the box was given, at most maxGiven
}

const (
	maxGiven   = 1 << 14
	maxCopied  = 64 << 20 // of a file that is given as a copy
	maxMaps    = 8 << 20
	maxEnviron = 4 << 20
	maxCmdline = 64 << 10
)

// newWarden makes the warden of a session. fds are the stage's clones of the places in
// order; take gets one.
func (r *run) newWarden(fds []int) *warden {
	w := &warden{private: r.private, b: r.b, clones: map[string]int{}, copies: map[fileID]int{}, given: map[fileID]string{}}
	w.ready()
	i := 0
	for _, pl := range w.Places {
		if pl.How != privFile && (pl.How != privVeil || len(pl.Roots) == 0) {
			continue
		}
		if i < len(fds) && fds[i] >= 0 {
			if fd, err := sys.PidfdGetfd(r.child.Pidfd, fds[i]); err == nil {
				w.clones[pl.Path] = fd
			}
		}
		i++
	}
	for i, p := range w.Programs {
		if st, err := sys.StatPath(p.Copy); err == nil && st.Mode&0o7777 == 0o111 {
			if _, ok := w.copies[idOf(&st)]; !ok {
				w.copies[idOf(&st)] = i
			}
		}
	}
	return w
}

func (w *warden) close() {
	for _, fd := range w.clones {
		sys.CloseFD(fd)
	}
}

// judges says whether any grant can be used, so that who executes what must be known.
func (w *warden) judges() bool { return len(w.copies) > 0 }

// asker is who wants to read, as it was when it asked.
type asker struct {
	id        uint64 // of the call: while it waits the numbers are its own
	tid, tgid int
	exe       string
	clean     bool   // it has executed itself, untraced
	own       string // a file of the box's own that it has opened since
	script    string // its first argument as a path, when it is an existing file; "" when it is none
	pid       int
}

// private judges the opening of a file in a private place; not ok when p is in none, or is the
// box's own.
func (s *supervisor) privateOpen(p place, act core.Action, flags uint32) (answer, bool) {
	pl, own := s.privatePlace(p)
	if pl == nil || own {
		return answer{}, false
	}
	creates := flags&(oCreat|oTmpfile) != 0
	writes := flags&oAccmode != 0 || flags&oTrunc != 0
	if pl.How != privVeil && pl.How != privFile {
		if creates || writes {
			return answer{}, false // of the box's own, or the kernel finds nothing
		}
		return s.privateLook(act, p, nil)
	}
	mode, there := s.modeOf(p.path)
	if flags&oPath != 0 || !there || mode&syscall.S_IFMT != syscall.S_IFREG {
		if writes || creates {
			return answer{}, false
		}
		op := &core.Operation{Surface: core.FilesPrivate, Action: act, Target: p.path, Verdict: core.Redirected, Rule: "skeleton"}
		if !there {
			op.Detail = core.Detail{"found": "no"}
		}
		return answer{ops: [2]*core.Operation{op}}, true
	}
	d := core.Detail{"flags": openFlags(flags)}
	if flags&oTrunc != 0 && pl.How == privVeil {
		return answer{}, false // all of it is new
	}
	if writes {
		d["why"] = "a grant is for reading"
		return s.refuse(core.FilesPrivate, act, p.path, privateReason, syscall.EACCES, d), true
	}
	s.settleExec(s.p)
	a := asker{id: s.n.ID, tid: int(s.n.TID), tgid: s.p.tgid, exe: s.p.exe, clean: s.p.clean, own: s.p.own, pid: s.p.pid}
	a.script = s.scriptOf(a.tgid)
	op := &core.Operation{Surface: core.FilesPrivate, Action: act, Target: p.path, Verdict: core.Allowed, Detail: d}
	who, file, now := s.p, p.path, s.now
	return answer{ops: [2]*core.Operation{op}, do: func() performed {
		no := func(rule, why string) performed {
			op.Verdict, op.Outcome, op.Rule, op.Leak = core.Blocked, core.Refused, rule, false
			if d["why"] = why; why == "" {
				delete(d, "why")
			}
			return performed{errno: syscall.EACCES}
		}
		dec, why := s.mayRead(&a, file)
		if dec.Stance == core.Ask && why == "" {
			q := Question{Proto: "file", Target: file, Exe: a.exe, PID: a.pid, Since: now}
			allow, how := s.warden.asks.ask(q, s.performer.done, func(q Question, how string, allow bool) {
				s.logFileAsk(op, q, how, allow, dec.Rule)
			})
			if !allow {
				return no(dec.Rule+", answered: "+how, "")
			}
			dec.Rule += ", answered: " + how
			_, why = s.mayRead(&a, file) // it may have become another meanwhile
		}
		if dec.Stance == core.Block || why != "" {
			return no(dec.Rule, why)
		}
		fd, how, err := s.warden.open(pl.Path, file)
		if err == nil && !s.l.Valid(a.id) {
			sys.CloseFD(fd)
			err = syscall.ENOENT
		}
		if err != nil {
			var e syscall.Errno
			if !errors.As(err, &e) {
				e = syscall.EIO
			}
			op.Rule = dec.Rule
			return performed{errno: e}
		}
		s.warden.gives(fd, file)
		who.holds.Store(true)
		op.Rule, d["how"], d["given"] = dec.Rule, "by the supervisor", how
		return performed{inject: true, fd: fd, cloexec: flags&syscall.O_CLOEXEC != 0}
	}}, true
}

// logFileAsk logs that a person is asked whether op may be, or what the answer was.
func (s *supervisor) logFileAsk(op *core.Operation, q Question, answer string, allow bool, rule string) {
	ask := &core.Operation{PID: op.PID, Proc: op.Proc, Exe: op.Exe, Surface: op.Surface, Action: core.ActAsk, Target: q.Target,
		Verdict: core.Allowed, Outcome: core.Performed, Rule: rule, Detail: core.Detail{"ask": q.ID, "proto": q.Proto, "answer": answer}}
	switch {
	case answer == "":
		ask.Outcome = core.Attempted
	case !allow:
		ask.Verdict, ask.Outcome, ask.Errno = core.Blocked, core.Refused, sys.ErrnoName(syscall.EACCES)
	}
	s.journal.add(ask)
}

// privatePlace finds the private place that p is in, and says whether what is there is the
// box's own.
func (s *supervisor) privatePlace(p place) (pl *privPlace, own bool) {
	if p.object || s.warden == nil {
		return nil, false
	}
	if pl = s.warden.of(p.path); pl == nil {
		return nil, false
	}
	switch pl.How {
	case privVeil: // its root is a layer's; what is below is the skeleton's or the box's own
		own = p.path != pl.Path && s.changed.inUpper(p.path)
	case privGone:
		there, whiteout := s.changed.upperFile(pl.Path)
		own = there && !whiteout
	}
	return pl, own
}

// privateLook judges an operation that only looks at a private place: there is nothing.
func (s *supervisor) privateLook(act core.Action, p place, d core.Detail) (answer, bool) {
	pl, own := s.privatePlace(p)
	if pl == nil || own {
		return answer{}, false
	}
	errno := syscall.ENOENT
	switch pl.How {
	case privClosed:
		errno = syscall.EACCES
	case privVeil, privFile:
		if act != core.ActExec {
			return answer{}, false
		}
		errno = syscall.EACCES
	case privMask:
		if p.path == pl.Path {
			errno = syscall.EACCES
		}
	}
	if d == nil {
		d = core.Detail{}
	}
	d["place"] = pl.Text
	return s.refuse(core.FilesPrivate, act, p.path, privateReason, errno, d), true
}

// privateWrite refuses a change of a skeleton's file: what the box would have then, and might
// give back one day, is a file of zeros. Making, replacing and deleting is the box's own affair.
func (s *supervisor) privateWrite(act core.Action, p place, d core.Detail) (answer, bool) {
	pl, own := s.privatePlace(p)
	if pl == nil || own || pl.How != privVeil && pl.How != privFile {
		return answer{}, false
	}
	switch act {
	case core.ActDelete, core.ActCreate, core.ActWrite, core.ActMkdir, core.ActRmdir, core.ActSymlink, core.ActMknod, core.ActBind:
		return answer{}, false // opening was judged
	}
	mode, there := s.modeOf(p.path)
	kind := mode & syscall.S_IFMT
	moves := act == core.ActRename || act == core.ActExchange
	if !there || kind != syscall.S_IFREG && !(moves && kind == syscall.S_IFDIR) {
		return answer{}, false
	}
	return s.refuse(core.FilesPrivate, act, p.path, privateReason, syscall.EACCES, d), true
}

// modeOf looks at a path of the box's view without following a last link.
func (s *supervisor) modeOf(p string) (mode uint32, there bool) {
	mode, _, err := sys.Lstat(s.paths.root, strings.TrimPrefix(p, "/"))
	return mode, err == nil
}

// upperFile says whether an upper layer has something at p, and whether that is a whiteout.
func (c *changed) upperFile(p string) (there, whiteout bool) {
	for i, l := range c.layers {
		if under(p, l.Path) {
			rel := strings.TrimPrefix(p[len(strings.TrimSuffix(l.Path, "/")):], "/")
			mode, rdev, err := sys.Lstat(c.fds[i], rel)
			return err == nil && rel != "", mode&syscall.S_IFMT == syscall.S_IFCHR && rdev == 0
		}
	}
	return false, false
}

// real says whether what the box sees at p is the real thing: nothing of the box's own is
// there, nor in the place of a directory on the way. Every step is looked at, from the top;
// known has the directories that were.
func (c *changed) real(p string, known map[string]bool) bool {
	for i, l := range c.layers {
		if !under(p, l.Path) {
			continue
		}
		if l.Frame && path.Dir(p) != l.Path {
			return false
		}
		rel := strings.TrimPrefix(p[len(strings.TrimSuffix(l.Path, "/")):], "/")
		if rel == "" {
			return false
		}
		names := strings.Split(rel, "/")
		for n := range names {
			sub := strings.Join(names[:n+1], "/")
			key := l.Path + "\x00" + sub
			if known[key] {
				continue
			}
			fd, err := sys.OpenPlainly(c.fds[i], sub)
			if errors.Is(err, syscall.ENOENT) {
				fi, err := os.Lstat(p)
				return err == nil && fi.Mode().IsRegular()
			}
			if err != nil {
				return false
			}
			mode, err := sys.Mode(fd)
			ok := err == nil && mode&syscall.S_IFMT == syscall.S_IFDIR && n < len(names)-1 && !layers.Opaque("/proc/self/fd/"+strconv.Itoa(fd)+"/.")
			sys.CloseFD(fd)
			if !ok {
				return false
			}
			known[key] = true
		}
		return false
	}
	return false
}

// interpreters are programs that do what a file or their arguments say.
var interpreters = regexp.MustCompile(`^(python|pypy|perl|ruby|node|nodejs|deno|bun|bash|dash|sh|zsh|ksh|mksh|fish|tcsh|csh|lua|luajit|php|tclsh|wish|expect|guile|java|mono|awk|gawk|mawk|busybox|toybox|env|xargs|ld\.so|ld-linux.*|ld-musl.*|Rscript|R|julia|emacs|make|gdb)[-0-9.]*$`)

// mayRead says what the policy's grants say of a process that wants to read a private file,
// and why it is not the program of the grant after all; "" when it is.
func (s *supervisor) mayRead(a *asker, file string) (dec core.PrivateDecision, why string) {
	w := s.warden
	dir := "/proc/" + strconv.Itoa(a.tgid) + "/"
	runs := -1
	if st, err := sys.StatPath(dir + "exe"); err == nil {
		if i, ok := w.copies[idOf(&st)]; ok {
			runs = i
		}
	}
	var missed string
	dec = s.policy.Load().DecidePrivate(func(i int, g *core.Grant) bool {
		if i >= len(w.Roots) {
			return false
		}
		named := false
		for _, root := range w.Roots[i] {
			named = named || under(file, root)
		}
		if !named {
			return false
		}
		for _, p := range w.Programs {
			if p.Exe != g.Exe {
				continue
			}
			if runs < 0 || w.Programs[runs].Copy != p.Copy {
				if p.Real == a.exe {
					missed = "what runs is not the real program"
				}
				continue
			}
			if p.Script == "" || p.Script == a.script {
				return true
			}
		}
		if a.exe == g.Exe && missed == "" {
			missed = "what runs is not the real program"
		}
		return false
	})
	switch {
	case dec.Stance == core.Block:
		return dec, missed
	case !s.l.Valid(a.id):
		return dec, "it has ended"
	}
	return dec, s.impure(a, dir, w.Programs[runs])
}

// impure says what of the box's is in a process, or may be.
func (s *supervisor) impure(a *asker, dir string, p program) string {
	if !a.clean {
		return "it was traced, or is a fork that has not executed the program itself"
	}
	for _, f := range []string{"status", "task/" + strconv.Itoa(a.tid) + "/status"} {
		if t, ok := tracedBy(dir + f); !ok || t != 0 {
			return "it is traced"
		}
	}
	env, ok := environOf(a.tgid)
	if !ok {
		return "its environment cannot be looked at"
	}
	interprets := interpreters.MatchString(path.Base(p.Real))
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if name, _, _ := bytes.Cut(kv, []byte("=")); misleads(string(name)) || interprets && misleadsInterpreter(string(name)) {
			return "environment: " + core.Shorten(string(name), 80)
		}
	}
	if why := s.mapped(dir); why != "" {
		return why
	}
	if interprets {
		switch {
		case a.script == "":
			return "an interpreter whose first argument is no script"
		case !s.changed.real(a.script, map[string]bool{}):
			return "its script is the box's own: " + a.script
		case a.own != "":
			return "it has opened what is the box's own: " + a.own
		}
	}
	if !s.l.Valid(a.id) {
		return "it has ended"
	}
	return ""
}

// imageOf is what the kernel has noted of a process when it executed: where its code, stack,
// arguments and environment are (proc_pid_stat(5), fields 26 to 28 and 45 to 51), which
// prctl(PR_SET_MM) alone can change. nil when that is not to be seen. Of a process that
// nobody may trace environ and auxv are root's to read; this is not.
func imageOf(tgid int) []int64 {
	_, num, ok := parseStat(readBounded("/proc/"+strconv.Itoa(tgid)+"/stat", 1024))
	if !ok || num(28) == 0 {
		return nil
	}
	var im []int64
	for _, f := range []int{26, 27, 28, 45, 46, 47, 48, 49, 50, 51} {
		im = append(im, num(f))
	}
	return im
}

// environOf reads the environment that a process was executed with from its memory.
func environOf(tgid int) ([]byte, bool) {
	im := imageOf(tgid)
	if im == nil {
		return nil, false
	}
	from, to := uint64(im[8]), uint64(im[9])
	if to < from || to-from > maxEnviron {
		return nil, false
	}
	env := make([]byte, to-from)
	const part = 64 << 10 // what one read takes at least
	for at := 0; at < len(env); at += part {
		b := env[at:min(len(env), at+part)]
		if n, e := sys.ReadMem(tgid, from+uint64(at), b); e != 0 || n < len(b) {
			return nil, false
		}
	}
	return env, true
}

// tracedBy reads TracerPid of a status file.
func tracedBy(file string) (int, bool) {
	for l := range bytes.Lines(readBounded(file, 4096)) {
		if v, ok := bytes.CutPrefix(l, []byte("TracerPid:")); ok {
			return atoi(v), true
		}
	}
	return 0, false
}

// misleads says whether a variable of the environment can make a program load what is not its
// own: those of ld.so(8), of libraries that load others, and of interpreters, which are inside
// of other programs as well.
func misleads(name string) bool {
	switch name {
	case "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_ORIGIN_PATH", "LD_PROFILE", "LD_DEBUG_OUTPUT", "GCONV_PATH", "GETCONF_DIR", "LOCPATH", "NIS_PATH", "MALLOC_TRACE",
		"OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES", "SSLKEYLOGFILE", "GIO_EXTRA_MODULES", "GIO_MODULE_DIR", "GTK_MODULES", "GTK_PATH", "QT_PLUGIN_PATH", "SASL_PATH",
		"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PERL5LIB", "PERL5OPT", "PERLLIB", "NODE_OPTIONS", "NODE_PATH", "RUBYOPT", "RUBYLIB":
		return true
	}
	return false
}

// misleadsInterpreter says it of what interpreters alone look at.
func misleadsInterpreter(name string) bool {
	switch name {
	case "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "PROMPT_COMMAND", "ZDOTDIR", "GEM_HOME", "GEM_PATH", "BUNDLE_GEMFILE", "PHPRC", "PHP_INI_SCAN_DIR", "TCLLIBPATH",
		"CLASSPATH", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "AWKPATH", "AWKLIBPATH", "GDBHISTFILE":
		return true
	}
	for _, p := range []string{"PYTHON", "PERL", "BASH_FUNC_", "LUA_", "R_", "JULIA_", "GUILE_"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// mapped says which file of the box's own is mapped into a process, from its maps
// (proc_pid_maps(5)).
func (s *supervisor) mapped(dir string) string {
	maps := readBounded(dir+"maps", maxMaps)
	if len(maps) == 0 || len(maps) == maxMaps {
		return "what is mapped into it cannot be seen"
	}
	fine, known := map[string]bool{}, map[string]bool{}
	for line := range bytes.Lines(maps) {
		f := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 6)
		if len(f) < 6 || string(f[4]) == "0" {
			continue // no file
		}
		name, exec := unescapeMount(strings.TrimLeft(string(f[5]), " ")), bytes.IndexByte(f[1], 'x') >= 0
		if fine[name] {
			continue
		}
		switch {
		case !exec && (strings.HasPrefix(name, "/dev/zero") || strings.HasPrefix(name, "/SYSV") || strings.HasPrefix(name, "/memfd:") || s.warden.gave(string(f[3]), string(f[4]))):
			continue
		case strings.HasSuffix(name, " (deleted)"):
			return "mapped: " + name
		}
		sp := s.spotOf(place{path: name})
		if sp != onReadOnly && !(sp == onOverlay && s.changed.real(name, known)) {
			return "mapped, and the box's own: " + name
		}
		fine[name] = true
	}
	return ""
}

// gives remembers what a descriptor that the box gets stands for.
func (w *warden) gives(fd int, file string) {
	st, err := sys.Stat(fd)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.given) < maxGiven {
		w.given[idOf(&st)] = file
	}
}

// gave says whether the file with that device and inode, as in proc_pid_maps(5), was given.
func (w *warden) gave(dev, ino string) bool {
	major, minor, _ := strings.Cut(dev, ":")
	ma, err1 := strconv.ParseUint(major, 16, 32)
	mi, err2 := strconv.ParseUint(minor, 16, 32)
	n, err3 := strconv.ParseUint(ino, 10, 64)
	if errors.Join(err1, err2, err3) != nil {
		return false
	}
	_, ok := w.name(fileID{mi&0xff | ma<<8&0xfff00 | mi&^0xff<<12 | ma&^0xfff<<32, n})
	return ok
}

func (w *warden) name(id fileID) (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	file, ok := w.given[id]
	return file, ok
}

// open opens a real file in a private place for reading, so that it cannot be opened again to
// write: by way of the read-only mount, or where there is none as a sealed copy.
func (w *warden) open(placePath, file string) (fd int, how string, err error) {
	rel := strings.TrimPrefix(file[len(placePath):], "/")
	if clone, ok := w.clones[placePath]; ok {
		fd, err = sys.OpenBelow(clone, rel)
		return fd, "read-only", err
	}
	dir, err := sys.OpenPlainly(rootDir(), strings.TrimPrefix(placePath, "/"))
	if err != nil {
		return -1, "", err
	}
	defer sys.CloseFD(dir)
	real, err := sys.OpenBelow(dir, rel)
	if err != nil {
		return -1, "", err
	}
	in := os.NewFile(uintptr(real), file)
	defer in.Close()
	st, err := sys.Stat(real)
	if err != nil {
		return -1, "", err
	}
	fd, err = sys.Sealed("private", in, maxCopied, st.Mode&0o777)
	return fd, "a copy", err
}

// rootDir is a descriptor of the real root, opened once and kept.
var rootDir = sync.OnceValue(func() int {
	fd, err := sys.OpenPath(-1, "/", syscall.O_DIRECTORY)
	if err != nil {
		return -1
	}
	return fd
})

// executing notes that p is about to execute. Whether it has the kernel's word says later, see
// settleExec: its image is another then.
func (s *supervisor) executing(p *proc) {
	if s.warden == nil || !s.warden.judges() {
		return
	}
	s.settleExec(p)
	p.image = nil
	dir := "/proc/" + strconv.Itoa(p.tgid) + "/"
	if t, ok := tracedBy(dir + "status"); ok && t == 0 {
		p.image = imageOf(p.tgid)
	}
}

// settleExec finds out whether p has executed since it last wanted to. The same image by
// chance - where the box has turned off the randomising of addresses - counts as no.
func (s *supervisor) settleExec(p *proc) {
	if p.image == nil {
		return
	}
	if now := imageOf(p.tgid); now != nil && !slices.Equal(now, p.image) {
		p.clean, p.own = true, ""
		p.holds.Store(false)
	}
	p.image = nil
}

// taint notes that somebody traces p or writes in its memory, or is about to.
func (p *proc) taint() {
	if p != nil {
		p.clean, p.image = false, nil
	}
}

// opensOwn notes that the calling process reads a file of the box's own.
func (s *supervisor) opensOwn(p place) {
	if s.warden == nil || !s.warden.judges() || p.missing {
		return
	}
	s.settleExec(s.p)
	if s.p.own == "" {
		if mode, there := s.modeOf(p.path); there && mode&syscall.S_IFMT == syscall.S_IFREG {
			s.p.own = p.path
		}
	}
}

// scriptOf is the first argument of a process as an absolute path, "" when it is no file.
func (s *supervisor) scriptOf(tgid int) string {
	args := bytes.SplitN(readBounded("/proc/"+strconv.Itoa(tgid)+"/cmdline", maxCmdline), []byte{0}, 3)
	if len(args) < 3 || len(args[1]) == 0 || args[1][0] == '-' || len(args[1]) >= maxPath {
		return ""
	}
	p, e := s.walk(-100, string(args[1]), true, false)
	if e != 0 || p.object || p.missing {
		return ""
	}
	if mode, there := s.modeOf(p.path); !there || mode&syscall.S_IFMT != syscall.S_IFREG {
		return ""
	}
	return p.path
}

// maxKept is how many descriptors are looked at when who holds what is private executes.
const maxKept = 256

// maxRights is how many descriptors one message carries (SCM_MAX_FD).
const maxRights = 253

// passes logs that a process which holds what is private sends a descriptor of it to another.
// That is its right: who is trusted to read it can tell it.
func (s *supervisor) passes(h []byte) {
	if !s.p.holds.Load() {
		return
	}
	control, size := binary.NativeEndian.Uint64(h[32:]), binary.NativeEndian.Uint64(h[40:])
	if control == 0 || size < 20 {
		return
	}
	b := make([]byte, min(size, 16+4*maxRights))
	n, e := sys.ReadMem(int(s.n.TID), control, b)
	if e != 0 || n < 20 {
		return
	}
	const solSocket, scmRights = 1, 1
	if binary.NativeEndian.Uint32(b[8:]) != solSocket || binary.NativeEndian.Uint32(b[12:]) != scmRights {
		return
	}
	end := min(uint64(n), binary.NativeEndian.Uint64(b))
	for at := uint64(16); at+4 <= end; at += 4 {
		fd, err := sys.ThreadFD(int(s.n.TID), int(int32(binary.NativeEndian.Uint32(b[at:]))))
		if err != nil {
			continue
		}
		st, err := sys.Stat(fd)
		sys.CloseFD(fd)
		if err != nil {
			continue
		}
		if file, ok := s.warden.name(idOf(&st)); ok {
			s.log(&core.Operation{Surface: core.FilesPrivate, Action: core.ActPass, Target: file, Verdict: core.Allowed, Rule: "who may read it may tell it",
				Detail: core.Detail{"fd": strconv.Itoa(int(int32(binary.NativeEndian.Uint32(b[at:])))), "how": "SCM_RIGHTS"}})
		}
	}
}

// kept names a private file that p has open when it executes, "" when there is none. What it
// executes has it too, but where the descriptor is closed by that.
func (s *supervisor) kept(p *proc) string {
	if !p.holds.Load() {
		return ""
	}
	for n := range maxKept {
		fd, err := sys.ThreadFD(int(s.n.TID), n)
		if err != nil {
			continue
		}
		st, err := sys.Stat(fd)
		sys.CloseFD(fd)
		if err != nil {
			continue
		}
		if file, ok := s.warden.name(idOf(&st)); ok {
			return file
		}
	}
	return ""
}
