package query_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

var (
	zone = time.FixedZone("east", 3600)
	now  = time.Date(2026, 11, 23, 17, 30, 0, 0, zone)
	opts = query.Options{Home: "/home/ann", Now: now}
)

func parse(t testing.TB, text string) *query.Query {
	t.Helper()
	q, err := query.Parse(text, opts)
	if err != nil {
		t.Fatalf("Parse(%q): %v; hints %q", text, err, core.Hints(err))
	}
	return q
}

// anOperation is the one that the tests below ask about.
func anOperation() *core.Operation {
	return &core.Operation{
		Seq: 42, Time: time.Date(2026, 11, 23, 16, 0, 0, 5, time.UTC), // 17:00 in the zone
		Box: "default", Session: "01JABCDEFGHJKMNPQRSTVWXYZ0", PID: 100, Proc: "100.1", Exe: "/usr/bin/curl",
		Surface: core.FilesWrite, Action: core.ActRename, Target: "/home/ann/.ssh/id_rsa", Verdict: core.Redirected,
		Outcome: core.Performed, Rule: "overlay", Errno: "", Leak: true,
		Detail: core.Detail{"to": "/tmp/a b", "code": "-7", "size": "0644", "empty": ""},
	}
}

func TestAQueryMatchesWhatItSays(t *testing.T) {
	for _, c := range []struct {
		name string
		text string
		want bool
	}{
		{"nothing asked for is everything", "", true},
		{"white space is nothing", " \t\n", true},
		{"a name", "verdict:redirected", true},
		{"another name", "verdict:blocked", false},
		{"= is :", "verdict=redirected", true},
		{"!= is the opposite", "verdict!=blocked", true},
		{"a list is any of them", "verdict:blocked,redirected", true},
		{"a list after != is none of them", "verdict!=blocked,redirected", false},
		{"an outcome", "outcome:performed", true},
		{"a flag", "leak:true", true},
		{"a flag, otherwise said", "leak:no", false},
		{"a surface's family", "surface:files.*", true},
		{"a field is exact", "surface:files", false},
		{"a field tells capitals apart", "action:Rename", false},
		{"a program by its name", "exe:curl", true},
		{"a program by its whole path", "exe:/usr/bin/curl", true},
		{"a program's name is not any part of the path", "exe:bin", false},
		{"a glob without a slash is of the program's name", "exe:c*", true},
		{"a glob without a slash is not of its path", "exe:*bin*", false},
		{"a glob with a slash is of its path", "exe:*/bin/*", true},
		{"a number", "pid:100", true},
		{"numbers", "pid:1,100", true},
		{"more than", "pid>99", true},
		{"more than itself", "pid>100", false},
		{"at least", "pid>=100", true},
		{"at most", "seq<=42", true},
		{"less than", "seq<42", false},
		{"as others write it", "pid:>99", true},
		{"home", "target:~/.ssh/*", true},
		{"home alone", "target:~", false},
		{"a quoted ~ is itself", `target:"~"/.ssh/*`, false},
		{"* crosses '/'", "target:/home*rsa", true},
		{"? is one", "target:/home/ann/.ssh/id_rs?", true},
		{"? is not none", "target:/home/ann/.ssh/id_rsa?", false},
		{"a quoted star is itself", `target:"/home/*"`, false},
		{"an escaped star is itself", `target:/home/\*`, false},
		{"quotes in part of a value", `target:"/home/ann"/*`, true},
		{"a word is any part of the target", "ssh", true},
		{"a word in capitals", "SSH/ID", true},
		{"a word with stars", "ann*rsa", true},
		{"a word that is not there", "gnupg", false},
		{"a word in quotes", `".ssh"`, true},
		{"an empty word is in everything", `""`, true},
		{"an empty value", `errno:""`, true},
		{"a value that is not empty", "errno:?*", false},
		{"a detail", "detail.to:/tmp/a*", true},
		{"a detail with a space", `detail.to:"/tmp/a b"`, true},
		{"a detail that is there and empty", `detail.empty:""`, true},
		{"a detail that is not there", `detail.none:""`, false},
		{"a detail that is not there, of any value", "detail.none:*", false},
		{"a detail that is there, of any value", "detail.empty:*", true},
		{"a detail that is not there is not something", "detail.none!=x", true},
		{"a detail as a number", "detail.code<0", true},
		{"a detail as a decimal number", "detail.size>=644", true},
		{"a detail that is no number", "detail.to>0", false},
		{"both", "ssh exe:curl", true},
		{"both, said", "ssh and exe:wget", false},
		{"either", "exe:wget or exe:curl", true},
		{"or binds less than and", "exe:curl or exe:wget pid:1", true},
		{"a group", "(exe:curl or exe:wget) pid:1", false},
		{"not", "not exe:wget", true},
		{"not is of one term", "not exe:wget pid:1", false},
		{"minus", "-exe:curl", false},
		{"minus a group", "-(exe:wget or pid:1)", true},
		{"NOT, OR and AND", "NOT exe:wget AND (pid:1 OR pid:100)", true},
		{"a quoted keyword is a word", `"or"`, false},
		{"since a span", "since:1h", true},
		{"since a shorter span", "since:29m", false},
		{"since a date", "since:2026-11-23", true},
		{"until yesterday", "until:yesterday", false},
		{"until today includes today", "until:today", true},
		{"until a date includes the day", "until:2026-11-23", true},
		{"a day", "time:2026-11-23", true},
		{"another day", "time:2026-11-22", false},
		{"days", "time:2026-11-22,2026-11-23", true},
		{"not that day", "time!=2026-11-23", false},
		{"after that day", "time>2026-11-23", false},
		{"from that day", "time>=2026-11-23", true},
		{"a minute of today", "time:17:00", true},
		{"until a minute includes it", "until:17:00", true},
		{"before a minute", "time<17:00", false},
		{"a time with a zone", "time:2026-11-23T16:00Z", true},
		{"a time without one is local", "time:2026-11-23T16:00", false},
		{"a time with a space", `time:"2026-11-23 17:00:00"`, true},
		{"a nanosecond", "time:2026-11-23T16:00:00.000000005Z", true},
		{"a millisecond", "time:17:00:00.000", true},
		{"the nanosecond before", "time<=2026-11-23T16:00:00.000000004Z", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parse(t, c.text).Match(anOperation()); got != c.want {
				t.Errorf("%s: %v, want %v", c.text, got, c.want)
			}
		})
	}
}

func TestTheCanonicalTextIsWhatOneWouldWrite(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"verdict=blocked", "verdict:blocked"},
		{"a AND b  and c", "a b c"},
		{"(a b) c", "a b c"},
		{"((a)) OR (b or c)", "a or b or c"},
		{"a (b or c)", "a (b or c)"},
		{"a b or c", "a b or c"},
		{"-a -(b c)", "not a not (b c)"},
		{"target:~/.ssh/**", "target:/home/ann/.ssh/*"},
		{`target:"/tmp/a b"/*`, `target:"/tmp/a b/"*`},
		{`target:\x41\*`, `target:"A*"`},
		{`target:"\xff\n\x1b[31m"`, `target:"\xff\n\x1b[31m"`},
		{"target:é\u202e", `target:"é\xe2\x80\xae"`},
		{`"and"`, `"and"`},
		{`\-x`, `"-x"`},
		{`\~`, `"~"`},
		{"leak:1", "leak:true"},
		{"since:1h", "time>=2026-11-23T15:30:00Z"},
		{"until:1h", "time<2026-11-23T15:30:00Z"},
		{"-time:2026-11-23", "not (time>=2026-11-22T23:00:00Z time<2026-11-23T23:00:00Z)"},
		{"pid:>007", "pid>7"},
	} {
		q, err := query.Parse(c.text, opts)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := q.String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.text, got, c.want)
		}
		roundTrip(t, q)
	}
}

// roundTrip checks that the canonical text makes the same query, without any options.
func roundTrip(t testing.TB, q *query.Query) {
	t.Helper()
	text := q.String()
	r, err := query.Parse(text, query.Options{})
	if err != nil {
		t.Fatalf("the canonical text cannot be read: %s: %v", text, err)
	}
	if !reflect.DeepEqual(q, r) {
		t.Fatalf("the canonical text %s means something else: %s", text, r)
	}
	if again := r.String(); again != text {
		t.Fatalf("the canonical text %s becomes %s", text, again)
	}
	for _, c := range text {
		if !strconv.IsPrint(c) {
			t.Fatalf("the canonical text is not printable: %q", text)
		}
	}
}

func TestErrorsPointAtTheColumn(t *testing.T) {
	for _, c := range []struct {
		text string
		col  int
		msg  string // part of it
		hint string // part of it
	}{
		{"verdcit:blocked", 1, `no field "verdcit"`, "did you mean verdict?"},
		{"pid:1 foo:bar", 7, `no field "foo"`, "fields: verdict, outcome, surface,"},
		{"é ü foo:bar", 5, "no field", "quote it"},
		{"http://x", 1, "no field", "quote it"},
		{"verdict:bloked", 9, `no verdict "bloked"`, "blocked, allowed, redirected"},
		{"verdict:blocked,", 17, "value is missing", ""},
		{"verdict = blocked", 9, `no field stands before this "="`, "no spaces"},
		{"verdict:b*", 9, "takes no *", ""},
		{"verdict>blocked", 1, "not ordered", "pid, seq"},
		{"pid:", 5, "value is missing", `""`},
		{"pid:x", 5, `not "x"`, ""},
		{"pid:-1", 5, "whole number", ""},
		{"pid:9223372036854775808", 5, "whole number", ""},
		{"pid>1,2", 6, "list", ""},
		{"leak:maybe", 6, "true or false", ""},
		{"since:soon", 7, `"soon" is not a time`, "90s"},
		{"since:1h,2h", 9, "list", ""},
		{"since>1h", 1, "':'", "time>="},
		{"time:1500-01-01", 6, "between the years", ""},
		{"since:99999999999999w", 7, "not a time", ""},
		{"detail:x", 1, "needs a key", "detail.argv"},
		{"detail.:x", 1, "needs a key", "detail.argv"},
		{"a or", 3, `nothing follows this "or"`, "quote"},
		{"or a", 1, `nothing stands before this "or"`, "quote"},
		{"a and", 3, `nothing follows`, "quote"},
		{"not", 1, `nothing follows this "not"`, "quote"},
		{"a -", 3, `nothing follows this "-"`, "quote"},
		{"--force", 1, `"--"`, "quote"},
		{"(a", 1, "never closed", ""},
		{"a (b or", 6, "nothing follows", ""},
		{"a)", 2, "no parenthesis is open", "quote"},
		{"()", 1, "nothing is in these", ""},
		{"f(x)", 2, `"(" stands inside`, "quote"},
		{`a "b`, 3, "never closed", ""},
		{`target:"\q"`, 9, `\q has no meaning`, `\xNN`},
		{`target:\x4`, 8, "hexadecimal", ""},
		{`a\`, 2, "nothing follows", `\\`},
		{"not not " + strings.Repeat("(", 63) + "a", 71, "more than 64", ""},
		{strings.Repeat("a ", 257), 513, "more than 256 terms", ""},
		{"pid:" + strings.Repeat("1,", 256) + "1", 517, "more than 256 terms", ""},
		{strings.Repeat("a", 8193), 1, "too long", ""},
		{`"` + strings.Repeat("\x01", 4000) + `"`, 1, "written out", ""},
	} {
		_, err := query.Parse(c.text, opts)
		var e *query.Error
		if !errors.As(err, &e) {
			t.Errorf("%.60q: no error", c.text)
			continue
		}
		if e.Col != c.col || !strings.Contains(e.Msg, c.msg) || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%.60q: column %d, %s, hint %q; want column %d, ...%s..., hint ...%s...", c.text, e.Col, e.Msg, e.Hint, c.col, c.msg, c.hint)
		}
		if e.Hint != "" && !slices.Equal(core.Hints(err), []string{e.Hint}) {
			t.Errorf("%q: core.Hints does not find the advice: %q", c.text, core.Hints(err))
		}
	}
	if _, err := query.Parse("target:~/x", query.Options{}); err == nil || len(core.Hints(err)) == 0 {
		t.Errorf("~ without a home: %v", err)
	}
}

func TestWhatIsAtTheBoundsIsRead(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("not ", query.MaxDepth) + "a",
		strings.Repeat("(", query.MaxDepth) + "a" + strings.Repeat(")", query.MaxDepth),
		strings.Repeat("a ", query.MaxTerms),
		"pid:1" + strings.Repeat(",1", query.MaxTerms-1),
		strings.Repeat("a", query.MaxLength),
	} {
		roundTrip(t, parse(t, text))
	}
	if _, err := query.Parse(strings.Repeat("not ", query.MaxDepth)+"time:today", opts); err == nil {
		t.Error("a query whose canonical text is nested too deeply was accepted")
	}
}

func TestQuoteMakesAnyStringAValueThatMeansItself(t *testing.T) {
	for _, s := range []string{"", "/plain/path", "a b", "*", "?", `\`, `"`, "~", "~/x", "-x", "and", "a,b", "(a)", "\xff\xfe", "\n\x00\x1b", "é", "日本", ">5", "=x"} {
		for _, f := range []string{"target:", "rule:", "detail.argv:", "target!="} {
			q := parse(t, f+query.Quote(s))
			for _, other := range []string{s, s + "x", "x" + s, "", "a*b", "anything"} {
				op := &core.Operation{Target: other, Rule: other, Detail: core.Detail{"argv": other}}
				if got, want := q.Match(op), (other == s) != strings.HasSuffix(f, "!="); got != want {
					t.Errorf("%s matches %q: %v", q, other, got)
				}
			}
			roundTrip(t, q)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	q := parse(t, "ssh exe:c* (pid>99 or seq:1,2) -errno:ENOENT since:1h detail.to:/tmp/* target:*.ssh*rsa leak:true")
	op := anOperation()
	if n := testing.AllocsPerRun(100, func() {
		if !q.Match(op) {
			t.Fatal("does not match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		prefix string
		want   []string
	}{
		{"v", []string{"verdict:"}},
		{"se", []string{"session:", "seq:"}},
		{"verdict", []string{"verdict:"}},
		{"verdict:", []string{"verdict:blocked", "verdict:allowed", "verdict:redirected"}},
		{"pid>3 verdict:re", []string{"pid>3 verdict:redirected"}},
		{"verdict:blocked,", []string{"verdict:blocked,allowed", "verdict:blocked,redirected"}},
		{"-verdict!=al", []string{"-verdict!=allowed"}},
		{"(leak:", []string{"(leak:true", "(leak:false"}},
		{"surface:files.w", []string{"surface:files.write"}},
		{"action:io_", []string{"action:io_uring"}},
		{"det", []string{"detail."}},
		{"detail.a", []string{"detail.argv:"}},
		{"detail.argv:x", nil},
		{"pid:", nil},
		{"since:", []string{"since:5m", "since:1h", "since:1d", "since:today", "since:yesterday"}},
		{`"ver`, nil},
		{"nothing:", nil},
		{strings.Repeat("x", 9000), nil},
	} {
		if got := query.Complete(c.prefix); !slices.Equal(got, c.want) {
			t.Errorf("%.40q: %q, want %q", c.prefix, got, c.want)
		}
	}
	if got := query.Complete(""); len(got) != len(query.Fields()) {
		t.Errorf("an empty prefix completes to %q", got)
	}
	for _, d := range query.Fields() {
		for _, v := range d.Values {
			if d.Name != "detail." {
				roundTrip(t, parse(t, d.Name+":"+v))
			}
		}
	}
}

// TestEveryActionIsCompleted holds the list of actions to what package core declares.
func TestEveryActionIsCompleted(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../surface.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.ValueSpec)
		if id, is := (*ast.Ident)(nil), false; ok {
			if id, is = s.Type.(*ast.Ident); is && id.Name == "Action" {
				v, err := strconv.Unquote(s.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, v)
			}
		}
		return true
	})
	slices.Sort(want)
	for _, d := range query.Fields() {
		if d.Name == "action" && !slices.Equal(d.Values, want) || len(want) == 0 {
			t.Errorf("actions are %q, package core has %q", d.Values, want)
		}
	}
}
