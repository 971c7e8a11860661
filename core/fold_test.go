package core

import (
	"testing"
	"time"
)

// scripted numbers operations and gives each a second.
func scripted(ops ...Operation) []Operation {
	for i := range ops {
		ops[i].Seq, ops[i].Session, ops[i].Box = Seq(i+1), "S", "b"
		ops[i].Time = time.Unix(1000+int64(i), 0).UTC()
	}
	return ops
}

func at(i int64) time.Time { return time.Unix(999+i, 0).UTC() }

func TestASessionIsTheFoldOfItsOperations(t *testing.T) {
	ops := scripted(
		Operation{Surface: SandboxLifecycle, Action: ActBegin, Target: "sh -c x", Verdict: Allowed,
			Detail: Detail{"policy": "p", "observe": "lean", "net": "none"}},
		Operation{Surface: ProcessLife, Action: ActStart, PID: 2, Proc: "2", Exe: "sandglass", Target: "sandglass", Verdict: Redirected},
		Operation{Surface: FilesExec, Action: ActExec, PID: 2, Proc: "2", Exe: "sandglass", Target: "/nowhere/sh", Verdict: Allowed,
			Detail: Detail{"argv": "no", "found": "no"}},
		Operation{Surface: FilesExec, Action: ActExec, PID: 2, Proc: "2", Exe: "sandglass", Target: "/bin/sh", Verdict: Allowed, Detail: Detail{"argv": "sh -c x"}},
		Operation{Surface: FilesRead, Action: ActRead, PID: 2, Proc: "2", Exe: "/usr/bin/dash", Target: "/etc/passwd", Verdict: Allowed, Leak: true},
		Operation{Surface: ProcessLife, Action: ActStart, PID: 3, Proc: "3", Exe: "/usr/bin/dash", Verdict: Redirected, Detail: Detail{"ppid": "2", "pproc": "2"}},
		Operation{Surface: FilesExec, Action: ActExec, PID: 3, Proc: "3", Exe: "/usr/bin/dash", Target: "/bin/evil", Verdict: Blocked, Errno: "EPERM", Detail: Detail{"argv": "evil"}},
		Operation{Surface: ProcessLife, Action: ActExit, PID: 3, Proc: "3", Exe: "/usr/bin/dash", Verdict: Redirected, Detail: Detail{"signal": "SIGKILL"}},
		Operation{Surface: FilesWrite, Action: ActCreate, PID: 3, Proc: "3.1", Exe: "/usr/bin/cat", Target: "/tmp/x", Verdict: Redirected},
		Operation{Surface: ProcessLife, Action: ActExit, PID: 2, Proc: "2", Exe: "/usr/bin/dash", Verdict: Redirected, Detail: Detail{"code": "3"}},
		Operation{Surface: SandboxLifecycle, Action: ActEnd, Target: "sh -c x", Verdict: Allowed, Detail: Detail{"code": "3"}},
	)
	var f SessionFold
	for i := range ops {
		f.Fold(&ops[i])
	}
	wantView := SessionView{ID: "S", Box: "b", Command: "sh -c x", Policy: "p", Observe: "lean", Net: "none", Start: at(1), End: at(11), Exit: 3,
		LastSeq: 11, Counts: Counts{Allowed: 5, Redirected: 5, Blocked: 1, Leaks: 1}, Procs: 3, LiveProc: 1}
	if f.View != wantView {
		t.Errorf("session\n%+v, want\n%+v", f.View, wantView)
	}
	want := []ProcessView{
		{Session: "S", Proc: "2", PID: 2, Exe: "/usr/bin/dash", Argv: "sh -c x", Start: at(2), End: at(10), Exit: "3", Counts: Counts{Allowed: 3, Redirected: 2, Leaks: 1}},
		{Session: "S", Proc: "3", Parent: "2", PID: 3, Exe: "/usr/bin/dash", Start: at(6), End: at(8), Exit: "SIGKILL", Counts: Counts{Redirected: 2, Blocked: 1}},
		{Session: "S", Proc: "3.1", PID: 3, Exe: "/usr/bin/cat", Start: at(9), Counts: Counts{Redirected: 1}},
	}
	got := f.Processes()
	if len(got) != len(want) {
		t.Fatalf("%d processes, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("process %d\n%+v, want\n%+v", i, got[i], want[i])
		}
	}
	if c := f.Surfaces[SurfaceAction{FilesExec, ActExec}]; c != (Counts{Allowed: 2, Blocked: 1}) {
		t.Errorf("execs: %+v", c)
	}
}

func TestWhichOperationsChangeWhichPaths(t *testing.T) {
	for _, c := range []struct {
		name    string
		op      Operation
		file    bool
		changes bool
		other   string
	}{
		{"a read", Operation{Surface: FilesRead, Action: ActRead, Target: "/a", Verdict: Allowed}, true, false, ""},
		{"a read of the box's own file", Operation{Surface: FilesRead, Action: ActRead, Target: "/a", Verdict: Redirected}, true, false, ""},
		{"a write that lands in the box", Operation{Surface: FilesWrite, Action: ActWrite, Target: "/a", Verdict: Redirected}, true, true, ""},
		{"a write of nothing", Operation{Surface: FilesWrite, Action: ActWrite, Target: "/a", Verdict: Redirected, Detail: Detail{"found": "no"}}, true, false, ""},
		{"a blocked write", Operation{Surface: FilesWrite, Action: ActWrite, Target: "/a", Verdict: Blocked}, true, false, ""},
		{"a rename", Operation{Surface: FilesWrite, Action: ActRename, Target: "/a", Verdict: Redirected, Detail: Detail{"to": "/b"}}, true, true, "/b"},
		{"a rename to what is no path", Operation{Surface: FilesWrite, Action: ActRename, Target: "/a", Verdict: Redirected, Detail: Detail{"to": "b"}}, true, true, ""},
		{"a refused call", Operation{Surface: SystemKernel, Action: ActSyscall, Target: "bpf"}, false, false, ""},
		{"a path that could not be read", Operation{Surface: FilesWrite, Action: ActWrite, Verdict: Redirected}, false, true, ""},
	} {
		if c.op.IsFile() != c.file || c.op.Changes() != c.changes || c.op.OtherPath() != c.other {
			t.Errorf("%s: file %v, changes %v, other %q", c.name, c.op.IsFile(), c.op.Changes(), c.op.OtherPath())
		}
	}
}

func TestAnExitCodeIsANumberOrUnknown(t *testing.T) {
	for s, want := range map[string]int{"0": 0, "255": 255, "": -1, "x": -1, "-1": -1, "99999999999999999999": -1} {
		if got := exitCode(s); got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
}

func TestASparklineEndsNow(t *testing.T) {
	now := time.Unix(1003, 500)
	got := Sparkline(now, 5*time.Second, 3, []Bucket{
		{time.Unix(984, 0), Counts{Allowed: 100}}, // before
		{time.Unix(990, 0), Counts{Allowed: 1}},
		{time.Unix(999, 0), Counts{Blocked: 2}},
		{time.Unix(1000, 0), Counts{Allowed: 4}},
		{time.Unix(1003, 0), Counts{Allowed: 8, Leaks: 1}},
		{time.Unix(1005, 0), Counts{Allowed: 100}}, // a clock that is ahead
	})
	want := []Counts{{Allowed: 1}, {Blocked: 2}, {Allowed: 12, Leaks: 1}}
	for i, w := range want {
		if got[i].Counts != w || got[i].Start.Unix() != 990+5*int64(i) {
			t.Errorf("bucket %d: %+v, want %+v", i, got[i], w)
		}
	}
}
