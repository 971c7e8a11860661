package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
)

// FindPolicy returns the policy that a person names, and the name by which it is found
// again from any directory: a built-in one, one of the state folder's policies/NAME.yaml,
// or, with a / in the name, a file.
func (h Home) FindPolicy(name string) (p *core.Policy, ref string, err error) {
	if !strings.Contains(name, "/") {
		p, err = core.BuiltinPolicy(name)
		if err == nil {
			return p, p.Name, nil
		}
		if core.CheckBoxName(name) != nil {
			return nil, "", err
		}
		if p, ferr := readPolicy(h.path("policies", name+".yaml")); !errors.Is(ferr, fs.ErrNotExist) {
			return p, name, ferr
		}
		return nil, "", err
	}
	if ref, err = filepath.Abs(name); err != nil {
		return nil, "", fmt.Errorf("policy %s: %w", core.Shorten(name, 200), err)
	}
	p, err = readPolicy(ref)
	return p, ref, err
}

// readPolicy reads a policy's file. Its name, where it gives none, is the file's.
func readPolicy(path string) (*core.Policy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, core.Hint(fmt.Errorf("policy: %w", err), "a policy in a file is YAML; ARCHITECTURE.md shows one")
	}
	defer f.Close()
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return core.ParsePolicy(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), text)
}

// PolicyNames lists the built-in policies and those of the state folder, sorted.
func (h Home) PolicyNames() []string {
	names := core.BuiltinPolicies()
	files, _ := filepath.Glob(h.path("policies", "*.yaml"))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func completePolicies(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(prefix, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	h, err := OpenHome()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeWords(h.PolicyNames()...)(c, args, prefix)
}

// completeSurfaces completes SURFACE=VERDICT with what a policy can choose.
func completeSurfaces(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var words []string
	for _, s := range core.Surfaces() {
		i, err := core.LookupSurface(string(s))
		if err != nil {
			continue
		}
		for _, v := range i.Others {
			words = append(words, string(s)+"="+v.Verb())
		}
	}
	return completeWords(words...)(c, args, prefix)
}

func completeLimits(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var words []string
	for _, l := range core.LimitNames() {
		words = append(words, l+"=")
	}
	out, d := completeWords(words...)(c, args, prefix)
	return out, d | cobra.ShellCompDirectiveNoSpace
}
