package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"modernc.org/sqlite"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// foldRules is the version of the code in this file: who changes what it writes adds one,
// and every database is folded again.
const foldRules = 2

// Bounds of what a folder remembers between transactions.
const (
	maxTargets  = 128 << 10 // twice that; a path has some hundred bytes
	maxStrings  = 16 << 10
	maxSessions = 512      // forgotten all at once
	maxProcs    = 64 << 10 // of all sessions
	maxFlows    = 64 << 10 // of all sessions: open ones, and those of a transaction
	maxKinds    = 16 << 10
)

const batchBits = 10 // of an operation's id: its place in its batch

// A batch has no more operations than their ids can tell apart, or this does not compile.
const _ = uint(1<<batchBits - events.MaxBatchOps)

// folder folds messages, over one connection.
type folder struct {
	*conn
	version int64 // of the database as others changed it: PRAGMA data_version
	loaded  bool
	txn     uint64

	streams                        map[string]*stream
	boxes                          map[string]*box
	sessions                       map[core.SessionID]*session
	procs, flows                   int // in sessions
	names                          int // in boxes
	nextBox, nextSession, nextProc int64

	kinds      map[kind]*kind
	lately     [4]*kind // of the last operations
	nextKind   int64
	exes       *dictionary
	targets    *recent[*target]
	paths      *dictionary // of targets, without a memory of its own
	details    *recent[int64]
	nextDetail int64

	ops, batches, newDetails, touched *bulk
	touchedPaths                      []*path
	byPath                            map[pathKey]*path
	scratch                           []byte
	folded                            int   // operations of this transaction
	indexed                           int64 // the last target in the index of trigrams
}

type stream struct {
	epoch            string
	generation, base int64
	seq              int64
	known, dirty     bool
}

type box struct {
	id                   int64
	first, last, created int64
	policy               string
	removed              bool
	dirty                bool

	txn      uint64 // of what follows
	counters map[int64]int64
	buckets  map[int64]*core.Counts
	second   int64 // of bucket
	bucket   *core.Counts

	names *nameList // nil until one is asked for
}

// session is a row of sessions, with what belongs to it.
type session struct {
	id, box int64
	name    core.SessionID
	host    string

	life             core.SessionView // what control says
	sealed           int64
	view             core.SessionView // what operations say
	first, last      int64
	gaps             []gap
	procs            map[core.ProcID]*process
	flows            map[string]*flow
	totals           flowTotals
	dirty, gapsDirty bool

	lastProc *process
	counters map[int64]int64
	txn      uint64
}

type gap struct{ first, last core.Seq }

type process struct {
	id    int64
	view  core.ProcessView
	dirty bool
}

// target is a string that operations are about.
type target struct {
	id   int64
	path *path // as it is in transaction txn
	txn  uint64
}

type pathKey struct{ box, target int64 }

// path is what a transaction adds to a row of paths.
type path struct {
	pathKey
	last, kind int64
	changed    bool
	counts     core.Counts
}

func newFolder(c *conn) *folder {
	f := &folder{conn: c}
	f.ops = newBulk("INSERT INTO ops VALUES", "", 8, 128)
	f.batches = newBulk("INSERT INTO batches VALUES", "", 9, 64)
	f.newDetails = newBulk("INSERT INTO details VALUES", "", 2, 64)
	f.touched = newBulk("INSERT INTO paths VALUES", `ON CONFLICT DO UPDATE SET
		kind = CASE WHEN excluded.last >= last THEN excluded.kind ELSE kind END, last = max(last, excluded.last), changed = max(changed, excluded.changed),
		allowed = allowed + excluded.allowed, redirected = redirected + excluded.redirected, blocked = blocked + excluded.blocked, leaks = leaks + excluded.leaks`, 9, 64)
	return f
}

// forget drops all that is remembered: it may differ from what is in the database.
func (f *folder) forget() {
	f.loaded = false
	for _, b := range []*bulk{f.ops, f.batches, f.newDetails, f.touched} {
		b.args = b.args[:0]
	}
}

func (f *folder) load() (err error) {
	f.streams, f.boxes, f.sessions = map[string]*stream{}, map[string]*box{}, map[core.SessionID]*session{}
	f.procs, f.flows, f.names = 0, 0, 0
	f.kinds, f.lately, f.nextKind = map[kind]*kind{}, [4]*kind{}, 1
	err = f.query(func(row []driver.Value) error {
		k := scanKind(row)
		f.nextKind = k.id + 1
		f.remember(k)
		return nil
	}, selectKinds)
	if err != nil {
		return err
	}
	for _, n := range []struct {
		next  *int64
		table string
	}{{&f.nextBox, "boxes"}, {&f.nextSession, "sessions"}, {&f.nextProc, "processes"}, {&f.nextDetail, "details"}} {
		if *n.next, err = f.int("SELECT max(id) FROM " + n.table); err != nil {
			return err
		}
		*n.next++
	}
	if f.exes, err = newDictionary(f.conn, "exes", maxStrings); err != nil {
		return err
	}
	if f.paths, err = newDictionary(f.conn, "targets", 0); err != nil {
		return err
	}
	if f.indexed, err = f.int("SELECT indexed FROM search"); err != nil {
		return err
	}
	f.targets = newRecent[*target](maxTargets, f.paths.recent.whole)
	f.details = newRecent[int64](maxStrings, f.nextDetail == 1)
	f.loaded = true
	return nil
}

// fold folds messages in one transaction: all of them or none.
func (f *folder) fold(ctx context.Context, ds []events.Delivered) (err error) {
	return f.transact(ctx, func() error {
		for i := range ds {
			if err := f.message(&ds[i]); err != nil {
				return fmt.Errorf("message %d of stream %s: %w", ds[i].StreamSeq, ds[i].Stream, err)
			}
		}
		return f.flush()
	})
}

// transact runs fn in a transaction, with what is remembered in step with the database.
func (f *folder) transact(ctx context.Context, fn func() error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	tx, err := f.c.(driver.ConnBeginTx).BeginTx(context.Background(), driver.TxOptions{})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	done := false
	defer func() {
		if !done {
			f.forget()
			if rerr := tx.Rollback(); rerr != nil && !rolledBack(err) {
				err = errors.Join(err, fmt.Errorf("roll back: %w", rerr))
			}
		}
	}()
	f.txn++
	v, err := f.int("PRAGMA data_version")
	if err != nil {
		return err
	}
	if v != f.version || len(f.sessions) > maxSessions || f.procs > maxProcs || f.flows > maxFlows || f.names > maxNames || len(f.kinds) > maxKinds {
		f.forget()
	}
	if !f.loaded {
		if err := f.load(); err != nil {
			return err
		}
	}
	f.version = v
	f.folded = 0
	f.byPath, f.touchedPaths = map[pathKey]*path{}, f.touchedPaths[:0]
	if err := fn(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	done = true
	return nil
}

// rolledBack says whether SQLite may have rolled back by itself, as it does when the disk
// is full or fails: sqlite.org/lang_transaction.html. To do it again is an error then, and
// harmless.
func rolledBack(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	const noMemory, ioError, full = 7, 10, 13 // sqlite.org/rescode.html
	code := e.Code() & 0xff
	return code == noMemory || code == ioError || code == full
}

func (f *folder) stream(name string) (*stream, error) {
	if s := f.streams[name]; s != nil {
		return s, nil
	}
	s := &stream{}
	err := f.query(func(row []driver.Value) error {
		*s = stream{epoch: text(row[0]), generation: number(row[1]), base: number(row[2]), seq: number(row[3]), known: true}
		return nil
	}, "SELECT epoch, generation, base, seq FROM streams WHERE name = ?", name)
	if err != nil {
		return nil, err
	}
	f.streams[name] = s
	return s, nil
}

func (f *folder) message(d *events.Delivered) error {
	s, err := f.stream(d.Stream)
	if err != nil {
		return err
	}
	if int64(d.StreamSeq) <= s.seq {
		return nil
	}
	switch {
	case d.Batch != nil:
		err = f.batch(d.Batch, (s.base+int64(d.StreamSeq))<<batchBits)
	case d.Life != nil:
		err = f.life(d.Life)
	}
	s.seq, s.dirty = int64(d.StreamSeq), true
	return err
}

// box finds or makes a box, of which t is the time of a fact.
func (f *folder) box(name string, t int64) (*box, error) {
	b := f.boxes[name]
	if b == nil {
		b = &box{first: t}
		err := f.query(func(row []driver.Value) error {
			*b = box{id: number(row[0]), first: number(row[1]), last: number(row[2]), created: number(row[3]), policy: text(row[4]), removed: number(row[5]) != 0}
			return nil
		}, "SELECT id, first, last, created, policy, removed FROM boxes WHERE name = ?", TextOrBlob.Value(name))
		if err != nil {
			return nil, err
		}
		if b.id == 0 {
			b.id, b.dirty = f.nextBox, true
			f.nextBox++
		}
		f.boxes[strings.Clone(name)] = b
	}
	if t < b.first {
		b.first, b.dirty = t, true
	}
	if b.txn != f.txn {
		b.txn, b.counters, b.buckets, b.bucket = f.txn, map[int64]int64{}, map[int64]*core.Counts{}, nil
	}
	return b, nil
}

// session finds or makes a session.
func (f *folder) session(name core.SessionID, host string, b *box) (*session, error) {
	s := f.sessions[name]
	if s == nil {
		s = &session{procs: map[core.ProcID]*process{}}
		err := f.query(func(row []driver.Value) error {
			scanSession(row, s)
			return nil
		}, selectSession+" WHERE name = ?", TextOrBlob.Value(string(name)))
		if err != nil {
			return nil, err
		}
		if s.id == 0 {
			s.id, s.box, s.name, s.host, s.dirty = f.nextSession, b.id, core.SessionID(strings.Clone(string(name))), strings.Clone(host), true
			f.nextSession++
		} else if s.view.Missing > 0 {
			err := f.query(func(row []driver.Value) error {
				s.gaps = append(s.gaps, gap{core.Seq(number(row[0])), core.Seq(number(row[1]))})
				return nil
			}, "SELECT first, last FROM gaps WHERE session = ? ORDER BY first", s.id)
			if err != nil {
				return nil, err
			}
		}
		f.sessions[s.name] = s
	}
	if s.txn != f.txn {
		s.txn, s.counters = f.txn, map[int64]int64{}
	}
	return s, nil
}

const selectSession = "SELECT " + sessionColumns + " FROM sessions"

func scanSession(row []driver.Value, s *session) {
	s.id, s.name, s.box, s.host = number(row[0]), core.SessionID(text(row[1])), number(row[2]), text(row[3])
	s.life = core.SessionView{Start: moment(number(row[4])), Command: text(row[5]), Policy: text(row[6]), Observe: core.Observe(text(row[7])), Net: core.Net(text(row[8])),
		End: moment(number(row[9])), Exit: int(number(row[10])), Lost: number(row[11]) != 0}
	s.sealed, s.first, s.last = number(row[12]), number(row[13]), number(row[14])
	s.view = core.SessionView{LastSeq: core.Seq(number(row[15])), Missing: uint64(number(row[16])), Start: moment(number(row[17])), Command: text(row[18]), Policy: text(row[19]),
		Observe: core.Observe(text(row[20])), Net: core.Net(text(row[21])), End: moment(number(row[22])), Exit: int(number(row[23])),
		Procs: int(number(row[24])), LiveProc: int(number(row[25])), Counts: scanCounts(row[26:])}
}

func scanCounts(row []driver.Value) core.Counts {
	return core.Counts{Allowed: uint64(number(row[0])), Redirected: uint64(number(row[1])), Blocked: uint64(number(row[2])), Leaks: uint64(number(row[3]))}
}

// moment is a time as the tables hold it; 0 is none.
func moment(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// life folds a fact of the stream of control.
func (f *folder) life(l *events.Life) error {
	if l.Box == "" {
		return nil // a user's; no projection holds those
	}
	t := nanos(l.Time)
	b, err := f.box(l.Box, t)
	if err != nil {
		return err
	}
	switch l.Kind {
	case events.BoxCreate:
		b.created, b.policy, b.removed, b.dirty = t, strings.Clone(l.Policy), false, true
	case events.BoxRemove:
		b.removed, b.dirty = true, true
	case events.SessionBegin, events.SessionEnd:
		s, err := f.session(l.Session, l.Host, b)
		if err != nil {
			return err
		}
		s.dirty = true
		if l.Kind == events.SessionEnd {
			s.life.End, s.life.Exit, s.life.Lost, s.sealed = l.Time, l.Exit, l.Lost, int64(l.Last)
			return nil
		}
		if b.removed {
			b.removed, b.dirty = false, true
		}
		s.life.Start, s.life.Command, s.life.Policy, s.life.Observe, s.life.Net = l.Time, strings.Join(l.Command, " "), l.Policy, l.Observe, l.Net
	}
	return nil
}

// batch folds a batch whose operations get the ids from id on.
func (f *folder) batch(b *events.Batch, id int64) error {
	if n := len(b.Ops); n == 0 || n > 1<<batchBits {
		return fmt.Errorf("a batch of %d operations", n)
	}
	bx, err := f.box(b.Box, b.Ops[0].Time.UnixNano())
	if err != nil {
		return err
	}
	s, err := f.session(b.Session, b.Host, bx)
	if err != nil {
		return err
	}
	row := batchRow{since: 1<<63 - 1, until: -1 << 63}
	for _, r := range s.take(b.First, b.First+core.Seq(len(b.Ops))-1) {
		for seq := r.first; seq <= r.last; seq++ {
			i := int64(seq - b.First)
			if err := f.op(&b.Ops[i], id+i, bx, s, &row); err != nil {
				return fmt.Errorf("operation %d of session %s: %w", seq, b.Session, err)
			}
		}
	}
	if row.kinds == 0 {
		return nil // all of it was folded before
	}
	s.dirty, bx.dirty = true, true
	if s.first == 0 || row.since < s.first {
		s.first = row.since
	}
	s.last, bx.last, bx.first = max(s.last, row.until), max(bx.last, row.until), min(bx.first, row.since)
	return f.batches.add(f.conn, id, s.id, bx.id, int64(b.First), row.since, row.until, int64(row.kinds), int64(row.exes), int64(row.procs))
}

// batchRow is what a row of batches says of its operations.
type batchRow struct {
	since, until       int64
	kinds, exes, procs uint64
}

// take says which operations from first to last have not been folded yet, and notes them
// as folded, and those before them as missing.
func (s *session) take(first, last core.Seq) (take []gap) {
	v := &s.view
	if first > v.LastSeq {
		if first > v.LastSeq+1 {
			s.gaps = append(s.gaps, gap{v.LastSeq + 1, first - 1})
			v.Missing += uint64(first - v.LastSeq - 1)
			s.gapsDirty = true
		}
		v.LastSeq = last
		return []gap{{first, last}}
	}
	if len(s.gaps) > 0 {
		var left []gap
		for _, g := range s.gaps {
			lo, hi := max(g.first, first), min(g.last, last)
			if lo > hi {
				left = append(left, g)
				continue
			}
			take = append(take, gap{lo, hi})
			v.Missing -= uint64(hi - lo + 1)
			s.gapsDirty = true
			if g.first < lo {
				left = append(left, gap{g.first, lo - 1})
			}
			if hi < g.last {
				left = append(left, gap{hi + 1, g.last})
			}
		}
		s.gaps = left
	}
	if last > v.LastSeq {
		take = append(take, gap{v.LastSeq + 1, last})
		v.LastSeq = last
	}
	return take
}

// op folds one operation.
func (f *folder) op(op *core.Operation, id int64, b *box, s *session, row *batchRow) error {
	f.folded++
	t := op.Time.UnixNano()
	k, err := f.kind(op)
	if err != nil {
		return err
	}
	exe, err := f.exes.id(f.conn, op.Exe)
	if err != nil {
		return err
	}
	p, err := f.process(op, s)
	if err != nil {
		return err
	}
	tg, err := f.target(op.Target)
	if err != nil {
		return err
	}
	var detail int64
	if len(op.Detail) > 0 {
		if detail, err = f.detail(op.Detail, op.Action == core.ActCount); err != nil {
			return err
		}
	}
	row.since, row.until = min(row.since, t), max(row.until, t)
	row.kinds |= 1 << (k.id & 63)
	row.exes |= 1 << (exe & 63)
	row.procs |= 1 << (p.id & 63)
	s.view.Counts.Add(op)
	s.counters[k.id]++
	b.counters[k.id]++
	if second := t / 1e9; b.bucket == nil || b.second != second {
		if b.bucket = b.buckets[second]; b.bucket == nil {
			b.bucket = &core.Counts{}
			b.buckets[second] = b.bucket
		}
		b.second = second
	}
	b.bucket.Add(op)
	if op.Surface == core.SandboxLifecycle {
		s.view.Fold(op)
		v := &s.view
		v.Command, v.Policy, v.Observe, v.Net = strings.Clone(v.Command), strings.Clone(v.Policy), core.Observe(strings.Clone(string(v.Observe))), core.Net(strings.Clone(string(v.Net)))
	}
	if op.IsFile() {
		changes := op.Changes()
		pa := f.path(tg, b.id)
		pa.touch(t, k.id, changes)
		pa.counts.Add(op)
		if changes {
			if other := op.OtherPath(); other != "" {
				o, err := f.target(other)
				if err != nil {
					return err
				}
				f.path(o, b.id).touch(t, k.id, true)
			}
		}
	}
	if flow := op.Flow(); flow != "" {
		if err := f.flow(op, flow, id, s); err != nil {
			return err
		}
	}
	if op.Asks() {
		if err := f.name(op, id, b); err != nil {
			return err
		}
	}
	return f.ops.add(f.conn, id, t, int64(op.PID), p.id, exe, k.id, tg.id, detail)
}

func (k *kind) is(op *core.Operation) bool {
	return k.surface == string(op.Surface) && k.action == string(op.Action) && k.verdict == int64(op.Verdict) && k.outcome == int64(op.Outcome) &&
		k.leak == op.Leak && k.rule == op.Rule && k.errno == op.Errno
}

func (f *folder) kind(op *core.Operation) (*kind, error) {
	for i, k := range f.lately {
		if k != nil && k.is(op) {
			if i > 0 {
				copy(f.lately[1:i+1], f.lately[:i])
				f.lately[0] = k
			}
			return k, nil
		}
	}
	key := kind{surface: string(op.Surface), action: string(op.Action), verdict: int64(op.Verdict), outcome: int64(op.Outcome), rule: op.Rule, errno: op.Errno, leak: op.Leak}
	k := f.kinds[key]
	if k == nil {
		key.surface, key.action, key.rule, key.errno = strings.Clone(key.surface), strings.Clone(key.action), strings.Clone(key.rule), strings.Clone(key.errno)
		key.id = f.nextKind
		_, err := f.exec("INSERT INTO kinds VALUES (?, ?, ?, ?, ?, ?, ?, ?)", key.id, TextOrBlob.Value(key.surface), TextOrBlob.Value(key.action),
			key.verdict, key.outcome, TextOrBlob.Value(key.rule), TextOrBlob.Value(key.errno), bit(key.leak))
		if err != nil {
			return nil, err
		}
		f.nextKind++
		k = f.remember(key)
	}
	copy(f.lately[1:], f.lately[:])
	f.lately[0] = k
	return k, nil
}

func (f *folder) remember(k kind) *kind {
	key := k
	key.id = 0
	f.kinds[key] = &k
	return &k
}

// process finds or makes the process of an operation, and folds it in.
func (f *folder) process(op *core.Operation, s *session) (*process, error) {
	p := s.lastProc
	if p == nil || p.view.Proc != op.Proc {
		p = s.procs[op.Proc]
		if p == nil {
			p = &process{}
			err := f.query(func(row []driver.Value) error {
				p.id, p.view = number(row[0]), scanProcess(row[1:])
				return nil
			}, "SELECT id, "+processColumns+" FROM processes WHERE session = ? AND proc = ?", s.id, TextOrBlob.Value(string(op.Proc)))
			if err != nil {
				return nil, err
			}
			if p.id == 0 {
				p.id = f.nextProc
				f.nextProc++
				if op.Proc != "" {
					s.view.Procs++
					s.view.LiveProc++
				}
			}
			p.view.Proc = core.ProcID(strings.Clone(string(op.Proc)))
			s.procs[p.view.Proc] = p
			f.procs++
		}
		s.lastProc = p
	}
	p.dirty = true
	if p.view.Proc == "" {
		return p, nil // the supervisor
	}
	before, lived := p.view, p.view.End.IsZero()
	p.view.Fold(op)
	if lived && !p.view.End.IsZero() {
		s.view.LiveProc--
	}
	keep(&p.view.Exe, before.Exe)
	keep(&p.view.Argv, before.Argv)
	keep(&p.view.Exit, before.Exit)
	if p.view.Parent != before.Parent {
		p.view.Parent = core.ProcID(strings.Clone(string(p.view.Parent)))
	}
	return p, nil
}

// keep makes s a string of its own memory rather than of a batch's.
func keep(s *string, before string) {
	if *s == before {
		*s = before
	} else {
		*s = strings.Clone(*s)
	}
}

const processColumns = `proc, pid, parent, exe, argv, start, "end", exit, allowed, redirected, blocked, leaks`

func scanProcess(row []driver.Value) core.ProcessView {
	return core.ProcessView{Proc: core.ProcID(text(row[0])), PID: int(number(row[1])), Parent: core.ProcID(text(row[2])), Exe: text(row[3]), Argv: text(row[4]),
		Start: moment(number(row[5])), End: moment(number(row[6])), Exit: text(row[7]), Counts: scanCounts(row[8:])}
}

func (f *folder) target(s string) (*target, error) {
	if t, ok := f.targets.get(s); ok {
		return t, nil
	}
	s = strings.Clone(s)
	f.paths.recent.whole = f.targets.whole
	id, err := f.paths.make(f.conn, s)
	if err != nil {
		return nil, err
	}
	t := &target{id: id}
	f.targets.put(s, t)
	return t, nil
}

// path returns what this transaction adds to a path of a box.
func (f *folder) path(t *target, box int64) *path {
	if t.txn == f.txn && t.path.box == box {
		return t.path
	}
	key := pathKey{box, t.id}
	p := f.byPath[key]
	if p == nil {
		p = &path{pathKey: key}
		f.byPath[key] = p
		f.touchedPaths = append(f.touchedPaths, p)
	}
	t.path, t.txn = p, f.txn
	return p
}

func (p *path) touch(t, kind int64, changed bool) {
	if t >= p.last {
		p.last, p.kind = t, kind
	}
	p.changed = p.changed || changed
}

// longDetail is how long a detail may be, encoded, to be in the dictionary once only. It
// is in the index details_body too.
const longDetail = 128

// once says that it hardly comes twice.
func (f *folder) detail(d core.Detail, once bool) (int64, error) {
	f.scratch = appendDetail(f.scratch[:0], d)
	short := len(f.scratch) <= longDetail && !once
	if short {
		if id, ok := f.details.get(string(f.scratch)); ok {
			return id, nil
		}
	}
	body := slices.Clone(f.scratch)
	if short && !f.details.whole {
		if err := f.newDetails.flush(f.conn); err != nil {
			return 0, err
		}
		id, err := f.int("SELECT id FROM details WHERE body = ? AND length(body) <= 128", body)
		if err != nil {
			return 0, err
		}
		if id != 0 {
			f.details.put(string(body), id)
			return id, nil
		}
	}
	id := f.nextDetail
	f.nextDetail++
	if short {
		f.details.put(string(body), id)
	}
	return id, f.newDetails.add(f.conn, id, body)
}

// flush writes what the transaction changed.
func (f *folder) flush() error {
	steps := []func() error{
		func() error { return f.ops.flush(f.conn) },
		func() error { return f.batches.flush(f.conn) },
		func() error { return f.paths.queue.flush(f.conn) },
		func() error { return f.newDetails.flush(f.conn) },
		f.flushPaths, f.flushBoxes, f.flushSessions, f.flushStreams,
		func() error { return f.exes.queue.flush(f.conn) }, // flows may have added to it
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if f.folded <= idleOps {
		return f.index(indexIdle)
	}
	return f.index(indexAlways)
}

func (f *folder) flushPaths() error {
	slices.SortFunc(f.touchedPaths, func(a, b *path) int {
		if a.box != b.box {
			return int(a.box - b.box)
		}
		return int(a.target - b.target)
	})
	for _, p := range f.touchedPaths {
		err := f.touched.add(f.conn, p.box, p.target, p.last, p.kind, bit(p.changed),
			int64(p.counts.Allowed), int64(p.counts.Redirected), int64(p.counts.Blocked), int64(p.counts.Leaks))
		if err != nil {
			return err
		}
	}
	return f.touched.flush(f.conn)
}

func (f *folder) flushBoxes() error {
	for name, b := range f.boxes {
		if !b.dirty {
			continue
		}
		_, err := f.exec(`INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
			first = excluded.first, last = excluded.last, created = excluded.created, policy = excluded.policy, removed = excluded.removed`,
			b.id, TextOrBlob.Value(name), b.first, b.last, b.created, TextOrBlob.Value(b.policy), bit(b.removed))
		if err != nil {
			return err
		}
		b.dirty = false
		if err := f.flushNames(b); err != nil {
			return err
		}
		if b.txn != f.txn {
			continue
		}
		for k, n := range b.counters {
			if _, err := f.exec("INSERT INTO box_counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", b.id, k, n); err != nil {
				return err
			}
		}
		for second, c := range b.buckets {
			_, err := f.exec(`INSERT INTO buckets VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
				allowed = allowed + excluded.allowed, redirected = redirected + excluded.redirected, blocked = blocked + excluded.blocked, leaks = leaks + excluded.leaks`,
				b.id, second, int64(c.Allowed), int64(c.Redirected), int64(c.Blocked), int64(c.Leaks))
			if err != nil {
				return err
			}
		}
		b.counters, b.buckets, b.bucket = nil, nil, nil
	}
	return nil
}

func (f *folder) flushSessions() error {
	for _, s := range f.sessions {
		if !s.dirty {
			continue
		}
		if err := f.flushSession(s); err != nil {
			return err
		}
		s.dirty = false
	}
	return nil
}

func (f *folder) flushSession(s *session) error {
	l, v := &s.life, &s.view
	val := TextOrBlob.Value
	_, err := f.exec(upsertSession, s.id, val(string(s.name)), s.box, val(s.host),
		nanos(l.Start), val(l.Command), val(l.Policy), val(string(l.Observe)), val(string(l.Net)), nanos(l.End), int64(l.Exit), bit(l.Lost), s.sealed,
		s.first, s.last, int64(v.LastSeq), int64(v.Missing), nanos(v.Start), val(v.Command), val(v.Policy), val(string(v.Observe)), val(string(v.Net)), nanos(v.End), int64(v.Exit),
		int64(v.Procs), int64(v.LiveProc), int64(v.Counts.Allowed), int64(v.Counts.Redirected), int64(v.Counts.Blocked), int64(v.Counts.Leaks))
	if err != nil {
		return err
	}
	if s.gapsDirty {
		if _, err := f.exec("DELETE FROM gaps WHERE session = ?", s.id); err != nil {
			return err
		}
		for _, g := range s.gaps {
			if _, err := f.exec("INSERT INTO gaps VALUES (?, ?, ?)", s.id, int64(g.first), int64(g.last)); err != nil {
				return err
			}
		}
		s.gapsDirty = false
	}
	for _, p := range s.procs {
		if !p.dirty {
			continue
		}
		p.dirty = false
		v := &p.view
		_, err := f.exec(`INSERT INTO processes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
			pid = excluded.pid, parent = excluded.parent, exe = excluded.exe, argv = excluded.argv, start = excluded.start, "end" = excluded."end", exit = excluded.exit,
			allowed = excluded.allowed, redirected = excluded.redirected, blocked = excluded.blocked, leaks = excluded.leaks`,
			p.id, s.id, val(string(v.Proc)), int64(v.PID), val(string(v.Parent)), val(v.Exe), val(v.Argv), nanos(v.Start), nanos(v.End), val(v.Exit),
			int64(v.Counts.Allowed), int64(v.Counts.Redirected), int64(v.Counts.Blocked), int64(v.Counts.Leaks))
		if err != nil {
			return err
		}
		if !v.End.IsZero() { // hardly anything comes of it any more
			delete(s.procs, v.Proc)
			f.procs--
		}
	}
	s.lastProc = nil
	if err := f.flushFlows(s); err != nil {
		return err
	}
	for k, n := range s.counters {
		if _, err := f.exec("INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", s.id, k, n); err != nil {
			return err
		}
	}
	clear(s.counters)
	return nil
}

const sessionColumns = `id, name, box, host, began, command, policy, observe, net, ended, exit, lost, sealed,
	first, last, last_seq, missing, op_began, op_command, op_policy, op_observe, op_net, op_ended, op_exit,
	processes, live, allowed, redirected, blocked, leaks`

var sessionNames = strings.Split(strings.Join(strings.Fields(sessionColumns), ""), ",")

var upsertSession = func() string {
	names := sessionNames
	var set []string
	for _, n := range names[4:] {
		set = append(set, n+" = excluded."+n)
	}
	return "INSERT INTO sessions (" + sessionColumns + ") VALUES (?" + strings.Repeat(", ?", len(names)-1) + ") ON CONFLICT (id) DO UPDATE SET " + strings.Join(set, ", ")
}()

func (f *folder) flushStreams() error {
	for name, s := range f.streams {
		if !s.dirty {
			continue
		}
		_, err := f.exec(`INSERT INTO streams VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
			epoch = excluded.epoch, generation = excluded.generation, base = excluded.base, seq = excluded.seq`, name, s.epoch, s.generation, s.base, s.seq)
		if err != nil {
			return err
		}
		s.dirty, s.known = false, true
	}
	return nil
}
