package store

import (
	"database/sql/driver"
	"fmt"
	"strings"
)

// recent remembers the most recent keys of a dictionary, between limit and twice as many.
// What it forgets is found in the table.
type recent[V any] struct {
	now, before map[string]V
	limit       int
	whole       bool // nothing was ever forgotten, nor was there anything before it began
}

func newRecent[V any](limit int, whole bool) *recent[V] {
	return &recent[V]{now: map[string]V{}, limit: limit, whole: whole}
}

func (r *recent[V]) get(key string) (v V, ok bool) {
	if v, ok = r.now[key]; ok || r.before == nil {
		return v, ok
	}
	if v, ok = r.before[key]; ok {
		r.put(key, v)
	}
	return v, ok
}

// put remembers key; the caller does not change it later.
func (r *recent[V]) put(key string, v V) {
	if len(r.now) >= r.limit {
		r.whole = r.whole && r.before == nil
		r.before, r.now = r.now, make(map[string]V, r.limit)
	}
	r.now[key] = v
}

// dictionary is a table of distinct strings, (id, text).
type dictionary struct {
	recent *recent[int64]
	next   int64
	last   string // most operations repeat what the one before had
	lastID int64
	find   string
	insert string
	queue  *bulk // new ones, known not to be in the table
}

func newDictionary(c *conn, table string, limit int) (*dictionary, error) {
	max, err := c.int("SELECT max(id) FROM " + table)
	if err != nil {
		return nil, err
	}
	return &dictionary{
		recent: newRecent[int64](limit, max == 0), next: max + 1,
		find:   "SELECT id FROM " + table + " WHERE text = ?",
		insert: "INSERT INTO " + table + " VALUES (?, ?) ON CONFLICT (text) DO NOTHING",
		queue:  newBulk("INSERT INTO "+table+" VALUES", "", 2, 64),
	}, nil
}

// id returns the number of s, a new one if need be. s may be a part of a larger string.
func (d *dictionary) id(c *conn, s string) (int64, error) {
	if s == d.last && d.lastID != 0 {
		return d.lastID, nil
	}
	id, ok := d.recent.get(s)
	if !ok {
		s = strings.Clone(s)
		var err error
		if id, err = d.make(c, s); err != nil {
			return 0, err
		}
		d.recent.put(s, id)
	}
	d.last, d.lastID = s, id
	return id, nil
}

// make finds or inserts what is not remembered.
func (d *dictionary) make(c *conn, s string) (int64, error) {
	v := TextOrBlob.Value(s)
	if d.recent.whole {
		d.next++
		return d.next - 1, d.queue.add(c, d.next-1, v)
	}
	if err := d.queue.flush(c); err != nil {
		return 0, err
	}
	n, err := c.exec(d.insert, d.next, v)
	if err != nil {
		return 0, err
	}
	if n > 0 {
		d.next++
		return d.next - 1, nil
	}
	id, err := c.int(d.find, v)
	if err == nil && id == 0 {
		err = fmt.Errorf("a string of the dictionary is there and is not")
	}
	return id, err
}

// kind is what the supervisor says of an operation in a few combinations: see the table
// kinds.
type kind struct {
	id               int64
	surface, action  string
	verdict, outcome int64
	rule, errno      string
	leak             bool
}

const selectKinds = "SELECT id, surface, action, verdict, outcome, rule, errno, leak FROM kinds ORDER BY id"

func scanKind(row []driver.Value) kind {
	return kind{number(row[0]), text(row[1]), text(row[2]), number(row[3]), number(row[4]), text(row[5]), text(row[6]), number(row[7]) != 0}
}
