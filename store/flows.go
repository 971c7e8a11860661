package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// flow is a row of flows, as far as it is remembered.
type flow struct {
	id   int64
	view core.FlowView
	// What is to be written: all of it, or what a count brings alone. An index has none of
	// that, so that to write it costs one row.
	changed, counted bool
}

// flowTotals is what a transaction adds to a row of flow_totals.
type flowTotals struct{ flows, sent, received int64 }

// flow folds an operation of a flow; id is the operation's.
func (f *folder) flow(op *core.Operation, number string, id int64, s *session) error {
	fl := s.flows[number]
	if fl == nil {
		fl = &flow{}
		err := f.query(func(row []driver.Value) error {
			fl.id, fl.view = scanFlow(row)
			return nil
		}, "SELECT "+flowColumns+" FROM flows f CROSS JOIN exes e ON e.id = f.exe WHERE f.session = ? AND f.flow = ?", s.id, TextOrBlob.Value(number))
		if err != nil {
			return err
		}
		if fl.id == 0 {
			fl.id, fl.changed = id, true
			s.totals.flows++
		} else {
			fl.view.Flow = number
		}
		if s.flows == nil {
			s.flows = map[string]*flow{}
		}
		s.flows[strings.Clone(number)] = fl
		f.flows++
	}
	before := fl.view
	fl.view.Fold(op)
	v := &fl.view
	s.totals.sent += int64(v.Sent - before.Sent)
	s.totals.received += int64(v.Received - before.Received)
	if v.Flow == before.Flow {
		v.Flow = before.Flow
	}
	for _, x := range [...]struct {
		now *string
		was string
	}{{&v.Flow, before.Flow}, {&v.Exe, before.Exe}, {&v.Proto, before.Proto}, {&v.Target, before.Target}, {&v.Name, before.Name}, {&v.By, before.By},
		{&v.ALPN, before.ALPN}, {&v.Cert, before.Cert}, {&v.Rule, before.Rule}, {&v.Errno, before.Errno}, {&v.Reason, before.Reason}} {
		keep(x.now, x.was)
	}
	if v.Proc != before.Proc {
		v.Proc = core.ProcID(strings.Clone(string(v.Proc)))
	}
	if v.Surface != before.Surface {
		v.Surface = core.Surface(strings.Clone(string(v.Surface)))
	}
	v.Box, v.Session = "", "" // the row's numbers say so
	fl.counted = true
	still := *v
	still.Sent, still.Received, still.PktsOut, still.PktsIn, still.RTT = before.Sent, before.Received, before.PktsOut, before.PktsIn, before.RTT
	fl.changed = fl.changed || still != before
	return nil
}

// flushFlows writes what changed in a session's flows.
func (f *folder) flushFlows(s *session) error {
	for number, fl := range s.flows {
		if err := f.flushFlow(fl, s); err != nil {
			return err
		}
		if !fl.view.End.IsZero() { // hardly anything comes of it any more
			delete(s.flows, number)
			f.flows--
		}
	}
	t := &s.totals
	if *t == (flowTotals{}) {
		return nil
	}
	_, err := f.exec(`INSERT INTO flow_totals VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
		flows = flows + excluded.flows, sent = sent + excluded.sent, received = received + excluded.received`, s.box, s.id, t.flows, t.sent, t.received)
	*t = flowTotals{}
	return err
}

func (f *folder) flushFlow(fl *flow, s *session) error {
	v, val := &fl.view, TextOrBlob.Value
	switch {
	case fl.changed:
		exe, err := f.exes.id(f.conn, v.Exe)
		if err != nil {
			return err
		}
		_, err = f.exec(upsertFlow, fl.id, s.box, s.id, val(v.Flow), val(string(v.Proc)), int64(v.PID), exe, val(string(v.Surface)), bit(v.Inbound),
			val(v.Proto), val(v.Target), val(v.Name), val(v.By), val(v.ALPN), val(v.Cert), int64(v.Verdict), val(v.Rule), val(v.Errno),
			nanos(v.Start), nanos(v.End), val(v.Reason), int64(v.Sent), int64(v.Received), int64(v.PktsOut), int64(v.PktsIn), v.RTT)
		if err != nil {
			return err
		}
	case fl.counted:
		_, err := f.exec("UPDATE flows SET sent = ?, received = ?, packets_out = ?, packets_in = ?, rtt = ? WHERE id = ?",
			int64(v.Sent), int64(v.Received), int64(v.PktsOut), int64(v.PktsIn), v.RTT, fl.id)
		if err != nil {
			return err
		}
	}
	fl.changed, fl.counted = false, false
	return nil
}

// flowColumns are of flows f and its exes e.
const flowColumns = `f.id, f.flow, f.proc, f.pid, e.text, f.surface, f.inbound, f.proto, f.target, f.name, f."by", f.alpn, f.cert, f.verdict, f.rule, f.errno,
	f.start, f."end", f.reason, f.sent, f.received, f.packets_out, f.packets_in, f.rtt`

func scanFlow(row []driver.Value) (id int64, v core.FlowView) {
	return number(row[0]), core.FlowView{Flow: text(row[1]), Proc: core.ProcID(text(row[2])), PID: int(number(row[3])), Exe: text(row[4]), Surface: core.Surface(text(row[5])),
		Inbound: number(row[6]) != 0, Proto: text(row[7]), Target: text(row[8]), Name: text(row[9]), By: text(row[10]), ALPN: text(row[11]), Cert: text(row[12]),
		Verdict: core.Verdict(number(row[13])), Rule: text(row[14]), Errno: text(row[15]), Start: moment(number(row[16])), End: moment(number(row[17])), Reason: text(row[18]),
		Sent: uint64(number(row[19])), Received: uint64(number(row[20])), PktsOut: uint64(number(row[21])), PktsIn: uint64(number(row[22])), RTT: number(row[23])}
}

var upsertFlow = func() string {
	set := strings.Split(`proc, pid, exe, surface, inbound, proto, target, name, "by", alpn, cert, verdict, rule, errno, start, "end", reason, sent, received, packets_out, packets_in, rtt`, ", ")
	for i, n := range set {
		set[i] = n + " = excluded." + n
	}
	return "INSERT INTO flows VALUES (?" + strings.Repeat(", ?", len(set)+3) + ") ON CONFLICT (id) DO UPDATE SET " + strings.Join(set, ", ")
}()

// FlowFilter says which flows are asked for.
type FlowFilter struct {
	Box     string         // "" is all
	Session core.SessionID // "" is all
	Open    bool           // only those that are open: their session runs, and they have no end
	Before  core.OpCursor  // only older ones: the last cursor of the page before
	Limit   int            // at most [MaxPage], which 0 stands for
}

// Flows returns flows, the one that was opened last first. Of a box or a session that
// nothing is known of there are none.
func (s *Store) Flows(ctx context.Context, f FlowFilter) (page core.FlowsPage, err error) {
	page = core.FlowsPage{Flows: []core.FlowView{}}
	if f.Limit <= 0 || f.Limit > MaxPage {
		f.Limit = MaxPage
	}
	err = s.view(ctx, func(tx *sql.Tx) error {
		q, args, err := flowsQuery(ctx, tx, f)
		if errors.Is(err, core.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return each(ctx, tx, func(row []driver.Value) error {
			if len(page.Flows) == f.Limit {
				page.More = true
				return nil
			}
			id, v := scanFlow(row)
			finishFlow(&v, row[flowWidth:])
			page.Flows, page.Cursors = append(page.Flows, v), append(page.Cursors, core.OpCursor(id))
			return nil
		}, q, append(args, int64(f.Limit)+1)...)
	})
	if err != nil {
		return core.FlowsPage{}, fmt.Errorf("list flows: %w", err)
	}
	return page, nil
}

// Flow returns one flow of a session; the error wraps [core.ErrNotFound] when nothing is
// known of it.
func (s *Store) Flow(ctx context.Context, session core.SessionID, number string) (v core.FlowView, err error) {
	found := false
	err = s.view(ctx, func(tx *sql.Tx) error {
		id, err := sessionID(ctx, tx, session)
		if err != nil {
			return err
		}
		return each(ctx, tx, func(row []driver.Value) error {
			_, v = scanFlow(row)
			finishFlow(&v, row[flowWidth:])
			found = true
			return nil
		}, selectFlows+"FROM flows f"+joinFlows+" WHERE f.session = ? AND f.flow = ?", id, TextOrBlob.Value(number))
	})
	if err == nil && !found {
		err = fmt.Errorf("flow %q: %w", core.Shorten(number, 80), core.ErrNotFound)
	}
	if err != nil {
		return core.FlowView{}, fmt.Errorf("look up a flow: %w", err)
	}
	return v, nil
}

const (
	selectFlows = "SELECT " + flowColumns + ", x.name, s.name, s.op_ended, s.ended "
	// What the numbers in a row of flows stand for. CROSS JOIN: in this order.
	joinFlows = " CROSS JOIN sessions s ON s.id = f.session CROSS JOIN boxes x ON x.id = f.box CROSS JOIN exes e ON e.id = f.exe"
)

var flowWidth = strings.Count(flowColumns, ",") + 1

// finishFlow adds what the session tells: the columns of selectFlows after the flow's own.
func finishFlow(v *core.FlowView, row []driver.Value) {
	v.Box, v.Session = text(row[0]), core.SessionID(text(row[1]))
	v.Over(moment(number(row[2]))) // by its operations, else by what control says
	v.Over(moment(number(row[3])))
}

// flowsQuery makes the query for a page. All are found by key: open ones by way of the
// sessions that run, so that what a supervisor that died has left open costs nothing.
func flowsQuery(ctx context.Context, tx *sql.Tx, f FlowFilter) (q string, args []any, err error) {
	var box, session int64
	if f.Box != "" {
		if box, err = boxID(ctx, tx, f.Box); err != nil {
			return "", nil, err
		}
	}
	if f.Session != "" {
		if session, err = sessionID(ctx, tx, f.Session); err != nil {
			return "", nil, err
		}
	}
	q, args = flowsSQL(f, box, session)
	return q, args, nil
}

func flowsSQL(f FlowFilter, box, session int64) (q string, args []any) {
	and := func(cond string, arg any) {
		q += " AND " + cond
		args = append(args, arg)
	}
	end := " ORDER BY f.id DESC LIMIT ?"
	switch {
	case f.Open:
		// Their numbers first, of which an index has all that is needed: thousands may be
		// open of which a page has ten.
		q = selectFlows + `FROM (SELECT f.id FROM sessions s CROSS JOIN flows f INDEXED BY flows_open ON f.session = s.id AND f."end" = 0 WHERE ` + runningOf("s")
		if f.Session != "" {
			and("s.id = ?", session)
		}
		if f.Box != "" {
			and("s.box = ?", box)
		}
		end += ") i CROSS JOIN flows f ON f.id = i.id" + joinFlows + " ORDER BY f.id DESC"
	case f.Session != "":
		q = selectFlows + "FROM flows f INDEXED BY flows_latest" + joinFlows + " WHERE f.session = ?"
		args = append(args, session)
		if f.Box != "" {
			and("f.box = ?", box)
		}
	case f.Box != "":
		q = selectFlows + "FROM flows f INDEXED BY flows_box" + joinFlows + " WHERE f.box = ?"
		args = append(args, box)
	default:
		q = selectFlows + "FROM flows f" + joinFlows + " WHERE 1"
	}
	if f.Before != 0 {
		and("f.id < ?", int64(f.Before))
	}
	return q + end, args
}

// runningOf is [running] of a table that goes by another name.
func runningOf(table string) string {
	return "(" + table + ".began <> 0 OR " + table + ".last_seq > 0) AND " + table + ".ended = 0 AND " + table + ".op_ended = 0"
}

// FlowTotals returns what the flows of a box come to, or of one session of it. Of what
// nothing is known of that is nothing.
func (s *Store) FlowTotals(ctx context.Context, box string, session core.SessionID) (t core.FlowTotals, err error) {
	err = s.view(ctx, func(tx *sql.Tx) error {
		id, err := boxID(ctx, tx, box)
		in, args := func(string) string { return "" }, []any{id}
		if err == nil && session != "" {
			var n int64
			n, err = sessionID(ctx, tx, session)
			in, args = func(column string) string { return " AND " + column + " = ?" }, append(args, n)
		}
		if errors.Is(err, core.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		err = each(ctx, tx, func(row []driver.Value) error {
			t.Flows, t.Sent, t.Received = uint64(number(row[0])), uint64(number(row[1])), uint64(number(row[2]))
			return nil
		}, "SELECT sum(flows), sum(sent), sum(received) FROM flow_totals WHERE box = ?"+in("session"), args...)
		if err != nil {
			return err
		}
		return each(ctx, tx, func(row []driver.Value) error {
			t.Open = int(number(row[0]))
			return nil
		}, `SELECT count(*) FROM sessions s CROSS JOIN flows f ON f.session = s.id AND f."end" = 0 WHERE `+runningOf("s")+" AND s.box = ?"+in("s.id"), args...)
	})
	if err != nil {
		return core.FlowTotals{}, fmt.Errorf("add flows up: %w", err)
	}
	return t, nil
}
