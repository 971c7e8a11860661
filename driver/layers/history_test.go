package layers

import (
	"bytes"
	"context"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

// past is a box's folder with one layer, whose changes a test makes itself, as the overlay
// would, and tells the history before.
type past struct {
	t   *testing.T
	b   Dir
	up  string
	at  string // the real directory
	h   *History
	now time.Time
}

func newPast(t *testing.T, limits core.Limits) *past {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &past{t: t, b: Dir(filepath.Join(top, "box")), at: filepath.Join(top, "real"), now: time.Now()}
	l := Layer{Path: p.at, Dir: "0"}
	p.up = p.b.Upper(l)
	for _, d := range []string{p.up, p.at, p.b.Work(l), p.b.At("run")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(p.b.At("layers.json"), []byte(`[{"path":"`+p.at+`","dir":"0"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if p.h, err = OpenHistory(p.b, []Layer{l}, "S", limits, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.h.Close)
	return p
}

// write tells the history and then writes, and returns what was kept.
func (p *past) write(name string, data []byte) Kept {
	p.t.Helper()
	p.now = time.Now()
	k, later := p.h.Touch(p.now, filepath.Join(p.at, name), Writes)
	if later != nil {
		k = later()
	}
	if err := os.WriteFile(filepath.Join(p.up, name), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return k
}

func randomBytes(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

// TestWhatGoesWhenTheRoomForVersionsIsFull writes more versions than there is room for: those
// between go, of the path with the most bytes, and the first of each path stays.
func TestWhatGoesWhenTheRoomForVersionsIsFull(t *testing.T) {
	p := newPast(t, core.Limits{Versions: 1 << 20, VersionFile: 512 << 10})
	p.write("letter", []byte("dear friend"))
	p.write("big", randomBytes(0, 100<<10))
	for i := range int64(40) {
		if k := p.write("big", randomBytes(i+1, 100<<10)); k.Why != "" {
			t.Fatalf("version %d was not kept: %s", i, k.Why)
		}
	}
	if k := p.write("letter", []byte("gone")); k.Version == "" {
		t.Fatalf("the letter was not kept: %+v", k)
	}
	rs, _, _, err := p.b.records()
	if err != nil {
		t.Fatal(err)
	}
	u := usage(rs)
	store := p.b.objects()
	var bytes int64
	for id := range u.objects {
		n, _ := store.has(id)
		bytes += n
	}
	if bytes > 1<<20 {
		t.Errorf("%d bytes are kept, the limit is %d", bytes, 1<<20)
	}
	for path, x := range u.paths {
		if _, ok := store.has(x.versions[0]); !ok {
			t.Errorf("the first version of %s went", path)
		}
	}
	if n := len(u.paths[filepath.Join(p.at, "big")].versions); n < 40 {
		t.Errorf("%d versions were told of", n)
	}
	k, later := p.h.Touch(time.Now(), filepath.Join(p.at, "big"), Goes)
	if later != nil {
		k = later()
	}
	if k.Version == "" {
		t.Errorf("the last version was not kept: %+v", k)
	}
	if err := os.WriteFile(filepath.Join(p.up, "huge"), randomBytes(9, 600<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if k := p.write("huge", nil); k.Version != "" || !strings.Contains(k.Why, "version-file") {
		t.Errorf("a file above the limit: %+v", k)
	}
}

// TestAFloodDrivesNoFirstVersionOut fills the room with first versions of large files: a
// small file that comes after is kept all the same.
func TestAFloodDrivesNoFirstVersionOut(t *testing.T) {
	p := newPast(t, core.Limits{Versions: 1 << 20})
	full := false
	for i := range int64(20) {
		name := "junk" + string(rune('a'+i))
		p.write(name, randomBytes(i, 90<<10))
		k := p.write(name, nil)
		full = full || k.Limit
	}
	if !full {
		t.Fatal("there was room for all")
	}
	p.write("letter", randomBytes(77, 20<<10))
	if k := p.write("letter", nil); k.Version == "" {
		t.Errorf("the letter was not kept: %+v", k)
	}
}

// TestARollbackThatIsCutShortIsDoneAgain stops a rollback after each of its steps.
func TestARollbackThatIsCutShortIsDoneAgain(t *testing.T) {
	for stop := 0; ; stop++ {
		p := newPast(t, core.Limits{})
		p.write("a", []byte("a first"))
		p.write("b", []byte("b first"))
		then := time.Now()
		p.write("a", []byte("a second"))
		p.h.Touch(time.Now(), filepath.Join(p.at, "b"), Goes)
		os.Remove(filepath.Join(p.up, "b"))
		p.h.Touch(time.Now(), filepath.Join(p.at, "b"), Comes)
		os.Mkdir(filepath.Join(p.up, "b"), 0o700)
		p.write("b/c", []byte("in the way"))
		steps := 0
		rollbackStep = func() error {
			if steps++; steps > stop {
				return errors.New("stopped")
			}
			return nil
		}
		_, err := p.b.RollbackTo(context.Background(), then)
		rollbackStep = nil
		if err == nil {
			if stop == 0 {
				t.Fatal("no step was seen")
			}
			return
		}
		if err := p.b.FinishRollback(); err != nil {
			t.Fatalf("stopped after %d steps: %v", stop, err)
		}
		for name, want := range map[string]string{"a": "a first", "b": "b first"} {
			if got, err := os.ReadFile(filepath.Join(p.up, name)); err != nil || string(got) != want {
				t.Errorf("stopped after %d steps: %s is %q, %v", stop, name, got, err)
			}
		}
		if _, err := os.Lstat(p.b.At("rollback")); err == nil {
			t.Error("something is left of the rollback")
		}
	}
}

// TestNoPlantedLinkIsFollowed has a box put a link in the place of a directory whose file was
// changed: neither is the file that the link leads to kept, nor written by a rollback.
func TestNoPlantedLinkIsKeptOrRestoredThrough(t *testing.T) {
	p := newPast(t, core.Limits{})
	secret := filepath.Join(t.TempDir(), "id_rsa")
	if err := os.WriteFile(secret, []byte("the secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.h.Touch(time.Now(), filepath.Join(p.at, "d"), Comes)
	os.Mkdir(filepath.Join(p.up, "d"), 0o700)
	p.write("d/id_rsa", []byte("the box's own"))
	then := time.Now()
	p.write("d/id_rsa", []byte("changed"))
	os.RemoveAll(filepath.Join(p.up, "d")) // as one that the supervisor did not see
	os.Symlink(filepath.Dir(secret), filepath.Join(p.up, "d"))
	if k, later := p.h.Touch(time.Now(), filepath.Join(p.at, "d/id_rsa"), Writes); k.Version != "" || later != nil {
		t.Errorf("the file behind the link was kept: %+v", k)
	}
	if _, err := p.b.RollbackTo(context.Background(), then); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "the secret" {
		t.Errorf("the file outside is %q, %v", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(p.up, "d/id_rsa")); err != nil || string(got) != "the box's own" {
		t.Errorf("the box has %q, %v", got, err)
	}
}

func FuzzRecords(f *testing.F) {
	r := record{kind: recRename, time: time.Unix(1, 2), session: "S", path: "/a", path2: "/b",
		was: entry{kind: present, state: &core.FileState{Type: core.TypeFile, Mode: 0o644, Size: 3, Inode: 9}, kept: true, xattrs: map[string][]byte{"user.x": {1}}}, was2: entry{kind: whiteout}}
	f.Add(appendRecord(nil, &r))
	f.Add(appendRecord(appendRecord(nil, &record{kind: recGap, why: "none"}), &r))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out []byte
		n := 0
		whole, err := readRecords(bytes.NewReader(data), func(r *record) error {
			n++
			out = appendRecord(out, r)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !whole || n == 0 {
			return
		}
		m := 0
		readRecords(bytes.NewReader(out), func(r *record) error { m++; return nil })
		if m != n {
			t.Errorf("%d records read, %d of them when they were written again", n, m)
		}
	})
}

func BenchmarkTouch(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
		new  bool
	}{{name: "a new file", new: true}, {name: "a file of 4 KiB that changes each time", size: 4 << 10}, {name: "a file that does not change", size: -1}} {
		b.Run(c.name, func(b *testing.B) {
			top := b.TempDir()
			d := Dir(filepath.Join(top, "box"))
			l := Layer{Path: filepath.Join(top, "real"), Dir: "0"}
			os.MkdirAll(d.Upper(l), 0o700)
			os.MkdirAll(l.Path, 0o700)
			h, err := OpenHistory(d, []Layer{l}, "S", core.Limits{}, "")
			if err != nil {
				b.Fatal(err)
			}
			defer h.Close()
			f := filepath.Join(d.Upper(l), "f")
			data := randomBytes(1, max(c.size, 4<<10))
			if !c.new {
				os.WriteFile(f, data, 0o600)
				old := time.Now().Add(-time.Minute)
				os.Chtimes(f, old, old)
			}
			i := 0
			for b.Loop() {
				i++
				switch {
				case c.new:
					h.Touch(time.Now(), filepath.Join(l.Path, "n"+strconv.Itoa(i)), Comes)
				case c.size > 0:
					data[0], data[1], data[2] = byte(i), byte(i>>8), byte(i>>16)
					os.WriteFile(f, data, 0o600)
					h.Touch(time.Now(), filepath.Join(l.Path, "f"), Writes)
				default:
					h.Touch(time.Now(), filepath.Join(l.Path, "f"), Writes)
				}
			}
		})
	}
}
