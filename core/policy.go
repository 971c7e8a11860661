package core

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"
)

// Policy decides operations: for each surface a verdict, with exceptions by name.
type Policy struct {
	Name     string
	Surfaces map[Surface]Verdict // a surface that is absent is blocked
	Observe  Observe
	Net      Net
	// Connect lists the Unix sockets outside, by absolute path or glob ([path.Match]), that
	// a box may connect to whatever its surface says. An abstract name begins with '@'.
	Connect []string
	Network Network // of a box with a network of its own
	Limits  Limits
	// Private lists the private places: nothing in them is seen in the box, but for what the
	// first of Grants that names the file and the program lets that program read. See [Policy.AddPrivate].
	Private []string
	Grants  []Grant
}

// Decision is a verdict with the rule that gave it.
type Decision struct {
	Verdict Verdict
	Rule    string
}

// Decide returns the verdict for an operation on s under p. It never blocks and
// never fails: a surface without a rule is blocked. What the kernel's walls make
// of an operation that is not blocked (the overlay redirects a write) is known to
// the driver alone. Cost: one map lookup.
func (p *Policy) Decide(s Surface) Decision {
	v, ok := p.Surfaces[s]
	if !ok {
		return Decision{Blocked, p.Name + ": no rule"}
	}
	return Decision{v, p.Name + ": " + string(s)}
}

// DecideConnect is [Policy.Decide] for a connection to the Unix socket addr on s.
func (p *Policy) DecideConnect(s Surface, addr string) Decision {
	for _, g := range p.Connect {
		if ok, err := path.Match(g, addr); ok && err == nil {
			return Decision{Allowed, p.Name + ": connect " + g}
		}
	}
	return p.Decide(s)
}

// Set makes v the verdict of the surface of that name. v is what people write:
// "allow", "redirect" or "block".
func (p *Policy) Set(surface, v string) error {
	i, err := LookupSurface(surface)
	if err != nil {
		return err
	}
	if i.Surface == NetOut && v == "ask" {
		p.Surfaces[NetOut], p.Network.Outbound = Allowed, Ask
		return nil
	}
	verdict, ok := map[string]Verdict{"allow": Allowed, "redirect": Redirected, "block": Blocked}[v]
	if !ok {
		return Hint(fmt.Errorf("%s: unknown verdict %q", surface, Shorten(v, 80)), "allow, redirect or block")
	}
	if verdict != i.Default && !slices.Contains(i.Others, verdict) {
		can := []string{i.Default.Verb()}
		for _, o := range i.Others {
			can = append(can, o.Verb())
		}
		return Hint(fmt.Errorf("%s cannot be set to %s", surface, v), "it can be: "+strings.Join(can, ", "))
	}
	p.Surfaces[i.Surface] = verdict
	if i.Surface == NetOut {
		p.Network.Outbound = map[Verdict]Stance{Allowed: Allow, Blocked: Block}[verdict]
	}
	return nil
}

// Verb is what a policy says for v: allow, redirect or block.
func (v Verdict) Verb() string {
	return [...]string{Blocked: "block", Allowed: "allow", Redirected: "redirect"}[v]
}

// Grant adds a Unix socket that the box may connect to, see [Policy.Connect].
func (p *Policy) Grant(addr string) error {
	if !strings.HasPrefix(addr, "/") && !strings.HasPrefix(addr, "@") {
		return Hint(fmt.Errorf("connect %q: not an absolute path", Shorten(addr, 80)), "an abstract socket begins with @")
	}
	if _, err := path.Match(addr, ""); err != nil {
		return Hint(fmt.Errorf("connect %q: %w", Shorten(addr, 80), err), "a literal * ? [ or \\ is written with a \\ before it")
	}
	p.Connect = append(p.Connect, addr)
	return nil
}

// Changes says in what p differs from the built-in policy, for people and the log:
// "device.camera=allow, connect=/run/x, processes=100". "" when in nothing.
func (p *Policy) Changes() string {
	base := builtin[DefaultPolicy]
	var out []string
	for _, s := range Surfaces() {
		if p.Surfaces[s] != base.Surfaces[s] {
			out = append(out, string(s)+"="+p.Surfaces[s].Verb())
		}
	}
	for _, c := range p.Connect {
		out = append(out, "connect="+c)
	}
	out = append(out, p.privateChanges(base)...)
	out = append(out, p.Network.changes(&base.Network)...)
	out = append(out, p.Limits.texts()...)
	return strings.Join(out, ", ")
}

// DefaultPolicy is the name of the policy of a box that names none.
const DefaultPolicy = "fully-virtualised"

var builtin = map[string]*Policy{DefaultPolicy: fullyVirtualised()}

func fullyVirtualised() *Policy {
	p := &Policy{Name: DefaultPolicy, Observe: ObserveFull, Net: NetOwn, Network: Network{Outbound: Allow}, Surfaces: map[Surface]Verdict{}, Limits: Limits{Processes: defaultProcesses, Versions: defaultVersions, VersionFile: defaultVersionFile}, Private: privatePlaces}
	for _, i := range surfaces {
		p.Surfaces[i.Surface] = i.Default
	}
	return p
}

// BuiltinPolicy returns a copy of the policy of that name, or an error with a hint
// that lists the ones there are. "" is [DefaultPolicy].
func BuiltinPolicy(name string) (*Policy, error) {
	if name == "" {
		name = DefaultPolicy
	}
	p, ok := builtin[name]
	if !ok {
		return nil, Hint(fmt.Errorf("unknown policy %q: %w", Shorten(name, 80), ErrNotFound),
			fmt.Sprintf("policies: %v", BuiltinPolicies()), "a policy in a file is named by a path with a / in it: ./mine.yaml")
	}
	return p.Clone(), nil
}

// Revoke takes back every grant of exactly that path, name or glob.
func (p *Policy) Revoke(addr string) error {
	n := len(p.Connect)
	p.Connect = slices.DeleteFunc(p.Connect, func(g string) bool { return g == addr })
	if len(p.Connect) == n {
		return Hint(fmt.Errorf("connect %q: %w", Shorten(addr, 80), ErrNotFound), fmt.Sprintf("granted: %v", p.Connect))
	}
	return nil
}

// Clone returns a copy that shares nothing with p.
func (p *Policy) Clone() *Policy {
	c := *p
	c.Surfaces, c.Connect = maps.Clone(p.Surfaces), slices.Clone(p.Connect)
	c.Private, c.Grants = slices.Clone(p.Private), slices.Clone(p.Grants)
	c.Network.Rules, c.Network.Publish, c.Network.Resolvers = slices.Clone(p.Network.Rules), slices.Clone(p.Network.Publish), slices.Clone(p.Network.Resolvers)
	return &c
}

// BuiltinPolicies lists the names of the built-in policies, sorted.
func BuiltinPolicies() []string {
	var ns []string
	for n := range builtin {
		ns = append(ns, n)
	}
	sort.Strings(ns)
	return ns
}
