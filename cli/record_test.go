package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// recordSession is the program `record BOX SESSION` of the scripts: it logs the operations
// that it reads, one a line, as a session's supervisor does, and ends the session at the
// end of its input. So what becomes of operations is seen without a program that does them.
func recordSession() {
	if err := record(os.Stdin, os.Args[1], core.SessionID(os.Args[2])); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(in io.Reader, box string, id core.SessionID) error {
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
	lines := bufio.NewScanner(in)
	for seq := core.Seq(1); lines.Scan(); seq++ {
		if strings.TrimSpace(lines.Text()) == "" {
			seq--
			continue
		}
		var o struct {
			Surface            core.Surface
			Action             core.Action
			Target, Exe, Errno string
			Verdict            core.Verdict
			PID                int
			Detail             core.Detail
		}
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		op := core.Operation{Seq: seq, Time: time.Now(), Box: box, Session: id, PID: o.PID, Proc: core.ProcID(fmt.Sprint(o.PID)), Exe: o.Exe, Surface: o.Surface, Action: o.Action, Target: o.Target,
			Verdict: o.Verdict, Outcome: core.Performed, Errno: o.Errno, Rule: "recorded", Detail: o.Detail}
		if err := log.Append(&op); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if err := log.End(0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return log.Close(ctx)
}
