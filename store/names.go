package store

import (
	"container/list"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// nameList is the names of a box: those of the table, in the order in which they were
// asked for last. All of them are in memory, so that which one makes room for a new one
// depends on the operations alone and not on what a transaction had in it.
type nameList struct {
	byName map[string]*list.Element // of *name
	order  *list.List               // the one that was not asked for the longest is in front
	dirty  []*name
	gone   []string // are to be deleted: they were in the table
}

type name struct {
	view         core.NameView
	asked        int64 // the last operation
	kept, queued bool  // it is in the table; in dirty
	gone         bool
}

// maxNames bounds the names of all boxes in memory.
const maxNames = 16 * core.MaxNames

// name folds a question for a name; id is the operation's.
func (f *folder) name(op *core.Operation, id int64, b *box) error {
	if b.names == nil {
		if err := f.loadNames(b); err != nil {
			return err
		}
	}
	l := b.names
	el := l.byName[op.Target]
	if el == nil {
		if l.order.Len() >= core.MaxNames {
			l.drop()
			f.names--
		}
		el = l.order.PushBack(&name{})
		l.byName[strings.Clone(op.Target)] = el
		f.names++
	}
	n := el.Value.(*name)
	before := n.view
	n.view.Fold(op)
	n.view.Box = ""
	n.asked = id
	l.order.MoveToBack(el)
	keep(&n.view.Name, before.Name)
	keep(&n.view.Rule, before.Rule)
	keep(&n.view.Rcode, before.Rcode)
	keep(&n.view.Types, before.Types)
	if !n.queued {
		n.queued = true
		l.dirty = append(l.dirty, n)
	}
	return nil
}

// drop forgets the name in front.
func (l *nameList) drop() {
	front := l.order.Front()
	n := front.Value.(*name)
	l.order.Remove(front)
	delete(l.byName, n.view.Name)
	n.gone = true
	if n.kept {
		l.gone = append(l.gone, n.view.Name)
	}
}

const nameColumns = "name, asked, first, last, n, blocked, verdict, rule, rcode, types"

func scanName(row []driver.Value) (asked int64, v core.NameView) {
	return number(row[1]), core.NameView{Name: text(row[0]), First: moment(number(row[2])), Last: moment(number(row[3])), Count: uint64(number(row[4])),
		Blocked: uint64(number(row[5])), Verdict: core.Verdict(number(row[6])), Rule: text(row[7]), Rcode: text(row[8]), Types: text(row[9])}
}

func (f *folder) loadNames(b *box) error {
	l := &nameList{byName: map[string]*list.Element{}, order: list.New()}
	err := f.query(func(row []driver.Value) error {
		n := &name{kept: true}
		n.asked, n.view = scanName(row)
		l.byName[n.view.Name] = l.order.PushBack(n)
		f.names++
		return nil
	}, "SELECT "+nameColumns+" FROM names WHERE box = ? ORDER BY asked", b.id)
	if err == nil {
		b.names = l
	}
	return err
}

// flushNames writes what changed in a box's names.
func (f *folder) flushNames(b *box) error {
	l := b.names
	if l == nil {
		return nil
	}
	for _, gone := range l.gone {
		if _, err := f.exec("DELETE FROM names WHERE box = ? AND name = ?", b.id, TextOrBlob.Value(gone)); err != nil {
			return err
		}
	}
	for _, n := range l.dirty {
		n.queued = false
		if n.gone { // since it was asked for
			continue
		}
		v, val := &n.view, TextOrBlob.Value
		_, err := f.exec(`INSERT INTO names VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET asked = excluded.asked, first = excluded.first, last = excluded.last,
			n = excluded.n, blocked = excluded.blocked, verdict = excluded.verdict, rule = excluded.rule, rcode = excluded.rcode, types = excluded.types`,
			b.id, val(v.Name), n.asked, nanos(v.First), nanos(v.Last), int64(v.Count), int64(v.Blocked), int64(v.Verdict), val(v.Rule), val(v.Rcode), val(v.Types))
		if err != nil {
			return err
		}
		n.kept = true
	}
	l.gone, l.dirty = l.gone[:0], l.dirty[:0]
	return nil
}

// Names returns the names that a box asked for, the one that was asked for last first, at
// most limit of them, and how many there are: of more than [core.MaxNames] those are
// remembered that were asked for last. Of a box that nothing is known of there are none.
func (s *Store) Names(ctx context.Context, box string, limit int) (ns []core.NameView, all int, err error) {
	ns = []core.NameView{}
	err = s.view(ctx, func(tx *sql.Tx) error {
		id, err := boxID(ctx, tx, box)
		if errors.Is(err, core.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM names WHERE box = ?", id).Scan(&all); err != nil {
			return err
		}
		return each(ctx, tx, func(row []driver.Value) error {
			_, v := scanName(row)
			v.Box = box
			ns = append(ns, v)
			return nil
		}, namesSQL, id, limit)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the names of a box: %w", err)
	}
	return ns, all, nil
}

const namesSQL = "SELECT " + nameColumns + " FROM names INDEXED BY names_asked WHERE box = ? ORDER BY asked DESC LIMIT ?"
