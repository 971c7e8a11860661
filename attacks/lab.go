package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
)

//go:embed programs
var programs embed.FS

// lab is where the attacks are run: a folder with the programs, and a state folder.
type lab struct {
	binary, dir, state string
	broken             map[string]string // programs that could not be made, and why
	python             string            // itself: what PATH leads to may be a script that looks for it, for seconds in a box
}

// patience bounds each program; an attack that hangs has failed.
const patience = 60 * time.Second

func newLab(binary string) (*lab, error) {
	dir, err := os.MkdirTemp("", "sg")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	l := &lab{binary: binary, dir: dir, state: filepath.Join(dir, "state"), broken: map[string]string{}}
	if err := os.Mkdir(l.state, 0o700); err != nil {
		return nil, err
	}
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		return nil, fmt.Errorf("python3: %w", err)
	}
	l.python = strings.TrimSpace(string(out))
	ents, err := programs.ReadDir("programs")
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		data, err := programs.ReadFile("programs/" + e.Name())
		if err != nil {
			return nil, err
		}
		file := filepath.Join(dir, e.Name())
		if err := os.WriteFile(file, data, 0o700); err != nil {
			return nil, err
		}
		if name, ok := strings.CutSuffix(file, ".c"); ok {
			if out, err := exec.Command("gcc", "-O1", "-pthread", "-o", name, file).CombinedOutput(); err != nil {
				l.broken[e.Name()] = fmt.Sprintf("gcc: %v %s", err, out)
			}
		}
	}
	return l, nil
}

func (l *lab) close() {
	l.run(l.dir, nil, l.binary, "stop")
	os.RemoveAll(l.dir)
}

// argv is how a program is called.
func (l *lab) argv(program string, args []string) []string {
	file := filepath.Join(l.dir, program)
	switch filepath.Ext(program) {
	case ".py":
		return append([]string{l.python, file}, args...)
	case ".c":
		return append([]string{strings.TrimSuffix(file, ".c")}, args...)
	}
	return append([]string{file}, args...)
}

// run runs something to its end.
func (l *lab) run(dir string, env []string, argv ...string) (out string, code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "SANDGLASS_HOME="+l.state, "LC_ALL=C"), env...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return b.String(), exit.ExitCode(), nil
	}
	return b.String(), 0, err
}

// row is what came of one attack.
type row struct {
	Row     string            `json:"row"`
	Name    string            `json:"name"`
	Surface core.Surface      `json:"surface"`
	Control string            `json:"control"`
	Cells   map[string]string `json:"cells"` // by what the surface was set to
	Wrong   []string          `json:"wrong,omitempty"`
	checks  []verdictCheck
}

// attack runs one without a box, then in boxes.
func (l *lab) attack(n int, a attack) row {
	r := row{Row: a.Row, Name: a.Name, Surface: a.Surface, Cells: map[string]string{"block": "-", "redirect": "-", "allow": "-"}}
	wrong := func(format string, args ...any) { r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...)) }
	if why := l.broken[a.Program]; why != "" {
		wrong("%s", why)
		return r
	}
	control := a.NoControl == ""
	if control {
		o, err := l.outside(a)
		if err != nil {
			wrong("the set-up: %v", err)
			return r
		}
		out, code, err := l.run(o.dir, nil, o.wrap(l.argv(a.Program, o.args))...)
		switch reached := o.reached(code); {
		case err != nil:
			wrong("without a box: %v", err)
		case reached:
			r.Control = "reached"
		case a.Root && os.Geteuid() != 0:
			r.Control, control = "needs root", false
			if a.MayLack {
				o.close()
				return r
			}
		case strings.Contains(out, "errno 38"), strings.Contains(out, "Errno 97"), len(a.Args) > 0 && strings.HasPrefix(a.Args[0], "/proc/") && !exists(a.Args[0]), a.MayLack && code < 0:
			r.Control, control = "not in this kernel", false
			if a.MayLack {
				o.close()
				return r
			}
		default:
			r.Control = "FAILED"
			wrong("it does not work without a box: exit code %d %s", code, out)
		}
		o.close()
	} else {
		r.Control = "none: " + a.NoControl
	}
	info, err := core.LookupSurface(string(a.Surface))
	if err != nil {
		wrong("%v", err)
		return r
	}
	for _, v := range append([]core.Verdict{info.Default}, info.Others...) {
		check, err := l.boxed(n, a, v, control)
		if err != nil {
			wrong("%s: %v", v.Verb(), err)
			r.Cells[v.Verb()] = "WRONG"
			continue
		}
		r.checks = append(r.checks, verdictCheck{v, check})
	}
	return r
}

// settle fills in what takes the log to say.
func (r *row) settle(log map[string][]core.Operation) {
	for _, c := range r.checks {
		cell, err := c.check(log)
		if err != nil {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%s: %v", c.v.Verb(), err))
			cell = "WRONG"
		}
		r.Cells[c.v.Verb()] = cell
	}
}

type verdictCheck struct {
	v     core.Verdict
	check check
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// check compares what came of an attack in a box with what is on record there.
type check func(map[string][]core.Operation) (cell string, err error)

// log reads what is on record of all boxes, but for what every program does.
func (l *lab) log() (map[string][]core.Operation, error) {
	out, code, err := l.run(l.dir, nil, l.binary, "ops", "--limit", "0", "--json", "not surface:files.read not surface:files.exec not surface:process.life")
	if err != nil || code != 0 {
		return nil, fmt.Errorf("ops: exit code %d %v %s", code, err, core.Shorten(out, 400))
	}
	m := map[string][]core.Operation{}
	for line := range strings.Lines(out) {
		var op core.Operation
		if err := json.Unmarshal([]byte(line), &op); err != nil {
			return nil, fmt.Errorf("ops: %w: %s", err, core.Shorten(line, 400))
		}
		m[op.Box] = append(m[op.Box], op)
	}
	return m, nil
}

// boxed runs the attack with its surface set to v, and compares what came of it outside with
// what should have. control: it works without a box.
func (l *lab) boxed(n int, a attack, v core.Verdict, control bool) (check check, err error) {
	o, err := l.outside(a)
	if err != nil {
		return nil, fmt.Errorf("the set-up: %w", err)
	}
	defer o.close()
	box := fmt.Sprintf("a%d-%s", n, v.Verb())
	cmd := append([]string{l.binary, "run", "--box", box, "--rm"}, a.Flags...)
	if a.Grant && v == core.Allowed {
		cmd = append(cmd, "--connect", o.args[0], "--")
	} else {
		cmd = append(cmd, "--set", string(a.Surface)+"="+v.Verb(), "--")
	}
	out, code, err := l.run(o.dir, nil, o.wrap(append(cmd, l.argv(a.Program, o.args)...))...)
	if err != nil {
		return nil, err
	}
	reached := o.reached(code)
	want := a.want(v)
	wantReached := v == core.Allowed && want == core.Allowed && !a.Never
	if reached && !wantReached && o.harmed != nil {
		return nil, fmt.Errorf("outside was reached: exit code %d %s", code, out)
	}
	if reached && !wantReached && want == core.Blocked {
		return nil, fmt.Errorf("it was not refused: exit code %d %s", code, out)
	}
	if wantReached && control && !a.KernelDecides && !reached {
		return nil, fmt.Errorf("it was allowed, but did not reach outside: exit code %d %s", code, out)
	}
	if a.Unrecorded != "" {
		return func(map[string][]core.Operation) (string, error) { return "held (" + a.Unrecorded + ")", nil }, nil
	}
	target, err := regexp.Compile("^(?:" + o.target + ")$")
	if err != nil {
		return nil, err
	}
	return func(log map[string][]core.Operation) (string, error) {
		return recorded(a, want, target, reached, log[box], out)
	}, nil
}

// recorded looks for the attack in what the box's log says, and says what came of it.
func recorded(a attack, want core.Verdict, target *regexp.Regexp, reached bool, log []core.Operation, out string) (string, error) {
	var seen []string
	for _, op := range log {
		if op.Surface != a.Surface {
			continue
		}
		if op.Action == a.Action && op.Verdict == want && target.MatchString(op.Target) {
			switch {
			case want == core.Allowed && reached:
				return "reached", nil
			case want == core.Allowed && a.Never:
				return "allowed, held by the relay", nil
			case want == core.Allowed:
				return "allowed, held by the kernel", nil
			case want == core.Redirected:
				return "held: redirected", nil
			}
			return "held: " + op.Errno, nil
		}
		seen = append(seen, fmt.Sprintf("%s %s %q", op.Verdict, op.Action, op.Target))
	}
	return "", fmt.Errorf("not on record as %s %s %q; on record: %s; it said: %s", want, a.Action, target, core.Shorten(strings.Join(seen, ", "), 400), core.Shorten(out, 400))
}
