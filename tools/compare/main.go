// Command compare checks that nothing is missed: it runs the same workloads in a box and
// natively under strace, and looks for every path that strace saw opened, created,
// changed, deleted or executed with success among the box's operations. It prints both
// counts and every difference with its explanation; one that has none is a failure.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// workloads are scripts that run in a folder with: src, a git repository; pkg.tgz, an npm
// package; mod, a Go module.
var workloads = []struct{ name, needs, script string }{
	{"shell", "tar", "tar cf t.tar src; mkdir un; tar xf t.tar -C un; find un -type f | wc -l; sed -i s/1/one/ un/src/f1; mv un/src/f2 un/moved; ln -s moved un/link; chmod 600 un/moved; touch -d 2001-01-01 un/moved; cp -r un un2; rm -rf un src"},
	{"git", "git", "git clone -q src clone; cd clone; git status --short; echo x >> f1; git status --short; git -c user.email=a@b -c user.name=n commit -qam more; git log --oneline"},
	{"python", "/usr/bin/python3", "/usr/bin/python3 -m venv --without-pip v; v/bin/python3 -c 'import json, sys; print(sys.prefix)'"},
	{"go", "go", "cd mod; go build -o x .; ./x"},
	{"npm", "npm", "mkdir app; cd app; echo '{\"name\":\"app\",\"version\":\"1.0.0\"}' > package.json; npm install --no-audit --no-fund --offline ../pkg.tgz; node -e 'require(\"tinypkg\")'"},
}

const fixture = `
mkdir -p src pkg/package mod home/tmp; cd src; git init -q .
for i in 1 2 3; do echo $i > f$i; git add .; git -c user.email=a@b -c user.name=n commit -qm c$i; done; cd ..
echo '{"name":"tinypkg","version":"1.0.0","main":"i.js"}' > pkg/package/package.json; echo 'module.exports=42' > pkg/package/i.js
tar czf pkg.tgz -C pkg package
printf 'module x\n\ngo 1.26\n' > mod/go.mod; printf 'package main\n\nfunc main() { println("built") }\n' > mod/main.go
`

func main() {
	box := flag.String("sandglass", "./sandglass", "the binary to check")
	only := flag.String("only", "", "one workload")
	flag.Parse()
	bad, ran := 0, 0
	for _, w := range workloads {
		if *only != "" && w.name != *only {
			continue
		}
		if _, err := exec.LookPath(w.needs); err != nil {
			fmt.Printf("%-8s not compared: %s is not installed\n", w.name, w.needs)
			continue
		}
		n, err := compare(*box, w.name, w.script)
		if err != nil {
			fmt.Fprintf(os.Stderr, "compare: %s: %v\n", w.name, err)
			os.Exit(1)
		}
		bad, ran = bad+n, ran+1
	}
	if bad > 0 || ran == 0 {
		fmt.Printf("%d paths are missing, %d workloads were compared\n", bad, ran)
		os.Exit(1)
	}
}

func compare(box, name, script string) (missing int, err error) {
	if box, err = filepath.Abs(box); err != nil {
		return 0, err
	}
	top, err := os.MkdirTemp("/var/tmp", "sandglass-compare-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(top)
	dir := filepath.Join(top, "work")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	env := append(os.Environ(), "HOME="+dir+"/home", "TMPDIR="+dir+"/home/tmp", "GOCACHE="+dir+"/home/gocache", "GOTELEMETRY=off", "GOFLAGS=",
		"GIT_CONFIG_NOSYSTEM=1", "npm_config_cache="+dir+"/home/npm", "npm_config_update_notifier=false", "LC_ALL=C", "SANDGLASS_HOME="+top+"/home")
	run := func(argv ...string) (string, error) {
		c := exec.Command(argv[0], argv[1:]...)
		c.Dir, c.Env = dir, env
		var errs strings.Builder
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", argv[0], err, errs.String())
		}
		return string(out), err
	}
	if _, err := run("/bin/sh", "-ec", fixture); err != nil {
		return 0, err
	}
	// The box first: it leaves the files as they are for the run under strace.
	boxed, err := run(box, "run", "--box", name, "--", "/bin/sh", "-ec", script)
	if err != nil {
		return 0, err
	}
	defer run(box, "stop")
	logged := map[string]bool{}
	out, err := run(box, "ops", "--box", name, "--json", "--limit", "0")
	if err != nil {
		return 0, err
	}
	ops := 0
	dec := json.NewDecoder(strings.NewReader(out))
	for {
		var op struct {
			Target string
			Detail map[string]string
		}
		if err := dec.Decode(&op); err == io.EOF {
			break
		} else if err != nil {
			return 0, fmt.Errorf("read operations: %w", err)
		}
		ops++
		for _, p := range []string{op.Target, op.Detail["to"], op.Detail["from"]} {
			logged[p] = true
		}
	}
	native, err := run("strace", "-ff", "-qq", "-y", "-s", "4096", "-o", top+"/trace", "-e",
		"trace=%file,chdir,fchdir,clone,clone3,fork,vfork,fchmod,fchown,ftruncate,fsetxattr,fremovexattr,futimesat",
		"/bin/sh", "-ec", script)
	if err != nil {
		return 0, err
	}
	if name != "git" && native != boxed { // a commit's hash is of its time
		fmt.Printf("%-8s natively it says %q, in the box %q\n", name, native, boxed)
		missing++
	}
	seen, calls, err := readTraces(top+"/trace", dir)
	if err != nil {
		return 0, err
	}
	masked := map[string]bool{}
	for p := range logged {
		masked[mask(p)] = true
	}
	explained := map[string]int{}
	for _, p := range slices.Sorted(maps.Keys(seen)) {
		cands := seen[p]
		switch {
		case slices.ContainsFunc(cands, func(c string) bool { return logged[c] }):
		case slices.ContainsFunc(cands, func(c string) bool { return masked[mask(c)] }):
			explained["a process id or a name that is another in each run"]++
		case strings.HasPrefix(p, "/proc/") || strings.HasPrefix(p, "/sys/"):
			explained["the box has a /proc and /sys of its own"]++
			fmt.Printf("%-8s   only outside: %s\n", name, p)
		default:
			missing++
			fmt.Printf("%-8s   MISSING: %q\n", name, p)
		}
	}
	fmt.Printf("%-8s strace: %d successful calls on %d paths; box: %d operations on %d paths; missing: %d\n", name, calls, len(seen), ops, len(logged), missing)
	for _, why := range slices.Sorted(maps.Keys(explained)) {
		fmt.Printf("%-8s   %d differ: %s\n", name, explained[why], why)
	}
	return missing, nil
}

var randomName = regexp.MustCompile(`/tmp/[^/]+|/[0-9a-f]{2}/|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{6,}|[0-9]+|[A-Za-z0-9]*[0-9A-Z][A-Za-z0-9]{5,}|(tmp|XX|\.)[A-Za-z0-9_]{6,}`)

// mask replaces what is another in each run: numbers, hashes, names of temporary files.
func mask(p string) string { return randomName.ReplaceAllString(p, "*") }

// what a call of each name does is told by which of its arguments are paths; calls that
// only look (stat, access, readlink) are not intercepted and left out.
var callPaths = map[string]int{
	"open": 1, "openat": 1, "openat2": 1, "creat": 1, "execve": 1, "execveat": 1, "unlink": 1, "unlinkat": 1, "rmdir": 1,
	"mkdir": 1, "mkdirat": 1, "mknod": 1, "mknodat": 1, "truncate": 1, "chmod": 1, "fchmodat": 1, "fchmodat2": 1, "chown": 1, "lchown": 1,
	"fchownat": 1, "utime": 1, "utimes": 1, "futimesat": 1, "utimensat": 1, "setxattr": 1, "lsetxattr": 1, "removexattr": 1, "lremovexattr": 1,
	"rename": 2, "renameat": 2, "renameat2": 2, "link": 2, "linkat": 2, "symlink": 2, "symlinkat": 2,
	"fchmod": 0, "fchown": 0, "ftruncate": 0, "fsetxattr": 0, "fremovexattr": 0,
}

var (
	callLine = regexp.MustCompile(`^(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+)(?:<(.*)>)?`)
	pathArg  = regexp.MustCompile(`(?:(AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"`)
	fdArg    = regexp.MustCompile(`^\d+<(/[^>]*)>`)
)

// readTraces reads strace's files, one a process, and returns every path that a call
// succeeded on, with the names under which the box may have logged it.
func readTraces(prefix, dir string) (seen map[string][]string, calls int, err error) {
	files, err := filepath.Glob(prefix + ".*")
	if err != nil || len(files) == 0 {
		return nil, 0, fmt.Errorf("strace left no trace: %v", err)
	}
	seen = map[string][]string{}
	children, cwds := map[string]bool{}, map[string]string{}
	var read func(file, cwd string) error
	read = func(file, cwd string) error {
		children[file] = true
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		sc := bufio.NewScanner(f)
		sc.Buffer(nil, 1<<22)
		for sc.Scan() {
			m := callLine.FindStringSubmatch(sc.Text())
			if m == nil || strings.HasPrefix(m[3], "-") {
				continue
			}
			name, args, fdPath := m[1], m[2], m[4]
			if i := strings.Index(args, "AT_FDCWD<"); i >= 0 {
				cwd = args[i+9 : i+9+strings.IndexByte(args[i+9:], '>')]
			}
			switch name {
			case "clone", "clone3", "fork", "vfork":
				child := prefix + "." + m[3]
				if _, err := os.Stat(child); err == nil && !children[child] && !strings.Contains(args, "CLONE_THREAD") {
					if err := read(child, cwd); err != nil {
						return err
					}
				} else if err == nil {
					cwds[child] = cwd
				}
				continue
			case "chdir":
				if p := pathArg.FindStringSubmatch(args); p != nil {
					cwd = absolute(cwd, unquote(p[3]))
				}
				continue
			case "fchdir":
				if p := fdArg.FindStringSubmatch(args); p != nil {
					cwd = p[1]
				}
				continue
			}
			n, ok := callPaths[name]
			if !ok {
				continue
			}
			calls++
			if n == 0 {
				if p := fdArg.FindStringSubmatch(args); p != nil {
					seen[p[1]] = []string{p[1]}
				}
				continue
			}
			if fdPath != "" { // what was opened, as the kernel calls it
				if strings.HasPrefix(fdPath, "/") {
					fdPath = strings.TrimSuffix(fdPath, " (deleted)")
					seen[fdPath] = []string{fdPath}
				}
				continue
			}
			found := pathArg.FindAllStringSubmatch(args, n)
			if strings.HasPrefix(name, "symlink") && len(found) == 2 {
				found = found[1:] // the first is the text of the link
			}
			for _, p := range found {
				base := cwd
				if p[2] != "" {
					base = p[2]
				}
				abs := absolute(base, unquote(p[3]))
				cands := []string{abs}
				if r, err := filepath.EvalSymlinks(abs); err == nil {
					cands = append(cands, r)
				}
				if r, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
					cands = append(cands, filepath.Join(r, filepath.Base(abs)))
				}
				seen[abs] = cands
			}
		}
		return sc.Err()
	}
	// The first process is the one that none other made: the lowest number.
	slices.SortFunc(files, func(a, b string) int { return pidOf(a) - pidOf(b) })
	for _, f := range files {
		if !children[f] {
			cwd := dir
			if c, ok := cwds[f]; ok {
				cwd = c
			}
			if err := read(f, cwd); err != nil {
				return nil, 0, err
			}
		}
	}
	return seen, calls, nil
}

func pidOf(file string) int {
	n, _ := strconv.Atoi(file[strings.LastIndexByte(file, '.')+1:])
	return n
}

func absolute(base, p string) string {
	if !filepath.IsAbs(p) {
		p = filepath.Join(base, p)
	}
	return filepath.Clean(p)
}

// unquote undoes strace's escapes, which are C's.
func unquote(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	if u, err := strconv.Unquote(`"` + s + `"`); err == nil {
		return u
	}
	return s
}
