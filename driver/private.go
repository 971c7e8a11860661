package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Private places. A policy names them; nothing in one is in the box's view. Where nobody may
// read it, a whiteout of ours in the upper layer, made before the mount, hides the place
// (mask.go): the kernel finds nothing there, whatever races, and the box may make its own.
// Where a grant says who may, the place is a mount of its own on a skeleton: the same names,
// types, modes, sizes and times, and no content. So all that looking shows agrees with the
// grant, and a race reads zeros. The real file is opened by the supervisor alone (grant.go).

// privHow says how a private place is kept from the box.
type privHow string

const (
	privGone   privHow = "gone"   // a whiteout; or it is in a frame, which has no copy of it
	privClosed privHow = "closed" // its user cannot read it outside either, so not in the box
	privVeil   privHow = "veil"   // a skeleton with the box's own layer over it
	privFile   privHow = "file"   // the skeleton of one file, read-only
	privMask   privHow = "mask"   // an empty, read-only directory
)

// privPlace is a private place as it was found.
type privPlace struct {
	Path string  `json:"path"` // without a symbolic link on the way to it
	Text string  `json:"text"` // of the policy
	How  privHow `json:"how"`
	// Roots are of a veil or a file: what of it a grant names; all of it when that is Path.
	Roots   []string `json:"roots,omitempty"`
	dir     bool
	file    bool // a regular one
	symlink bool
	link    string // the place where it leads to, when it is a symbolic link
	alias   bool   // by another mount
}

// program is one that a grant names. Where it runs in the box it is from a copy that can be
// executed and not read: then the kernel lets nobody in the box trace it, read or write its
// memory or take its descriptors (fs/exec.c, would_dump; kernel/ptrace.c), whatever races.
type program struct {
	Exe    string `json:"exe"`              // as the grant says
	Real   string `json:"real"`             // what is executed: the program, or the script's interpreter
	Script string `json:"script,omitempty"` // the real path of a script
	Copy   string `json:"copy"`             // in the box's folder
}

// private is what a box's view does with private places, as the session that makes the view
// found it. Those that join it have the same.
type private struct {
	View     string      `json:"view"` // [core.Policy.PrivateView]
	Places   []privPlace `json:"places"`
	Programs []program   `json:"programs,omitempty"`
	Roots    [][]string  `json:"roots,omitempty"` // of each grant: the places that it names
	paths    map[string]int
}

const (
	maxPrivPlaces = 4096
	maxPrivGlob   = 1 << 16 // names in a directory that a glob is matched with
	maxPasswd     = 1 << 20
)

// finder finds the places that patterns name, as they are now.
type finder struct {
	homes  []string        // of the caller, canonical
	dirs   map[string]bool // what is known to be a directory, or not
	places map[string]privPlace
	shares []string        // not to be looked at
	held   map[string]bool // those that a private place is on: they are not read
}

// findPrivate finds the private places and what the grants name. env has HOME.
func findPrivate(p *core.Policy, env, shares []string) (pr private, f *finder, err error) {
	homes, others := homesOf(env, shares)
	f = &finder{homes: homes, dirs: map[string]bool{}, places: map[string]privPlace{}, shares: shares, held: map[string]bool{}}
	pr.View = p.PrivateView()
	for _, text := range p.Private {
		if text == core.OtherHomes {
			for _, h := range others {
				f.add(h, text)
			}
			if err := f.expand("/home/*", text); err != nil {
				return pr, nil, err
			}
			continue
		}
		if err := f.each(text); err != nil {
			return pr, nil, err
		}
	}
	found := f.places
	for i := range p.Grants {
		f.places = map[string]privPlace{}
		if err := f.each(p.Grants[i].Path); err != nil {
			return pr, nil, err
		}
		var roots []string
		for r := range f.places {
			roots = append(roots, r)
		}
		sort.Strings(roots)
		pr.Roots = append(pr.Roots, roots)
	}
	f.places = found
	return pr, f, nil
}

// each finds what a pattern names in each of the caller's homes.
func (f *finder) each(text string) error {
	if !strings.HasPrefix(text, "~/") {
		return f.expand(text, text)
	}
	for _, h := range f.homes {
		if err := f.expand(core.AtHome(text, h), text); err != nil {
			return err
		}
	}
	return nil
}

// expand walks a pattern component by component, through real directories.
func (f *finder) expand(pattern, text string) error {
	return f.walk("/", strings.Split(strings.Trim(pattern, "/"), "/"), text)
}

func (f *finder) walk(dir string, comps []string, text string) error {
	comp, last := comps[0], len(comps) == 1
	names := []string{literal(comp)}
	if strings.ContainsAny(comp, "*?[") && hasMeta(comp) {
		names = nil
		d, err := os.Open(dir)
		if err != nil {
			return nil // nobody finds anything by it; nor does the box
		}
		all, err := d.Readdirnames(maxPrivGlob)
		d.Close()
		if len(all) == maxPrivGlob {
			return core.Hint(fmt.Errorf("private %s: more than %d names in %s", text, maxPrivGlob, dir), "name it without * in that directory")
		}
		if err != nil && len(all) == 0 {
			return nil
		}
		for _, n := range all {
			if ok, err := path.Match(comp, n); ok && err == nil {
				names = append(names, n)
			}
		}
	}
	for _, n := range names {
		p := join(dir, n)
		if last {
			f.add(p, text)
		} else if real := f.enter(p, text); real != "" {
			if err := f.walk(real, comps[1:], text); err != nil {
				return err
			}
		}
		if len(f.places) > maxPrivPlaces {
			return core.Hint(fmt.Errorf("private: more than %d places", maxPrivPlaces), "name a directory instead of all that is in it")
		}
	}
	return nil
}

// hasMeta says whether a component is more than a name.
func hasMeta(comp string) bool {
	for i := 0; i < len(comp); i++ {
		switch comp[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// literal takes the backslashes out.
func literal(comp string) string {
	var b strings.Builder
	for i := 0; i < len(comp); i++ {
		if comp[i] == '\\' && i+1 < len(comp) {
			i++
		}
		b.WriteByte(comp[i])
	}
	return b.String()
}

// enter returns the directory that p is or leads to, "" when there is none.
func (f *finder) enter(p, text string) string {
	if f.onShare(p) {
		return ""
	}
	if is, known := f.dirs[p]; known {
		if is {
			return p
		}
		return ""
	}
	fi, err := os.Lstat(p)
	f.dirs[p] = err == nil && fi.IsDir()
	switch {
	case f.dirs[p]:
		return p
	case err == nil && fi.Mode()&fs.ModeSymlink != 0:
		if real, err := f.leads(p); err == nil {
			if fi, err := os.Lstat(real); err == nil && fi.IsDir() {
				return real
			}
		}
	case errors.Is(err, fs.ErrPermission):
		f.add(p, text)
	}
	return ""
}

// onShare says whether p is on a share, and notes that a private place is there.
func (f *finder) onShare(p string) bool {
	for _, s := range f.shares {
		if under(p, s) {
			f.held[s] = true
			return true
		}
	}
	return false
}

// leads follows the symbolic link p, but not onto a share.
func (f *finder) leads(p string) (string, error) {
	to, err := os.Readlink(p)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(to) {
		to = path.Join(path.Dir(p), to)
	}
	if f.onShare(path.Clean(to)) {
		return "", syscall.EXDEV
	}
	return filepath.EvalSymlinks(p)
}

// add adds a place, whether it is there or not: what appears there while the box runs is not
// to be seen either.
func (f *finder) add(p, text string) {
	if _, ok := f.places[p]; ok || !f.may(p) || f.onShare(p) {
		return
	}
	pl := privPlace{Path: p, Text: text, How: privGone}
	fi, err := os.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrPermission):
		// In a directory that is closed to its user. When it is his, the box could open it.
		if parent, err := os.Lstat(path.Dir(p)); err != nil || !mine(parent) {
			return
		}
	case err != nil:
	case fi.Mode()&fs.ModeSymlink != 0:
		pl.symlink = true
		if to, err := f.leads(p); err == nil && to != p {
			f.add(to, text)
			if _, ok := f.places[to]; ok {
				pl.link = to
			}
		}
	default:
		pl.dir, pl.file = fi.IsDir(), fi.Mode().IsRegular()
		bits := sys.AccessBits(p)
		if pl.dir && bits&5 == 0 || !pl.dir && bits&4 == 0 {
			if !mine(fi) { // its owner could open it with chmod
				pl.How = privClosed
			}
		}
	}
	f.places[p] = pl
}

// mine says whether a file is the caller's.
func mine(fi fs.FileInfo) bool {
	uid, _ := sys.Owner(fi)
	return uid == os.Geteuid()
}

// may says whether a place can be hidden: not what the caller's home is in, not what the
// box has of its own, and no top-level directory of the system that a link led to.
func (f *finder) may(p string) bool {
	for _, h := range f.homes {
		if under(h, p) {
			return false
		}
	}
	for own := range ownPlaces {
		if under(p, own) {
			return false
		}
	}
	return p != "/" && !systemDirs[p]
}

// systemDirs are directories that no box runs without.
var systemDirs = map[string]bool{"/bin": true, "/boot": true, "/etc": true, "/home": true, "/lib": true, "/lib32": true, "/lib64": true, "/opt": true,
	"/sbin": true, "/srv": true, "/tmp": true, "/usr": true, "/usr/bin": true, "/usr/lib": true, "/usr/sbin": true, "/usr/share": true, "/var": true, "/var/lib": true, "/var/tmp": true}

// homesOf returns the canonical homes of the caller - that of the environment and that of
// passwd(5) - and those of others that it names.
func homesOf(env, shares []string) (own, others []string) {
	add := func(to *[]string, p string) {
		if !filepath.IsAbs(p) {
			return
		}
		if on := (&finder{shares: shares, held: map[string]bool{}}); on.onShare(path.Clean(p)) {
			*to = append(*to, path.Clean(p))
			return
		}
		real, err := filepath.EvalSymlinks(p)
		if fi, e := os.Lstat(real); err == nil && e == nil && fi.IsDir() && real != "/" && !slices.Contains(*to, real) {
			*to = append(*to, real)
		}
	}
	for _, e := range env {
		if h, ok := strings.CutPrefix(e, "HOME="); ok {
			add(&own, h)
		}
	}
	const firstUser, lastUser = 1000, 60000 // login.defs(5)
	for line := range bytes.Lines(readBounded("/etc/passwd", maxPasswd)) {
		w := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(w) < 7 {
			continue
		}
		uid, err := strconv.Atoi(w[2])
		switch {
		case err != nil:
		case uid == os.Getuid():
			add(&own, w[5])
		case uid == 0 || uid >= firstUser && uid <= lastUser:
			if first, _, _ := strings.Cut(strings.TrimPrefix(w[5], "/"), "/"); first == "home" || first == "root" || !systemDirs["/"+first] {
				add(&others, w[5])
			}
		}
	}
	return own, others
}

// viewPrivate puts the private places into the plan of the box's view, and returns what is to
// be hidden by a whiteout. over are the layers that an earlier session had over those of
// directories above.
func viewPrivate(steps []planStep, vis map[string]mountEntry, f *finder, pr *private, over []string) (_ []planStep, whiteouts []string) {
	var found []string
	for p := range f.places {
		found = append(found, p)
	}
	sort.Strings(found) // what is above comes first
	// The same place by other mounts, and mounts of what is in it.
	shared := map[string]int{}
	for _, e := range vis {
		shared[e.dev]++
	}
	var all []privPlace
	for _, p := range found {
		pl := f.places[p]
		all = append(all, pl)
		if shared[mountOf(vis, p).dev] > 1 {
			for _, a := range hidden(vis, []string{p}) {
				if a != p && f.may(a) {
					all = append(all, privPlace{Path: a, Text: pl.Text, How: pl.How, dir: pl.dir, alias: true})
				}
			}
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Path < all[j].Path })
	opened := func(p string) (roots []string) {
		for _, rs := range pr.Roots {
			for _, r := range rs {
				switch {
				case under(p, r):
					roots = append(roots, p)
				case under(r, p):
					roots = append(roots, r)
				}
			}
		}
		slices.Sort(roots)
		return slices.Compact(roots)
	}
	var veils []planStep
	kept := map[string]bool{}
	for _, pl := range all {
		if inOneOf(kept, pl.Path) {
			continue
		}
		if pl.How == privClosed {
			pr.Places = append(pr.Places, pl)
			continue
		}
		if !pl.alias && (pl.dir || pl.file) {
			pl.Roots = opened(pl.Path)
		}
		if pl.link != "" && len(opened(pl.link)) > 0 {
			continue // it leads to what a grant opens a little
		}
		base, at := baseStep(steps, pl.Path)
		isOver := slices.Contains(over, pl.Path) // an earlier session had a grant: the layer stays where it is
		switch {
		case base.Kind == stepMask:
			continue
		case base.Kind == stepImage:
			pl.How, pl.Roots = privMask, nil
			if _, err := os.Lstat(pl.Path); err != nil {
				continue
			}
			veils = append(veils, planStep{Kind: stepMask, Path: pl.Path, Why: privateReason})
		case at || isOver || len(pl.Roots) > 0 && pl.dir:
			pl.How = privVeil
			steps = slices.DeleteFunc(steps, func(s planStep) bool { return under(s.Path, pl.Path) && s.Why != hideReason })
			veils = append(veils, planStep{Kind: stepVeil, Path: pl.Path, Over: !at, Roots: pl.Roots, ReadOnly: base.ReadOnly})
		case len(pl.Roots) > 0:
			pl.How = privFile
			veils = append(veils, planStep{Kind: stepVeilFile, Path: pl.Path})
			hideInFrame(steps, pl.Path)
		case base.Kind == stepFrame:
			hideInFrame(steps, pl.Path)
		default:
			whiteouts = append(whiteouts, pl.Path)
		}
		pr.Places = append(pr.Places, pl)
		kept[pl.Path] = true
	}
	for _, p := range over {
		_, at := baseStep(steps, p)
		if !at && !slices.ContainsFunc(pr.Places, func(pl privPlace) bool { return under(p, pl.Path) }) {
			veils = append(veils, planStep{Kind: stepOverlay, Path: p, Over: true, ReadOnly: mountOf(vis, p).readOnly})
		}
	}
	// Before what hides the sandbox's own state, which can be in them.
	i := slices.IndexFunc(steps, func(s planStep) bool { return s.Why == hideReason })
	if i < 0 {
		i = len(steps)
	}
	sort.SliceStable(veils, func(i, j int) bool { return veils[i].Path < veils[j].Path })
	return slices.Insert(steps, i, veils...), whiteouts
}

// inOneOf says whether p is one of dirs or below one.
func inOneOf(dirs map[string]bool, p string) bool {
	for ; p != "/"; p = path.Dir(p) {
		if dirs[p] {
			return true
		}
	}
	return false
}

// privateReason marks masks over private places.
const privateReason = "private"

// baseStep returns the step that p is on, and whether p is a step or has one below it.
func baseStep(steps []planStep, p string) (base planStep, at bool) {
	for _, s := range steps {
		switch {
		case s.Why == hideReason:
		case under(s.Path, p):
			at = true
			if s.Path == p && s.Kind == stepMask {
				base = s
			}
		case under(p, s.Path) && len(s.Path) > len(base.Path):
			base = s
		}
	}
	return base, at
}

// hideInFrame has a frame, where p is in one, not copy it.
func hideInFrame(steps []planStep, p string) {
	for i := range steps {
		if steps[i].Kind == stepFrame && steps[i].Path == path.Dir(p) {
			steps[i].Hide = append(steps[i].Hide, path.Base(p))
		}
	}
}

// of finds the private place that p is or is in.
func (pr *private) of(p string) *privPlace {
	for i := 1; i <= len(p); i++ {
		if i == len(p) || p[i] == '/' {
			if j, ok := pr.paths[p[:i]]; ok {
				return &pr.Places[j]
			}
		}
	}
	return nil
}

// ready makes pr ready to be asked.
func (pr *private) ready() {
	pr.paths = make(map[string]int, len(pr.Places))
	for i := range pr.Places {
		pr.paths[pr.Places[i].Path] = i
	}
}

// checkDir says that a box cannot begin in a place that it does not see.
func (pr *private) checkDir(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil // the stage says so
	}
	for i := range pr.Places {
		if pl := &pr.Places[i]; under(real, pl.Path) && pl.How != privVeil {
			return core.Hint(fmt.Errorf("working directory: %s is private (%s)", dir, pl.Text), "choose another with --dir",
				"or take the place out of those that are private: --private '!"+pl.Text+"'")
		}
	}
	return nil
}

// interpreterOf returns the interpreter that a script names in its first line, "" for what
// is none (execve(2), "Interpreter scripts"). One that env(1) is to find is looked for where
// programs of the system are.
func interpreterOf(head []byte) string {
	line, ok := bytes.CutPrefix(head, []byte("#!"))
	if !ok {
		return ""
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	w := strings.Fields(string(line))
	if len(w) == 0 || !strings.HasPrefix(w[0], "/") {
		return ""
	}
	if path.Base(w[0]) != "env" {
		return w[0]
	}
	for _, name := range w[1:] {
		if strings.HasPrefix(name, "-") || strings.Contains(name, "=") {
			continue
		}
		for _, d := range []string{"/usr/local/bin", "/usr/bin", "/bin"} {
			if fi, err := os.Stat(d + "/" + name); err == nil && fi.Mode().IsRegular() {
				return d + "/" + name
			}
		}
		break
	}
	return ""
}

// fileID is which file a file is: its device and inode.
type fileID struct{ dev, ino uint64 }

func idOf(st *syscall.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }
