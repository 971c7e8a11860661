// Command netbench measures what a box's network costs: throughput and requests a second
// natively, through pasta, through slirp4netns and through a box, in one run, as ratios to
// native; then how many flows a box opens a second, and what one that is open costs the
// supervisor. All of it happens in network namespaces of its own ([testworld]).
//
// It needs iperf3 and wrk, and for comparison pasta and slirp4netns: apt-get install iperf3
// wrk passt slirp4netns. With arguments behind `--` it runs a command in that world instead,
// natively: `go run ./tools/netbench -- bash`.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/testworld"
)

func main() {
	testworld.Stage()
	box := flag.String("sandglass", "./sandglass", "the binary to measure")
	seconds := flag.Int("seconds", 5, "of each measurement")
	rounds := flag.Int("rounds", 3, "of all measurements; the median counts")
	open := flag.Int("flows", 10_000, "that are open at once")
	visit := flag.Bool("visit", false, "be the program that opens flows: testworld.Visit")
	flag.Parse()
	if *visit {
		os.Args = append(os.Args[:1], flag.Args()...)
		testworld.Visit()
		return
	}
	w := testworld.Enter()
	if flag.NArg() > 0 {
		cmd := exec.Command(flag.Arg(0), flag.Args()[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "netbench:", err)
			os.Exit(max(1, cmd.ProcessState.ExitCode()))
		}
		return
	}
	b := &bench{world: w, seconds: strconv.Itoa(*seconds), rounds: *rounds, flows: *open}
	if err := b.run(*box); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}

// way is how a client gets to the servers: prefix is the command line before its own.
type way struct {
	name   string
	prefix []string
}

type bench struct {
	world   *testworld.World
	box     string
	home    string
	seconds string
	rounds  int
	flows   int
	at      int // the server of the last measurement of new flows
}

const iperfPort = 5201

func (b *bench) run(box string) (err error) {
	for _, p := range []string{"iperf3", "wrk"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w: apt-get install iperf3 wrk passt slirp4netns", err)
		}
	}
	if b.box, err = filepath.Abs(box); err != nil {
		return err
	}
	if _, err := os.Stat(b.box); err != nil {
		return fmt.Errorf("%w: make build", err)
	}
	top, err := os.MkdirTemp("/var/tmp", "sandglass-netbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	b.home = filepath.Join(top, "home")
	defer b.command(b.box, "stop").Run()
	if err := b.world.Start(iperfPort, "iperf3", "-s", "-p", strconv.Itoa(iperfPort)); err != nil {
		return err
	}
	ways := []way{{"native", nil}}
	for _, w := range []way{pasta(), slirp(top)} {
		if _, err := exec.LookPath(w.name); err != nil {
			fmt.Fprintf(os.Stderr, "netbench: %s is not installed and not compared with\n", w.name)
			continue
		}
		ways = append(ways, w)
	}
	ways = append(ways, way{"box", []string{b.box, "run", "--box", "bench", "--net", "own", "--"}})
	measures := []struct {
		name, unit string
		run        func(way) (float64, error)
	}{
		{"iperf3, up", "Gbit/s", func(w way) (float64, error) { return b.iperf(w) }},
		{"iperf3, down", "Gbit/s", func(w way) (float64, error) { return b.iperf(w, "-R") }},
		{"iperf3, 4 flows up", "Gbit/s", func(w way) (float64, error) { return b.iperf(w, "-P", "4") }},
		{"wrk, 16 connections", "1/s", func(w way) (float64, error) { return b.wrk(w) }},
		{"new flows", "1/s", func(w way) (float64, error) { return b.rate(w) }},
	}
	got := make([]map[string][]float64, len(measures))
	for range b.rounds {
		for i, m := range measures {
			if got[i] == nil {
				got[i] = map[string][]float64{}
			}
			for _, w := range ways {
				v, err := m.run(w)
				switch {
				case err != nil && (w.name == "native" || w.name == "box"):
					return fmt.Errorf("%s, %s: %w", m.name, w.name, err)
				case err != nil: // slirp4netns does not open 10,000 flows one after another
					fmt.Fprintf(os.Stderr, "netbench: %s, %s: %v\n", m.name, w.name, err)
					continue
				}
				got[i][w.name] = append(got[i][w.name], v)
			}
		}
	}
	fmt.Printf("%-22s %-7s", "", "")
	for _, w := range ways {
		fmt.Printf(" %18s", w.name)
	}
	fmt.Println()
	for i, m := range measures {
		fmt.Printf("%-22s %-7s", m.name, m.unit)
		native := median(got[i]["native"])
		for _, w := range ways {
			if len(got[i][w.name]) == 0 {
				fmt.Printf(" %18s", "-")
				continue
			}
			v := median(got[i][w.name])
			fmt.Printf(" %10.*f (%.2f)", map[bool]int{true: 2, false: 0}[v < 1000], v, v/native)
		}
		fmt.Println()
	}
	return b.open()
}

func median(vs []float64) float64 {
	vs = slices.Sorted(slices.Values(vs))
	return vs[len(vs)/2]
}

func (b *bench) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "SANDGLASS_HOME="+b.home)
	return cmd
}

func (b *bench) output(w way, argv ...string) ([]byte, error) {
	cmd := b.command(slices.Concat(w.prefix, argv)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%q: %w: %s%s", argv, err, out, errs.Bytes())
	}
	return out, nil
}

// iperf returns Gbit/s that arrived.
func (b *bench) iperf(w way, flags ...string) (float64, error) {
	out, err := b.output(w, append([]string{"iperf3", "-J", "-c", testworld.Web.String(), "-p", strconv.Itoa(iperfPort), "-t", b.seconds}, flags...)...)
	if err != nil {
		return 0, err
	}
	var r struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, err
	}
	return r.End.Received.Bits / 1e9, nil
}

// wrk returns requests a second.
func (b *bench) wrk(w way) (float64, error) {
	out, err := b.output(w, "wrk", "-t", "1", "-c", "16", "-d", b.seconds, "http://"+testworld.Web.String()+"/")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, "Requests/sec:"); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("wrk said %s", out)
}

// visitor is this program's other mode.
func visitor(args ...string) ([]string, error) {
	self, err := os.Executable()
	return append([]string{self, "-visit", "--"}, args...), err
}

// rate returns new flows a second.
func (b *bench) rate(w way) (float64, error) {
	// An address of its own for each: ports of flows that are over are not free for a minute.
	b.at++
	addr := fmt.Sprintf("203.0.113.%d", 10+b.at%21)
	argv, err := visitor("rate", "10000", "16", addr, strconv.Itoa(testworld.PortHold))
	if err != nil {
		return 0, err
	}
	out, err := b.output(w, argv...)
	if err != nil {
		return 0, err
	}
	var n, ns float64
	if _, err := fmt.Sscan(string(out), &n, &ns); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return n / ns * 1e9, nil
}

// open has a box hold flows, and prints what the supervisor takes for them.
func (b *bench) open() error {
	argv, err := visitor("many", strconv.Itoa(b.flows), testworld.Web.String(), strconv.Itoa(testworld.PortHold))
	if err != nil {
		return err
	}
	idle, err := b.command(b.box, "run", "--box", "idle", "--net", "own", "--", "true").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, idle)
	}
	cmd := b.command(append([]string{b.box, "run", "--box", "many", "--net", "own", "--limit", "open-files=" + strconv.Itoa(b.flows+1000), "--", "sh", "-c", `echo up; read go; exec "$@"`, "sh"}, argv...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	read := func() (string, error) { return lines.ReadString('\n') }
	if _, err := read(); err != nil {
		return errors.Join(err, cmd.Wait())
	}
	before, err := memory(cmd.Process.Pid)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(in, "\n"); err != nil {
		return err
	}
	line, err := read()
	if err != nil {
		return errors.Join(err, cmd.Wait())
	}
	after, err := memory(cmd.Process.Pid)
	if err != nil {
		return err
	}
	var n, ns int64
	if _, err := fmt.Sscan(line, &n, &ns); err != nil {
		return fmt.Errorf("%w: %s", err, line)
	}
	in.Close()
	held, _ := read()
	fmt.Printf("%d flows open at once after %.1f s: %.1f KiB of the supervisor's memory for each (%d MiB before, %d MiB after); %s\n",
		n, float64(ns)/1e9, float64(after-before)/1024/float64(n), before>>20, after>>20, strings.TrimSpace(held))
	return cmd.Wait()
}

// memory is a process's resident memory.
func memory(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		return 0, err
	}
	return resident * int64(syscall.Getpagesize()), nil
}

// pasta runs a command in a namespace behind itself (pasta(1)). It will not run as the root
// of the machine.
func pasta() way {
	return way{"pasta", []string{"unshare", "--user", "--map-root-user", "pasta", "--config-net", "--quiet", "-4", "-i", "lan0", "--"}}
}

// slirp runs a command in a namespace that slirp4netns(1) serves, once it is ready.
func slirp(dir string) way {
	return way{"slirp4netns", []string{"sh", "-ec", `rm -f "$0".*; mkfifo "$0.pid" "$0.go" "$0.ready"
		unshare --user --map-root-user --net sh -c 'echo $$ >"$0.pid"; read go <"$0.go"; exec "$@"' "$0" "$@" & command=$!
		read pid <"$0.pid"
		slirp4netns --configure --mtu=65520 --ready-fd=3 "$pid" tap0 3>"$0.ready" >/dev/null 2>&1 & slirp=$!
		head -c 1 "$0.ready" >/dev/null; echo >"$0.go"
		code=0; wait $command || code=$?; kill $slirp; exit $code`, filepath.Join(dir, "slirp")}}
}
