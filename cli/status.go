package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
)

// status is what the daemon says of itself: the JSON of `status --json`.
type status struct {
	Running bool         `json:"running"`
	Home    string       `json:"home"`
	PID     int          `json:"pid,omitempty"`
	Address string       `json:"address,omitempty"` // URL of the dashboard
	Version string       `json:"version,omitempty"`
	Since   *time.Time   `json:"since,omitempty"`
	NATS    string       `json:"nats,omitempty"` // "embedded", or the URL of an external bus
	Streams []streamInfo `json:"streams,omitempty"`
	Spool   spoolInfo    `json:"spool"`
	Trouble []string     `json:"trouble,omitempty"` // what is not as it should be
}

type streamInfo struct {
	Name   string `json:"name"`
	First  uint64 `json:"first"` // sequence numbers of messages
	Last   uint64 `json:"last"`
	Folded uint64 `json:"folded"` // up to here they are in the projections
	Lag    uint64 `json:"lag"`    // messages that are not folded yet
}

type spoolInfo struct {
	Sessions int   `json:"sessions"` // that have a spool: they run, or wait for the daemon
	Bytes    int64 `json:"bytes"`
}

// spoolInfo looks at the spool's folder.
func (h Home) spoolInfo() (s spoolInfo) {
	dirs, _ := os.ReadDir(h.spool())
	for _, d := range dirs {
		if !d.IsDir() || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "note-") { // one being made; a fact of no session
			continue
		}
		s.Sessions++
		files, _ := os.ReadDir(filepath.Join(h.spool(), d.Name()))
		for _, f := range files {
			if fi, err := f.Info(); err == nil {
				s.Bytes += fi.Size()
			}
		}
	}
	return s
}

func newStatus(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [--json]",
		Short: "Say whether the daemon runs, where, and how far behind it is",
		Long:  "Say whether the daemon runs, where its dashboard is, and how far its projections are behind\nthe stream. The exit code is 1 when no daemon runs.",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
			defer cancel()
			r, err := h.ask(ctx, request{Do: doStatus}, nil)
			if errors.Is(err, errNoDaemon) {
				r.Status, err = &status{Home: string(h), Spool: h.spoolInfo()}, nil
			}
			if err != nil {
				return err
			}
			if r.Status == nil {
				return errors.New("the daemon did not say how it is")
			}
			if asJSON {
				err = p.JSON(r.Status)
			} else {
				r.Status.print(p)
			}
			if err == nil && !r.Status.Running {
				return exitCode(exitNo)
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON")
	return c
}

func (s *status) print(p *printer) {
	if !s.Running {
		p.Line("no daemon is running; `sandglass run` starts it, `sandglass serve` too")
	} else {
		p.Line("daemon     running since %s, pid %d, version %s", s.Since.Local().Format("2006-01-02 15:04:05"), s.PID, s.Version)
		p.Line("dashboard  %s  (`sandglass link` signs you in)", s.Address)
		p.Line("bus        %s", s.NATS)
		for _, t := range s.Streams {
			p.Line("stream     %s: messages %d to %d, %d to be folded yet", t.Name, t.First, t.Last, t.Lag)
		}
	}
	if s.Spool.Sessions == 0 {
		p.Line("spool      empty")
	} else {
		p.Line("spool      %s of %s that run or wait for the daemon", bytesText(s.Spool.Bytes), plural(s.Spool.Sessions, "session"))
	}
	p.Line("state      %s", s.Home)
	for _, t := range s.Trouble {
		p.Line("trouble    %s", t)
	}
}

func newStop(p *printer) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the daemon; boxes run on, and what they do waits in the spool",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), 30*time.Second)
			defer cancel()
			_, err = h.ask(ctx, request{Do: doStop}, nil)
			if err == errNoDaemon {
				p.Note("no daemon is running")
				return nil
			}
			if err != nil && !errors.Is(err, errNoDaemon) {
				return err
			}
			// It is gone when it has let go of its lock, also if it has died meanwhile.
			for {
				l, err := lockFile(h.daemonLock(), lockTry)
				if err == nil {
					l.Unlock()
					return nil
				}
				if !errors.Is(err, errLocked) {
					return err
				}
				select {
				case <-ctx.Done():
					info, _ := h.daemonInfo()
					return core.Hint(fmt.Errorf("stop the daemon: it has not ended after 30 seconds"), fmt.Sprintf("kill -9 %d loses nothing: what it had not done is done by the next one", info.PID))
				case <-time.After(10 * time.Millisecond):
				}
			}
		},
	}
}

func newLink(p *printer) *cobra.Command {
	return &cobra.Command{
		Use:   "link",
		Short: "Print a link that signs you in to the dashboard, once",
		Long:  "Print a link that signs one browser in to the dashboard, once, within ten minutes. Starts the\ndaemon when none runs.",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			if err := h.needDaemon(ctx); err != nil {
				return err
			}
			r, err := h.ask(ctx, request{Do: doLink}, nil)
			if err != nil {
				return err
			}
			p.Line("%s", r.Link)
			return nil
		},
	}
}

// needDaemon starts the daemon when none runs, and waits until it answers.
func (h Home) needDaemon(ctx context.Context) error {
	if _, err := h.startDaemon(defaultListen, true, orders{}); err != nil && !errors.Is(err, errLocked) {
		return err
	}
	return h.awaitDaemon(ctx)
}

// awaitDaemon waits until the daemon that holds the lock answers.
func (h Home) awaitDaemon(ctx context.Context) error {
	see := "its log: " + h.daemonLog()
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, core.Hint(errors.New("the daemon does not answer"), see))
	defer cancel()
	for {
		_, err := h.ask(ctx, request{Do: doStatus}, nil)
		if !errors.Is(err, errNoDaemon) {
			return err
		}
		if l, err := lockFile(h.daemonLock(), lockTry); err == nil {
			l.Unlock()
			return core.Hint(errors.New("the daemon ended before it answered"), append(h.lastWords(), see)...)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lastWords returns the last line of the daemon's log.
func (h Home) lastWords() []string {
	f, err := os.Open(h.daemonLog())
	if err != nil {
		return nil
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > 4096 {
		f.Seek(-4096, io.SeekEnd)
	}
	tail, _ := io.ReadAll(io.LimitReader(f, 4096))
	lines := strings.Split(strings.TrimSpace(string(tail)), "\n")
	return []string{"it said: " + lines[len(lines)-1]}
}

// bytesText writes a number of bytes for people.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
