package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// MaxPage is the most operations that a page has.
const MaxPage = 10_000

// OpsQuery says which operations are asked for.
type OpsQuery struct {
	Query   *query.Query   // nil: all
	Box     string         // "": of all boxes
	Session core.SessionID // "": of all sessions
	Before  core.OpCursor  // only what comes before this one; 0: no bound
	After   core.OpCursor  // only what comes after this one; 0: no bound
	Limit   int            // 1 to MaxPage; 0 is 100
	Desc    bool           // newest first

	// Patience is how long to search before a page may end with less than Limit though
	// there may be more; 0: until the page is full or nothing is left.
	Patience time.Duration
}

// Ops returns a page of operations in the order of the stream. Of a box or a session that
// nothing is known of there are none.
//
// Its cost does not depend on how many operations there are as long as those that match
// are not rare. For rare ones, batches that cannot have any are passed by; targets are
// looked up in their dictionary, by trigrams if need be.
func (s *Store) Ops(ctx context.Context, q OpsQuery) (page core.OpsPage, err error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	if q.Limit < 0 || q.Limit > MaxPage {
		return page, fmt.Errorf("read operations: a page of %d, at most %d are allowed", q.Limit, MaxPage)
	}
	if q.Before > math.MaxInt64 || q.After > math.MaxInt64 {
		return page, fmt.Errorf("read operations: a cursor that is none")
	}
	err = s.view(ctx, func(tx *sql.Tx) error {
		sr := search{ctx: ctx, tx: tx, q: q, lo: int64(q.After), hi: math.MaxInt64, page: &page}
		if q.Before > 0 {
			sr.hi = int64(q.Before)
		}
		return sr.run()
	})
	if err != nil {
		return core.OpsPage{}, fmt.Errorf("read operations: %w", err)
	}
	return page, nil
}

// The sizes of a search's steps, in batches that may have what is sought, and the bounds
// within which the index of targets finds faster than reading batches does.
const (
	firstWindow = 64
	nextWindow  = 4096
	shortWindow = 512      // for who has no patience: a tenth of a second where all must be read
	maxPassed   = 64 << 10 // batches that a step passes by
	maxFound    = 2000
	maxMatches  = 200_000
)

// search is one search for a page.
type search struct {
	ctx  context.Context
	tx   *sql.Tx
	q    OpsQuery
	page *core.OpsPage

	lo, hi int64 // of the ids that are left, both exclusive

	batch     strings.Builder // condition on a row b of batches
	batchArgs []any
	scope     string // that part of it which an index serves
	scopeArgs []any
	session   int64
}

// errNothing says that nothing can match.
var errNothing = errors.New("nothing can match")

func (s *search) run() error {
	err := s.plan()
	if errors.Is(err, errNothing) {
		return nil
	}
	if err != nil {
		return err
	}
	began := time.Now()
	more, err := s.window(firstWindow, lookupColumns(s.session))
	if err != nil || !more || s.full() {
		return err
	}
	if found, err := s.byTarget(); err != nil || found {
		return err
	}
	columns, n := setColumns(s.session), nextWindow
	if s.q.Patience > 0 {
		n = shortWindow
	}
	for {
		if s.q.Patience > 0 && time.Since(began) >= s.q.Patience {
			s.page.More = true
			s.page.Next = s.edge()
			return nil
		}
		if more, err = s.window(n, columns); err != nil || !more || s.full() {
			return err
		}
		if s.q.Patience == 0 {
			n *= 4 // each step looks at the dictionaries anew
		}
	}
}

// edge is the cursor behind all that has been searched.
func (s *search) edge() core.OpCursor {
	if s.q.Desc {
		return core.OpCursor(s.hi)
	}
	return core.OpCursor(s.lo)
}

func (s *search) full() bool { return s.page.More }

func (s *search) and(cond string, args ...any) {
	if s.batch.Len() > 0 {
		s.batch.WriteString(" AND ")
	}
	s.batch.WriteString(cond)
	s.batchArgs = append(s.batchArgs, args...)
}

// plan finds what batches must have to be of interest.
func (s *search) plan() (err error) {
	if s.q.Session != "" {
		if s.session, err = sessionID(s.ctx, s.tx, s.q.Session); err != nil {
			return nothing(err)
		}
		s.and("b.session = ?", s.session)
	}
	if s.q.Box != "" {
		id, err := boxID(s.ctx, s.tx, s.q.Box)
		if err != nil {
			return nothing(err)
		}
		if s.session == 0 {
			s.and("b.box = ?", id)
		} else {
			s.and("+b.box = ?", id) // the session's index serves
		}
	}
	s.scope, s.scopeArgs = s.batch.String(), slices.Clone(s.batchArgs)
	root := s.q.Query.Root()
	if root == nil {
		return nil
	}
	if err := s.planKinds(root); err != nil {
		return err
	}
	for _, n := range conjuncts(root) {
		field, ok := only(n)
		switch {
		case !ok:
		case field == query.Exe:
			err = s.planMask(n, field, "exes", "exes", "1")
		case field == query.Proc && s.session != 0:
			err = s.planMask(n, field, "procs", "processes", "session = ?", s.session)
		case field == query.Time:
			if t, ok := n.(*query.Term); ok && t.Op == query.GreaterEq {
				s.and("b.until >= ?", t.Values[0].Int)
			} else if ok && t.Op == query.Less {
				s.and("b.since < ?", t.Values[0].Int)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func nothing(err error) error {
	if errors.Is(err, core.ErrNotFound) {
		return errNothing
	}
	return err
}

// conjuncts returns conditions that must all hold.
func conjuncts(n query.Node) []query.Node {
	if and, ok := n.(query.And); ok {
		return and
	}
	return []query.Node{n}
}

// only returns the field that a node is about when that is one only and it says what the
// field is, not what it is not.
func only(n query.Node) (f query.Field, ok bool) {
	var all []query.Node
	switch n := n.(type) {
	case *query.Term:
		return n.Field, n.Op != query.IsNot
	case query.And:
		all = n
	case query.Or:
		all = n
	}
	for i, k := range all {
		kf, kok := only(k)
		if !kok || i > 0 && kf != f {
			return "", false
		}
		f = kf
	}
	return f, len(all) > 0
}

// planMask passes by batches that have none of the rows of a dictionary that a node asks
// for.
func (s *search) planMask(n query.Node, field query.Field, column, table, where string, args ...any) error {
	p := compiler{columns: dictionaryColumns(field)}
	if err := p.node(n); err != nil {
		return err
	}
	var mask uint64
	err := each(s.ctx, s.tx, func(row []driver.Value) error {
		mask |= 1 << number(row[0])
		return nil
	}, "SELECT DISTINCT id & 63 FROM "+table+" WHERE "+where+" AND ("+p.sql.String()+")", append(args, p.args...)...)
	if err != nil {
		return err
	}
	return s.mask(column, mask)
}

func (s *search) mask(column string, mask uint64) error {
	if mask == 0 {
		return errNothing
	}
	if mask != math.MaxUint64 {
		s.and("b."+column+" & ? <> 0", int64(mask))
	}
	return nil
}

// planKinds passes by batches that have no operation of a kind that may match.
func (s *search) planKinds(root query.Node) error {
	var mask, none uint64
	err := each(s.ctx, s.tx, func(row []driver.Value) error {
		k := scanKind(row)
		if possible(root, &k) == no {
			none |= 1 << (k.id & 63)
		} else {
			mask |= 1 << (k.id & 63)
		}
		return nil
	}, selectKinds)
	if err != nil {
		return err
	}
	if mask != 0 && none&^mask == 0 {
		return nil // all batches have some
	}
	return s.mask("kinds", mask)
}

// truth is what is known of a condition when only a part of the operation is.
type truth int8

const (
	no truth = iota - 1
	maybe
	yes
)

func (t truth) not() truth { return -t }

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// possible says whether an operation of kind k can match.
func possible(n query.Node, k *kind) truth {
	switch n := n.(type) {
	case query.And:
		t := yes
		for _, m := range n {
			t = min(t, possible(m, k))
		}
		return t
	case query.Or:
		t := no
		for _, m := range n {
			t = max(t, possible(m, k))
		}
		return t
	case query.Not:
		return possible(n.Node, k).not()
	case *query.Term:
		return k.is1(n)
	}
	return maybe
}

// is1 says whether a term holds for an operation of kind k.
func (k *kind) is1(t *query.Term) truth {
	var of string
	number, isText := int64(0), true
	switch t.Field {
	case query.Surface:
		of = k.surface
	case query.Action:
		of = k.action
	case query.Rule:
		of = k.rule
	case query.Errno:
		of = k.errno
	case query.Verdict:
		number, isText = k.verdict, false
	case query.Outcome:
		number, isText = k.outcome, false
	case query.Leak:
		number, isText = bit(k.leak), false
	default:
		return maybe
	}
	if t.Op != query.Is && t.Op != query.IsNot {
		return maybe
	}
	holds := false
	for _, v := range t.Values {
		if isText && v.Pattern == nil {
			return maybe
		}
		holds = holds || isText && v.Pattern.Match(of) || !isText && v.Int == number
	}
	return truthOf(holds == (t.Op == query.Is))
}

// window searches the next n batches that may have what is sought, and says whether there
// are more behind them.
func (s *search) window(n int, columns Columns) (more bool, err error) {
	where, args, err := Compile(s.q.Query, columns)
	if err != nil {
		return false, err
	}
	order, from, to := "", s.hi, s.lo&^(1<<batchBits-1)
	if s.q.Desc {
		order = " DESC"
	}
	// The n-th batch from here that may have what is sought, among so many that there are
	// at all.
	last, err := s.nth(maxPassed, order, s.scope, from, to, s.scopeArgs)
	if err != nil {
		return false, err
	}
	if last >= 0 && s.q.Desc {
		to = last
	} else if last >= 0 {
		from = last + 1
	}
	if near, err := s.nth(n, order, s.batch.String(), from, to, s.batchArgs); err != nil {
		return false, err
	} else if near >= 0 {
		last = near
	}
	lo, hi := s.lo, s.hi
	if more = last >= 0; more {
		if s.q.Desc {
			lo, to = max(lo, last-1), last
		} else {
			hi, from = min(hi, last+1<<batchBits), last+1
		}
	}
	// The +es keep SQLite from reading by the cursors, rather than by the batch's own bounds:
	// it uses one lower and one upper bound of a column.
	batch := "1"
	if s.batch.Len() > 0 {
		batch = s.batch.String()
	}
	err = s.read(selectOps+`FROM batches b CROSS JOIN ops o ON o.id >= b.id AND o.id < b.id + 1024`+joinOps+
		" WHERE b.id < ? AND b.id >= ? AND "+batch+" AND +o.id > ? AND +o.id < ? AND ("+where+") ORDER BY b.id"+order+", o.id"+order+" LIMIT ?",
		slices.Concat([]any{from, to}, s.batchArgs, []any{lo, hi}, args)...)
	if s.q.Desc {
		s.hi = lo + 1
	} else {
		s.lo = hi - 1
	}
	return more, err
}

// nth returns the id of the n-th batch of those that a condition and two bounds hold for;
// -1 when there are fewer.
func (s *search) nth(n int, order, cond string, from, to int64, args []any) (id int64, err error) {
	if cond == "" {
		cond = "1"
	}
	id = -1
	err = each(s.ctx, s.tx, func(row []driver.Value) error {
		id = number(row[0])
		return nil
	}, fmt.Sprintf("SELECT b.id FROM batches b WHERE b.id < ? AND b.id >= ? AND %s ORDER BY b.id%s LIMIT 1 OFFSET %d", cond, order, n-1), slices.Concat([]any{from, to}, args)...)
	return id, err
}

// byTarget finds by the index of targets what batches would have to be read for; it says
// so when it did.
func (s *search) byTarget() (done bool, err error) {
	root := s.q.Query.Root()
	if root == nil {
		return false, nil
	}
	var conds []string
	var args []any
	for _, n := range conjuncts(root) {
		if f, ok := only(n); ok && f == query.Target {
			p := compiler{columns: dictionaryColumns(f)}
			if err := p.node(n); err != nil {
				return false, err
			}
			conds, args = append(conds, "("+p.sql.String()+")"), append(args, p.args...)
		}
	}
	if len(conds) == 0 {
		return false, nil
	}
	var ids []any
	err = each(s.ctx, s.tx, func(row []driver.Value) error {
		ids = append(ids, number(row[0]))
		return nil
	}, fmt.Sprintf("SELECT id FROM targets WHERE %s LIMIT %d", strings.Join(conds, " AND "), maxFound+1), args...)
	if err != nil || len(ids) > maxFound {
		return false, err
	}
	if len(ids) == 0 {
		return true, nil
	}
	in := "o.target IN (?" + strings.Repeat(", ?", len(ids)-1) + ")"
	in, inArgs := in+" AND o.id > ? AND o.id < ?", append(ids, s.lo, s.hi)
	var n int // of operations
	err = s.tx.QueryRowContext(s.ctx, fmt.Sprintf("SELECT count(*) FROM (SELECT 1 FROM ops o INDEXED BY ops_target WHERE %s LIMIT %d)", in, maxMatches+1), inArgs...).Scan(&n)
	if err != nil || n > maxMatches {
		return false, err
	}
	where, args, err := Compile(s.q.Query, setColumns(s.session))
	if err != nil {
		return false, err
	}
	order, batch := "", "1"
	if s.q.Desc {
		order = " DESC"
	}
	if s.batch.Len() > 0 {
		batch = s.batch.String()
	}
	args = append(append(inArgs, s.batchArgs...), args...)
	found := "SELECT o.id FROM ops o INDEXED BY ops_target CROSS JOIN batches b ON b.id = o.id - o.id % 1024 WHERE " + in + " AND " + batch + " AND (" + where + ") ORDER BY o.id" + order + " LIMIT ?"
	return true, s.read(selectOps+"FROM ("+found+") f CROSS JOIN ops o ON o.id = f.id CROSS JOIN batches b ON b.id = o.id - o.id % 1024"+joinOps+" ORDER BY o.id"+order, args...)
}

const (
	selectOps = `SELECT o.id, o.time, o.pid, p.proc, e.text, k.surface, k.action, t.text, k.verdict, k.outcome, k.rule, k.errno, k.leak, d.body,
		b.first + o.id - b.id, x.name, s.name `
	joinOps = ` CROSS JOIN kinds k ON k.id = o.kind CROSS JOIN targets t ON t.id = o.target CROSS JOIN exes e ON e.id = o.exe
		CROSS JOIN processes p ON p.id = o.proc CROSS JOIN boxes x ON x.id = b.box CROSS JOIN sessions s ON s.id = b.session LEFT JOIN details d ON d.id = o.detail`
)

// read adds what a statement finds to the page; its last argument is the limit, one more
// than there is room for.
func (s *search) read(sql string, args ...any) error {
	return each(s.ctx, s.tx, func(row []driver.Value) error {
		if len(s.page.Ops) == s.q.Limit {
			s.page.More = true
			s.page.Next = s.page.Cursors[s.q.Limit-1]
			return nil
		}
		op, err := scanOp(row)
		if err != nil {
			return err
		}
		s.page.Ops = append(s.page.Ops, op)
		s.page.Cursors = append(s.page.Cursors, core.OpCursor(number(row[0])))
		return nil
	}, sql, append(args, s.q.Limit-len(s.page.Ops)+1)...)
}

func scanOp(row []driver.Value) (core.Operation, error) {
	op := core.Operation{Time: time.Unix(0, number(row[1])).UTC(), PID: int(number(row[2])), Proc: core.ProcID(text(row[3])), Exe: text(row[4]),
		Surface: core.Surface(text(row[5])), Action: core.Action(text(row[6])), Target: text(row[7]), Verdict: core.Verdict(number(row[8])),
		Outcome: core.Outcome(number(row[9])), Rule: text(row[10]), Errno: text(row[11]), Leak: number(row[12]) != 0,
		Seq: core.Seq(number(row[14])), Box: text(row[15]), Session: core.SessionID(text(row[16]))}
	d, err := decodeDetail([]byte(text(row[13])))
	if err != nil {
		return op, fmt.Errorf("operation %d of session %s: %w", op.Seq, op.Session, err)
	}
	op.Detail = d
	return op, nil
}

// setColumns finds fields by the rows of the dictionaries that match: each distinct
// string is looked at once, whether or not an operation that is met has it.
func setColumns(session int64) Columns {
	c := plainColumns()
	for f, column := range map[query.Field]string{query.Exe: "exe", query.Target: "target"} {
		col := dictionaryColumns(f).Of[f]
		col.Before, col.After = "o."+column+" IN (SELECT id FROM "+column+"s WHERE ", ")"
		c.Of[f] = col
	}
	proc := Column{Before: "o.proc IN (SELECT id FROM processes WHERE ", Expr: "proc", After: ")"}
	if session != 0 {
		proc.Before += "session = ? AND "
		proc.BeforeArgs = []any{session}
	}
	c.Of[query.Proc] = proc
	c.Detail = func(key string) Column {
		return Column{Before: "o.detail IN (SELECT id FROM details WHERE ", Expr: "sandglass_detail(body, ?)", ExprArgs: []any{key}, Null: true, After: ")"}
	}
	return c
}

// lookupColumns finds fields by looking up the strings of each operation that is met.
func lookupColumns(session int64) Columns {
	c := plainColumns()
	c.Of[query.Exe], c.Of[query.Target], c.Of[query.Proc] = Column{Expr: "e.text"}, Column{Expr: "t.text"}, Column{Expr: "p.proc"}
	c.Detail = func(key string) Column {
		return Column{Expr: "sandglass_detail(d.body, ?)", ExprArgs: []any{key}, Null: true}
	}
	return c
}

// plainColumns has the fields that both ways find alike.
func plainColumns() Columns {
	c := Columns{Of: map[query.Field]Column{
		query.PID:     {Expr: "o.pid"},
		query.Time:    {Expr: "o.time"},
		query.Seq:     {Expr: "(b.first + o.id - b.id)"},
		query.Box:     {Before: "b.box IN (SELECT id FROM boxes WHERE ", Expr: "name", After: ")"},
		query.Session: {Before: "b.session IN (SELECT id FROM sessions WHERE ", Expr: "name", After: ")"},
	}}
	for _, f := range []query.Field{query.Surface, query.Action, query.Verdict, query.Outcome, query.Rule, query.Errno, query.Leak} {
		c.Of[f] = Column{Before: "o.kind IN (SELECT id FROM kinds WHERE ", Expr: string(f), After: ")"}
	}
	return c
}

// dictionaryColumns is for conditions on the rows of a dictionary itself.
func dictionaryColumns(f query.Field) Columns {
	col := Column{Expr: "text"}
	switch f {
	case query.Proc:
		col.Expr = "proc"
	case query.Target:
		col.Prefilter = trigrams
	}
	return Columns{Of: map[query.Field]Column{f: col}}
}
