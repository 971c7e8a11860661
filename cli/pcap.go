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

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver"
)

const captureSuffix = ".pcapng"

// captureOf is the file that a session's packets are kept in.
func (h Home) captureOf(id string) string { return h.path("captures", id+captureSuffix) }

// captures lists the sessions whose packets are kept, the latest first.
func (h Home) captures() (ids []string) {
	files, _ := filepath.Glob(h.captureOf("*"))
	for _, f := range files {
		ids = append(ids, strings.TrimSuffix(filepath.Base(f), captureSuffix))
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return ids
}

func newPcap(p *printer) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "pcap SESSION [-o FILE]",
		Short: "Write the packets that a session's network has kept, for Wireshark",
		Long: `Write the packets of a session that ran with --pcap, as pcapng: the latest of them, up to the
size that was given. Each packet's comment names its flow and the process that opened it.`,
		Example: `  sandglass run --pcap -- curl https://example.org
  sandglass pcap 01M8A... -o session.pcapng
  sandglass pcap 01M8A... | tshark -r -`,
		Args: needArgs("the session", 1, 1),
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			h, err := OpenHome()
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeWords(h.captures()...)(c, args, prefix)
		},
		RunE: func(_ *cobra.Command, args []string) error { return pcap(p, args[0], out) },
	}
	c.Flags().StringVarP(&out, "output", "o", "-", "the file to write, which must not exist; - is the standard output")
	return c
}

func pcap(p *printer, id, out string) (err error) {
	h, err := OpenHome()
	if err != nil {
		return err
	}
	if _, perr := ulid.ParseStrict(id); perr != nil {
		return core.Hint(fmt.Errorf("session %q: not a session's id", core.Shorten(id, 80)), "`sandglass sessions` lists them")
	}
	if _, err := os.Stat(h.captureOf(id)); errors.Is(err, fs.ErrNotExist) {
		hint := "packets are kept of what runs with --pcap"
		if ids := h.captures(); len(ids) > 0 {
			hint = "packets are kept of: " + strings.Join(ids[:min(len(ids), 5)], ", ")
		}
		return core.Hint(fmt.Errorf("packets of session %s: %w", id, core.ErrNotFound), hint)
	}
	var w io.Writer = os.Stdout
	if out == "-" && term.IsTerminal(int(os.Stdout.Fd())) {
		return core.Hint(errors.New("pcap: packets are not for a terminal"), "give a file with -o, or pipe it to tshark -r -")
	}
	if out != "-" {
		f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("pcap: %w", err)
		}
		defer func() {
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				os.Remove(out)
			}
		}()
		w = f
	}
	if err := driver.WriteCapture(w, h.captureOf(id)); err != nil {
		return fmt.Errorf("pcap: %w", err)
	}
	return nil
}
