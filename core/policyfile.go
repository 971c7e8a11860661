package core

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxPolicyFile bounds a policy's file, in bytes.
const maxPolicyFile = 1 << 20

// ParsePolicy reads a policy in YAML:
//
//	name: web-dev            # default: name
//	base: fully-virtualised  # what is not said here is as there
//	observe: full
//	net: none
//	shares: read             # network and removable file systems: block or read; as files.share: allow
//	surfaces:
//	  device.camera: allow   # allow, redirect or block
//	connect:                 # Unix sockets outside that it may connect to
//	  - /run/postgresql/.s.PGSQL.5432
//	network:                 # of net: own
//	  outbound: ask          # the Internet where no rule matches: allow, ask, block
//	  rules:                 # the first that matches decides
//	    - allow *.debian.org:80,443
//	    - allow 127.0.0.1:5432 from /usr/bin/psql
//	  publish: ["127.0.0.1:8080:80"]
//	  proxy: socks5://127.0.0.1:1080
//	  resolvers: ["192.0.2.53"]
//	  other-dns: block       # DNS over TLS, QUIC and HTTPS past the box's resolver
//	private:                 # places besides those of the base; ! takes one out
//	  - ~/notes
//	  - "!~/.npmrc"
//	grants:                  # who may read what is private; the first that matches decides
//	  - allow ~/.ssh from /usr/bin/ssh
//	limits:
//	  memory: 512MiB
//	versions:                # old contents of its files that are kept; or: off
//	  per-file: 64MiB
//	  per-box: 1GiB
//
// A key that is not known is a mistake: a misspelt one must not leave open what it was to
// close. All mistakes are found, not only the first: an error is a [*PolicyError]. name is
// the policy's name where the file gives none, and the file's in the error.
func ParsePolicy(name string, text []byte) (*Policy, error) {
	d := policyReader{text: string(text), name: name, seen: map[string]ast.Node{}}
	d.read()
	if len(d.mistakes) > 0 {
		slices.SortStableFunc(d.mistakes, func(a, b Mistake) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		return nil, &PolicyError{File: name, Mistakes: d.mistakes}
	}
	return d.p, nil
}

// policyKey is a key at the top of a policy's file.
type policyKey struct {
	name string
	read func(d *policyReader, n ast.Node)
}

// policyKeys are the keys, in the order in which they are read: what is refined later comes first.
var policyKeys = []policyKey{
	{"base", nil}, {"name", (*policyReader).policyName}, // base was read before all others
	{"observe", (*policyReader).observe}, {"net", (*policyReader).net},
	{"surfaces", (*policyReader).surfaces}, {"shares", (*policyReader).shares},
	{"connect", func(d *policyReader, n ast.Node) { d.list(n, "connect", d.p.Grant) }},
	{"private", func(d *policyReader, n ast.Node) { d.list(n, "private", d.p.AddPrivate) }},
	{"grants", (*policyReader).grants},
	{"network", (*policyReader).network}, {"limits", (*policyReader).limits}, {"versions", (*policyReader).versions},
}

func namesOf(keys []policyKey) (ns []string) {
	for _, k := range keys {
		ns = append(ns, k.name)
	}
	return ns
}

// policyReader reads a policy's file, and gathers what is wrong with it.
type policyReader struct {
	text, name string
	p          *Policy
	seen       map[string]ast.Node // keys at the top
	shareSaid  *token.Token        // where surfaces say files.share
	mistakes   []Mistake
}

// maxMistakes bounds what is gathered: by then it is no policy.
const maxMistakes = 100

// wrong notes a mistake at a token; nil: of the file as a whole.
func (d *policyReader) wrong(t *token.Token, err error, hints ...string) {
	if len(d.mistakes) >= maxMistakes {
		return
	}
	m := Mistake{What: err.Error(), Hints: append(Hints(err), hints...)}
	if t != nil && t.Position != nil {
		m.Line = max(t.Position.Line, 1)
		m.Source = lineOf(d.text, m.Line)
		m.Column = min(max(t.Position.Column, 1), utf8.RuneCountInString(m.Source)+1) // of what is not there, the library says a place beyond the line
	}
	d.mistakes = append(d.mistakes, m)
}

func (d *policyReader) read() {
	if len(d.text) > maxPolicyFile {
		d.wrong(nil, fmt.Errorf("larger than %d bytes", maxPolicyFile))
		return
	}
	top := d.parse()
	d.p, _ = BuiltinPolicy("")
	d.p.Name = d.name
	entries := d.entries(top, "a policy", namesOf(policyKeys))
	for _, e := range entries {
		if e.name == "base" {
			d.base(e.value)
		}
		d.seen[e.name] = e.key
	}
	for _, k := range policyKeys {
		for _, e := range entries {
			if e.name == k.name && k.read != nil {
				k.read(d, e.value)
			}
		}
	}
	if d.seen["name"] == nil {
		d.checkName(nil, d.name)
	}
}

// maxNesting bounds how deep the file nests: the library that reads YAML takes a time
// that grows with its square.
const maxNesting = 32

// parse returns the one document of the file, nil when there is nothing in it or when it
// is no YAML.
func (d *policyReader) parse() (top ast.Node) {
	tokens := lexer.Tokenize(d.text)
	depth, dashes, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			dashes, line = 0, t.Position.Line
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType:
			dashes++
		}
		if depth+dashes > maxNesting && depth > 2 || dashes > 4*maxNesting {
			d.wrong(t, errors.New("nested too deep"), "a policy has a few levels only")
			return nil
		}
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // the reader finds all of those itself
	if err != nil {
		var y yaml.Error
		if errors.As(err, &y) {
			d.wrong(y.GetToken(), fmt.Errorf("not YAML: %s", Shorten(y.GetMessage(), 200)), "a policy is written in YAML: `key: value` lines, lists with `- `, the same indentation within a block")
		} else {
			d.wrong(nil, fmt.Errorf("not YAML: %s", Shorten(err.Error(), 200)))
		}
		return nil
	}
	for _, doc := range f.Docs {
		switch {
		case doc.Body == nil:
		case top != nil:
			d.wrong(doc.Body.GetToken(), errors.New("a second document"), "a file holds one policy")
		default:
			top = doc.Body
		}
	}
	return top
}

// entry is one key of a mapping.
type entry struct {
	name       string
	key, value ast.Node
}

// entries returns the keys of a mapping that are of known (nil: any), each once.
func (d *policyReader) entries(n ast.Node, what string, known []string) (out []entry) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return nil
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		hint := "lines of `key: value`"
		if known != nil {
			hint += ", with the keys " + strings.Join(known, ", ")
		}
		d.wrong(n.GetToken(), fmt.Errorf("%s is %s, not a mapping", what, kindOf(n)), hint)
		return nil
	}
	first := map[string]int{}
	for _, v := range values {
		name, ok := scalar(v.Key)
		if !ok {
			d.wrong(v.Key.GetToken(), fmt.Errorf("a key that is %s, not a word", kindOf(v.Key)))
			continue
		}
		if line, is := first[name]; is {
			d.wrong(v.Key.GetToken(), fmt.Errorf("%q is said a second time", Shorten(name, 80)), fmt.Sprintf("the first is in line %d; leave one of them", line))
			continue
		}
		first[name] = v.Key.GetToken().Position.Line
		if known != nil && !slices.Contains(known, name) {
			var hints []string
			if k := nearest(name, known); k != "" {
				hints = append(hints, fmt.Sprintf("did you mean %q?", k))
			}
			d.wrong(v.Key.GetToken(), fmt.Errorf("unknown key %q", Shorten(name, 80)), append(hints, "keys of "+what+": "+strings.Join(known, ", "))...)
			continue
		}
		out = append(out, entry{name, v.Key, v.Value})
	}
	return out
}

// scalar returns the text of a plain value, as it is written where it is a number.
func scalar(n ast.Node) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NanNode, *ast.InfinityNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// kindOf names what a node is, for people.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode, *ast.AnchorNode, *ast.MergeKeyNode:
		return "an anchor or a reference to one, which policies do not have"
	case *ast.TagNode:
		return "tagged, which policies are not"
	case *ast.MappingKeyNode:
		return "written with ?"
	}
	return "a plain value"
}

// word reads a plain value of a key. ok is false when there is none: said, when that is a mistake.
func (d *policyReader) word(n ast.Node, key, want string) (text string, ok bool) {
	if text, ok = scalar(n); ok {
		return strings.TrimSpace(text), true
	}
	if _, null := n.(*ast.NullNode); null || n == nil {
		if n != nil {
			d.wrong(n.GetToken(), fmt.Errorf("%s: no value", key), want)
		}
		return "", false
	}
	d.wrong(n.GetToken(), fmt.Errorf("%s is %s, not a word", key, kindOf(n)), want)
	return "", false
}

// list reads a list of words, each with its own place. A single word is a list of one.
func (d *policyReader) list(n ast.Node, key string, add func(string) error) {
	items := []ast.Node{n}
	switch l := n.(type) {
	case nil, *ast.NullNode:
		return
	case *ast.SequenceNode:
		items = l.Values
	default:
		if _, ok := scalar(n); !ok {
			d.wrong(n.GetToken(), fmt.Errorf("%s is %s, not a list", key, kindOf(n)), "a line that begins with `- ` for each")
			return
		}
	}
	for _, i := range items {
		if t, ok := d.word(i, "an entry of "+key, "a word for each `- `"); ok {
			if err := add(t); err != nil {
				d.wrong(i.GetToken(), err)
			}
		}
	}
}

// base takes another policy as what is not said.
func (d *policyReader) base(n ast.Node) {
	t, ok := d.word(n, "base", fmt.Sprintf("one of %v", BuiltinPolicies()))
	if !ok {
		return
	}
	p, err := BuiltinPolicy(t)
	if err != nil {
		var hints []string
		if k := nearest(t, BuiltinPolicies()); k != "" {
			hints = append(hints, fmt.Sprintf("did you mean %q?", k))
		}
		d.wrong(n.GetToken(), fmt.Errorf("base: unknown policy %q", Shorten(t, 80)), append(hints, fmt.Sprintf("one of %v", BuiltinPolicies()))...)
		return
	}
	p.Name, d.p = d.name, p
}

func (d *policyReader) policyName(n ast.Node) {
	if t, ok := d.word(n, "name", "a name of letters and digits"); ok {
		d.p.Name = t
		d.checkName(n.GetToken(), t)
	}
}

func (d *policyReader) checkName(at *token.Token, name string) {
	switch {
	case builtin[name] != nil:
		d.wrong(at, fmt.Errorf("%s is the name of a built-in policy", name), "give it another with `name:`")
	case CheckBoxName(name) != nil:
		d.wrong(at, fmt.Errorf("not a name for a policy: %q", Shorten(name, 80)), "give it one of letters and digits with `name:`")
	}
}

func (d *policyReader) observe(n ast.Node) {
	if t, ok := d.word(n, "observe", "full, changes or lean"); ok {
		o, err := ParseObserve(t)
		if err != nil {
			d.wrong(n.GetToken(), err)
			return
		}
		d.p.Observe = o
	}
}

func (d *policyReader) net(n ast.Node) {
	if t, ok := d.word(n, "net", "own, none or host"); ok {
		o, err := ParseNet(t)
		if err != nil {
			d.wrong(n.GetToken(), err)
			return
		}
		d.p.Net = o
	}
}

func (d *policyReader) surfaces(n ast.Node) {
	for _, e := range d.entries(n, "surfaces", nil) {
		if _, err := LookupSurface(e.name); err != nil {
			d.wrong(e.key.GetToken(), err)
			continue
		}
		if e.name == string(FilesShare) {
			d.shareSaid = e.key.GetToken()
		}
		if t, ok := d.word(e.value, e.name, "allow, redirect or block"); ok {
			if err := d.p.Set(e.name, t); err != nil {
				d.wrong(e.value.GetToken(), err)
			}
		}
	}
}

// grants reads who may read what is private, which is known by then.
func (d *policyReader) grants(n ast.Node) {
	d.list(n, "grants", func(t string) error {
		g, err := ParseGrant(t)
		if err != nil {
			return err
		}
		if err := (&Policy{Private: d.p.Private, Grants: []Grant{g}}).CheckGrants(); err != nil {
			return err // said at its place
		}
		return d.p.AddGrant(t)
	})
}

func (d *policyReader) shares(n ast.Node) {
	t, ok := d.word(n, "shares", "block or read")
	if !ok {
		return
	}
	v, ok := map[string]Verdict{"block": Blocked, "read": Allowed}[t]
	if !ok {
		d.wrong(n.GetToken(), fmt.Errorf("shares: unknown setting %q", Shorten(t, 80)), "block or read: nothing is ever written there")
		return
	}
	if at := d.shareSaid; at != nil {
		d.wrong(n.GetToken(), errors.New("shares is said as the surface files.share, too"), fmt.Sprintf("that is in line %d; leave one of them", at.Position.Line))
		return
	}
	d.p.Surfaces[FilesShare] = v
}

func (d *policyReader) limits(n ast.Node) {
	for _, e := range d.entries(n, "limits", limitNames) {
		if t, ok := d.word(e.value, e.name, "a number, a size as 512MiB, a duration as 10m, or none"); ok {
			if err := d.p.Limits.Set(e.name, t); err != nil {
				d.wrong(e.value.GetToken(), err)
			}
		}
	}
}

// networkKeys are the keys below `network:`.
var networkKeys = []policyKey{
	{"outbound", func(d *policyReader, n ast.Node) {
		d.stance(n, "outbound", &d.p.Network.Outbound)
		d.p.Surfaces[NetOut] = map[bool]Verdict{true: Allowed}[d.p.Network.Outbound != Block]
	}},
	{"other-dns", func(d *policyReader, n ast.Node) { d.stance(n, "other-dns", &d.p.Network.OtherDNS) }},
	{"rules", func(d *policyReader, n ast.Node) {
		d.list(n, "rules", func(t string) error { return d.p.Network.AddRule(t, false) })
	}},
	{"publish", func(d *policyReader, n ast.Node) { d.list(n, "publish", d.p.Network.AddPublish) }},
	{"resolvers", func(d *policyReader, n ast.Node) { d.list(n, "resolvers", d.p.Network.AddResolver) }},
	{"proxy", func(d *policyReader, n ast.Node) {
		if t, ok := d.word(n, "proxy", "a URL, as in socks5://127.0.0.1:1080"); ok {
			if err := d.p.Network.SetProxy(t); err != nil {
				d.wrong(n.GetToken(), err)
			}
		}
	}},
}

func (d *policyReader) network(n ast.Node) {
	for _, e := range d.entries(n, "network", namesOf(networkKeys)) {
		for _, k := range networkKeys {
			if k.name == e.name {
				k.read(d, e.value)
			}
		}
	}
}

func (d *policyReader) stance(n ast.Node, key string, to *Stance) {
	if t, ok := d.word(n, key, "allow, ask or block"); ok {
		s, err := ParseStance(t)
		if err != nil {
			d.wrong(n.GetToken(), fmt.Errorf("%s: %w", key, err))
			return
		}
		*to = s
	}
}
