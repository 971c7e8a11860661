package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// recordSession is the program `record BOX SESSION FILE...` of the scripts: it logs the
// operations in the files, one a line, as a session's supervisor does, and ends the session
// after the last. A file that is a FIFO is waited for. So what becomes of operations is seen without a program that does them.
func recordSession() {
	if err := record(os.Args[1], core.SessionID(os.Args[2]), os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(box string, id core.SessionID, files []string) error {
	h, err := OpenHome()
	if err != nil {
		return err
	}
	s := core.Session{ID: id, Box: box, Host: hostName(), Start: time.Now(), Command: []string{"recorded"}, Policy: core.DefaultPolicy, Net: core.NetOwn}
	log, err := events.OpenLog(events.LogOptions{Home: string(h), Session: s})
	if err != nil {
		return err
	}
	if err := log.Begin(events.Life{}); err != nil {
		return err
	}
	seq := core.Seq(0)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		for lines := json.NewDecoder(f); ; {
			var o struct {
				Surface     core.Surface
				Action      core.Action
				Target, Exe string
				Errno       string
				Verdict     core.Verdict
				PID         int
				Detail      core.Detail
			}
			if err := lines.Decode(&o); err == io.EOF {
				break
			} else if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			seq++
			op := core.Operation{Seq: seq, Time: time.Now(), Box: box, Session: id, PID: o.PID, Exe: o.Exe, Surface: o.Surface, Action: o.Action, Target: o.Target,
				Verdict: o.Verdict, Outcome: core.Performed, Errno: o.Errno, Rule: "recorded", Detail: o.Detail}
			if o.PID != 0 {
				op.Proc = core.ProcID(fmt.Sprint(o.PID))
			}
			if err := log.Append(&op); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := log.End(0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return log.Close(ctx)
}
