package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// Files is what the pages see of, and do with, what one box holds. A time of zero is now.
// An error is for people.
type Files interface {
	// Running says how many sessions run in the box.
	Running() (int, error)
	// Census counts the changes. It answers when ctx ends with what it has counted so far.
	Census(ctx context.Context) (Census, error)
	// Level returns what is directly in a directory of the tree of changes, at most limit
	// names after the name after; when ctx ends, what it has, with More.
	Level(ctx context.Context, dir, after string, limit int, at time.Time) (core.ChangeLevel, error)
	// Change returns what the box changed at one path; nil when nothing.
	Change(ctx context.Context, path string, at time.Time) (*core.Change, error)
	// Open opens the box's version of a regular file (own), or the real one.
	Open(ctx context.Context, path string, own bool, at time.Time) (io.ReadCloser, error)
	// Xattrs returns the extended attributes of the box's version, or of the real one.
	Xattrs(ctx context.Context, path string, own bool) map[string][]byte
	// Patch writes how new differs from old as a unified diff.
	Patch(w io.Writer, path string, old, new io.Reader) error
	// Plan says what Commit or Discard would do with paths and all below them; with none,
	// with everything. It lists at most limit changes, those that cannot be committed first.
	Plan(ctx context.Context, do FileOrder, paths []string, limit int) (*FilePlan, error)
	// Commit carries changes out on the real system: all of paths or, with an error, none.
	// Conflicts are a *ConflictError, unless force says that the box's versions win.
	Commit(ctx context.Context, paths []string, force bool) (core.ChangeCounts, error)
	// Discard takes changes back in the box.
	Discard(ctx context.Context, paths []string) (core.ChangeCounts, error)
	// Snapshots lists the kept states of the box.
	Snapshots() ([]core.Snapshot, error)
	// Snapshot keeps the state of the box by a name.
	Snapshot(ctx context.Context, name string) error
	// Rollback makes the box what it was, or only says what would become of it (dry). Paths
	// whose content was not kept are conflicts, unless force leaves them as they are.
	Rollback(ctx context.Context, to Moment, dry, force bool) (*FilePlan, error)
}

// Moment is a state of a box that it can go back to: a snapshot, or a time.
type Moment struct {
	Snapshot string
	Time     time.Time
}

func (m Moment) String() string {
	if m.Snapshot != "" {
		return "snapshot " + m.Snapshot
	}
	return m.Time.Local().Format("2006-01-02 15:04:05.000")
}

// FileOrder is what can be done with the changes of a box.
type FileOrder string

// The orders.
const (
	OrderCommit  FileOrder = "commit"
	OrderDiscard FileOrder = "discard"
	// OrderRollback is none that [Files.Plan] knows: a box goes back whole.
	OrderRollback FileOrder = "rollback"
)

// Census is how many changes a box holds.
type Census struct {
	core.ChangeCounts
	Whole bool // all were counted
}

// FilePlan is what an order would do.
type FilePlan struct {
	Changes   []core.Change // the first of them
	Counts    core.ChangeCounts
	Whole     bool // all were counted
	Conflicts []FileConflict
	Warnings  []FileConflict // of what is done all the same
	Skipped   []FileConflict // what is left out, and stays in the box
}

// hard says whether there is a conflict that force does not help with.
func (p *FilePlan) hard() bool {
	return slices.ContainsFunc(p.Conflicts, func(c FileConflict) bool { return c.Hard })
}

// FileConflict is why a path cannot be committed.
type FileConflict struct {
	Path, Why string
	Hard      bool // not by force either
}

// ConflictError says that a commit was refused, and changed nothing.
type ConflictError struct{ Conflicts []FileConflict }

func (e *ConflictError) Error() string {
	return strconv.Itoa(len(e.Conflicts)) + plural(len(e.Conflicts), " path has", " paths have") + " changed on the real system since the box changed " + plural(len(e.Conflicts), "it", "them")
}

const (
	levelRows = 200 // of the directory that a page is about
	innerRows = 20  // of each one below it that the page opens by itself
	treeRows  = 400 // of a page, or about that
	treeDepth = 24

	treePatience   = 250 * time.Millisecond // for what is below the page's own directory
	levelPatience  = 5 * time.Second        // for the directory itself
	censusPatience = 120 * time.Millisecond
	planRows       = 300
	planPatience   = 20 * time.Second
	filesPatience  = 10 * time.Minute // a commit that has begun is finished, whoever still looks
	maxChosen      = 2 * treeRows
)

// treeNode is a line of the tree.
type treeNode struct {
	core.ChangeNode
	name string // what the line says: the name, or several of folders that hold one each
	path string
	kids []treeNode
	read bool   // whether kids were looked for
	next string // address of more of them; "" when these are all
}

// folder says whether the line can be opened.
func (n *treeNode) folder() bool { return n.Inside }

// filesView is what the pages of a box's files show.
type filesView struct {
	boxFilter
	view    core.BoxView
	census  Census
	running int
	files   bool // there is somebody to ask
	trouble string

	dir   string
	after string
	at    time.Time
	rows  []treeNode
	next  string // address of the rest of the directory

	snapshots    []core.Snapshot
	snapshotsBad string // why they cannot be listed

	outside uint64 // operations of others on what the box holds
	file    *fileView
	plan    *planView
}

// filesURL is the address of a directory's page.
func (v *filesView) filesURL(dir, after string) string {
	q := v.atValues()
	if dir != "/" {
		q.Set("dir", dir)
	}
	if after != "" {
		q.Set("after", after)
	}
	return withValues(v.post("files"), q)
}

func (v *filesView) atValues() url.Values {
	q := url.Values{}
	if !v.at.IsZero() {
		q.Set("at", v.at.UTC().Format(time.RFC3339Nano))
	}
	return q
}

// fileURL is the address of one path's page.
func (v *filesView) fileURL(p string) string {
	q := v.atValues()
	q.Set("path", p)
	return withValues(v.post("files"), q)
}

// now is the same page of the present.
func (v *filesView) now() string {
	w := *v
	w.at = time.Time{}
	if w.file != nil {
		return w.fileURL(w.file.path)
	}
	return w.filesURL(w.dir, "")
}

// here is the address of the page itself.
func (v *filesView) here() string {
	if v.file != nil {
		return v.fileURL(v.file.path)
	}
	return v.filesURL(v.dir, v.after)
}

// crumb is one step of the way to a directory.
type crumb struct{ name, url string }

func (v *filesView) crumbs(dir string) []crumb {
	cs := []crumb{{"/", v.filesURL("/", "")}}
	for i := 1; i < len(dir); {
		end := len(dir)
		if j := strings.IndexByte(dir[i:], '/'); j >= 0 {
			end = i + j
		}
		cs = append(cs, crumb{dir[i:end], v.filesURL(dir[:end], "")})
		i = end + 1
	}
	return cs
}

// choice is the value of a checkbox for a path of any bytes: a form sends text.
func choice(p string) string { return url.PathEscape(p) }

// errWords is an error with its hints, for the page.
func errWords(err error) string {
	return core.Shorten(strings.Join(append([]string{err.Error()}, core.Hints(err)...), ". "), 600)
}

// readFiles begins every page of files: the box and what can be asked of it.
func (s *site) readFiles(r *http.Request) (v filesView, f Files, err error) {
	box := chi.URLParam(r, "box")
	if name, err := url.PathUnescape(box); err == nil {
		box = name
	}
	v.boxFilter.box, v.dir = box, "/"
	if v.view, err = s.Source.Box(r.Context(), box); err != nil {
		return v, nil, fmt.Errorf("read box: %w", err)
	}
	if s.Files == nil || v.view.Removed {
		return v, nil, nil
	}
	if f, err = s.Files(box); err != nil {
		return v, nil, fmt.Errorf("open the files of box %s: %w", box, err)
	}
	v.files = true
	if v.running, err = f.Running(); err != nil {
		return v, nil, err
	}
	return v, f, nil
}

// countFiles reads what the pages say above the tree.
func (s *site) countFiles(ctx context.Context, v *filesView, f Files) error {
	counts, err := s.Source.Counts(ctx, v.box, "")
	if err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	v.outside = outsideCount(counts)
	short, cancel := context.WithTimeout(ctx, censusPatience)
	defer cancel()
	if v.census, err = f.Census(short); err != nil {
		return err
	}
	if v.snapshots, err = f.Snapshots(); err != nil {
		v.snapshotsBad = errWords(err)
	}
	slices.SortFunc(v.snapshots, func(a, b core.Snapshot) int { return b.Time.Compare(a.Time) })
	return nil
}

// outsideCount counts what others did with what the box holds.
func outsideCount(cs []core.SurfaceCount) (n uint64) {
	for _, c := range cs {
		if c.Surface == core.OutsideWrite || c.Surface == core.OutsideRead {
			n += c.Counts.Total()
		}
	}
	return n
}

// outsideQuery finds them.
const outsideQuery = "surface:outside.write,outside.read"

// files is the page of a box's files: a directory of the tree of its changes, or one path.
func (s *site) files(w http.ResponseWriter, r *http.Request) {
	v, f, err := s.readFiles(r)
	q := r.URL.Query()
	if err == nil {
		err = s.readAt(r.Context(), &v, q)
	}
	var bad *badRequest
	switch {
	case errors.As(err, &bad):
		s.fail(w, r, http.StatusBadRequest, bad.what, bad.hint)
		return
	case errors.Is(err, core.ErrNotFound):
		s.failErr(w, r, err, "There is no box of that name.")
		return
	case err != nil:
		s.failFiles(w, r, err)
		return
	}
	if q.Has("path") || q.Has("epath") {
		s.onePath(w, r, v, f, pathOf(q, "path"))
		return
	}
	if d := pathOf(q, "dir"); d != "" {
		v.dir = d
	}
	v.after = q.Get("after")
	if !cleanPath(v.dir) {
		s.fail(w, r, http.StatusBadRequest, "This is no absolute path.", "")
		return
	}
	if f != nil {
		if err = s.countFiles(r.Context(), &v, f); err == nil {
			err = s.readTree(r.Context(), &v, f)
		}
		if err != nil {
			v.trouble = errWords(err)
		}
	}
	s.render(w, r, http.StatusOK, filesPage(s.member(r, "Changed files of "+v.box, ""), &v))
}

// pathOf reads a path from an address: as it is, or as a form of ours sends one, which
// would make text of its bytes.
func pathOf(q url.Values, name string) string {
	if p, err := url.PathUnescape(q.Get("e" + name)); err == nil && p != "" {
		return p
	}
	return q.Get(name)
}

// cleanPath says whether p is an absolute path without detours.
func cleanPath(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}

// failFiles says that what a box holds cannot be read.
func (s *site) failFiles(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil { // the browser went away
		return
	}
	s.OnError(r, err)
	s.fail(w, r, http.StatusServiceUnavailable, "What the box holds cannot be read right now: "+visibleText(core.Shorten(err.Error(), 400)),
		visibleText(core.Shorten(strings.Join(core.Hints(err), ". "), 400)))
}

// badRequest is an address that cannot be meant.
type badRequest struct{ what, hint string }

func (e *badRequest) Error() string { return e.what }

// readAt reads as of when the files are to be shown: a time, or the place of an operation
// in its session, when the files were as that operation found them.
func (s *site) readAt(ctx context.Context, v *filesView, q url.Values) error {
	text := strings.TrimSpace(q.Get("at"))
	if text == "" {
		return nil
	}
	if seq, err := strconv.ParseUint(text, 10, 63); err == nil {
		session, _ := cut(q.Get("session"), 64)
		one, qerr := s.parseQuery("seq:" + strconv.FormatUint(seq, 10))
		if qerr != nil {
			return &badRequest{what: "There is no such operation."}
		}
		p, err := s.Source.Ops(ctx, one, v.box, core.SessionID(session), 0, 0, 1)
		if err != nil {
			return fmt.Errorf("read operation: %w", err)
		}
		if len(p.Ops) == 0 {
			return &badRequest{"There is no such operation.", "An operation is named by at=NUMBER and session=ID."}
		}
		v.at = p.Ops[0].Time.Add(-1)
		return nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			v.at = t
			return nil
		}
	}
	return &badRequest{"This is no time: " + visibleText(core.Shorten(text, 80)), "Times are written as 2026-11-23T10:15:30."}
}

// treeReader reads a tree of changes a page at a time.
type treeReader struct {
	v    *filesView
	f    Files
	left int // lines that the page has room for
}

// readTree reads the page's directory and, as far as there is room and time, what is
// below it.
func (s *site) readTree(ctx context.Context, v *filesView, f Files) error {
	t := treeReader{v, f, treeRows}
	first, cancel := context.WithTimeout(ctx, levelPatience)
	defer cancel()
	l, err := f.Level(first, v.dir, v.after, levelRows, v.at)
	if err != nil {
		return err
	}
	if v.rows = t.nodes(v.dir, l); l.More {
		v.next = v.filesURL(v.dir, l.After)
	}
	below, cancel := context.WithTimeout(ctx, treePatience)
	defer cancel()
	v.rows = t.fill(below, v.rows, 1)
	return nil
}

func (t *treeReader) nodes(dir string, l core.ChangeLevel) []treeNode {
	rows := make([]treeNode, 0, len(l.Nodes))
	for _, n := range l.Nodes {
		rows = append(rows, treeNode{ChangeNode: n, name: n.Name, path: path.Join(dir, n.Name)})
	}
	t.left -= len(rows)
	return rows
}

// fill reads what is below each of rows, and leaves out folders in which nothing differs.
func (t *treeReader) fill(ctx context.Context, rows []treeNode, depth int) []treeNode {
	kept := rows[:0]
	for _, n := range rows {
		if n.Inside && t.left > 0 && depth < treeDepth && ctx.Err() == nil {
			l, err := t.f.Level(ctx, n.path, "", min(innerRows, t.left), t.v.at)
			if err == nil && (len(l.Nodes) > 0 || !l.More) {
				kids := t.fill(ctx, t.nodes(n.path, l), depth+1)
				if n.read, n.kids = true, kids; l.More {
					n.next = t.v.filesURL(n.path, l.After)
				}
				n.Inside = len(kids) > 0 || l.More
				n.fold()
			}
		}
		if n.Inside || n.Change != nil {
			kept = append(kept, n)
		}
	}
	return kept
}

// fold puts a folder and the only folder in it on one line, where there is nothing else
// to say of either.
func (n *treeNode) fold() {
	if len(n.kids) != 1 || n.next != "" || n.Change != nil {
		return
	}
	if k := n.kids[0]; k.Inside && k.Change == nil {
		k.name = n.name + "/" + k.name
		*n = k
	}
}

// chosen are the paths that a form names.
func chosen(form url.Values) ([]string, error) {
	var ps []string
	for _, c := range form["p"] {
		p, err := url.PathUnescape(c)
		if err != nil || !cleanPath(p) || p == "/" {
			return nil, errors.New("a path that was selected cannot be read")
		}
		ps = append(ps, p)
	}
	if len(ps) > maxChosen {
		return nil, fmt.Errorf("%d paths were selected: at most %d at once, a folder counts as one", len(ps), maxChosen)
	}
	return ps, nil
}

// planView is an order that is to be confirmed.
type planView struct {
	do      FileOrder
	all     bool
	paths   []string
	plan    *FilePlan
	failed  string // why it was not carried out
	blocked string // why it cannot be
	back    string
	to      Moment // of a rollback
}

// verb names the order on buttons and in sentences.
func (p *planView) verb() string {
	switch p.do {
	case OrderCommit:
		return "Commit"
	case OrderRollback:
		return "Roll back"
	}
	return "Discard"
}

// question is the title of the page that asks.
func (p *planView) question() string {
	if p.do == OrderRollback {
		return "Roll back to " + p.to.String() + "?"
	}
	return p.verb() + " " + p.of() + "?"
}

// of says how many changes an order is about.
func (p *planView) of() string {
	n := p.plan.Counts.Total()
	s := number(uint64(n)) + plural(n, " change", " changes")
	if !p.plan.Whole {
		s = "more than " + s
	}
	if p.all {
		return "all changes: " + s
	}
	return s
}

// planFiles shows what an order would do, and asks.
func (s *site) planFiles(w http.ResponseWriter, r *http.Request) {
	s.filesForm(w, r, func(v *filesView, f Files) {
		what, all := strings.CutSuffix(r.PostForm.Get("do"), "-all")
		p := planView{do: FileOrder(what), all: all, back: localPath(r.PostForm.Get("back"))}
		var err error
		if p.paths, err = chosen(r.PostForm); err == nil && !all && len(p.paths) == 0 {
			err = errors.New("nothing was selected")
		}
		if all {
			p.paths = nil
		}
		if p.do != OrderCommit && p.do != OrderDiscard {
			err = errors.New("no such order")
		}
		if err != nil {
			s.backTo(w, r, p.back, err.Error(), true)
			return
		}
		s.showPlan(w, r, http.StatusOK, v, f, &p)
	})
}

// showPlan makes the page that asks whether to go on.
func (s *site) showPlan(w http.ResponseWriter, r *http.Request, status int, v *filesView, f Files, p *planView) {
	ctx, cancel := context.WithTimeout(r.Context(), planPatience)
	defer cancel()
	var err error
	if p.do == OrderRollback {
		if p.plan, err = f.Rollback(ctx, p.to, true, false); err == nil {
			p.plan.Changes = p.plan.Changes[:min(len(p.plan.Changes), planRows)]
		}
	} else {
		p.plan, err = f.Plan(ctx, p.do, p.paths, planRows)
	}
	if err != nil {
		s.backTo(w, r, p.back, strings.ToLower(p.verb())+": "+errWords(err), true)
		return
	}
	if v.running > 0 {
		p.blocked = strconv.Itoa(v.running) + plural(v.running, " session runs", " sessions run") + " in this box: end " + plural(v.running, "it", "them") + " first"
	}
	v.plan = p
	s.render(w, r, status, planPage(s.member(r, p.verb()+" · "+v.box, ""), v))
}

// doFiles carries an order out that was confirmed.
func (s *site) doFiles(do FileOrder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.filesForm(w, r, func(v *filesView, f Files) {
			p := planView{do: do, all: r.PostForm.Get("all") == "1", back: localPath(r.PostForm.Get("back"))}
			var err error
			if p.paths, err = chosen(r.PostForm); err == nil && !p.all && len(p.paths) == 0 {
				err = errors.New("nothing was selected")
			}
			if p.all {
				p.paths = nil
			}
			if err != nil {
				s.backTo(w, r, p.back, err.Error(), true)
				return
			}
			ctx, cancel := patiently(w, r)
			defer cancel()
			var n core.ChangeCounts
			if do == OrderCommit {
				n, err = f.Commit(ctx, p.paths, r.PostForm.Get("force") == "1")
			} else {
				n, err = f.Discard(ctx, p.paths)
			}
			var conflicts *ConflictError
			switch {
			case errors.As(err, &conflicts):
				p.failed = "Nothing was committed: " + errWords(err)
				s.showPlan(w, r, http.StatusConflict, v, f, &p)
			case err != nil:
				s.backTo(w, r, p.back, strings.ToLower(p.verb())+": "+errWords(err), true)
			default:
				s.backTo(w, r, s.afterOrder(r.Context(), v, f, p.back), doneWords(do, n), false)
			}
		})
	}
}

// patiently lets a handler take long, and finish when the browser has gone away.
func patiently(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(filesPatience + time.Minute)) // a recorder of a test has none
	return context.WithTimeout(context.WithoutCancel(r.Context()), filesPatience)
}

// afterOrder is where to go after an order: back, unless that was the page of a path that is
// no change any more.
func (s *site) afterOrder(ctx context.Context, v *filesView, f Files, back string) string {
	u, err := url.Parse(back)
	if err != nil || !u.Query().Has("path") {
		return back
	}
	if c, err := f.Change(ctx, u.Query().Get("path"), time.Time{}); err == nil && c == nil {
		return v.filesURL(path.Dir(u.Query().Get("path")), "")
	}
	return back
}

func doneWords(do FileOrder, n core.ChangeCounts) string {
	done := "Committed to the real system: "
	if do == OrderDiscard {
		done = "Discarded: "
	}
	return done + countsText(n) + "."
}

// countsText writes counts as people say them.
func countsText(n core.ChangeCounts) string {
	if n.Total() == 0 {
		return "nothing"
	}
	var parts []string
	for _, c := range []struct {
		n    int
		word string
	}{{n.Added, "added"}, {n.Modified, "modified"}, {n.Deleted, "deleted"}} {
		if c.n > 0 {
			parts = append(parts, number(uint64(c.n))+" "+c.word)
		}
	}
	return strings.Join(parts, ", ")
}

// filesForm reads the form of an order about a box's files.
func (s *site) filesForm(w http.ResponseWriter, r *http.Request, then func(*filesView, Files)) {
	if err := r.ParseForm(); err != nil {
		s.fail(w, r, http.StatusBadRequest, "The form could not be read.", "Select fewer paths: a folder stands for all that is in it.")
		return
	}
	v, f, err := s.readFiles(r)
	switch {
	case errors.Is(err, core.ErrNotFound):
		s.failErr(w, r, err, "There is no box of that name.")
	case err != nil:
		s.failFiles(w, r, err)
	case f == nil:
		s.backTo(w, r, v.filesURL("/", ""), "this box holds nothing, or this dashboard only shows", true)
	default:
		then(&v, f)
	}
}

// backTo goes back to a page, which says what became of an order.
func (s *site) backTo(w http.ResponseWriter, r *http.Request, to, said string, bad bool) {
	s.auth.say(r, said, bad)
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// ofPath is the query for what the box did with a path; "" where the path is too long for one.
func ofPath(p string) string {
	if q := term(query.Target, p); len(q) <= query.MaxLength {
		return q
	}
	return ""
}

// kindWord says what a letter stands for.
func kindWord(k core.ChangeKind) string {
	switch k {
	case core.Added:
		return "added"
	case core.Deleted:
		return "deleted"
	}
	return "modified"
}

// stateOf is what a line shows of a change: the box's version or, of a deleted path, the
// one that is gone.
func stateOf(c *core.Change) *core.FileState {
	switch {
	case c.Is != nil:
		return c.Is
	case c.Was != nil:
		return c.Was
	}
	return &core.FileState{} // of a new path that could not be looked at
}

// sizeWords says how large a file is, and was where that differs.
func sizeWords(c *core.Change) string {
	is, was := c.Is, c.Was
	file := func(s *core.FileState) bool { return s != nil && s.Type == core.TypeFile }
	switch {
	case file(is) && file(was) && is.Size != was.Size:
		return sizeText(uint64(was.Size)) + " → " + sizeText(uint64(is.Size))
	case file(is):
		return sizeText(uint64(is.Size))
	case file(was):
		return sizeText(uint64(was.Size))
	}
	return ""
}

// noteWords says in what a path differs beside its content.
func noteWords(c *core.Change) (notes []string) {
	for _, p := range c.Parts {
		switch p {
		case "mode":
			notes = append(notes, fmt.Sprintf("mode %04o → %04o", c.Was.Mode, c.Is.Mode))
		case "owner":
			notes = append(notes, fmt.Sprintf("owner %d:%d → %d:%d", c.Was.UID, c.Was.GID, c.Is.UID, c.Is.GID))
		case "type":
			notes = append(notes, string(c.Was.Type)+" → "+string(c.Is.Type))
		case "xattrs":
			notes = append(notes, "attributes")
		}
	}
	if c.Is != nil && c.Kind == core.Added && c.Is.Type == core.TypeFile && c.Is.Mode&0o6111 != 0 {
		notes = append(notes, fmt.Sprintf("mode %04o", c.Is.Mode))
	}
	return notes
}

// readCensus counts the box's changed files for its page. What goes wrong there keeps nobody
// from the rest of the page.
func (s *site) readCensus(ctx context.Context, v *boxView) {
	if s.Files == nil || v.view.Name == "" {
		return
	}
	v.holds = true
	if v.view.Removed {
		return
	}
	f, err := s.Files(v.box)
	if err == nil {
		short, cancel := context.WithTimeout(ctx, censusPatience)
		defer cancel()
		v.census, err = f.Census(short)
	}
	if err != nil {
		v.filesTrouble = errWords(err)
	}
}

// runsLater says what would run or trust a path outside, were the change committed; "" for
// nothing that is known by its place.
func runsLater(c *core.Change) string {
	if c.Kind == core.Deleted {
		return ""
	}
	return core.Persists(c.Path)
}

// takeSnapshot keeps the state of the box.
func (s *site) takeSnapshot(w http.ResponseWriter, r *http.Request) {
	s.filesForm(w, r, func(v *filesView, f Files) {
		back, name := localPath(r.PostForm.Get("back")), strings.TrimSpace(r.PostForm.Get("name"))
		if name == "" {
			name = time.Now().Format("2006-01-02-150405")
		}
		ctx, cancel := patiently(w, r)
		defer cancel()
		if err := f.Snapshot(ctx, name); err != nil {
			s.backTo(w, r, back, "snapshot: "+errWords(err), true)
			return
		}
		s.backTo(w, r, back, "Snapshot "+name+" was taken.", false)
	})
}

// rollback asks whether a box is to go back to what it was, and has it do so.
func (s *site) rollback(w http.ResponseWriter, r *http.Request) {
	s.filesForm(w, r, func(v *filesView, f Files) {
		p := planView{do: OrderRollback, all: true, back: localPath(r.PostForm.Get("back"))}
		p.to.Snapshot = r.PostForm.Get("snapshot")
		if text := r.PostForm.Get("time"); p.to.Snapshot == "" {
			var err error
			if p.to.Time, err = time.Parse(time.RFC3339Nano, text); err != nil {
				s.backTo(w, r, p.back, "no moment was named to go back to", true)
				return
			}
		}
		if r.PostForm.Get("sure") != "1" {
			s.showPlan(w, r, http.StatusOK, v, f, &p)
			return
		}
		ctx, cancel := patiently(w, r)
		defer cancel()
		done, err := f.Rollback(ctx, p.to, false, r.PostForm.Get("force") == "1")
		var lost *ConflictError
		switch {
		case errors.As(err, &lost):
			p.failed = "Nothing was changed: not everything can be brought back."
			s.showPlan(w, r, http.StatusConflict, v, f, &p)
		case err != nil:
			s.backTo(w, r, p.back, "roll back: "+errWords(err), true)
		default:
			s.backTo(w, r, v.filesURL("/", ""), "The box is what it was at "+p.to.String()+": "+countsText(done.Counts)+".", false)
		}
	})
}
