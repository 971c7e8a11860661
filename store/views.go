package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
)

// The sparkline of a box: the last five minutes.
const (
	sparkWidth = 5 * time.Second
	sparkCount = 60
)

// sealPatience is how long after a session's end its last operations may take to come
// before they count as missing: the end travels in a stream of its own.
const sealPatience = 10 * time.Second

// value reads a column of any type into a string, or an integer.
type value struct{ v any }

func (v *value) Scan(src any) error {
	if b, ok := src.([]byte); ok {
		src = string(b) // the driver's bytes are its own
	}
	v.v = src
	return nil
}

// each hands each row of a query's result to fn, which does not keep it.
func each(ctx context.Context, tx *sql.Tx, fn func(row []driver.Value) error, q string, args ...any) error {
	rows, err := tx.QueryContext(ctx, q, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	vs, to, row := make([]value, len(names)), make([]any, len(names)), make([]driver.Value, len(names))
	for i := range vs {
		to[i] = &vs[i]
	}
	for rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return err
		}
		for i := range vs {
			row[i] = vs[i].v
		}
		if err := fn(row); err != nil {
			return err
		}
	}
	return rows.Err()
}

// boxID returns the number of a box; [core.ErrNotFound] is wrapped by the error when
// nothing is known of it.
func boxID(ctx context.Context, tx *sql.Tx, name string) (id int64, err error) {
	err = tx.QueryRowContext(ctx, "SELECT id FROM boxes WHERE name = ?", TextOrBlob.Value(name)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("box %q: %w", core.Shorten(name, 80), core.ErrNotFound)
	}
	return id, err
}

func sessionID(ctx context.Context, tx *sql.Tx, name core.SessionID) (id int64, err error) {
	err = tx.QueryRowContext(ctx, "SELECT id FROM sessions WHERE name = ?", TextOrBlob.Value(string(name))).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("session %q: %w", core.Shorten(string(name), 80), core.ErrNotFound)
	}
	return id, err
}

const running = "(began <> 0 OR last_seq > 0) AND ended = 0 AND op_ended = 0"

// Boxes returns all boxes that anything is known of, also removed ones, by name.
func (s *Store) Boxes(ctx context.Context) (bs []core.BoxView, err error) {
	err = s.view(ctx, func(tx *sql.Tx) (err error) {
		bs, err = s.boxes(ctx, tx, "1")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the boxes: %w", err)
	}
	return bs, nil
}

// Box returns one box; the error wraps [core.ErrNotFound] when nothing is known of it.
func (s *Store) Box(ctx context.Context, name string) (b core.BoxView, err error) {
	err = s.view(ctx, func(tx *sql.Tx) error {
		id, err := boxID(ctx, tx, name)
		if err != nil {
			return err
		}
		bs, err := s.boxes(ctx, tx, "x.id = ?", id)
		if err == nil {
			b = bs[0]
		}
		return err
	})
	if err != nil {
		return core.BoxView{}, fmt.Errorf("look up a box: %w", err)
	}
	return b, nil
}

func (s *Store) boxes(ctx context.Context, tx *sql.Tx, where string, args ...any) ([]core.BoxView, error) {
	bs, ids := []core.BoxView{}, map[int64]int{}
	err := each(ctx, tx, func(row []driver.Value) error {
		b := core.BoxView{Name: text(row[1]), Created: moment(number(row[2])), LastUse: moment(number(row[3])), Removed: number(row[5]) != 0,
			Sessions: int(number(row[6])), Running: int(number(row[7]))}
		if c := number(row[4]); c != 0 {
			b.Created = moment(c)
		}
		b.Policy = text(row[8])
		ids[number(row[0])] = len(bs)
		bs = append(bs, b)
		return nil
	}, `SELECT x.id, x.name, x.first, x.last, x.created, x.removed,
		(SELECT count(*) FROM sessions WHERE box = x.id),
		(SELECT count(*) FROM sessions WHERE box = x.id AND `+running+`),
		coalesce((SELECT CASE WHEN policy <> '' THEN policy ELSE op_policy END FROM sessions WHERE box = x.id ORDER BY name DESC LIMIT 1), x.policy)
		FROM boxes x WHERE `+where+` ORDER BY x.name`, args...)
	if err != nil {
		return nil, err
	}
	err = each(ctx, tx, func(row []driver.Value) error {
		if i, ok := ids[number(row[0])]; ok {
			bs[i].Counts.AddCounts(counted(number(row[1]), number(row[2]), number(row[3])))
		}
		return nil
	}, `SELECT x.id, k.verdict, k.leak, sum(n.n) FROM boxes x JOIN box_counters n ON n.box = x.id JOIN kinds k ON k.id = n.kind
		WHERE `+where+` GROUP BY x.id, k.verdict, k.leak`, args...)
	if err != nil {
		return nil, err
	}
	now := s.now()
	seconds := map[int64][]core.Bucket{}
	err = each(ctx, tx, func(row []driver.Value) error {
		id := number(row[0])
		seconds[id] = append(seconds[id], core.Bucket{Start: time.Unix(number(row[1]), 0).UTC(), Counts: scanCounts(row[2:])})
		return nil
	}, `SELECT x.id, n.second, n.allowed, n.redirected, n.blocked, n.leaks FROM boxes x JOIN buckets n ON n.box = x.id AND n.second >= ?
		WHERE `+where, append([]any{now.Add(-sparkCount * sparkWidth).Unix()}, args...)...)
	if err != nil {
		return nil, err
	}
	for id, i := range ids {
		bs[i].Spark = core.Sparkline(now.UTC(), sparkWidth, sparkCount, seconds[id])
	}
	return bs, nil
}

// counted returns n operations of one verdict as counts.
func counted(verdict, leak, n int64) core.Counts {
	c := core.Counts{}
	switch core.Verdict(verdict) {
	case core.Allowed:
		c.Allowed = uint64(n)
	case core.Redirected:
		c.Redirected = uint64(n)
	default:
		c.Blocked = uint64(n)
	}
	if leak != 0 {
		c.Leaks = uint64(n)
	}
	return c
}

// SessionFilter says which sessions are asked for.
type SessionFilter struct {
	Box     string         // "" is all
	Running bool           // only those without an end
	Before  core.SessionID // only older ones: the last of the page before
	Limit   int            // 0 is all
}

// Sessions returns sessions, the latest first. Of a box that nothing is known of there
// are none.
func (s *Store) Sessions(ctx context.Context, f SessionFilter) (vs []core.SessionView, err error) {
	where, args := "1", []any{}
	if f.Box != "" {
		where += " AND s.box = (SELECT id FROM boxes WHERE name = ?)"
		args = append(args, TextOrBlob.Value(f.Box))
	}
	if f.Running {
		where += " AND " + running
	}
	if f.Before != "" {
		where += " AND s.name < ?"
		args = append(args, TextOrBlob.Value(string(f.Before)))
	}
	where += " ORDER BY s.name DESC"
	if f.Limit > 0 {
		where += " LIMIT ?"
		args = append(args, f.Limit)
	}
	err = s.view(ctx, func(tx *sql.Tx) (err error) {
		vs, err = s.sessions(ctx, tx, where, args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return vs, nil
}

// Session returns one session; the error wraps [core.ErrNotFound] when nothing is known
// of it.
func (s *Store) Session(ctx context.Context, id core.SessionID) (v core.SessionView, err error) {
	err = s.view(ctx, func(tx *sql.Tx) error {
		n, err := sessionID(ctx, tx, id)
		if err != nil {
			return err
		}
		vs, err := s.sessions(ctx, tx, "s.id = ?", n)
		if err == nil {
			v = vs[0]
		}
		return err
	})
	if err != nil {
		return core.SessionView{}, fmt.Errorf("look up a session: %w", err)
	}
	return v, nil
}

func (s *Store) sessions(ctx context.Context, tx *sql.Tx, where string, args ...any) ([]core.SessionView, error) {
	vs := []core.SessionView{}
	now := s.now()
	err := each(ctx, tx, func(row []driver.Value) error {
		var r session
		scanSession(row, &r)
		vs = append(vs, r.merged(text(row[len(sessionNames)]), now))
		return nil
	}, "SELECT s."+strings.Join(sessionNames, ", s.")+", x.name FROM sessions s JOIN boxes x ON x.id = s.box WHERE "+where, args...)
	return vs, err
}

// merged is the view of a session as both streams tell it; where both do, control says
// what the supervisor was asked and how it ended.
func (r *session) merged(box string, now time.Time) core.SessionView {
	v, l := r.view, &r.life
	v.ID, v.Box, v.Host, v.Lost = r.name, box, r.host, l.Lost
	if !l.Start.IsZero() {
		v.Start, v.Command, v.Policy, v.Observe, v.Net = l.Start, l.Command, l.Policy, l.Observe, l.Net
	} else if v.Start.IsZero() {
		v.Start = moment(r.first)
	}
	if !l.End.IsZero() {
		v.End, v.Exit = l.End, l.Exit
		if last := core.Seq(r.sealed); last > v.LastSeq && now.Sub(l.End) > sealPatience {
			v.Missing += uint64(last - v.LastSeq)
		}
	}
	if !v.End.IsZero() {
		v.LiveProc = 0
	}
	return v
}

// Processes returns the processes of a session in the order in which they started. The
// error wraps [core.ErrNotFound] when nothing is known of the session.
func (s *Store) Processes(ctx context.Context, id core.SessionID) (ps []core.ProcessView, err error) {
	ps = []core.ProcessView{}
	err = s.view(ctx, func(tx *sql.Tx) error {
		n, err := sessionID(ctx, tx, id)
		if err != nil {
			return err
		}
		return each(ctx, tx, func(row []driver.Value) error {
			p := scanProcess(row)
			p.Session = id
			ps = append(ps, p)
			return nil
		}, "SELECT "+processColumns+" FROM processes WHERE session = ? AND proc <> ''", n)
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of a session: %w", err)
	}
	core.SortProcesses(ps)
	return ps, nil
}

// Counts counts operations by surface and action: of a session, or of a box when the
// session is "", or of all when both are.
func (s *Store) Counts(ctx context.Context, box string, session core.SessionID) (cs []core.SurfaceCount, err error) {
	cs = []core.SurfaceCount{}
	err = s.view(ctx, func(tx *sql.Tx) error {
		from, args := "box_counters n", []any{}
		switch {
		case session != "":
			id, err := sessionID(ctx, tx, session)
			if err != nil {
				return err
			}
			from, args = "counters n WHERE n.session = ?", []any{id}
		case box != "":
			id, err := boxID(ctx, tx, box)
			if err != nil {
				return err
			}
			from, args = "box_counters n WHERE n.box = ?", []any{id}
		}
		return each(ctx, tx, func(row []driver.Value) error {
			c := core.SurfaceCount{Surface: core.Surface(text(row[0])), Action: core.Action(text(row[1]))}
			if n := len(cs); n == 0 || cs[n-1].Surface != c.Surface || cs[n-1].Action != c.Action {
				cs = append(cs, c)
			}
			cs[len(cs)-1].Counts.AddCounts(counted(number(row[2]), number(row[3]), number(row[4])))
			return nil
		}, `SELECT k.surface, k.action, k.verdict, k.leak, sum(m.n) FROM (SELECT n.kind, n.n FROM `+from+`) m JOIN kinds k ON k.id = m.kind
			GROUP BY k.surface, k.action, k.verdict, k.leak ORDER BY k.surface, k.action`, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("count operations: %w", err)
	}
	return cs, nil
}

// Gaps returns which operations of a session have not arrived, though later ones have.
func (s *Store) Gaps(ctx context.Context, id core.SessionID) (gs [][2]core.Seq, err error) {
	err = s.view(ctx, func(tx *sql.Tx) error {
		n, err := sessionID(ctx, tx, id)
		if err != nil {
			return err
		}
		return each(ctx, tx, func(row []driver.Value) error {
			gs = append(gs, [2]core.Seq{core.Seq(number(row[0])), core.Seq(number(row[1]))})
			return nil
		}, "SELECT first, last FROM gaps WHERE session = ? ORDER BY first", n)
	})
	if err != nil {
		return nil, fmt.Errorf("list the gaps of a session: %w", err)
	}
	return gs, nil
}

// Paths returns what a box did with the paths that begin with prefix, at most limit of
// them, sorted byte by byte, those that are not UTF-8 last. The error wraps
// [core.ErrNotFound] when nothing is known of the box.
func (s *Store) Paths(ctx context.Context, box, prefix string, limit int) (ps []core.PathView, err error) {
	ps = []core.PathView{}
	err = s.view(ctx, func(tx *sql.Tx) error {
		id, err := boxID(ctx, tx, box)
		if err != nil {
			return err
		}
		// Two ranges, for TEXT comes before BLOB: see TextOrBlob.
		texts, blobs := "t.text >= ? AND t.text < x''", "t.text >= ?"
		textArgs, blobArgs := []any{id, prefix}, []any{id, []byte(prefix)}
		if after := successor(prefix); after != "" {
			texts, blobs = "t.text >= ? AND t.text < ?", "t.text >= ? AND t.text < ?"
			textArgs, blobArgs = append(textArgs, after), append(blobArgs, []byte(after))
		}
		for i, where := range []string{texts, blobs} {
			if len(ps) >= limit {
				break
			}
			args := [][]any{textArgs, blobArgs}[i]
			err := each(ctx, tx, func(row []driver.Value) error {
				ps = append(ps, core.PathView{Path: text(row[0]), Last: moment(number(row[1])), Action: core.Action(text(row[2])), Verdict: core.Verdict(number(row[3])),
					Changed: number(row[4]) != 0, Counts: scanCounts(row[5:])})
				return nil
			}, `SELECT t.text, p.last, k.action, k.verdict, p.changed, p.allowed, p.redirected, p.blocked, p.leaks
				FROM targets t CROSS JOIN paths p ON p.box = ? AND p.target = t.id JOIN kinds k ON k.id = p.kind
				WHERE `+where+` ORDER BY t.text LIMIT ?`, append(args, limit-len(ps))...)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the paths of a box: %w", err)
	}
	return ps, nil
}
