package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver"
)

// minFree is how much room on the disk of the state folder is enough not to mention it.
const minFree = 1 << 30

func newDoctor(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [--json]",
		Short: "Say what this machine supports, what is missing, and how to get it",
		Long:  "Say what this machine supports, what is missing, and how to get it, by trying each thing. The\nexit code is 1 when something is missing that a box needs.",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(c.Context())
			defer stop()
			checks := driver.Probe(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			checks = append(checks, homeChecks(ctx)...)
			bad := 0
			for _, k := range checks {
				if k.State == driver.Missing && k.Needed {
					bad++
				}
				if asJSON {
					if err := p.JSON(k); err != nil {
						return err
					}
				}
			}
			if !asJSON {
				printChecks(p, checks, bad)
			}
			if bad > 0 {
				return exitCode(exitNo)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON for each check")
	return c
}

func printChecks(p *printer, checks []driver.Check, bad int) {
	width := 0
	for _, k := range checks {
		width = max(width, len(k.Name))
	}
	for _, k := range checks {
		state := string(k.State)
		if k.State == driver.Missing && k.Needed {
			state = "MISSING"
		}
		p.Line("%-8s %-*s  %s", state, width, k.Name, k.Why)
		if k.State != driver.OK && k.Hint != "" {
			p.Line("%-8s %-*s  -> %s", "", width, "", k.Hint)
		}
	}
	p.Line("")
	if bad > 0 {
		p.Line("boxes cannot run here: %s missing that they need", plural(bad, "thing")+" "+map[bool]string{true: "is", false: "are"}[bad == 1])
	} else {
		p.Line("boxes can run here")
	}
}

// homeChecks look at the state folder, its disk and the daemon.
func homeChecks(ctx context.Context) []driver.Check {
	k := driver.Check{Name: "state folder", State: driver.OK, Needed: true}
	h, err := OpenHome()
	if err == nil {
		k.Why = string(h)
		err = tryWrite(h)
	}
	if err != nil {
		k.State, k.Why = driver.Missing, oneLine(err.Error())
		if hints := core.Hints(err); len(hints) > 0 {
			k.Hint = hints[0]
		}
		return []driver.Check{k}
	}
	return []driver.Check{k, diskCheck(h), daemonCheck(ctx, h)}
}

func tryWrite(h Home) error {
	path := h.path(".doctor")
	defer os.Remove(path)
	if err := writeAtomic(path, make([]byte, 64<<10)); err != nil {
		return homeHint(fmt.Errorf("write to the state folder: %w", err))
	}
	return nil
}

func diskCheck(h Home) driver.Check {
	k := driver.Check{Name: "disk", State: driver.OK}
	free, err := freeSpace(h)
	if err != nil {
		k.State, k.Why = driver.Unknown, err.Error()
		return k
	}
	k.Why = bytesText(free) + " free"
	if free < minFree {
		k.State, k.Hint = driver.Missing, "what boxes write, and the record of it, goes to this disk: free some space, or set SANDGLASS_HOME"
	}
	return k
}

// freeSpace is how much of the state folder's disk is free for its owner, in bytes.
func freeSpace(h Home) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(string(h), &fs); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", h, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

func daemonCheck(ctx context.Context, h Home) driver.Check {
	k := driver.Check{Name: "daemon", State: driver.OK}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := h.ask(ctx, request{Do: doStatus}, nil)
	switch {
	case errors.Is(err, errNoDaemon):
		k.Why = "not running; `sandglass run` starts it"
	case err != nil:
		k.State, k.Why, k.Hint = driver.Unknown, oneLine(err.Error()), "its log: "+h.daemonLog()
	case r.Status != nil && len(r.Status.Trouble) > 0:
		k.State, k.Why, k.Hint = driver.Missing, r.Status.Trouble[0], "`sandglass status` says more"
	case r.Status != nil:
		k.Why = "running, " + r.Status.Address + ", bus " + r.Status.NATS
	}
	return k
}
