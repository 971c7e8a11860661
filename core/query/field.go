package query

import (
	"slices"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// Field names what a term looks at.
type Field string

// The fields. [Time] is also written since: and until:, which are comparisons of it.
const (
	Verdict Field = "verdict"
	Outcome Field = "outcome"
	Surface Field = "surface"
	Action  Field = "action"
	Target  Field = "target"
	Exe     Field = "exe"
	PID     Field = "pid"
	Proc    Field = "proc"
	Box     Field = "box"
	Session Field = "session"
	Seq     Field = "seq"
	Rule    Field = "rule"
	Errno   Field = "errno"
	Leak    Field = "leak"
	Time    Field = "time"
	Detail  Field = "detail" // detail.KEY: [Term.Key] says which
)

const (
	since Field = "since"
	until Field = "until"
)

// Kind says what values a field has.
type Kind uint8

// The kinds of field.
const (
	Text   Kind = iota // arbitrary bytes, compared as a whole or by a [Pattern]
	Name               // one of a fixed set of names, held as their numbers
	Number             // 0 to 2^63-1
	Flag               // 0 or 1
	Moment             // nanoseconds since 1970
)

// Kind returns what values f has.
func (f Field) Kind() Kind {
	switch f {
	case Verdict, Outcome:
		return Name
	case PID, Seq:
		return Number
	case Leak:
		return Flag
	case Time, since, until:
		return Moment
	}
	return Text
}

// path says that ~ means the home folder in values of f.
func (f Field) path() bool { return f == Target || f == Exe || f == Detail }

// FieldDoc is what help and completion say of a field.
type FieldDoc struct {
	Name   string   // as it is written before the ':'
	About  string   // in a few words
	Values []string // those there are, or those that are usual
	Closed bool     // there are no other values
}

// Fields lists the fields in the order in which they are best explained.
func Fields() []FieldDoc {
	fs := make([]FieldDoc, len(fields))
	for i, f := range fields {
		f.Values = slices.Clone(f.Values)
		fs[i] = f
	}
	return fs
}

var fields = []FieldDoc{
	{Name: "verdict", About: "what became of it", Values: names(core.Verdicts()), Closed: true},
	{Name: "outcome", About: "what is known of its end", Values: names(outcomes), Closed: true},
	{Name: "surface", About: "where something could get in or out of the box", Values: surfaceValues()},
	{Name: "action", About: "what it does there", Values: actions},
	{Name: "target", About: "path, address or name that it is about"},
	{Name: "exe", About: "program that did it: a name, or a path with '/'"},
	{Name: "pid", About: "process id in the box"},
	{Name: "proc", About: "process for ever, also when its pid is used again"},
	{Name: "box", About: "name of the box"},
	{Name: "session", About: "id of the session"},
	{Name: "seq", About: "place in the session, from 1"},
	{Name: "rule", About: "what decided"},
	{Name: "errno", About: "error that the box got", Values: errnos},
	{Name: "leak", About: "touched the real system past a stricter policy", Values: []string{"true", "false"}, Closed: true},
	{Name: "time", About: "when it happened", Values: moments},
	{Name: "since", About: "from this time on", Values: moments},
	{Name: "until", About: "up to this time", Values: moments},
	{Name: "detail.", About: "a detail by its key, such as detail.argv", Values: details},
}

// fieldNamed returns the field of that name; "detail.x" is the field Detail with key "x".
func fieldNamed(s string) (f Field, key string, ok bool) {
	if k, is := strings.CutPrefix(s, "detail."); is {
		return Detail, k, k != ""
	}
	for _, d := range fields {
		if d.Name == s {
			return Field(s), "", true
		}
	}
	return "", "", false
}

func fieldNames() string {
	var b strings.Builder
	for i, f := range fields {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(f.Name)
	}
	return b.String() + "KEY" // detail. is the last
}

var (
	outcomes = []core.Outcome{core.Attempted, core.Refused, core.Performed}

	// actions is what package core declares: a test holds the two together.
	actions = names2(core.ActRead, core.ActWrite, core.ActCreate, core.ActPath, core.ActTruncate, core.ActDelete,
		core.ActRmdir, core.ActRename, core.ActExchange, core.ActLink, core.ActSymlink, core.ActMkdir, core.ActMknod,
		core.ActBind, core.ActChmod, core.ActChown, core.ActUtime, core.ActSetxattr, core.ActRemovexattr,
		core.ActSetattr, core.ActHandle, core.ActExec, core.ActStart, core.ActExit, core.ActMount, core.ActNamespace,
		core.ActSignal, core.ActSchedule, core.ActLimit, core.ActTrace, core.ActMemory, core.ActGetfd, core.ActCompare,
		core.ActAttach, core.ActConnect, core.ActSend, core.ActAccept, core.ActIdentify, core.ActCount, core.ActClose,
		core.ActResolve, core.ActTunnel, core.ActPass, core.ActConfigure, core.ActAsk, core.ActListen, core.ActSocket, core.ActOpen, core.ActIoctl, core.ActHit,
		core.ActFreeze, core.ActThaw, core.ActKill, core.ActPolicy,
		core.ActIOUring, core.ActSyscall, core.ActBegin, core.ActEnd, core.ActTrouble, core.ActSlow)
	errnos  = []string{"EACCES", "EEXIST", "ENOENT", "ENOSYS", "ENXIO", "EOPNOTSUPP", "EPERM", "EROFS"}
	moments = []string{"5m", "1h", "1d", "today", "yesterday"}
	details = []string{"argv", "call", "code", "flags", "flow", "found", "from", "mode", "name", "ppid", "rcode", "reason", "signal", "size", "to", "type"}
)

func names[T interface{ String() string }](vs []T) []string {
	ns := make([]string, len(vs))
	for i, v := range vs {
		ns[i] = v.String()
	}
	return ns
}

func names2[T ~string](vs ...T) []string {
	ns := make([]string, len(vs))
	for i, v := range vs {
		ns[i] = string(v)
	}
	slices.Sort(ns)
	return ns
}

// surfaceValues is every surface, and every family as "family.*".
func surfaceValues() []string {
	var vs []string
	for _, s := range core.Surfaces() {
		family, _, _ := strings.Cut(string(s), ".")
		if f := family + ".*"; !slices.Contains(vs, f) {
			vs = append(vs, f)
		}
		vs = append(vs, string(s))
	}
	return vs
}
