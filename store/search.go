package store

import "strings"

// How many new targets a fold adds to the index of trigrams: one costs several times as
// much as an operation, so those that come faster wait, and are compared one by one until
// then. A transaction that has little else to do adds more.
const (
	indexAlways = 512
	indexIdle   = 4096
	idleOps     = 2048 // operations of a transaction that has little to do
)

// maxTrigrams is how many trigrams of a literal are looked up.
const maxTrigrams = 12

// trigrams is the condition on the id of a target that its text may contain the literal:
// the prefilter of columns that hold targets.
func trigrams(literal string) (cond string, args []any) {
	return `id IN (SELECT rowid FROM trigrams WHERE trigrams MATCH ?
		UNION ALL SELECT id FROM targets WHERE id > (SELECT indexed FROM search)
		UNION ALL SELECT id FROM targets WHERE typeof(text) = 'blob')`, []any{matchTrigrams(literal)}
}

// matchTrigrams writes a literal of three characters or more as FTS5's query for texts
// that have its trigrams, wherever. (A phrase would need an index of positions.)
func matchTrigrams(literal string) string {
	rs := []rune(literal)
	var b strings.Builder
	add := func(i int) {
		if b.Len() > 0 {
			b.WriteString(" AND ")
		}
		b.WriteString(phrase(string(rs[i : i+3])))
	}
	last := len(rs) - 3
	step := max(1, (last+maxTrigrams-1)/maxTrigrams)
	for i := 0; i < last; i += step {
		add(i)
	}
	add(last)
	return b.String()
}

// index adds up to n targets to the index of trigrams. Their ids have no gaps.
func (f *folder) index(n int64) error {
	last := min(f.indexed+n, f.paths.next-1)
	if last <= f.indexed {
		return nil
	}
	_, err := f.exec("INSERT INTO trigrams (rowid, text) SELECT id, text FROM targets WHERE id > ? AND id <= ? AND typeof(text) = 'text'", f.indexed, last)
	if err != nil {
		return err
	}
	f.indexed = last
	_, err = f.exec("UPDATE search SET indexed = ?", last)
	return err
}
