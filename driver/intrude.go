package driver

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// intruders watches the upper layers while a session runs for what others of the machine do
// there: with fanotify(7) on their directories, which costs nobody else on the machine
// anything (a mark on the mount or the file system would be looked at in each open of any file
// of it) and holds nobody up.
//
// The box's own operations reach the same files. overlayfs opens them with FMODE_NONOTIFY
// (fs/backing-file.c), so most of its reads and writes make no events; truncating, copying within the
// kernel and whatever changes a directory does. Such an event is dropped when its process is
// of the box, or has ended and was one that the supervisor knew. Where not all can be known,
// because several sessions run or plain reads are not intercepted, nothing is said of processes
// that have ended. Only root's group is told whose an event is: an ordinary user's could not tell
// the box from outside, and is not made.
type intruders struct {
	fan  *sys.Fanotify
	b    boxDir
	emit func(*core.Operation)
	knew func(pid int) bool // a process that has ended was of the session
	box  string             // its user namespace, as /proc/PID/ns/user says

	dirs  map[string]string // handle of a marked directory: where it is in the box's view
	ups   map[string]string // and in its layer
	full  bool              // there are more than are marked
	said  map[intrusion]bool
	count int
	lost  bool
	done  chan struct{}
	once  sync.Once
}

// intrusion is what is said once.
type intrusion struct {
	pid  int
	what string
	path string
}

const (
	maxMarks = 1 << 13 // directories; each stays in memory
	maxSaid  = 1 << 12
)

// watchIntruders begins to watch. nil: this kernel or user cannot.
func watchIntruders(b boxDir, ls []layers.Layer, init int, knew func(int) bool, emit func(*core.Operation)) *intruders {
	fan, err := sys.NewFanotify()
	if err != nil {
		return nil
	}
	if !fan.Who {
		fan.Close()
		return nil
	}
	w := &intruders{fan: fan, b: b, emit: emit, knew: knew, dirs: map[string]string{}, ups: map[string]string{}, said: map[intrusion]bool{}, done: make(chan struct{})}
	w.box, _ = os.Readlink("/proc/" + strconv.Itoa(init) + "/ns/user")
	for _, l := range ls {
		w.tree(b.Upper(l), l.Path)
	}
	go w.run()
	return w
}

const intrudeMask = sys.FanAccess | sys.FanModify | sys.FanAttrib | sys.FanFrom | sys.FanTo | sys.FanCreate | sys.FanDelete

// tree marks a directory and those below it, as far as there is room.
func (w *intruders) tree(up, real string) {
	if len(w.dirs) >= maxMarks {
		w.full = true
		return
	}
	if w.fan.Mark(up, intrudeMask) != nil {
		return // gone since, no directory, or closed
	}
	h, err := sys.DirHandle(up)
	if err != nil {
		return // a file system without handles
	}
	w.dirs[h], w.ups[h] = real, up
	ents, err := os.ReadDir(up)
	if err != nil {
		return
	}
	for _, e := range ents {
		if e.IsDir() {
			w.tree(filepath.Join(up, e.Name()), path.Join(real, e.Name()))
		}
	}
}

func (w *intruders) run() {
	defer close(w.done)
	buf := make([]byte, 1<<16)
	var evs []sys.FanEvent
	for {
		var err error
		if evs, err = w.fan.Read(buf, evs[:0]); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return
			}
			w.lose("fanotify: " + err.Error())
			return
		}
		for i := range evs {
			w.event(&evs[i])
		}
	}
}

// close ends the watching, and says how much was not said one by one.
func (w *intruders) close() {
	if w == nil {
		return
	}
	w.once.Do(func() {
		w.fan.Close()
		<-w.done
		if more := w.count - maxOutsideChanges; more > 0 {
			w.emit(&core.Operation{Surface: core.OutsideWrite, Action: core.ActWrite, Target: string(w.b.Dir), Verdict: core.Allowed,
				Outcome: core.Performed, Rule: "fanotify", Leak: true, Detail: core.Detail{"change": "more", "count": strconv.Itoa(more)}})
		}
	})
}

// lose says once that something may have been missed.
func (w *intruders) lose(why string) {
	if w.lost {
		return
	}
	w.lost = true
	w.emit(&core.Operation{Surface: core.OutsideWrite, Action: core.ActWrite, Target: string(w.b.Dir), Verdict: core.Allowed,
		Outcome: core.Attempted, Rule: "fanotify", Leak: true, Detail: core.Detail{"change": "perhaps", "why": why}})
}

// whatOf names an event's kind, by the gravest of what was put into one.
func whatOf(mask uint64) string {
	for _, k := range []struct {
		mask uint64
		what string
	}{{sys.FanDelete | sys.FanFrom, "deleted"}, {sys.FanCreate | sys.FanTo, "added"}, {sys.FanModify, "modified"}, {sys.FanAttrib, "metadata"}, {sys.FanAccess, "read"}} {
		if mask&k.mask != 0 {
			return k.what
		}
	}
	return ""
}

func (w *intruders) event(e *sys.FanEvent) {
	if e.Mask&sys.FanOverflow != 0 {
		w.lose("more happened at once than the kernel keeps")
		return
	}
	dir, ok := w.dirs[e.Dir]
	if !ok {
		return
	}
	p, up := path.Join(dir, e.Name), filepath.Join(w.ups[e.Dir], e.Name)
	if e.Mask&sys.FanOnDir != 0 && e.Mask&(sys.FanCreate|sys.FanTo) != 0 {
		w.tree(up, p)
	}
	what := whatOf(e.Mask)
	if what == "" || what == "read" && e.Mask&sys.FanOnDir != 0 || e.PID == os.Getpid() {
		return // its own, or a listing
	}
	d := core.Detail{"change": what}
	if !w.outsider(e.PID, d) {
		return
	}
	k := intrusion{e.PID, what, p}
	if w.said[k] {
		return
	}
	if len(w.said) >= maxSaid {
		clear(w.said)
	}
	w.said[k] = true
	if w.count++; w.count > maxOutsideChanges {
		return
	}
	sf := core.OutsideWrite
	if what == "read" {
		sf = core.OutsideRead
	}
	w.emit(&core.Operation{Surface: sf, Action: outsideActions[what], Target: p, Verdict: core.Allowed, Outcome: core.Performed,
		Rule: "fanotify", Leak: true, Detail: d})
}

// outsider says whether a process is none of the box's nor the sandbox's own, and adds who it is.
func (w *intruders) outsider(pid int, d core.Detail) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	ns, err := os.Readlink(proc + "/ns/user")
	if err != nil { // it has ended
		d["pid"] = strconv.Itoa(pid)
		return !w.knew(pid)
	}
	if ns == w.box {
		return false
	}
	exe, err := os.Readlink(proc + "/exe")
	if err == nil && sameExe(proc+"/exe") {
		return false
	}
	d["pid"], d["exe"] = strconv.Itoa(pid), exe
	for line := range strings.Lines(string(readBounded(proc+"/status", 1024))) {
		if v, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(v); len(f) > 0 {
				d["uid"] = f[0]
			}
		}
	}
	return true
}

// sameExe says whether a process runs sandglass: a command or the daemon.
func sameExe(link string) bool {
	a, err1 := os.Stat(link)
	b, err2 := os.Stat(sys.SelfExe())
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}
