// Command bench measures what a box costs: each workload natively, in a box with
// everything on (interception, spool, bus, fold), under bubblewrap and under strace
// with the same calls, in one run, as ratios to native.
//
// The time of a pass is taken inside, by this program run where the workload runs, so
// that starting a box is a figure of its own. The first pass in a fresh box meets cold
// caches of the overlay and is shown beside the median of the later ones.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

type workload struct {
	name   string
	passes int
	aim    string
	run    func(dir string) error
}

func sh(script string) error {
	c := exec.Command("/bin/sh", "-ec", script)
	c.Stderr = os.Stderr
	return c.Run()
}

func goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	return strings.TrimSpace(string(out)), err
}

func workloads(src string) []workload {
	return []workload{
		{"go build net/http, cold", 1, "1.10", func(dir string) error {
			cache, err := os.MkdirTemp(dir, "cache")
			if err != nil {
				return err
			}
			c := exec.Command("go", "build", "net/http")
			c.Env = append(os.Environ(), "GOCACHE="+cache, "GOFLAGS=")
			c.Dir = dir
			c.Stderr = os.Stderr
			return c.Run()
		}},
		{"50 Python starts", 5, "1.30", func(string) error {
			for range 50 {
				if err := exec.Command("/usr/bin/python3", "-c", "import json").Run(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"500 fork+exec", 5, "1.30", func(string) error {
			return sh("i=0; while [ $i -lt 500 ]; do /bin/true; i=$((i+1)); done")
		}},
		// Each pass into a folder of its own, and nothing is removed before the end: ext4 is
		// slow at making files for half a minute after as many were deleted.
		{"tar x of a large tree", 3, "1.30", func(dir string) error {
			into, err := os.MkdirTemp(dir, "un")
			if err != nil {
				return err
			}
			return sh("tar xf '" + dir + "/tree.tar' -C '" + into + "'")
		}},
		{"grep -r over a source tree", 6, "2.00", func(string) error {
			return sh("grep -rq no-such-text-anywhere-else '" + src + "' || true")
		}},
	}
}

func main() {
	inner := flag.Int("inner", -1, "run this workload here and print nanoseconds, a pass a line")
	dir := flag.String("dir", "", "folder of the workloads' files")
	src := flag.String("src", "", "source tree")
	box := flag.String("sandglass", "./sandglass", "the binary to measure")
	bare := flag.Bool("floor", false, "run a command under a supervisor that only says go on")
	inFloor := flag.Bool("floored", false, "the other end of -floor")
	flag.Parse()
	if *bare || *inFloor {
		run := floor
		if *inFloor {
			run = floored
		}
		fmt.Fprintln(os.Stderr, "bench:", run(flag.Args()))
		os.Exit(1)
	}
	if *inner >= 0 {
		w := workloads(*src)[*inner]
		for range w.passes {
			t := time.Now()
			if err := w.run(*dir); err != nil {
				fmt.Fprintln(os.Stderr, w.name+":", err)
				os.Exit(1)
			}
			fmt.Println(time.Since(t).Nanoseconds())
		}
		return
	}
	if err := bench(*box); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const traced = "trace=open,openat,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir,mknod,mknodat,truncate,ftruncate,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utime,utimes,futimesat,utimensat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,execve,execveat,exit,exit_group,bind,mount,umount2,unshare,setns"

func bench(box string) error {
	box, err := filepath.Abs(box)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	top, err := os.MkdirTemp("/var/tmp", "sandglass-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	root, err := goroot()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	home, dir, src := filepath.Join(top, "home"), filepath.Join(top, "work"), filepath.Join(root, "src")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := sh("tar cf '" + dir + "/tree.tar' -C '" + src + "' ."); err != nil {
		return err
	}
	env := append(os.Environ(), "SANDGLASS_HOME="+home)
	command := func(argv ...string) *exec.Cmd {
		c := exec.Command(argv[0], argv[1:]...)
		c.Env = env
		return c
	}
	// The daemon runs all the while.
	if out, err := command(box, "run", "--box", "warm", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	defer command(box, "stop").Run()

	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("Linux %s, %d CPUs, load %s\n\n", strings.TrimSpace(string(kernel)), runtime.NumCPU(), strings.TrimSpace(string(load)))

	type how struct {
		name string
		argv func(i int) []string
	}
	hows := []how{{"native", func(int) []string { return nil }},
		{"boxed", func(i int) []string { return []string{box, "run", "--box", "b" + strconv.Itoa(i), "--"} }}}
	hows = append(hows, how{"notify", func(int) []string { return []string{self, "-floor", "--"} }})
	if p, err := exec.LookPath("bwrap"); err == nil {
		hows = append(hows, how{"bwrap", func(int) []string { return []string{p, "--dev-bind", "/", "/", "--unshare-pid", "--unshare-ipc"} }})
	}
	if p, err := exec.LookPath("strace"); err == nil {
		hows = append(hows, how{"strace", func(int) []string { return []string{p, "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", traced} }})
	}
	fmt.Printf("%-28s %10s", "", "native")
	for _, h := range hows[1:] {
		fmt.Printf(" %8s", h.name)
	}
	fmt.Printf(" %8s %14s\n", "aim", "boxed, first")
	for i, w := range workloads(src) {
		var native time.Duration
		var line, first string
		for _, h := range hows {
			ts, err := passes(command(append(h.argv(i), self, "-inner", strconv.Itoa(i), "-dir", dir, "-src", src)...))
			if err != nil {
				return fmt.Errorf("%s, %s: %w", w.name, h.name, err)
			}
			m := median(ts)
			switch h.name {
			case "native":
				native = m
			case "boxed":
				first = ratio(ts[0], native)
				fallthrough
			default:
				line += fmt.Sprintf(" %8s", ratio(m, native))
			}
		}
		fmt.Printf("%-28s %10s%s %8s %14s\n", w.name, native.Round(time.Millisecond), line, w.aim, first)
	}

	fmt.Println()
	var whole, start []time.Duration
	for range 21 {
		t := time.Now()
		out, err := command(box, "run", "--box", "warm", "--", "/bin/date", "+%s%N").Output()
		if err != nil {
			return err
		}
		whole = append(whole, time.Since(t))
		n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil {
			return err
		}
		start = append(start, time.Unix(0, n).Sub(t.Round(0)))
	}
	fmt.Printf("from `sandglass run` to the command's own clock: %s (aim: 50ms on an idle machine); to its end: %s\n",
		median(start).Round(100*time.Microsecond), median(whole).Round(100*time.Microsecond))
	return nil
}

// passes runs a command that prints nanoseconds, a pass a line.
func passes(c *exec.Cmd) ([]time.Duration, error) {
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	var ts []time.Duration
	for f := range strings.FieldsSeq(string(out)) {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, err
		}
		ts = append(ts, time.Duration(n))
	}
	if len(ts) == 0 {
		return nil, fmt.Errorf("no pass was timed")
	}
	return ts, nil
}

// median leaves the first of several passes out: it is shown apart.
func median(ts []time.Duration) time.Duration {
	if len(ts) > 1 {
		ts = ts[1:]
	}
	s := slices.Sorted(slices.Values(ts))
	return s[len(s)/2]
}

func ratio(a, b time.Duration) string { return fmt.Sprintf("%.2f", float64(a)/float64(b)) }
