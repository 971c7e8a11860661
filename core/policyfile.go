package core

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"
)

// maxPolicyFile bounds a policy's file, in bytes.
const maxPolicyFile = 1 << 20

// ParsePolicy reads a policy in YAML:
//
//	name: web-dev            # default: name
//	base: fully-virtualised  # what is not said here is as there
//	observe: full
//	net: none
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
//	limits:
//	  memory: 512MiB
//	versions:                # old contents of its files that are kept; or: off
//	  per-file: 64MiB
//	  per-box: 1GiB
//
// Errors name the line. A key that is not known is an error: a misspelt one must not
// leave open what it was to close.
func ParsePolicy(name string, text []byte) (*Policy, error) {
	if len(text) > maxPolicyFile {
		return nil, fmt.Errorf("policy %s: larger than %d bytes", Shorten(name, 200), maxPolicyFile)
	}
	var f struct {
		Name     string            `yaml:"name"`
		Base     string            `yaml:"base"`
		Observe  string            `yaml:"observe"`
		Net      string            `yaml:"net"`
		Surfaces map[string]string `yaml:"surfaces"`
		Connect  []string          `yaml:"connect"`
		Network  networkFile       `yaml:"network"`
		Limits   map[string]string `yaml:"limits"`
		Versions versionsFile      `yaml:"versions"`
	}
	fail := func(err error) error { return fmt.Errorf("policy %s: %w", Shorten(name, 200), err) }
	if err := yaml.UnmarshalWithOptions(text, &f, yaml.Strict()); err != nil {
		var y yaml.Error
		if errors.As(err, &y) && y.GetToken() != nil {
			err = fmt.Errorf("line %d: %s", y.GetToken().Position.Line, y.GetMessage())
		}
		return nil, fail(err)
	}
	p, err := BuiltinPolicy(f.Base)
	if err != nil {
		return nil, fail(err)
	}
	if p.Name = f.Name; f.Name == "" {
		p.Name = name
	}
	if builtin[p.Name] != nil {
		return nil, Hint(fail(fmt.Errorf("%s is the name of a built-in policy", p.Name)), "give it another with `name:`")
	}
	if err := CheckBoxName(p.Name); err != nil {
		return nil, Hint(fail(fmt.Errorf("not a name for a policy: %q", Shorten(p.Name, 80))), "give it one of letters and digits with `name:`")
	}
	if f.Observe != "" {
		if p.Observe, err = ParseObserve(f.Observe); err != nil {
			return nil, fail(err)
		}
	}
	if f.Net != "" {
		if p.Net, err = ParseNet(f.Net); err != nil {
			return nil, fail(err)
		}
	}
	for _, s := range sortedKeys(f.Surfaces) {
		if err := p.Set(s, f.Surfaces[s]); err != nil {
			return nil, fail(err)
		}
	}
	for _, c := range f.Connect {
		if err := p.Grant(c); err != nil {
			return nil, fail(err)
		}
	}
	if err := f.Network.apply(&p.Network); err != nil {
		return nil, fail(err)
	}
	if f.Network.Outbound != "" {
		p.Surfaces[NetOut] = map[bool]Verdict{true: Allowed}[p.Network.Outbound != Block]
	}
	for _, l := range sortedKeys(f.Limits) {
		if err := p.Limits.Set(l, strings.TrimSpace(f.Limits[l])); err != nil {
			return nil, fail(err)
		}
	}
	if err := f.Versions.apply(&p.Limits); err != nil {
		return nil, fail(err)
	}
	return p, nil
}

func sortedKeys(m map[string]string) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return ks
}

// networkFile is the network of a policy's file.
type networkFile struct {
	Outbound  string   `yaml:"outbound"`
	OtherDNS  string   `yaml:"other-dns"`
	Rules     []string `yaml:"rules"`
	Publish   []string `yaml:"publish"`
	Proxy     string   `yaml:"proxy"`
	Resolvers []string `yaml:"resolvers"`
}

func (f *networkFile) apply(n *Network) (err error) {
	for _, s := range []struct {
		text string
		to   *Stance
		key  string
	}{{f.Outbound, &n.Outbound, "outbound"}, {f.OtherDNS, &n.OtherDNS, "other-dns"}} {
		if s.text == "" {
			continue
		}
		if *s.to, err = ParseStance(s.text); err != nil {
			return fmt.Errorf("%s: %w", s.key, err)
		}
	}
	for _, t := range f.Rules {
		if err := n.AddRule(t, false); err != nil {
			return err
		}
	}
	for _, t := range f.Publish {
		if err := n.AddPublish(t); err != nil {
			return err
		}
	}
	for _, t := range f.Resolvers {
		if err := n.AddResolver(t); err != nil {
			return err
		}
	}
	return n.SetProxy(f.Proxy)
}
