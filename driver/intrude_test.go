package driver

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// A program outside that reads, changes and deletes what a box holds while it runs.
func TestWhoReachesIntoARunningBoxIsOnRecord(t *testing.T) {
	f, err := sys.NewFanotify()
	if err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	if err != nil || !f.Who {
		return // only root is told who it was
	}
	f.Close()
	l := newLab(t)
	l.sh("mkdir dir; echo a > dir/a; echo b > dir/b; echo c > dir/c")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The program outside stays until the sandbox has looked at it.
	dir := l.held("b", "dir")
	var pid atomic.Int64
	seen := map[string]core.Operation{}
	want := map[string]bool{"modified b": true, "read a": true, "deleted c": true, "added d": true, "metadata a": true, "added e": true}
	begin := started(sleepPath(t), func(int) {
		c := exec.Command("/bin/sh", "-c", `cat a; echo more >> b; rm c; echo x > d; chmod 600 a; mkdir e; read line`)
		c.Dir = dir
		in, _ := c.StdinPipe()
		if err := c.Start(); err != nil {
			t.Error(err)
			cancel()
			return
		}
		pid.Store(int64(c.Process.Pid))
		<-ctx.Done()
		in.Close()
		c.Wait()
	})
	l.run(runOpts{ctx: ctx, quiet: true, live: func(op *core.Operation) {
		begin(op)
		if op.Rule != "fanotify" {
			return
		}
		seen[op.Detail["change"]+" "+strings.TrimPrefix(op.Target, filepath.Join(l.dir, "dir")+"/")] = *op
		for w := range want {
			if _, ok := seen[w]; !ok {
				return
			}
		}
		cancel()
	}}, "/bin/sh", "-c", "cat dir/a dir/b; echo own > dir/f; mv dir/f dir/g; chmod 600 dir/g; rm dir/g; mkdir dir/h; ls dir; exec "+sleepPath(t)+" 1000")
	for w := range want {
		if _, ok := seen[w]; !ok {
			t.Errorf("%s is not on record", w)
		}
	}
	for k, op := range seen {
		if name := k[strings.IndexByte(k, ' ')+1:]; strings.ContainsAny(name, "fgh") {
			t.Errorf("what the box did itself is from outside: %+v", op)
		}
	}
	if op := seen["modified b"]; op.Detail["pid"] != strconv.FormatInt(pid.Load(), 10) || op.Detail["exe"] == "" || op.Detail["uid"] != "0" {
		t.Errorf("who wrote is %q, want pid %d", op.Detail, pid.Load())
	}
	if op := seen["read a"]; op.Surface != core.OutsideRead || op.Action != core.ActRead {
		t.Errorf("the read is %+v", op)
	}
}

// Whatever a box does, with many processes that end at once.
func TestWhatABoxDoesIsNoIntrusion(t *testing.T) {
	l := newLab(t)
	l.write("tree/a/b", "b")
	for range 2 {
		r := l.sh(`for i in 1 2 3 4 5 6 7 8 9; do echo $i > f$i; cp f$i g$i; mv g$i h$i; chmod 600 h$i; rm f$i; mkdir -p d/$i; done
			echo x >> tree/a/b; cat tree/a/b; ls -R . >/dev/null; rm -r d; sed -i s/x/y/ tree/a/b; /bin/cp /bin/true prog; ./prog; rm -r tree; mkdir -p tree/a; echo b > tree/a/b
			python3 -c 'import mmap
with open("m", "w+b") as f:
    f.truncate(8192); m = mmap.mmap(f.fileno(), 8192); m[0] = 1; m.flush()'`)
		for _, op := range append(ofSurface(r.ops, core.OutsideWrite), ofSurface(r.ops, core.OutsideRead)...) {
			t.Errorf("on record %+v", op)
		}
	}
}
