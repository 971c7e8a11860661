package cli

import (
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sandglass/sandglass/driver"
	"github.com/sandglass/sandglass/testworld"
)

func TestMain(m *testing.M) {
	driver.Stage() // a box's first process is this binary, too
	testworld.Stage()
	testscript.Main(m, map[string]func(){"sandglass": func() { os.Exit(Main()) }, "manifest": printManifest, "record": recordSession, "visit": testworld.Visit})
}

var update = flag.Bool("update", false, "write the golden files of the scripts anew")

// TestScripts runs the scripts of testdata/script, each with a state folder, a home and a
// daemon (if it starts one) of its own. Beyond testscript's own commands they have
//
//	code N PROG ARG...   PROG ends with exit code N
//	daemon-pid VAR       sets VAR to the pid of the daemon
//	listen VAR           listens on a port until the script ends, and sets VAR to its address
//
// and the program record: see [recordSession].
//
// A script whose name begins with "box" needs what `sandglass doctor` says that a box needs.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			me := filepath.Join(e.WorkDir, "me")
			if err := os.Mkdir(me, 0o700); err != nil {
				return err
			}
			home := filepath.Join(e.WorkDir, "me", ".sandglass")
			e.Setenv("HOME", me)
			e.Setenv("SANDGLASS_HOME", home)
			e.Setenv("LC_ALL", "C.UTF-8")
			bin, err := exec.LookPath("sandglass")
			if err != nil {
				return err
			}
			e.Defer(func() { // no daemon outlives its script
				stop := exec.Command(bin, "stop")
				stop.Env = append(os.Environ(), "SANDGLASS_HOME="+home)
				if out, err := stop.CombinedOutput(); err != nil {
					t.Errorf("stop the daemon of %s: %v\n%s", e.WorkDir, err, out)
				}
			})
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":       scriptCode,
			"daemon-pid": scriptDaemonPID,
			"listen":     scriptListen,
		},
	})
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROG ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%v ended with exit code %d, want %d\n%s", args[1:], got, want, ts.ReadFile("stderr"))
	}
}

func scriptDaemonPID(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: daemon-pid VAR")
	}
	d, err := Home(ts.Getenv("SANDGLASS_HOME")).daemonInfo()
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(d.PID))
}

func scriptListen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen VAR")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	go func() { // whoever connects is hung up on
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	ts.Setenv(args[0], l.Addr().String())
}
