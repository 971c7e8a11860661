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
	"syscall"

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
		if p, ferr := readPolicy(h.path("policies", name+".yaml"), ""); !errors.Is(ferr, fs.ErrNotExist) {
			return p, name, ferr
		}
		return nil, "", err
	}
	if ref, err = filepath.Abs(name); err != nil {
		return nil, "", fmt.Errorf("policy %s: %w", core.Shorten(name, 200), err)
	}
	p, err = readPolicy(ref, name)
	return p, ref, err
}

// readPolicy reads a policy's file. Its name, where it gives none, is the file's. shown is
// what its mistakes call the file; "": its path.
func readPolicy(path, shown string) (*core.Policy, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // no FIFO is waited for
	if err != nil {
		return nil, core.Hint(fmt.Errorf("policy: %w", err), "a policy in a file is YAML; ARCHITECTURE.md shows one")
	}
	defer f.Close()
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := core.ParsePolicy(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), text)
	var pe *core.PolicyError
	if errors.As(err, &pe) {
		if pe.File = shown; shown == "" {
			pe.File = path
		}
	}
	return p, err
}

func newPolicy(p *printer) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy COMMAND",
		Short: "Check the files of policies",
		Args:  cobra.ArbitraryArgs,
		RunE:  func(c *cobra.Command, args []string) error { return needSubcommand(c, args) },
	}
	check := newPolicyCheck(p)
	check.DisableFlagsInUseLine = true
	c.AddCommand(check)
	return c
}

// checkedJSON is one file of `policy check --json`.
type checkedJSON struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Name     string         `json:"name,omitempty"`
	Changes  string         `json:"changes,omitempty"` // against the built-in policy
	Mistakes []core.Mistake `json:"mistakes,omitempty"`
}

func newPolicyCheck(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check FILE... [--json]",
		Short: "Say every mistake in a policy's file, with its place and what was expected",
		Long: `Say every mistake in a policy's file, with its place and what was expected.

The exit code is 0 when there is none, 1 when there are some, 125 when a file cannot be read.`,
		Example: "  sandglass policy check ./mine.yaml",
		Args:    needArgs("the policy's file", 1, 0),
		RunE: func(_ *cobra.Command, args []string) error {
			wrong := false
			for _, file := range args {
				pol, err := readPolicy(file, file)
				var pe *core.PolicyError
				switch {
				case errors.As(err, &pe):
					wrong = true
				case err != nil:
					return err
				}
				if asJSON {
					j := checkedJSON{File: file, OK: pe == nil}
					if pe != nil {
						j.Mistakes = pe.Mistakes
					} else {
						j.Name, j.Changes = pol.Name, pol.Changes()
					}
					if err := p.JSON(j); err != nil {
						return err
					}
					continue
				}
				if pe != nil {
					p.Error(pe)
				} else {
					p.Line("%s: policy %s has no mistakes", file, pol.Name)
				}
			}
			if wrong {
				return exitCode(exitNo)
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object a file")
	return c
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
