package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

func newCompletion(p *printer) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes commands, box names and queries",
		Example: `  source <(sandglass completion bash)                                  for this shell
  sandglass completion bash > ~/.local/share/bash-completion/completions/sandglass
  sandglass completion zsh  > "${fpath[1]}/_sandglass"
  sandglass completion fish > ~/.config/fish/completions/sandglass.fish`,
		Args:      needArgs("the shell", 1, 1),
		ValidArgs: shells,
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return c.Root().GenBashCompletionV2(p.out, true)
			case "zsh":
				return c.Root().GenZshCompletion(p.out)
			case "fish":
				return c.Root().GenFishCompletion(p.out, true)
			}
			return core.Hint(fmt.Errorf("unknown shell %q", core.Shorten(args[0], 80)), "one of "+strings.Join(shells, ", "))
		},
	}
}

// completeBoxes completes the name of a box.
func completeBoxes(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	h, err := OpenHome()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := h.BoxNames()
	return slices.DeleteFunc(names, func(n string) bool {
		return !strings.HasPrefix(n, prefix) || slices.Contains(args, n)
	}), cobra.ShellCompDirectiveNoFileComp
}

func completeWords(words ...string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, w := range words {
			if strings.HasPrefix(w, prefix) {
				out = append(out, w)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeQuery completes a term of a query: its field, then the values that there are.
func completeQuery(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var out []string
	field, value, isTerm := strings.Cut(prefix, ":")
	for _, f := range query.Fields() {
		if !isTerm {
			if strings.HasPrefix(f.Name, prefix) {
				out = append(out, strings.TrimSuffix(f.Name, ".")+fieldEnd(f.Name)+"\t"+f.About)
			}
			continue
		}
		if f.Name != field {
			continue
		}
		values := f.Values
		if h, err := OpenHome(); err == nil && field == "box" {
			values, _ = h.BoxNames()
		}
		for _, v := range values {
			if strings.HasPrefix(v, value) {
				out = append(out, field+":"+v)
			}
		}
	}
	if !isTerm {
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// fieldEnd is what comes after a field's name: a detail's key, or the value.
func fieldEnd(name string) string {
	if strings.HasSuffix(name, ".") {
		return "."
	}
	return ":"
}
