package core

import (
	"fmt"
	"sort"
)

// Policy decides operations: for each surface a verdict.
type Policy struct {
	Name     string
	Surfaces map[Surface]Verdict // a surface that is absent is blocked
	Observe  Observe
	Net      Net
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

// DefaultPolicy is the name of the policy of a box that names none.
const DefaultPolicy = "fully-virtualised"

var builtin = map[string]*Policy{
	DefaultPolicy: {
		Name: DefaultPolicy, Observe: ObserveFull, Net: NetNone,
		Surfaces: map[Surface]Verdict{
			FilesRead: Allowed, FilesWrite: Redirected, FilesExec: Allowed, FilesHandle: Blocked,
			ProcessLife: Redirected, SystemKernel: Blocked, SystemABI: Blocked, SandboxSelf: Blocked,
			SandboxLifecycle: Allowed,
		},
	},
}

// BuiltinPolicy returns a copy of the policy of that name, or an error with a hint
// that lists the ones there are. "" is [DefaultPolicy].
func BuiltinPolicy(name string) (*Policy, error) {
	if name == "" {
		name = DefaultPolicy
	}
	p, ok := builtin[name]
	if !ok {
		return nil, Hint(fmt.Errorf("unknown policy %q: %w", Shorten(name, 80), ErrNotFound), fmt.Sprintf("policies: %v", BuiltinPolicies()))
	}
	c := *p
	c.Surfaces = make(map[Surface]Verdict, len(p.Surfaces))
	for s, v := range p.Surfaces {
		c.Surfaces[s] = v
	}
	return &c, nil
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
