package driver

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// resolver finds which file a path names in the box's view, as the kernel's own walk
// would (path_resolution(7)). It reads symbolic links through the root directory of the
// box's init and remembers what it read: every call that could turn a directory into a
// link passes the supervisor, which then makes it forget. For the log only; a program
// that changes links while it walks them can make it name either.
type resolver struct {
	root int // descriptor of the box's root
	// unseen are places where a look may wait for ever: what is there is taken for no link.
	unseen []string
	links  map[string]string
	dirs   map[string]struct{} // canonical directories, no link on the way to them
	held   int                 // bytes of both
	since  time.Time
	buf    [4097]byte
	key    []byte
}

const (
	maxCached   = 1 << 15
	maxHeld     = 16 << 20
	cachedFor   = time.Second // what changes outside is noticed after that
	maxLinks    = 40          // as the kernel's MAXSYMLINKS
	maxPath     = 4096        // PATH_MAX, the NUL included
	maxResolved = 8 * maxPath // a path that links make longer is cut here
)

func newResolver(root int) *resolver {
	r := &resolver{root: root}
	r.forget()
	return r
}

func (r *resolver) forget() {
	r.links, r.dirs, r.held = map[string]string{}, map[string]struct{}{}, 0
}

// tick forgets what is old.
func (r *resolver) tick(now time.Time) {
	if now.Sub(r.since) > cachedFor {
		r.since = now
		if len(r.links) > 0 || len(r.dirs) > 0 {
			r.forget()
		}
	}
}

// changes forgets what is known of p; all that is known when whole, as when p is a
// directory that moves.
func (r *resolver) changes(p string, whole bool) {
	if whole {
		if len(r.links) > 0 || len(r.dirs) > 0 {
			r.forget()
		}
		return
	}
	delete(r.links, p)
	delete(r.dirs, p)
}

// place is where a path leads.
type place struct {
	path    string // absolute in the box's view; or an object without a path ("pipe:[12]")
	missing bool   // known not to exist
	found   bool   // known to exist
	loop    bool   // more links than the kernel follows
	object  bool   // path is no path
}

// at is who asks: magic links of /proc depend on it.
type at struct {
	pid, tid int // in the box; thread ids below /proc/thread-self are not resolved further
}

// look reads p as a symbolic link: its text, or found but no link, or missing.
func (r *resolver) look(p string) (text string, link, missing bool) {
	if t, ok := r.links[p]; ok {
		return t, t != "", false
	}
	if len(p) >= maxPath {
		return "", false, true
	}
	for _, d := range r.unseen {
		if under(p, d) {
			return "", false, false
		}
	}
	r.key = append(append(r.key[:0], p[1:]...), 0)
	if len(r.key) == 1 {
		return "", false, false
	}
	n, e := sys.ReadlinkAt(r.root, r.key, r.buf[:])
	switch e {
	case 0:
		text, link = string(r.buf[:n]), true
	case syscall.EINVAL:
	case syscall.ENOENT, syscall.ENOTDIR:
		return "", false, true
	default:
		return "", false, false
	}
	if !under(p, "/proc") {
		if len(r.links) >= maxCached || r.held > maxHeld {
			r.forget()
		}
		r.held += len(p) + len(text)
		r.links[p] = text
	}
	return text, link, false
}

// resolve walks rel from the canonical directory base, below the root directory top
// ("/", but for openat2's RESOLVE_IN_ROOT). follow says whether a link in the last
// place is followed.
func (r *resolver) resolve(who at, top, base, rel string, follow bool) place {
	if strings.HasPrefix(rel, "/") {
		base = top
		if top == "/" {
			// The most frequent case: an absolute path whose directory is known.
			if i := strings.LastIndexByte(rel, '/'); i > 0 && i < len(rel)-1 {
				if _, ok := r.dirs[rel[:i]]; ok && rel[i+1:] != "." && rel[i+1:] != ".." {
					base, rel = rel[:i], rel[i+1:]
				}
			}
		}
	}
	out, links := base, 0
	for rel != "" {
		var comp string
		comp, rest, more := strings.Cut(rel, "/")
		if comp == "" || comp == "." {
			rel = rest
			continue
		}
		if comp == ".." {
			if out != top {
				out = parent(out)
			}
			rel = rest
			continue
		}
		cand := join(out, comp)
		last := !more || strings.Trim(rest, "/") == ""
		if len(cand) > maxResolved {
			return place{path: cand, missing: true}
		}
		if last && !more && !follow {
			r.known(out)
			return place{path: cand}
		}
		if out == "/proc" && (comp == "self" || comp == "thread-self") {
			out = join(out, strconv.Itoa(who.pid))
			if comp == "thread-self" {
				out = join(join(out, "task"), strconv.Itoa(who.tid))
			}
			rel = rest
			continue
		}
		text, link, missing := r.look(cand)
		switch {
		case missing:
			if last {
				return place{path: cand, missing: true}
			}
			return place{path: lexical(cand, rest), missing: true}
		case !link:
			if last {
				r.known(out)
				return place{path: cand, found: true}
			}
			out, rel = cand, rest
		case magic(cand):
			if !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "/memfd:") {
				return place{path: text, object: true, found: true}
			}
			out, rel = text, rest
			if last {
				return place{path: out, found: true}
			}
		default:
			if links++; links > maxLinks {
				return place{path: cand, loop: true}
			}
			if strings.HasPrefix(text, "/") {
				out = top
			}
			rel = text
			if more {
				rel += "/" + rest
			}
			if len(rel) > maxResolved {
				return place{path: cand, loop: true}
			}
		}
	}
	return place{path: out, found: true}
}

func (r *resolver) known(dir string) {
	if under(dir, "/proc") {
		return
	}
	if _, ok := r.dirs[dir]; !ok {
		if len(r.dirs) >= maxCached || r.held > maxHeld {
			r.forget()
		}
		r.held += len(dir)
		r.dirs[dir] = struct{}{}
	}
}

func parent(p string) string {
	if i := strings.LastIndexByte(p, '/'); i > 0 {
		return p[:i]
	}
	return "/"
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// lexical adds the rest of a path below something that does not exist.
func lexical(p, rest string) string {
	for comp := range strings.SplitSeq(rest, "/") {
		switch comp {
		case "", ".":
		case "..":
			p = parent(p)
		default:
			p = join(p, comp)
		}
	}
	return p
}

// magic says whether p is one of /proc's links that lead to an object, whatever their
// text says (proc(5)): cwd, root, exe, fd/N, ns/X, map_files/X of a process or thread.
func magic(p string) bool {
	rest, ok := strings.CutPrefix(p, "/proc/")
	if !ok {
		return false
	}
	pid, rest, ok := strings.Cut(rest, "/")
	if !ok || !digits(pid) {
		return false
	}
	if t, ok := strings.CutPrefix(rest, "task/"); ok {
		var tid string
		if tid, rest, ok = strings.Cut(t, "/"); !ok || !digits(tid) {
			return false
		}
	}
	switch dir, name, sub := strings.Cut(rest, "/"); {
	case !sub:
		return rest == "cwd" || rest == "root" || rest == "exe"
	case strings.Contains(name, "/"):
		return false
	default:
		return dir == "fd" || dir == "ns" || dir == "map_files"
	}
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
