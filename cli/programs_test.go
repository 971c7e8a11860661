package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

// realPrograms are what people run, on files that are there. fixture makes the files,
// outside; script is run on them, first in a box and then outside, in the same folder.
var realPrograms = []struct {
	name    string
	needs   []string
	fixture string
	script  string
	refused string // what the box refuses, and the program copes with; a regular expression
	differ  []difference
}{
	{
		name:  "tar, find, sed, cp, mv and rm",
		needs: []string{"tar", "find", "sed"},
		fixture: `
			mkdir -p tree/a/b/c tree/empty 'tree/with space' tree/old
			for i in 1 2 3 4 5 6 7 8 9 10; do for d in a a/b a/b/c old; do echo "$d one $i" > tree/$d/f$i.txt; done; done
			nl=$(printf 'tree/a line\nbreak'); echo newline > "$nl"; echo spaced > 'tree/with space/é ü'
			ln tree/a/f1.txt tree/a/hard; ln -s ../a/f2.txt tree/old/soft; ln -s nowhere tree/dangling; ln -s a tree/todir; mkfifo tree/fifo
			head -c 3000000 /dev/zero > tree/large; truncate -s 5000000 tree/sparse
			chmod 755 tree/a/f3.txt; chmod 600 tree/a/f4.txt; chmod 1777 tree/empty; chmod 444 tree/a/f5.txt
			cp -a tree tree2; find . -exec touch -h -d '2001-02-03 04:05:06.789' {} +`,
		script: `
			tar cf t.tar tree; mkdir un; tar xpf t.tar -C un; tar df t.tar -C un; find un | LC_ALL=C sort | wc -l
			find tree -type f -name 'f*.txt' -exec sed -i s/one/two/ {} +; cat tree/a/b/f7.txt tree/todir/f2.txt tree/old/soft
			find tree ! -newer tree2 ! -type d | LC_ALL=C sort
			sed -n 1p tree/a/hard; mv tree/a/b/f1.txt tree/a/b/f2.txt; mv tree/old tree/older; cp -a tree/a tree/copy
			rm -rf tree/a; ls tree; mkdir tree/a; ls tree/a; echo new > tree/a/f1.txt
			rm -r 'tree/with space'; mv tree/a/f1.txt 'tree/with space'
			find tree2 -depth -name '*5.txt' -delete; find tree2 -name 'f1*' | LC_ALL=C sort
			chmod -R g-r tree2/old; truncate -s 10 tree2/large; echo more >> tree2/sparse; echo x | dd of=tree2/sparse conv=notrunc seek=3 2>/dev/null
			touch -d '2002-01-01 00:00:00.123456789' tree2/a/f2.txt; echo mine > mine; ln mine mine2
			rmdir tree2/empty; ln -sfn b tree2/todir; test -p tree2/fifo; rm tree2/fifo; wc -c tree2/large tree2/sparse
			rm -rf un; ! cat nothing`,
	},
	{
		name:  "git",
		needs: []string{"git"},
		fixture: `
			git init -q -b main src; cd src; mkdir -p d/e
			for i in 1 2 3; do echo $i > f$i; echo $i > d/e/g$i; git add .; git commit -qm c$i; done
			git branch other; echo unstaged >> f2`,
		script: `
			git clone -q src clone; cd clone; git status --short --branch; echo x >> f1; git status --short
			git commit -qam more; git log --format='%H %s'; git mv d/e/g1 d/g1; git commit -qm moved; git diff --stat HEAD~2
			git gc -q; git fsck --strict; git push -q origin HEAD:pushed; cd ../src
			git status --short; git stash -q; git checkout -q other; echo o > o; git add o; git commit -qm o; git merge -q -m merged pushed
			git stash pop -q; git status --short; git log --format='%H %s'; git ls-files -s; git worktree add -q ../tree pushed; ls ../tree; git gc -q; git fsck --strict`,
		// The objects of a clone are hard links outside, and copies in the box: see
		// TestHardLinkToARealFileIsAcrossFileSystems.
		refused: `^link \S+/clone/.git/objects/\S+ EXDEV$`,
		differ:  []difference{{`/index$`, "Content", "an index of git holds the inodes and times of files"}},
	},
	{
		name:    "python venv",
		needs:   []string{"python3"},
		fixture: `printf 'import sys, json\nprint(json.dumps([sys.prefix != sys.base_prefix, sys.argv[1:]]))\n' > script.py; mkdir pkg; echo 'x = 42' > pkg/__init__.py; touch -d 2001-02-03 pkg/__init__.py`,
		script: `
			python3 -m venv v; v/bin/python script.py a b; . v/bin/activate; python -c 'import pkg, sys; print(pkg.x, sys.prefix)'
			pip --version; python -c 'import os, shutil, tempfile; d = tempfile.mkdtemp(); shutil.copytree("pkg", d + "/p"); shutil.rmtree("pkg"); shutil.move(d + "/p", "pkg"); os.rmdir(d)'
			python -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1, -2]))'`,
	},
	{
		name:    "npm and node",
		needs:   []string{"npm", "node"},
		refused: `^read \S+/home/\.npmrc ENOENT$`, // a private place: it may hold a token
		fixture: `
			mkdir pkg app; for v in 1.0.0 1.1.0; do
			echo '{"name":"tinypkg","version":"'$v'","main":"i.js","bin":{"tiny":"i.js"}}' > pkg/package.json
			printf '#!/usr/bin/env node\nmodule.exports="'$v'"\nif (require.main === module) console.log("run")\n' > pkg/i.js; npm pack --silent ./pkg; done
			echo '{"name":"app","version":"1.0.0"}' > app/package.json; cp -r app old
			cd old; npm install --silent --no-audit --no-fund --offline ../tinypkg-1.0.0.tgz`,
		script: `
			cd app; n='npm install --silent --no-audit --no-fund --offline'; $n ../tinypkg-1.0.0.tgz; node -p 'require("tinypkg")'; node_modules/.bin/tiny
			npm ls; $n ../tinypkg-1.1.0.tgz; node -p 'require("tinypkg")'
			cd ../old; $n ../tinypkg-1.1.0.tgz; node -p 'require("tinypkg")'; npm uninstall --silent --no-audit --no-fund tinypkg; npm ls`,
	},
	{
		name:  "go build",
		needs: []string{"go"},
		fixture: `
			mkdir -p mod/answer; cd mod; printf 'module x\n\ngo 1.21\n' > go.mod; printf 'package answer\n\nconst Is = 42\n' > answer/a.go
			printf 'package main\n\nimport "x/answer"\n\nfunc main() { println("built",   answer.Is) }\n' > main.go`,
		script: `cd mod; go build -o x .; ./x; gofmt -w main.go; go build -o x .; go version -m x | tail -n +2`,
	},
}

// difference is one between a box and outside that is known, and why it is there.
type difference struct {
	path  string // a regular expression
	field string
	why   string
}

// TestRealProgramsBehaveAsOutside runs programs in boxes and demands that what they print,
// their exit codes and the files that they leave are what they are outside, and that
// the real files are what they were, to the nanosecond.
func TestRealProgramsBehaveAsOutside(t *testing.T) {
	for _, p := range realPrograms {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			needPrograms(t, os.Getenv("PATH"), p.needs...)
			real := t.TempDir() // work, and the programs' home and temporary files
			work := filepath.Join(real, "work")
			for _, d := range []string{"work", "home", "tmp"} {
				if err := os.Mkdir(filepath.Join(real, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			env := programsEnv(real)
			state := filepath.Join(t.TempDir(), "home")
			run := runner(t, work, append(env, "SANDGLASS_HOME="+state))
			if out, err, code := run("sh", "-ec", p.fixture); code != 0 {
				t.Fatalf("the fixture: exit code %d\n%s%s", code, out, err)
			}
			began := time.Now()
			before := readManifest(t, real)

			script := "(" + p.script + "\n)\nprintf '\\0'; manifest ."
			boxOut, boxErr, boxCode := run("sandglass", "run", "--box", "it", "--", "sh", "-ec", script)
			diffManifests(t, "the real files, before and after", before, readManifest(t, real), nil)
			kept, errs, code := run("sandglass", "run", "--box", "it", "--", "manifest", ".")
			if code != 0 {
				t.Errorf("the next session: exit code %d\n%s", code, errs)
			}
			logged, errs, code := run("sandglass", "ops", "--box", "it", "--limit", "0", "--json", "verdict:blocked or leak:true or (surface:files.write verdict:allowed)")
			if code != 0 {
				t.Errorf("ops: exit code %d\n%s", code, errs)
			}
			refusalsAreKnown(t, logged, p.refused)

			out, errs, code := run("sh", "-ec", script)
			boxSaid, boxFiles, _ := strings.Cut(boxOut, "\x00")
			said, files, _ := strings.Cut(out, "\x00")
			if code != 0 || boxCode != code || boxSaid != said || boxErr != errs {
				t.Fatalf("in the box: exit code %d\n%s%s\noutside: exit code %d\n%s%s", boxCode, boxSaid, boxErr, code, said, errs)
			}
			inBox := parseManifest(t, boxFiles)
			diffManifests(t, "the box, at the end and in the next session", inBox, parseManifest(t, kept), nil)
			outside := parseManifest(t, files)
			for _, m := range []manifest{inBox, outside} {
				m.forgetTimesAfter(began)
			}
			diffManifests(t, "in the box and outside", inBox, outside, p.differ)
		})
	}
}

// needPrograms skips a test without those programs, or fails it where they were installed.
func needPrograms(t *testing.T, path string, programs ...string) {
	t.Helper()
	for _, prog := range programs {
		if exec.Command("env", "PATH="+path, "sh", "-c", "command -v "+prog).Run() == nil {
			continue
		}
		if os.Getenv("SANDGLASS_NO_SKIP") != "" {
			t.Fatalf("%s is not installed: tools/setup.sh installs it", prog)
		}
		t.Skipf("%s is not installed", prog)
	}
}

// runner runs programs in dir; at the test's end the box "it" and the daemon go.
func runner(t *testing.T, dir string, env []string) (run func(argv ...string) (stdout, stderr string, code int)) {
	run = func(argv ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = dir, env
		var out, err bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &err
		if cmd.Run(); cmd.ProcessState == nil {
			t.Fatalf("%q did not start", argv)
		}
		return out.String(), err.String(), cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() {
		for _, end := range [][]string{{"box", "rm", "it"}, {"stop"}} {
			if out, err, code := run(append([]string{"sandglass"}, end...)...); code != 0 {
				t.Errorf("%q: %s%s", end, out, err)
			}
		}
	})
	return run
}

// refusalsAreKnown checks that a box wrote nothing that is real, and was refused what it
// had to be refused and no more.
func refusalsAreKnown(t *testing.T, ops, known string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(ops) {
		var op core.Operation
		if err := json.Unmarshal([]byte(line), &op); err != nil {
			t.Fatal(err)
		}
		said := fmt.Sprint(op.Action, " ", op.Target, " ", op.Errno)
		if known == "" || op.Verdict != core.Blocked || !regexp.MustCompile(known).MatchString(said) {
			t.Errorf("%s: %s by %s", op.Verdict, said, op.Exe)
		}
		n++
	}
	if known != "" && n == 0 {
		t.Errorf("nothing was refused, %s should have been", known)
	}
}

// programsEnv is an environment in which programs do the same each time, in folders
// below dir.
func programsEnv(dir string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir + "/home", "TMPDIR=" + dir + "/tmp", "LC_ALL=C.UTF-8", "TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1", "npm_config_update_notifier=false", "PYTHONHASHSEED=0", "SOURCE_DATE_EPOCH=981173106",
		"GOTOOLCHAIN=local", "GOTELEMETRY=off", "GOPROXY=off", "GOFLAGS=", "CGO_ENABLED=0", "GOCACHE=" + dir + "/home/go-build"}
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env = append(env, "GIT_"+who+"_NAME=n", "GIT_"+who+"_EMAIL=a@b", "GIT_"+who+"_DATE=2001-02-03T04:05:06Z")
	}
	return env
}

// manifest is what is below a folder, by path.
type manifest map[string]file

type file struct {
	Path    string
	Mode    fs.FileMode
	Owner   string
	Links   uint64
	Size    int64
	Time    time.Time
	Content string // its hash, or where it links to
	Attrs   map[string]string
}

// printManifest is the program "manifest": it prints what is below the folder of its
// argument, a file a line.
func printManifest() {
	if err := walkManifest(os.Args[1], json.NewEncoder(os.Stdout).Encode); err != nil {
		fmt.Fprintln(os.Stderr, "manifest:", err)
		os.Exit(1)
	}
}

func readManifest(t *testing.T, dir string) manifest {
	t.Helper()
	m := manifest{}
	if err := walkManifest(dir, func(f any) error { m[f.(file).Path] = f.(file); return nil }); err != nil {
		t.Fatal(err)
	}
	return m
}

func parseManifest(t *testing.T, lines string) manifest {
	t.Helper()
	m := manifest{}
	for line := range strings.Lines(lines) {
		var f file
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("manifest: %v: %q", err, line)
		}
		m[f.Path] = f
	}
	if len(m) == 0 {
		t.Error("an empty manifest")
	}
	return m
}

func walkManifest(dir string, emit func(any) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		f := file{Path: path, Mode: fi.Mode(), Owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid), Time: fi.ModTime()}
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			if f.Content, err = os.Readlink(path); err != nil {
				return err
			}
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			f.Content = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		if !fi.IsDir() { // how large a directory is, and its links, is its file system's
			f.Links, f.Size = uint64(st.Nlink), fi.Size()
		}
		if fi.IsDir() || fi.Mode().IsRegular() {
			if f.Attrs, err = userAttrs(path); err != nil {
				return err
			}
		}
		return emit(f)
	})
}

func userAttrs(path string) (map[string]string, error) {
	names := make([]byte, 64<<10)
	n, err := syscall.Listxattr(path, names)
	if err != nil && err != syscall.ENOTSUP {
		return nil, &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	var attrs map[string]string
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := syscall.Getxattr(path, name, value)
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr", Path: path, Err: err}
		}
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[name] = string(value[:n])
	}
	return attrs, nil
}

// forgetTimesAfter makes times that are the clock's, not a program's, the same.
func (m manifest) forgetTimesAfter(began time.Time) {
	for path, f := range m {
		if f.Time.After(began) {
			f.Time = time.Time{}
			m[path] = f
		}
	}
}

// diffManifests reports what differs, except for what is known to.
func diffManifests(t *testing.T, what string, a, b manifest, known []difference) {
	t.Helper()
	var wrong []string
	seen := map[difference]int{}
	both := maps.Clone(a)
	maps.Copy(both, b)
	for _, path := range slices.Sorted(maps.Keys(both)) {
		x, inA := a[path]
		y, inB := b[path]
		if !inA || !inB {
			wrong = append(wrong, fmt.Sprintf("%q is there: %v, %v", path, inA, inB))
			continue
		}
		vx, vy := reflect.ValueOf(x), reflect.ValueOf(y)
	fields:
		for i := range vx.NumField() {
			if reflect.DeepEqual(vx.Field(i).Interface(), vy.Field(i).Interface()) {
				continue
			}
			for _, k := range known {
				if k.field == vx.Type().Field(i).Name && regexp.MustCompile(k.path).MatchString(path) {
					seen[k]++
					continue fields
				}
			}
			wrong = append(wrong, fmt.Sprintf("%q: %s: %v, %v", path, vx.Type().Field(i).Name, vx.Field(i), vy.Field(i)))
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%s, %d differences:\n%s", what, len(wrong), strings.Join(wrong[:min(len(wrong), 20)], "\n"))
	}
	for k, n := range seen {
		t.Logf("%s: %s of %d files differs: %s", what, k.field, n, k.why)
	}
}
