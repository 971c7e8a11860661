package driver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
	"golang.org/x/sys/unix"
)

// A box behaves as the real tree does. The program "fidelity" makes every call on files
// that there is, in ways that succeed and in ways that fail, and writes down what came of
// each: once in a box and once outside, in the same folder, on files that were there
// before (in a box: the lower layer) and on files that it makes itself. The two
// transcripts are compared line by line; what may differ is in knownDifferences.

// knownDifference is a line of the transcript that is another in a box, and why.
type knownDifference struct {
	line  string // a regular expression, for the line outside
	inBox string // what the result is in the box
	why   string
	user  bool // an ordinary user's box alone
}

var knownDifferences = []knownDifference{
	{line: `real: (link|linkat) .* = (ok|EACCES|ENOTDIR)`, inBox: `EXDEV`, why: "a hard link to a real file would get another inode number than the file: see hardlink"},
	{line: `real: link(at)? .*: at the end .* = .* links [1-3] .*`, inBox: `(.* links [12] .*)?`, why: "the link that was not made"},
	{line: `real: link src to: link src to missing/.* = (EEXIST|ENOTDIR)`, inBox: `ENOENT`, why: "the same"},
	{line: `real: .* links 2 .*`, inBox: `.* links [12]( .*)?`, why: "the names of a real file with several are files of their own once it is changed by one: the overlay keeps no index"},
	{line: `real: .*at the end \S+ = .* links 1 .*`, inBox: `.* links 2 .*`, why: "the same: the other name shows the real count"},
	{line: `real: rename h1: at the end "10/h1" = .*`, inBox: ``, why: "the same: they are no longer one file, which a rename leaves alone"},
	{line: `(real|own): rename WHITEOUT to new: .*`, inBox: `.*`, why: "RENAME_WHITEOUT is for overlay file systems, and theirs do not take it: EINVAL"},
	{line: `(real|own): .* of 4201 = (EINVAL|EPERM|ERANGE|E2BIG|ENOENT)`, inBox: `ENAMETOOLONG`, why: "of two mistakes in a call that of the path is told first"},
	{line: `real: a reader that was there first: .*`, inBox: `content of [fx]\\n`, why: "a descriptor or mapping to read, of before the first change of a real file, goes on reading the real one"},
	{line: `.*: chown to another = EPERM`, inBox: `EINVAL`, why: "another user's id has no meaning in an ordinary user's box", user: true},
}

func TestABoxBehavesAsTheRealTree(t *testing.T) {
	if raceDetector {
		t.Skip("40,000 calls; what the supervisor does of it at once has tests of its own in rename_test.go")
	}
	l := newLab(t)
	if err := os.Chmod(filepath.Dir(l.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	prepareTrials(t, l.dir)
	check := unharmedBut(t, l.dir)
	boxed := l.boxed(runOpts{net: core.NetNone}, "fidelity", l.dir)
	check()
	exe := l.self()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, l.dir)
	cmd.Dir, cmd.Env = l.dir, append([]string{"BOXED_PROGRAM=fidelity", "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + l.dir, "LC_ALL=C"}, os.Environ()...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || !strings.HasSuffix(string(out), "end\n") {
		t.Fatalf("outside: %v\n%s%s", err, core.Shorten(string(out), 2000), stderr.String())
	}
	compareTranscripts(t, string(out), boxed.out)
}

func compareTranscripts(t *testing.T, outside, inBox string) {
	t.Helper()
	a, b := strings.Split(outside, "\n"), strings.Split(inBox, "\n")
	if dir := os.Getenv("SANDGLASS_TRANSCRIPTS"); dir != "" {
		os.WriteFile(filepath.Join(dir, "outside"), []byte(outside), 0o644)
		os.WriteFile(filepath.Join(dir, "box"), []byte(inBox), 0o644)
	}
	boxed := map[string]string{}
	for _, line := range b {
		k, v, _ := strings.Cut(line, " = ")
		boxed[k] = v
	}
	if len(a) < 2000 {
		t.Errorf("only %d calls were made", len(a))
	}
	seen, wrong := make([]int, len(knownDifferences)), 0
	for _, line := range a {
		k, want, _ := strings.Cut(line, " = ")
		got, ok := boxed[k]
		delete(boxed, k)
		if ok && got == want {
			continue
		}
		known := false
		for i, d := range knownDifferences {
			if regexp.MustCompile("^"+d.line+"$").MatchString(line) && regexp.MustCompile("^"+d.inBox+"$").MatchString(got) {
				seen[i]++
				known = true
				break
			}
		}
		if !known {
			if wrong++; wrong <= 60 {
				t.Errorf("%s = %s outside, %s in a box", k, want, got)
			}
		}
	}
	for k, v := range boxed {
		t.Errorf("in the box alone: %s = %s", k, v)
	}
	t.Logf("%d calls compared, %d differ otherwise than known", len(a), wrong)
	for i, d := range knownDifferences {
		if seen[i] == 0 && (!d.user || os.Geteuid() != 0) {
			t.Errorf("no difference any more: %s (%s)", d.line, d.why)
		}
	}
}

func init() { programs["fidelity"] = fidelity }

// trial is one folder with the files that calls are tried on.
type trial struct {
	name string
	seen map[string]int

	here, above int // its folder, and the one that that is in
}

func openDirectory(p string) int {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(err)
	return fd
}

// home goes back into the trial's folder, also where its mode was changed.
func (t *trial) home() {
	for _, fd := range []int{t.above, t.here} {
		var st unix.Stat_t
		must(unix.Fstat(fd, &st))
		if st.Mode&0o777 != 0o755 {
			must(unix.Fchmod(fd, 0o755))
		}
	}
	must(unix.Fchdir(t.here))
}

// trials are what is done, each in a folder of its own: see the other files of this name.
var trials []struct {
	name string
	make func() error // the files, in the working directory; nil: fixture
	do   func(*trial)
}

// sortTrials puts them into one order, whatever that of the maps was.
func sortTrials() {
	sort.Slice(trials, func(i, j int) bool { return trials[i].name < trials[j].name })
}

func addTrial(name string, make func() error, do func(*trial)) {
	trials = append(trials, struct {
		name string
		make func() error
		do   func(*trial)
	}{name, make, do})
}

// prepareTrials makes the files of all trials that are there before.
func prepareTrials(t *testing.T, dir string) {
	t.Helper()
	back, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	defer os.Chdir(back)
	defer unix.Umask(unix.Umask(0o022))
	sortTrials()
	for _, tr := range trials {
		if err := makeTrial(filepath.Join(dir, "real", tr.name, "at"), tr.make); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "own"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func makeTrial(dir string, fill func() error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if fill == nil {
		fill = fixture
	}
	if err := fill(); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

func fidelity() {
	if f, ok := fidelityChildren[os.Getenv("FIDELITY_CHILD")]; ok {
		f()
		return
	}
	// Outside, root is as it is in a box: without capabilities.
	runtime.LockOSThread()
	if len(sys.AllCaps()) > 0 {
		must(sys.DropForGood())
	}
	unix.Umask(0o022)
	sortTrials()
	for _, kind := range []string{"real", "own"} {
		for _, tr := range trials {
			dir := filepath.Join(os.Args[1], kind, tr.name, "at")
			if kind == "own" {
				must(makeTrial(dir, tr.make))
			}
			must(os.Chdir(dir))
			t := &trial{name: kind + ": " + tr.name, seen: map[string]int{}}
			t.here, t.above = openDirectory("."), openDirectory("..")
			tr.do(t)
			t.home()
			t.look(".")
			unix.Close(t.here)
			unix.Close(t.above)
		}
	}
	fmt.Println("end")
}

// say writes down what came of a call. A call that is made more than once gets a number.
func (t *trial) say(what string, err error, more ...any) {
	if t.seen[what]++; t.seen[what] > 1 {
		what += fmt.Sprintf(" #%d", t.seen[what])
	}
	r := "ok"
	if err != nil {
		if r = sys.ErrnoName(err); r == "" {
			r = err.Error()
		}
	} else if len(more) > 0 {
		r = strings.TrimSuffix(fmt.Sprintln(more...), "\n")
	}
	fmt.Printf("%s: %s = %s\n", t.name, clean(what), clean(r))
}

func clean(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, "\n", `\n`), "=", "~") }

// child starts this program again as one of fidelityChildren and returns what it prints.
func child(name string, args ...string) string {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "FIDELITY_CHILD="+name)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s %v", out, err)
	}
	return string(out)
}

var fidelityChildren = map[string]func(){}

// look writes down all that is below dir, times but those of this hour.
func (t *trial) look(dir string) {
	all, err := tellRelative(dir)
	if err != nil {
		t.say("look", err)
		return
	}
	for p, line := range all {
		t.say("at the end "+fmt.Sprintf("%q", p), nil, line)
	}
}
