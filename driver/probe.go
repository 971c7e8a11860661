package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// State is the outcome of one check.
type State string

// The outcomes. Unknown: the check itself could not be made; it says nothing.
const (
	OK      State = "ok"
	Missing State = "missing"
	Unknown State = "unknown"
)

// Check is one thing that a box needs or profits from.
type Check struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Why    string `json:"why,omitempty"`
	Hint   string `json:"hint,omitempty"`
	Needed bool   `json:"needed"` // without it there is no box
}

// Report is what this machine can do.
type Report []Check

// Probe finds out by experiment what this machine gives: it makes a box, runs a program
// in it and looks at what the box's first operation says of its walls. What a kernel's
// version promises is not asked. It takes about a tenth of a second.
func Probe(ctx context.Context) Report {
	rep := Report{probeMachine()}
	for _, c := range usernsSettings {
		if v, err := os.ReadFile(c.file); err == nil && strings.TrimSpace(string(v)) == c.bad && os.Geteuid() != 0 {
			rep = append(rep, Check{Name: "user namespaces", State: Missing, Why: c.file + " is " + c.bad, Hint: c.hint, Needed: true})
		}
	}
	dir, err := os.MkdirTemp("", "sandglass-probe-")
	if err != nil {
		return append(rep, Check{Name: "a box", State: Unknown, Why: err.Error(), Needed: true})
	}
	defer layers.RemoveTree(dir)
	p, err := core.BuiltinPolicy("")
	if err != nil {
		return append(rep, Check{Name: "a box", State: Unknown, Why: err.Error(), Needed: true})
	}
	var first core.Operation
	canary := filepath.Join(dir, "canary")
	if err := os.WriteFile(canary, []byte("as it was"), 0o600); err != nil {
		return append(rep, Check{Name: "a box", State: Unknown, Why: err.Error(), Needed: true})
	}
	box := filepath.Join(dir, "box")
	if err := os.Mkdir(box, 0o700); err != nil {
		return append(rep, Check{Name: "a box", State: Unknown, Why: err.Error(), Needed: true})
	}
	wrote := false
	code, err := Run(ctx, Options{
		BoxDir: box, Hide: []string{box}, Policy: p, Dir: dir,
		Session: core.Session{ID: "probe", Box: "probe", Command: []string{"/bin/sh", "-c", "echo changed > canary"}, Observe: core.ObserveFull, Net: core.NetOwn},
		Env:     []string{"PATH=/usr/bin:/bin"},
		Log: func(op *core.Operation) error {
			if op.Seq == 1 {
				first = *op
			}
			wrote = wrote || op.Surface == core.FilesWrite && op.Target == resolved(canary) && op.Verdict == core.Redirected
			return nil
		},
	})
	if err != nil || code != 0 {
		c := Check{Name: "a box", State: Missing, Needed: true, Why: fmt.Sprintf("exit code %d", code)}
		if err != nil {
			c.Why, c.Hint = err.Error(), strings.Join(core.Hints(err), "; ")
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			c.State = Unknown
		}
		return append(rep, c)
	}
	rep = append(rep, Check{Name: "a box", State: OK, Needed: true, Why: "namespaces, overlay, pty and filter work for this user"})

	redirect := Check{Name: "writes are redirected", State: OK, Needed: true}
	if data, err := os.ReadFile(canary); err != nil || string(data) != "as it was" || !wrote {
		redirect.State, redirect.Why = Missing, fmt.Sprintf("the file outside is %q, logged as redirected: %v", data, wrote)
	}
	rep = append(rep, redirect,
		flag("interception on one CPU (SYNC_WAKE_UP)", first.Detail["sync_wake_up"], "without it each intercepted call costs about ten times as much", "a kernel from 6.6"),
		flag("calls survive signals (WAIT_KILLABLE_RECV)", first.Detail["wait_killable"], "without it a signal may make a call be intercepted twice", "a kernel from 5.19"))
	own := Check{Name: "a network of its own", State: OK, Why: "each flow judged and counted"}
	if why := first.Detail["no_network"]; why != "" {
		own.State, own.Why, own.Hint = Missing, why, networkHint(why)
	}
	rep = append(rep, own, probeWall(first.Detail["landlock"]))
	masked := first.Detail["masked"]
	hidden := resolved(box) + " (" + hideReason + ")"
	if rest := strings.Trim(strings.Replace(masked, hidden, "", 1), ", "); rest != "" {
		rep = append(rep, Check{Name: "every mount can be overlaid", State: Missing, Why: "empty in a box: " + rest,
			Hint: "network shares and unknown file systems are left out on purpose"})
	} else {
		rep = append(rep, Check{Name: "every mount can be overlaid", State: OK})
	}
	return rep
}

func resolved(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return p
}

func flag(name, value, why, hint string) Check {
	if value == "true" {
		return Check{Name: name, State: OK}
	}
	return Check{Name: name, State: Missing, Why: why, Hint: hint}
}

// probeWall says what stands of the second wall, from what a session said of it.
func probeWall(said string) Check {
	c := Check{Name: "second wall (Landlock)", State: OK, Why: said}
	var abi int
	fmt.Sscanf(said, "abi %d", &abi)
	switch {
	case abi < landlockABI:
		c.State, c.Hint = Missing, "a kernel from 5.19 with landlock among its security modules (boot with lsm=landlock,... in front of the others)"
	case abi < 6:
		c.State, c.Hint = Missing, "a kernel from 6.12 holds signals and, on the caller's network, abstract sockets too"
	default:
		c.Why += "; with --net host also tcp, abstract sockets"
	}
	return c
}

func probeMachine() Check {
	c := Check{Name: "machine", State: OK, Needed: true, Why: runtime.GOARCH}
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		c.Why = "Linux " + sys.Text(u.Release[:]) + ", " + runtime.GOARCH
	}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		c.State, c.Hint = Missing, "the filter knows the calls of amd64 and arm64"
	}
	return c
}
