package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
)

// smallDisk is where the tests of a full disk have one: in a mount namespace of their own.
const smallDisk = "/mnt"

// TestAFullDisk runs each of the tests below on a small disk of its own, as root and, in
// a user namespace, as an ordinary user.
func TestAFullDisk(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"the program is refused, the log stays whole and the daemon goes on": fullDuringRun,
		"no box is begun that has no room for its log":                       fullBeforeRun,
	} {
		t.Run(name, func(t *testing.T) {
			withMount(t, test, smallDisk, "size=48m,mode=700")
		})
	}
}

// small is a state folder on the small disk.
type small struct {
	*testing.T
	home Home
	dir  string // outside, where boxes run
}

func newSmall(t *testing.T) *small {
	s := &small{T: t, home: smallDisk + "/home", dir: t.TempDir()}
	t.Setenv("SANDGLASS_HOME", string(s.home))
	t.Setenv("LC_ALL", "C")
	t.Cleanup(func() {
		if out, err := exec.Command("sandglass", "stop").CombinedOutput(); err != nil {
			t.Errorf("stop: %v\n%s", err, out)
		}
	})
	return s
}

func (s *small) start(args ...string) *exec.Cmd {
	cmd := exec.Command("sandglass", args...)
	cmd.Dir = s.dir
	return cmd
}

// do runs sandglass and demands an exit code.
func (s *small) do(want int, args ...string) (stdout, stderr string) {
	s.Helper()
	cmd := s.start(args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != want {
		s.Fatalf("sandglass %q: exit code %d, want %d\n%s%s", args, got, want, out.String(), err.String())
	}
	return out.String(), err.String()
}

// fill takes what is left of the disk, outside of any box.
func (s *small) fill() {
	f, err := os.Create(smallDisk + "/ballast")
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		s.Fatal(err)
	}
	f.Close()
}

// until asks again and again, for what comes without a word.
func (s *small) until(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			said, _ := s.start("status").CombinedOutput()
			log, _ := os.ReadFile(s.home.daemonLog())
			s.Fatalf("in vain: %s\n%s\n%s", what, said, log)
		}
	}
}

func (s *small) trouble() string {
	var st status
	out, _ := s.do(0, "status", "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		s.Fatal(err)
	}
	return strings.Join(st.Trouble, "\n")
}

func fullDuringRun(t *testing.T) {
	s := newSmall(t)
	s.do(0, "run", "--box", "other", "--", "sh", "-c", "head -c 8388608 /dev/zero > large")
	s.do(0, "status") // the daemon is there before the disk is full

	cmd := s.start("run", "--box", "full", "--", "sh", "-c", `
		read line
		dd if=/dev/zero of=big bs=64k
		echo "dd $?"
		cp /etc/passwd after || echo "cp $?"
		i=0; while test $i -lt 3000; do : < /etc/passwd; i=$((i+1)); done
		echo filled
		read line
		i=0; while test $i -lt 3000; do : < /etc/group; i=$((i+1)); done
		exit 7`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "fill\n")
	var said []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if said = append(said, lines.Text()); lines.Text() == "filled" {
			break
		}
	}
	if got := strings.Join(said, ","); got != "dd 1,cp 1,filled" {
		t.Errorf("the box said %q\n%s", got, stderr.String())
	}
	// The bus or the projections, whichever comes to write first.
	s.until("the daemon meets the full disk", func() bool {
		t := s.trouble()
		return strings.Contains(t, "bus: the event bus cannot write: disk full") || strings.Contains(t, "database or disk is full")
	})
	s.do(0, "box", "rm", "other")
	s.until("the daemon goes on when there is room", func() bool { return s.trouble() == "" })
	io.WriteString(in, "go on\n")
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 || !strings.Contains(stderr.String(), "dd: error writing 'big': No space left on device") ||
		!strings.Contains(stderr.String(), "sandglass: the disk is full: what the box writes fails") {
		t.Errorf("exit code %d\n%s", code, stderr.String())
	}

	// All is on record: nothing is missing between the first operation and the last.
	var ops string
	s.until("all is folded", func() bool {
		out, err := s.do(0, "ops", "--box", "full", "--json", "--limit", "100000")
		ops = out
		return err == ""
	})
	var last core.Seq
	reads := map[string]int{}
	for line := range strings.Lines(ops) {
		var op core.Operation
		if err := json.Unmarshal([]byte(line), &op); err != nil {
			t.Fatal(err)
		}
		if op.Seq != last+1 {
			t.Fatalf("operation %d follows operation %d", op.Seq, last)
		}
		last = op.Seq
		reads[op.Target]++
	}
	if reads["/etc/passwd"] < 3000 || reads["/etc/group"] < 3000 {
		t.Errorf("%d and %d reads are on record, want 3000 of each", reads["/etc/passwd"], reads["/etc/group"])
	}
	s.verify("full", last)
	s.do(0, "box", "rm", "full")
	s.do(0, "run", "--rm", "--", "true")
}

// verify checks that the stream holds a box's one session as a whole chain up to last,
// and its seal.
func (s *small) verify(box string, last core.Seq) {
	nc, err := events.Connect(string(s.home), "", "")
	if err != nil {
		s.Fatal(err)
	}
	defer nc.Close()
	js, err := events.NewJetStream(nc)
	if err != nil {
		s.Fatal(err)
	}
	var bodies [][]byte
	var end *events.Life
	done := errors.New("that was all")
	err = events.Consume(context.Background(), js, nil, 64, func(ds []events.Delivered) error {
		for _, d := range ds {
			switch {
			case d.Batch != nil && d.Batch.Box == box:
				bodies = append(bodies, d.Body)
			case d.Life != nil && d.Life.Box == box && d.Life.Kind == events.SessionEnd:
				end = d.Life
			}
		}
		if end != nil && len(bodies) > 0 {
			if _, got, err := events.VerifyChain(bodies...); err != nil || got >= last {
				return done
			}
		}
		return nil
	})
	if err != done {
		s.Fatal(err)
	}
	head, got, err := events.VerifyChain(bodies...)
	if err != nil || got != last {
		s.Fatalf("the chain ends with %d, want %d: %v", got, last, err)
	}
	key, err := events.SealKey(string(s.home))
	if err != nil {
		s.Fatal(err)
	}
	if err := end.VerifySeal(key.Public().(ed25519.PublicKey), head, got); err != nil || end.Lost || end.Exit != 7 {
		s.Errorf("the end %+v: %v", end, err)
	}
}

func fullBeforeRun(t *testing.T) {
	s := newSmall(t)
	s.do(0, "run", "--box", "old", "--", "true")
	s.fill()
	for _, box := range []string{"old", "new"} {
		stdout, stderr := s.do(exitSandglass, "run", "--box", box, "--", "sh", "-c", "echo ran")
		if stdout != "" || !strings.Contains(stderr, "no space left on device") || !strings.Contains(stderr, "hint: the disk is full: free some space") {
			t.Errorf("box %s: stdout %q, stderr %q", box, stdout, stderr)
		}
	}
	s.do(0, "ops", "--box", "old")
	if err := os.Remove(filepath.Join(smallDisk, "ballast")); err != nil {
		t.Fatal(err)
	}
	if stdout, _ := s.do(0, "run", "--box", "new", "--", "sh", "-c", "echo ran"); stdout != "ran\n" {
		t.Errorf("when there is room again: %q", stdout)
	}
}
