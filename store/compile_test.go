package store

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

var compileOptions = query.Options{Home: "/home/a", Now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}

// textFields are the fields of text that an operation always has.
var textFields = map[query.Field]func(*core.Operation) string{
	query.Surface: func(op *core.Operation) string { return string(op.Surface) },
	query.Action:  func(op *core.Operation) string { return string(op.Action) },
	query.Target:  func(op *core.Operation) string { return op.Target },
	query.Exe:     func(op *core.Operation) string { return op.Exe },
	query.Proc:    func(op *core.Operation) string { return string(op.Proc) },
	query.Box:     func(op *core.Operation) string { return op.Box },
	query.Session: func(op *core.Operation) string { return string(op.Session) },
	query.Rule:    func(op *core.Operation) string { return op.Rule },
	query.Errno:   func(op *core.Operation) string { return op.Errno },
}

// layouts are ways in which a schema may hold operations: a condition must be right in
// each. All have the tables ops, words (a dictionary), fts (its trigrams) and details.
var layouts = []struct {
	name    string
	storage Storage
	columns func(Storage) Columns
}{
	{"strings in the row, TEXT or BLOB, details in a table", TextOrBlob, func(st Storage) Columns {
		return inRow(st, func(key string) Column {
			return Column{Before: "ops.id IN (SELECT op FROM details WHERE key = ? AND ", BeforeArgs: []any{key}, Expr: "value", After: ")", Storage: st}
		})
	}},
	{"strings in the row, all TEXT, details that may be NULL", TextOnly, func(st Storage) Columns {
		return inRow(st, func(key string) Column {
			return Column{Expr: "(SELECT value FROM details WHERE op = ops.id AND key = ?)", ExprArgs: []any{key}, Null: true, Storage: st}
		})
	}},
	{"strings in the row, all BLOB", BlobOnly, func(st Storage) Columns {
		return inRow(st, func(key string) Column {
			return Column{Expr: "(SELECT value FROM details WHERE op = ops.id AND key = ?)", ExprArgs: []any{key}, Null: true, Storage: st}
		})
	}},
	{"strings in a dictionary with trigrams", TextOrBlob, func(st Storage) Columns {
		trigrams := func(literal string) (string, []any) {
			return "id IN (SELECT rowid FROM fts WHERE fts MATCH ? UNION ALL SELECT id FROM words WHERE typeof(text) = 'blob')", []any{phrase(literal)}
		}
		c := inRow(st, func(key string) Column {
			return Column{Before: "ops.id IN (SELECT op FROM details WHERE key = ? AND word IN (SELECT id FROM words WHERE ", BeforeArgs: []any{key},
				Expr: "text", After: "))", Storage: st, Prefilter: trigrams}
		})
		for f := range textFields {
			c.Of[f] = Column{Before: string(f) + "_word IN (SELECT id FROM words WHERE ", Expr: "text", After: ")", Storage: st, Prefilter: trigrams}
		}
		return c
	}},
}

func inRow(st Storage, detail func(string) Column) Columns {
	c := Columns{Of: map[query.Field]Column{}, Detail: detail}
	for _, f := range []query.Field{query.Verdict, query.Outcome, query.PID, query.Seq, query.Leak, query.Time} {
		c.Of[f] = Column{Expr: string(f)}
	}
	for f := range textFields {
		c.Of[f] = Column{Expr: string(f), Storage: st}
	}
	return c
}

// openOps makes a database with these operations; an operation's id is its index.
func openOps(t testing.TB, st Storage, ops []core.Operation) *sql.DB {
	t.Helper()
	if err := RegisterFunctions(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "ops.db")+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	create := "CREATE TABLE ops (id INTEGER PRIMARY KEY, verdict INTEGER, outcome INTEGER, pid INTEGER, seq INTEGER, leak INTEGER, time INTEGER"
	insert := "INSERT INTO ops VALUES (?, ?, ?, ?, ?, ?, ?"
	var order []query.Field
	for f := range textFields {
		order = append(order, f)
		create += fmt.Sprintf(", %s, %s_word INTEGER", f, f)
		insert += ", ?, ?"
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	exec := func(q string, args ...any) {
		t.Helper()
		if _, err := tx.Exec(q, args...); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	exec(create + ")")
	exec("CREATE TABLE words (id INTEGER PRIMARY KEY, text)")
	exec("CREATE UNIQUE INDEX words_text ON words (text)")
	exec("CREATE INDEX words_blob ON words (id) WHERE typeof(text) = 'blob'")
	exec("CREATE INDEX ops_target ON ops (target_word)")
	exec("CREATE VIRTUAL TABLE fts USING fts5 (text, content = '', tokenize = 'trigram')")
	exec("CREATE TABLE details (op INTEGER, key TEXT, value, word INTEGER)")
	exec("CREATE INDEX details_op ON details (op, key)")
	words := map[string]int{}
	word := func(s string) int {
		if _, ok := words[s]; !ok {
			words[s] = len(words) + 1
			v := st.Value(s)
			exec("INSERT INTO words VALUES (?, ?)", words[s], v)
			if _, ok := v.(string); ok {
				exec("INSERT INTO fts (rowid, text) VALUES (?, ?)", words[s], v)
			}
		}
		return words[s]
	}
	for i, op := range ops {
		leak := 0
		if op.Leak {
			leak = 1
		}
		args := []any{i, int(op.Verdict), int(op.Outcome), op.PID, int64(op.Seq), leak, op.Time.UnixNano()}
		for _, f := range order {
			s := textFields[f](&op)
			args = append(args, st.Value(s), word(s))
		}
		exec(insert+")", args...)
		for k, v := range op.Detail {
			exec("INSERT INTO details VALUES (?, ?, ?, ?)", i, k, st.Value(v), word(v))
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return db
}

// found returns the ids that a condition finds.
func found(t testing.TB, db *sql.DB, where string, args []any) (ids []int) {
	t.Helper()
	rows, err := db.Query("SELECT id FROM ops WHERE "+where+" ORDER BY id", args...)
	if err != nil {
		t.Fatalf("%.2000s: %v", where, err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%.2000s: %v", where, err)
	}
	return ids
}

// agree checks that SQL and predicate find the same operations, and returns how many.
func agree(t testing.TB, db *sql.DB, c Columns, ops []core.Operation, q *query.Query) int {
	t.Helper()
	where, args, err := Compile(q, c)
	if err != nil {
		t.Fatal(err)
	}
	got := found(t, db, where, args)
	var want []int
	for i := range ops {
		if q.Match(&ops[i]) {
			want = append(want, i)
		}
	}
	if slices.Equal(got, want) {
		return len(want)
	}
	for i := range ops {
		if g, w := slices.Contains(got, i), slices.Contains(want, i); g != w {
			t.Fatalf("%s\n%s %q\nSQL finds: %v, predicate: %v, %#v", q, where, args, g, w, ops[i])
		}
	}
	return 0
}

// random makes operations and queries about them, both of few parts, so that they meet.
type random struct{ *rand.Rand }

var parts = []string{"/", "/", "a", "A", "b", ".ssh", "home", "/home/a", "curl", "é", "€", "\xff", "\xff", "\xc3", "\x82", "\n", "\x00",
	"*", "?", "%", "_", "[", "\\", "'", "\"", " ", "K", "\u212a", "ſ", "s", "I", "İ", "0", "1", "-", "0644", "EPERM", "日本語"}

func (r random) pick(from []string) string { return from[r.IntN(len(from))] }

func (r random) text() string {
	var b strings.Builder
	for range r.IntN(6) {
		b.WriteString(r.pick(parts))
	}
	return b.String()
}

func (r random) operation() core.Operation {
	op := core.Operation{
		Seq: core.Seq(r.IntN(50)), Time: compileOptions.Now.Add(time.Duration(r.IntN(200)-150) * 30 * time.Minute),
		Box: r.text(), Session: core.SessionID(r.text()), PID: r.IntN(5), Proc: core.ProcID(r.text()), Exe: r.text(),
		Surface: core.Surface(r.text()), Action: core.Action(r.text()), Target: r.text(), Verdict: core.Verdict(r.IntN(5)),
		Outcome: core.Outcome(r.IntN(4)), Rule: r.text(), Errno: r.text(), Leak: r.IntN(2) == 0,
	}
	for _, k := range []string{"argv", "code"} {
		switch r.IntN(4) {
		case 0:
			op.Detail = core.Detail{k: r.text()}
		case 1:
			op.Detail = core.Detail{k: r.pick([]string{"0", "1", "-1", "007", "", "-", "1x", "9223372036854775807", "9223372036854775808"})}
		}
	}
	return op
}

// value writes a value; now and then one that an operation has.
func (r random) value(have string) string {
	var b strings.Builder
	switch r.IntN(6) {
	case 0:
		return query.Quote(have)
	case 1:
		return query.Quote(have[:r.IntN(len(have)+1)]) + "*"
	case 2:
		return "*" + query.Quote(have[r.IntN(len(have)+1):])
	case 3:
		i := r.IntN(len(have) + 1)
		j := i + r.IntN(len(have)-i+1)
		return "*" + query.Quote(have[i:j]) + "*"
	}
	for range r.IntN(5) {
		switch r.IntN(4) {
		case 0:
			b.WriteByte('*')
		case 1:
			b.WriteByte('?')
		default:
			b.WriteString(query.Quote(r.pick(parts)))
		}
	}
	return b.String() + `""`
}

func (r random) list(one func() string) string {
	s := one()
	for r.IntN(3) == 0 {
		s += "," + one()
	}
	return s
}

func (r random) term(ops []core.Operation) string {
	op := &ops[r.IntN(len(ops))]
	is := r.pick([]string{":", ":", "!="})
	order := r.pick([]string{"<", "<=", ">", ">=", ":", "!="})
	switch r.IntN(10) {
	case 0:
		return "verdict" + is + r.list(func() string { return r.pick([]string{"blocked", "allowed", "redirected"}) })
	case 1:
		return "outcome" + is + r.list(func() string { return r.pick([]string{"attempted", "refused", "performed"}) })
	case 2:
		return r.pick([]string{"pid", "seq", "detail.code", "detail.argv"}) + order + fmt.Sprint(r.IntN(20))
	case 3:
		return "leak" + is + r.pick([]string{"true", "false"})
	case 4:
		at := r.pick([]string{"1h", "30m", "1d", "2d12h", "today", "yesterday", "2026-11-21", "2026-11-22T10:30", "11:30:00", "2026-11-23T11:30:00.000000000Z"})
		if r.IntN(3) == 0 {
			return r.pick([]string{"since:", "until:"}) + at
		}
		return "time" + order + at
	case 5:
		have := op.Detail["argv"]
		return "detail.argv" + is + r.list(func() string { return r.value(have) })
	case 6, 7:
		return `""` + r.value(op.Target) // quoted, so that no part of it is a field
	}
	f := []query.Field{query.Target, query.Exe, query.Surface, query.Action, query.Proc, query.Box, query.Session, query.Rule, query.Errno}[r.IntN(9)]
	have := textFields[f](op)
	return string(f) + is + r.list(func() string { return r.value(have) })
}

func (r random) query(ops []core.Operation, depth int) string {
	switch n := r.IntN(8); {
	case depth == 0 || n < 3:
		return r.term(ops)
	case n < 4:
		return "not (" + r.query(ops, depth-1) + ")"
	case n < 6:
		return "(" + r.query(ops, depth-1) + ") " + r.query(ops, depth-1)
	default:
		return "(" + r.query(ops, depth-1) + ") or " + r.query(ops, depth-1)
	}
}

// TestSQLAndPredicateAgree is the promise that a page, a link and an alert rule made
// from the same query mean the same operations, whatever bytes a box put into them.
func TestSQLAndPredicateAgree(t *testing.T) {
	for i, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			r := random{rand.New(rand.NewPCG(20261123, uint64(i)))}
			ops := make([]core.Operation, 200)
			for i := range ops {
				ops[i] = r.operation()
			}
			db, columns := openOps(t, l.storage, ops), l.columns(l.storage)
			some := 0
			for range 600 {
				text := r.query(ops, 3)
				q, err := query.Parse(text, compileOptions)
				if err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				if n := agree(t, db, columns, ops, q); n > 0 && n < len(ops) {
					some++
				}
				again, err := query.Parse(q.String(), query.Options{})
				if err != nil || again.String() != q.String() {
					t.Fatalf("%s does not survive being written: %v", q, err)
				}
			}
			if some < 200 {
				t.Errorf("only %d of 600 queries told operations apart", some)
			}
		})
	}
}

func FuzzSQLAndPredicateAgree(f *testing.F) {
	f.Add("ssh target:*\"\\xff\"* exe:curl", "/home/\xff/.ssh", "/usr/bin/curl")
	f.Add("detail.argv:a?b or not pid>1", "a\x00b", "")
	f.Add(`errno:"" target:"\xff\xff"*`, "\xff\xff\xff", "K\u212a")
	type base struct {
		db *sql.DB
		c  Columns
	}
	var bases []base
	for _, l := range layouts {
		bases = append(bases, base{openOps(f, l.storage, nil), l.columns(l.storage)})
	}
	f.Fuzz(func(t *testing.T, text, a, b string) {
		q, err := query.Parse(text, compileOptions)
		if err != nil {
			return
		}
		op := core.Operation{Seq: 3, PID: 2, Target: a, Exe: b, Rule: a, Box: b, Detail: core.Detail{"argv": a}}
		for i, base := range bases {
			st := layouts[i].storage
			where, args, err := Compile(q, base.c)
			if err != nil {
				t.Fatal(err)
			}
			tx, err := base.db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			cols, marks := "id, verdict, outcome, pid, seq, leak, time", "1, 0, 0, 2, 3, 0, ?"
			vals := []any{op.Time.UnixNano()}
			word := func(s string) (id int64) {
				if tx.QueryRow("SELECT id FROM words WHERE text = ?", st.Value(s)).Scan(&id) == nil {
					return id
				}
				res, err := tx.Exec("INSERT INTO words (text) VALUES (?)", st.Value(s))
				if err != nil {
					t.Fatal(err)
				}
				id, _ = res.LastInsertId()
				if v, ok := st.Value(s).(string); ok && i == len(bases)-1 {
					if _, err := tx.Exec("INSERT INTO fts (rowid, text) VALUES (?, ?)", id, v); err != nil {
						t.Fatal(err)
					}
				}
				return id
			}
			for f, get := range textFields {
				cols += fmt.Sprintf(", %s, %s_word", f, f)
				marks += ", ?, ?"
				vals = append(vals, st.Value(get(&op)), word(get(&op)))
			}
			if _, err := tx.Exec("INSERT INTO ops ("+cols+") VALUES ("+marks+")", vals...); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("INSERT INTO details VALUES (1, 'argv', ?, ?)", st.Value(a), word(a)); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := tx.QueryRow("SELECT count(*) FROM ops WHERE "+where, args...).Scan(&n); err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if (n == 1) != q.Match(&op) {
				t.Fatalf("%s: %s\n%s %q\nSQL finds %d; target %q, exe %q", layouts[i].name, q, where, args, n, a, b)
			}
		}
	})
}

func TestSimpleTermsArePlainSQL(t *testing.T) {
	c := inRow(TextOrBlob, nil)
	for _, q := range []struct{ text, want string }{
		{"", "1"},
		{"verdict:blocked", "verdict = ?"},
		{"verdict!=blocked,allowed", "NOT (verdict IN (?, ?))"},
		{"pid>5", "pid > ?"},
		{"target:/etc/passwd", "target = ?"},
		{"target:/etc/passwd,/etc/shadow", "target IN (?, ?)"},
		{"surface:net.*", "(surface >= ? AND surface < ? OR surface >= ? AND surface < ?)"},
		{"surface:*", "1"},
		{"exe:curl", "sandglass_match(?, exe)"},
		{"a leak:true", "(sandglass_match(?, target) AND leak = ?)"},
	} {
		p, err := query.Parse(q.text, compileOptions)
		if err != nil {
			t.Fatal(err)
		}
		if got, args, err := Compile(p, c); err != nil || got != q.want || strings.Count(got, "?") != len(args) {
			t.Errorf("%s: %s %v %v, want %s", q.text, got, args, err, q.want)
		}
	}
	p, err := query.Parse("detail.x:1", compileOptions)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Compile(p, c); err == nil {
		t.Error("a field without a column was compiled")
	}
}

// TestAnIndexServesPrefixes reads the plan: a range of each type, no scan.
func TestAnIndexServesPrefixes(t *testing.T) {
	db := openOps(t, TextOrBlob, nil)
	c := layouts[3].columns(TextOrBlob)
	for _, text := range []string{"target:/etc/passwd", "target:/etc/*", "target:/a,/b/*"} {
		q, err := query.Parse(text, compileOptions)
		if err != nil {
			t.Fatal(err)
		}
		where, args, err := Compile(q, c)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := db.Query("EXPLAIN QUERY PLAN SELECT id FROM ops WHERE "+where, args...)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var id, parent, unused int
			var what string
			if err := rows.Scan(&id, &parent, &unused, &what); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(what, "SCAN words") {
				t.Errorf("%s: %s", text, what)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		rows.Close()
	}
}

// TestTheLargestQueriesRun holds the bounds of the language to those of SQLite.
func TestTheLargestQueriesRun(t *testing.T) {
	r := random{rand.New(rand.NewPCG(1, 2))}
	ops := []core.Operation{r.operation(), r.operation()}
	for _, l := range layouts {
		db, c := openOps(t, l.storage, ops), l.columns(l.storage)
		for _, text := range []string{
			strings.Repeat("abc* ", query.MaxTerms),
			strings.Repeat("abc or ", query.MaxTerms-1) + "x",
			"detail.argv:a*" + strings.Repeat(",b*c", query.MaxTerms-1),
			strings.Repeat("not ", query.MaxDepth) + "errno:a*",
			strings.Repeat("(a or b ", query.MaxDepth) + strings.Repeat(")", query.MaxDepth),
			strings.Repeat("not (a or ", query.MaxDepth/2) + "detail.x!=abc?def" + strings.Repeat(")", query.MaxDepth/2),
			strings.Repeat("a", query.MaxLength),
			"target:" + strings.Repeat("*a", 4000),
		} {
			q, err := query.Parse(text, compileOptions)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, db, c, ops, q)
		}
	}
}

func BenchmarkCondition(b *testing.B) {
	ops := make([]core.Operation, 50_000)
	for i := range ops {
		ops[i] = core.Operation{Seq: core.Seq(i), PID: i % 7, Exe: "/usr/bin/git", Target: fmt.Sprintf("/home/a/src/project/file%d.go", i)}
	}
	ops[0].Target = "/tmp/\xff"
	db := openOps(b, TextOrBlob, ops)
	for _, l := range []int{0, 3} {
		for _, text := range []string{"pid:3", "target:/home/a/src/*", "file4999", "target:*file4999*", "target:*99?.go"} {
			b.Run(fmt.Sprintf("layout=%d/%s", l, text), func(b *testing.B) {
				q, err := query.Parse(text, compileOptions)
				if err != nil {
					b.Fatal(err)
				}
				where, args, err := Compile(q, layouts[l].columns(TextOrBlob))
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					var n int
					if err := db.QueryRow("SELECT count(*) FROM ops WHERE "+where, args...).Scan(&n); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ops)), "ns/row")
			})
		}
	}
}
