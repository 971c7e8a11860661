package cli

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// boxedServices are programs that need sockets, debugging, a bus or shared memory. Their
// files differ from run to run, so here it is what they print that has to be right, and
// the real files that have to be untouched.
var boxedServices = []struct {
	name    string
	needs   []string
	asUser  bool // they refuse to run as root
	fixture string
	script  string
	want    string
	refused string // a regular expression
}{
	{
		name:    "gcc, gdb and strace",
		needs:   []string{"gcc", "gdb", "strace"},
		fixture: `printf '#include <stdio.h>\nint f(int x) { return x * 2; }\nint main(void) { printf("%%d\\n", f(21)); return 0; }\n' > a.c`,
		script: `gcc -g -O0 -o a a.c; ./a
			gdb -q -batch -ex 'break f' -ex run -ex 'print x' -ex 'set var x = 4' -ex continue ./a 2>/dev/null | grep -E '^(\$1|8$)'
			strace -f -o trace -e trace=write sh -c './a; ./a'; grep -c 'write(1, "42' trace`,
		want: "42\n$1 = 21\n8\n42\n42\n2\n",
	},
	{
		name:   "PostgreSQL",
		needs:  []string{"psql", "pg_ctl", "initdb"},
		asUser: true,
		script: `initdb -D data -A trust -U me --no-sync >/dev/null
			pg_ctl -D data -o "-k $PWD -p 5454 -F" -l log -w start >/dev/null
			psql -h $PWD -p 5454 -U me -qAtc 'create table t(a int); insert into t select generate_series(1,1000); select sum(a) from t' postgres
			psql -h 127.0.0.1 -p 5454 -U me -Atc 'select count(*) from t' postgres
			pg_ctl -D data -w -m fast stop >/dev/null; test -f data/PG_VERSION; echo stopped`,
		want: "500500\n1000\nstopped\n",
	},
	{
		name:    "a browser's headless mode",
		needs:   []string{"chromium"},
		fixture: `echo '<body><script>document.body.append("sum " + [1,2,3].reduce((a,b)=>a+b))</script>' > p.html`,
		script: `chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=$PWD/profile --dump-dom file://$PWD/p.html 2>err | grep -o 'sum 6' || { head -30 err; false; }
			test -d profile; echo kept`,
		want:    "sum 6\nkept\n",
		refused: `.`, // it looks for a bus, a GPU and the network, and does without
	},
	{
		// The FAQ's worst finding: a service outside writes for the boxed program. Here the
		// service is started in the box.
		name:  "gsettings",
		needs: []string{"gsettings", "dbus-daemon", "glib-compile-schemas", "dconf"},
		fixture: `mkdir schemas; printf '<schemalist><schema id="org.sandglass.test" path="/org/sandglass/test/"><key name="value" type="s"><default>"default"</default></key></schema></schemalist>' > schemas/org.sandglass.test.gschema.xml
			glib-compile-schemas schemas; gsettings set org.sandglass.test value outside; gsettings get org.sandglass.test value; dconf read /org/sandglass/test/value`,
		script: `gsettings get org.sandglass.test value; gsettings set org.sandglass.test value boxed; gsettings get org.sandglass.test value; dconf read /org/sandglass/test/value
			dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner string:ca.desrt.dconf | tail -1`,
		want: "'outside'\n'boxed'\n'boxed'\n   boolean true\n",
	},
}

func TestServicesInABox(t *testing.T) {
	for _, p := range boxedServices {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			if p.asUser && os.Geteuid() == 0 {
				t.Skip("it refuses to run as root; make test runs it as an ordinary user too")
			}
			path := os.Getenv("PATH")
			if servers, err := filepath.Glob("/usr/lib/postgresql/*/bin"); err == nil && len(servers) > 0 {
				path += ":" + servers[len(servers)-1]
			}
			needPrograms(t, path, p.needs...)
			real, err := os.MkdirTemp("", "sg") // short: sockets are made in it
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(real) })
			work := filepath.Join(real, "work")
			for _, d := range []string{"work", "home", "tmp", "run"} {
				if err := os.Mkdir(filepath.Join(real, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			env := append(programsEnv(real), "PATH="+path, "XDG_RUNTIME_DIR="+real+"/run", "GSETTINGS_SCHEMA_DIR="+work+"/schemas", "GSETTINGS_BACKEND=dconf",
				"DBUS_SESSION_BUS_ADDRESS="+outsideBus(t, real), "SANDGLASS_HOME="+filepath.Join(t.TempDir(), "home"))
			run := runner(t, work, env)
			if out, err, code := run("sh", "-ec", p.fixture+"\n:"); code != 0 {
				t.Fatalf("the fixture: exit code %d\n%s%s", code, out, err)
			}
			before := readManifest(t, work)
			home := readManifest(t, filepath.Join(real, "home"))
			out, errs, code := run("sandglass", "run", "--box", "it", "--", "sh", "-ec", p.script)
			if out != p.want || code != 0 {
				t.Errorf("exit code %d\n%s%s\nwant\n%s", code, out, errs, p.want)
			}
			diffManifests(t, "the real files, before and after", before, readManifest(t, work), nil)
			diffManifests(t, "the real home, before and after", home, readManifest(t, filepath.Join(real, "home")), nil)
			logged, errs, code := run("sandglass", "ops", "--box", "it", "--limit", "0", "--json", "verdict:blocked or leak:true or (surface:files.write verdict:allowed)")
			if code != 0 {
				t.Errorf("ops: exit code %d\n%s", code, errs)
			}
			refusalsAreKnown(t, logged, p.refused)
		})
	}
}

// outsideBus starts a session bus outside of any box, "" when there is no dbus-daemon.
func outsideBus(t *testing.T, real string) string {
	t.Helper()
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		return ""
	}
	cmd := exec.Command(daemon, "--session", "--nofork", "--nopidfile", "--nosyslog", "--print-address=1", "--address=unix:path="+real+"/run/bus")
	cmd.Env = append(programsEnv(real), "XDG_RUNTIME_DIR="+real+"/run")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the outside bus: %v", err)
	}
	return strings.TrimSpace(addr)
}
