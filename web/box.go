package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

const (
	opsPage     = 40  // operations of a window
	maxSessions = 30  // that a box's page lists
	maxProcs    = 250 // rows of the process tree
	maxDepth    = 10  // steps that the tree is indented at most

	// A box chooses how long the texts of its operations are. A window that holds more
	// than this shows the beginning of the longest, so that what is sent ten times a
	// second is a few hundred kilobytes at most, which a browser shows in time for the
	// next; an operation that is alone in its window shows all it can.
	windowRoom = 24 << 10 // characters, an escape being some
	minWhole   = 64       // of a text, however full the window is
	maxWhole   = 16 << 10 // of a text, however empty: four times the longest path
)

// boxFilter is what the address of a box's page asks for.
type boxFilter struct {
	box           string
	text          string // the query as it was typed
	session       core.SessionID
	before, after core.OpCursor
	query         *query.Query
	err           *query.Error // of the query
}

// newest says that the window is the newest one, which moves with time.
func (f boxFilter) newest() bool { return f.before == 0 && f.after == 0 }

// url is the address of the page of f.
func (f boxFilter) url() string {
	v := f.values()
	if f.before != 0 {
		v.Set("before", strconv.FormatUint(uint64(f.before), 10))
	}
	if f.after != 0 {
		v.Set("after", strconv.FormatUint(uint64(f.after), 10))
	}
	return withValues("/boxes/"+url.PathEscape(f.box), v)
}

func (f boxFilter) values() url.Values {
	v := url.Values{}
	if f.text != "" {
		v.Set("q", f.text)
	}
	if f.session != "" {
		v.Set("session", string(f.session))
	}
	return v
}

func (f boxFilter) liveURL() string {
	v := f.values()
	if !f.newest() {
		v.Set("window", "fixed")
	}
	return withValues("/boxes/"+url.PathEscape(f.box)+"/live", v)
}

func withValues(path string, v url.Values) string {
	if len(v) == 0 {
		return path
	}
	return path + "?" + v.Encode()
}

// with is the address of the newest window of another query.
func (f boxFilter) with(text string) string {
	f.text, f.before, f.after = text, 0, 0
	return f.url()
}

// in is the address of the same query in another session; "" for all.
func (f boxFilter) in(session core.SessionID) string {
	f.session, f.before, f.after = session, 0, 0
	return f.url()
}

func (f boxFilter) at(before, after core.OpCursor) string {
	f.before, f.after = before, after
	return f.url()
}

// permalink is the address that finds the same operations for ever: with absolute times.
func (f boxFilter) permalink() string {
	if f.err != nil {
		return f.url()
	}
	f.text = f.query.String()
	return f.url()
}

// term is a query for one value of a field.
func term(field query.Field, value string) string { return string(field) + ":" + query.Quote(value) }

// boxView is what a box's page shows.
type boxView struct {
	boxFilter
	view     core.BoxView
	counts   core.Counts // of the box, or of the session
	sessions []core.SessionView
	session  *core.SessionView // whose processes are shown; nil when there is none
	procs    []procRow
	procsAll int
	surfaces []core.SurfaceCount
	ops      []opRow
	alarms   []opRow // newest first; of a page that keeps them in sight
	room     int     // characters of each text that the window has room for
	more     bool    // the source stopped before it had seen everything
	older    string  // addresses of the neighbouring windows; "" when there is none
	newer    string
	network  netView

	census       Census // of the changed files
	filesTrouble string // why they could not be counted
	holds        bool   // there is somebody to ask for them
}

// opRow is an operation in the list.
type opRow struct {
	core.Operation
	cursor core.OpCursor
}

// procRow is a line of the process tree: one process, or several that ended and did the
// same.
type procRow struct {
	core.ProcessView
	depth int
	times int // how many; 1 for one
}

// opRows returns the operations of a page, newest first.
func opRows(p core.OpsPage) []opRow {
	rows := make([]opRow, 0, len(p.Ops))
	for i := range p.Ops {
		if i < len(p.Cursors) {
			rows = append(rows, opRow{p.Ops[i], p.Cursors[i]})
		}
	}
	slices.SortFunc(rows, newestFirst)
	return rows
}

func newestFirst(a, b opRow) int { return cmp.Compare(b.cursor, a.cursor) }

func (s *site) readFilter(r *http.Request) boxFilter {
	v := r.URL.Query()
	f := boxFilter{box: chi.URLParam(r, "box"), text: v.Get("q")}
	if name, err := url.PathUnescape(f.box); err == nil {
		f.box = name
	}
	session, _ := cut(v.Get("session"), 64)
	f.session = core.SessionID(session)
	f.before, f.after = cursor(v.Get("before")), cursor(v.Get("after"))
	f.query, f.err = s.parseQuery(f.text)
	return f
}

func cursor(s string) core.OpCursor {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0 // the newest window
	}
	return core.OpCursor(n)
}

// readTop reads what is at the top of a box's page.
func (s *site) readTop(ctx context.Context, v *boxView) (err error) {
	if v.view, err = s.Source.Box(ctx, v.box); err != nil {
		return fmt.Errorf("read box: %w", err)
	}
	v.counts = v.view.Counts
	if v.boxFilter.session != "" {
		ses, err := s.Source.Session(ctx, v.boxFilter.session)
		if err != nil {
			return fmt.Errorf("read session: %w", err)
		}
		if ses.Box != v.box {
			return fmt.Errorf("read session: %w in this box", core.ErrNotFound)
		}
		v.session, v.counts = &ses, ses.Counts
	}
	return nil
}

// readSide reads sessions, processes and counters.
func (s *site) readSide(ctx context.Context, v *boxView) (err error) {
	if v.sessions, err = s.Source.Sessions(ctx, v.box, maxSessions); err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	if v.session == nil && len(v.sessions) > 0 {
		v.session = &v.sessions[0]
	}
	if v.surfaces, err = s.Source.Counts(ctx, v.box, v.boxFilter.session); err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	slices.SortFunc(v.surfaces, func(a, b core.SurfaceCount) int {
		if a.Surface != b.Surface {
			return cmp.Compare(a.Surface, b.Surface)
		}
		return cmp.Compare(a.Action, b.Action)
	})
	if v.session != nil {
		procs, err := s.Source.Processes(ctx, v.session.ID)
		if err != nil {
			return fmt.Errorf("read processes: %w", err)
		}
		v.procsAll = len(procs)
		v.procs = processTree(procs, maxProcs)
	}
	return nil
}

// readOps reads the window of operations.
func (s *site) readOps(ctx context.Context, v *boxView) error {
	if v.err != nil {
		return nil
	}
	p, err := s.Source.Ops(ctx, v.query, v.box, v.boxFilter.session, v.before, v.after, opsPage)
	if err != nil {
		return fmt.Errorf("read operations: %w", err)
	}
	v.ops = opRows(p)
	v.room = roomFor(append(slices.Clip(v.ops), v.alarms...))
	// A source may stop before it found a whole page, or anything: it says where to go on.
	next := p.Next
	if next == 0 && len(v.ops) > 0 {
		next = v.ops[len(v.ops)-1].cursor
		if v.after != 0 {
			next = v.ops[0].cursor
		}
	}
	v.more = p.More
	switch {
	case v.after != 0:
		if len(v.ops) > 0 {
			v.older = v.at(v.ops[len(v.ops)-1].cursor, 0)
		}
		if p.More {
			v.newer = v.at(0, next)
		}
	default:
		if p.More {
			v.older = v.at(next, 0)
		}
		if v.before != 0 && len(v.ops) > 0 {
			v.newer = v.at(0, v.ops[0].cursor)
		} else if v.before != 0 {
			v.newer = v.at(0, v.before-1)
		}
	}
	return nil
}

// readWindow reads the window of operations and, of a page that keeps them in sight, the
// alarms.
func (s *site) readWindow(ctx context.Context, v *boxView, a *alarms) error {
	if v.keeps() {
		if err := s.readAlarms(ctx, v, a); err != nil {
			return err
		}
	}
	if err := s.readOps(ctx, v); err != nil {
		return err
	}
	a.windowRead(v.ops)
	return nil
}

// roomFor returns how many characters of each text a window of ops shows: as many as there
// is room for when the short ones leave theirs to the long ones.
func roomFor(ops []opRow) int {
	if len(ops) == 1 {
		return maxWhole
	}
	var widths []int
	add := func(s string) {
		s, _ = cut(s, maxWhole)
		widths = append(widths, width(s))
	}
	for i := range ops {
		op := &ops[i]
		add(op.Target)
		add(op.Exe)
		for _, k := range firstKeys(op.Detail) {
			add(op.Detail[k])
		}
	}
	slices.Sort(widths)
	left := windowRoom
	for i, n := range widths {
		if share := left / (len(widths) - i); n > share { // and so are all after it
			return max(minWhole, share)
		}
		left -= n
	}
	return maxWhole
}

// alone is the address of a page that shows one operation.
func (f boxFilter) alone(op *opRow) string {
	return boxFilter{box: f.box, session: op.Session}.with("seq:" + strconv.FormatUint(uint64(op.Seq), 10))
}

func (s *site) box(w http.ResponseWriter, r *http.Request) {
	v := boxView{boxFilter: s.readFilter(r)}
	ctx := r.Context()
	err := s.readTop(ctx, &v)
	if err == nil {
		err = s.readSide(ctx, &v)
	}
	if err == nil {
		err = s.readNetwork(ctx, &v)
	}
	s.readCensus(ctx, &v)
	if err == nil {
		err = s.readWindow(ctx, &v, &alarms{})
	}
	if err != nil {
		missing := "There is no box of that name."
		if v.view.Name != "" {
			missing = "There is no such session in this box."
		}
		s.failErr(w, r, err, missing)
		return
	}
	status, live := http.StatusOK, v.liveURL()
	if v.err != nil {
		status, live = http.StatusBadRequest, ""
	}
	s.render(w, r, status, boxPage(s.member(r, v.box, live), v))
}

func (s *site) boxLive(w http.ResponseWriter, r *http.Request) {
	f := s.readFilter(r)
	if f.err != nil {
		http.Error(w, f.err.Error(), http.StatusBadRequest)
		return
	}
	fixed := r.URL.Query().Get("window") == "fixed"
	if _, err := s.Source.Box(r.Context(), f.box); errors.Is(err, core.ErrNotFound) {
		http.Error(w, "no such box", http.StatusNotFound)
		return
	}
	var a alarms // of this page; now is never called twice at once
	s.stream(w, r, live{box: f.box, gap: boxGap, now: func(ctx context.Context) ([]part, error) {
		v := boxView{boxFilter: f}
		if err := s.readTop(ctx, &v); err != nil {
			return nil, err
		}
		parts := []part{{"summary", boxSummary(v)}}
		if !fixed {
			if err := s.readWindow(ctx, &v, &a); err != nil {
				return nil, err
			}
			if f.keeps() {
				parts = append(parts, part{"alarms", alarmsPart(v)})
			}
			parts = append(parts, part{"ops", opsWindow(v)})
		}
		return parts, nil
	}, aside: func(ctx context.Context) ([]part, error) {
		v := boxView{boxFilter: f}
		if err := s.readTop(ctx, &v); err != nil {
			return nil, err
		}
		if err := s.readSide(ctx, &v); err != nil {
			return nil, err
		}
		if err := s.readNetwork(ctx, &v); err != nil {
			return nil, err
		}
		parts := []part{{"procs", procsPart(v)}, {"names", namesPart(v)}, {"surfaces", surfacesPart(v)}, {"sessions", sessionsPart(v)}}
		if s.readCensus(ctx, &v); v.holds && f.keeps() && !fixed {
			parts = append(parts, part{"files", filesPart(v)})
		}
		if f.keeps() && !fixed {
			parts = append(parts, part{"network", networkPart(v)})
		}
		return parts, nil
	}})
}

// processTree lays processes out as the lines of a tree, parents before children, at
// most limit of them. Processes side by side that ended, have no children, run the same
// program and had nothing blocked share a line: a build has thousands.
func processTree(procs []core.ProcessView, limit int) []procRow {
	here := make(map[core.ProcID]bool, len(procs))
	for _, p := range procs {
		here[p.Proc] = true
	}
	children := map[core.ProcID][]int{}
	for i, p := range procs {
		parent := p.Parent
		if !here[parent] || parent == p.Proc {
			parent = ""
		}
		children[parent] = append(children[parent], i)
	}
	type todo struct {
		index, depth int
	}
	var stack []todo
	push := func(of core.ProcID, depth int) {
		kids := children[of]
		for i := len(kids) - 1; i >= 0; i-- {
			stack = append(stack, todo{kids[i], depth})
		}
		delete(children, of) // each is laid out once, whatever the record claims
	}
	var rows []procRow
	push("", 0)
	for len(stack) > 0 && len(rows) < limit {
		t := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		p := procs[t.index]
		leaf := len(children[p.Proc]) == 0
		if n := len(rows); n > 0 && leaf && quiet(p) {
			if last := &rows[n-1]; last.depth == t.depth && last.Parent == p.Parent && last.Exe == p.Exe && quiet(last.ProcessView) && last.Exit == p.Exit {
				last.times++
				last.Counts.Allowed += p.Counts.Allowed
				last.Counts.Redirected += p.Counts.Redirected
				last.End = p.End
				continue
			}
		}
		rows = append(rows, procRow{p, t.depth, 1})
		push(p.Proc, t.depth+1)
	}
	return rows
}

func quiet(p core.ProcessView) bool {
	return !p.End.IsZero() && p.Counts.Blocked == 0 && p.Counts.Leaks == 0
}

// exeName is the last part of a program's path.
func exeName(exe string) string {
	if exe == "" {
		return "supervisor"
	}
	return path.Base(exe)
}

// look is how an operation's verdict is shown: a class for colour and shape, and a word.
func look(op *core.Operation) (class, word string) {
	if op.Leak {
		return "leak", "leak"
	}
	return op.Verdict.String(), op.Verdict.String()
}

// verdictText says what became of an operation.
func verdictText(op *core.Operation) string {
	if op.Leak {
		return op.Verdict.String() + ", a leak: it touched the real system in a way that a stricter policy would not let pass"
	}
	return op.Verdict.String()
}

// outcomeText says what is known of the end of an operation.
func outcomeText(o core.Outcome) string {
	switch o {
	case core.Attempted:
		return "attempted: left to the kernel, whose answer is not seen"
	case core.Refused:
		return "refused: answered with an error, nothing was done"
	case core.Performed:
		return "performed: seen done"
	}
	return o.String()
}

// clockText is a time as a page without JavaScript shows it, in the zone of the server.
func clockText(t time.Time, millis bool) string {
	t = t.Local()
	layout := "15:04:05"
	if millis {
		layout = "15:04:05.000"
	}
	if y, m, d := time.Now().Date(); t.Year() != y || t.Month() != m || t.Day() != d {
		layout = "Jan 2 " + layout
	}
	return t.Format(layout)
}

// number writes n with thin groups of three: 1 234 567.
func number(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// bar is one column of a sparkline, in the units of its view box.
type bar struct {
	x                            int
	allowed, redirected, blocked string // heights
	ra, rr, rb                   string // tops
}

const (
	sparkHeight  = 20
	barWidth     = 3
	sparkBuckets = 60
)

// sparkBars lays the activity out: columns as high as the operations of their span, the
// busiest as high as the view box. What was blocked is never less than a visible line.
func sparkBars(buckets []core.Bucket) []bar {
	if len(buckets) > sparkBuckets {
		buckets = buckets[len(buckets)-sparkBuckets:]
	}
	var top uint64
	for _, b := range buckets {
		top = max(top, b.Counts.Total())
	}
	if top == 0 {
		return nil
	}
	bars := make([]bar, 0, len(buckets))
	for i, b := range buckets {
		c := b.Counts
		if c.Total() == 0 {
			continue
		}
		scale := func(n uint64) float64 {
			if n == 0 {
				return 0
			}
			return max(1, float64(n)/float64(top)*(sparkHeight-2))
		}
		a, r, k := scale(c.Allowed), scale(c.Redirected), scale(c.Blocked)
		if k > 0 {
			k = max(2, k)
		}
		f := func(x float64) string { return strconv.FormatFloat(max(0, x), 'f', 1, 64) }
		bars = append(bars, bar{x: i * barWidth, allowed: f(a), redirected: f(r), blocked: f(k),
			ra: f(sparkHeight - a), rr: f(sparkHeight - a - r), rb: f(sparkHeight - a - r - k)})
	}
	return bars
}

// sparkLabel says in words what a sparkline shows.
func sparkLabel(buckets []core.Bucket) string {
	var c core.Counts
	for _, b := range buckets {
		c.Allowed += b.Counts.Allowed
		c.Redirected += b.Counts.Redirected
		c.Blocked += b.Counts.Blocked
	}
	if len(buckets) == 0 || c.Total() == 0 {
		return "No operations lately"
	}
	return fmt.Sprintf("Since %s: %d allowed, %d redirected, %d blocked", clockText(buckets[0].Start, false), c.Allowed, c.Redirected, c.Blocked)
}
