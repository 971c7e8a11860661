package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// withMount runs the test in a mount namespace of its own, with an empty tmpfs at a place
// of it: as root and, in a user namespace, as an ordinary user. The test is called again in
// a process of its own for that, and must come to its end there.
func withMount(t *testing.T, test func(*testing.T), at, opts string) {
	const stage = "SANDGLASS_TEST_MOUNT"
	switch os.Getenv(stage) {
	case "":
		inNamespaces(t, stage+"=mount")
	case "mount":
		mountAndGoOn(t, at, opts, append(withoutEnv(os.Environ(), stage), stage+"=mounted"))
	case "mounted":
		test(t)
		fmt.Println("reached the end")
	}
}

// inNamespaces runs the test that calls it again, in new namespaces.
func inNamespaces(t *testing.T, env string) {
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^"+strings.ReplaceAll(strings.ReplaceAll(t.Name(), "/", "$/^"), "_", ".")+"$")
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		const sysAdmin = 21 // CAP_SYS_ADMIN
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, AmbientCaps: []uintptr{sysAdmin},
			UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}}
	}
	runtime.LockOSThread() // whose death is the child's
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("reached the end")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// mountAndGoOn mounts and executes the test anew, without the capability to mount: boxes are
// made by somebody who has none.
func mountAndGoOn(t *testing.T, at, opts string, env []string) {
	if err := syscall.Mount("sandglass-test", at, "tmpfs", 0, opts); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	const prCapAmbient, clearAll = 47, 4 // prctl(2)
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, prCapAmbient, clearAll, 0, 0, 0, 0); e != 0 && os.Geteuid() != 0 {
		t.Fatal(e)
	}
	t.Fatal(syscall.Exec("/proc/self/exe", os.Args, env))
}

// Where the machine gives no tun device the box runs without a network, and says why.
func TestAMachineWithoutTun(t *testing.T) {
	withMount(t, func(t *testing.T) {
		home := t.TempDir()
		t.Setenv("SANDGLASS_HOME", home)
		var stdout, stderr bytes.Buffer
		cmd := exec.Command("sandglass", "run", "--no-serve", "--rm", "--", "sh", "-c", "cat /proc/net/dev | grep -c sand0; echo ran")
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || stdout.String() != "0\nran\n" {
			t.Errorf("run: %v, %q", err, stdout.String())
		}
		if want := "the box has no network: "; !strings.Contains(stderr.String(), want) || !strings.Contains(stderr.String(), "modprobe tun") {
			t.Errorf("run says %q", stderr.String())
		}
		out, _ := exec.Command("sandglass", "doctor", "--json").Output()
		found := false
		for line := range strings.Lines(string(out)) {
			var c struct{ Name, State, Hint string }
			if json.Unmarshal([]byte(line), &c) == nil && strings.Contains(line, "tun") {
				found = found || c.State != "ok"
			}
		}
		if !found {
			t.Errorf("doctor says\n%s", out)
		}
	}, "/dev/net", "mode=755")
}
