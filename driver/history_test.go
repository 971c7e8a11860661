package driver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

func init() {
	programs["change at random"] = changeAtRandom
	programs["describe"] = func() {
		json.NewEncoder(os.Stdout).Encode(describe(os.Getenv("TREE")))
		fmt.Println("end")
	}
}

// moment is a tree as the box saw it, at a time between two operations.
type moment struct {
	Time  int64
	Tree  map[string]string
	After string // the operations before it, for people
}

// describe tells a tree so that two that are alike are told alike.
func describe(top string) map[string]string {
	out := map[string]string{}
	filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			out[p] = "unread"
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		text := fi.Mode().String()
		if !d.IsDir() { // a directory's changes with what is in it, and is not put back
			text += fmt.Sprintf(" mtime %d", fi.ModTime().UnixNano())
		}
		if fi.Mode().IsRegular() {
			f, err := os.ReadFile(p)
			if err != nil {
				text += " unreadable"
			}
			sum := sha256.Sum256(f)
			text += fmt.Sprintf(" size %d links %d %s", fi.Size(), st.Nlink, hex.EncodeToString(sum[:6]))
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			l, _ := os.Readlink(p)
			text += " -> " + l
		} else if names, err := sys.Llistxattr(p); err == nil {
			sort.Strings(names)
			for _, n := range names {
				if strings.HasPrefix(n, "user.") {
					v, _ := sys.Lgetxattr(p, n)
					text += " " + n + "=" + string(v)
				}
			}
		}
		rel, _ := filepath.Rel(top, p)
		out[rel] = text
		return nil
	})
	return out
}

// changeAtRandom does what programs do to files, in no order, and says after every few
// operations what there is.
func changeAtRandom() {
	top := os.Getenv("TREE")
	seed, _ := strconv.ParseInt(os.Getenv("SEED"), 10, 64)
	rounds, _ := strconv.Atoi(os.Getenv("ROUNDS"))
	r := rand.New(rand.NewSource(seed))
	enc := json.NewEncoder(os.Stdout)
	paths := func() (out []string) {
		filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && p != top {
				out = append(out, p)
			}
			return nil
		})
		return append(out, filepath.Join(top, "n"+strconv.Itoa(r.Intn(30))))
	}
	pick := func() string {
		ps := paths()
		p := ps[r.Intn(len(ps))]
		if r.Intn(3) == 0 {
			p = filepath.Join(p, "m"+strconv.Itoa(r.Intn(12)))
		}
		return p
	}
	data := func() []byte {
		n := r.Intn(2000)
		if r.Intn(8) == 0 {
			n = 400 << 10 // not on the supervisor's thread
		}
		b := make([]byte, n)
		r.Read(b)
		return b
	}
	enc.Encode(moment{time.Now().UnixNano(), describe(top), "the beginning"})
	for range rounds {
		var did []string
		for range 1 + r.Intn(6) {
			a, b := pick(), pick()
			var err error
			what := ""
			switch r.Intn(20) {
			case 0, 1, 2:
				var f *os.File
				if f, err = os.OpenFile(a, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o644); err == nil { // no waiting at a FIFO
					_, err = f.Write(data())
					f.Close()
				}
				what = "create " + a
			case 3:
				var f *os.File
				if f, err = os.OpenFile(a, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK, 0); err == nil {
					_, err = f.Write(data())
					f.Close()
				}
				what = "append to " + a
			case 4:
				var f *os.File
				if f, err = os.OpenFile(a, os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
					_, err = f.WriteAt([]byte("in place"), int64(r.Intn(100)))
					f.Truncate(int64(r.Intn(500)))
					f.Close()
				}
				what = "write into " + a
			case 5:
				what, err = "truncate "+a, os.Truncate(a, int64(r.Intn(300)))
			case 6:
				what, err = "unlink "+a, syscall.Unlink(a)
			case 7:
				what, err = "mkdir "+a, os.MkdirAll(a, 0o755)
			case 8:
				what, err = "rmdir "+a, syscall.Rmdir(a)
			case 9, 10, 11:
				what, err = "rename "+a+" "+b, syscall.Rename(a, b)
			case 12:
				what, err = "link "+a+" "+b, os.Link(a, b)
			case 13:
				what, err = "symlink "+b, os.Symlink(a, b)
			case 14:
				what, err = "chmod "+a, os.Chmod(a, fs.FileMode(0o700|r.Intn(64)))
			case 15:
				t := time.Unix(1e9+r.Int63n(1e8), r.Int63n(1e9))
				what, err = "utime "+a, os.Chtimes(a, t, t)
			case 16:
				what, err = "setxattr "+a, syscall.Setxattr(a, "user.colour", []byte{'a' + byte(r.Intn(26))}, 0)
			case 17:
				what, err = "mkfifo "+a, syscall.Mkfifo(a, 0o600)
			case 19:
				what, err = "exchange "+a+" "+b, sys.Rename2(-100, a, -100, b, sys.RenameExchange)
			case 18:
				if r.Intn(3) == 0 {
					what, err = "remove "+a+" whole", os.RemoveAll(a)
				}
			}
			if what != "" {
				did = append(did, fmt.Sprintf("%s: %v", what, err))
			}
		}
		enc.Encode(moment{time.Now().UnixNano(), describe(top), strings.Join(did, "\n")})
	}
	fmt.Println("end")
}

// TestABoxGoesBackToAnyMoment has a program change files at random, real ones and its own,
// and then puts the box back to moments of its past, earlier and later ones in any order:
// each time the box must be what the program saw then.
func TestABoxGoesBackToAnyMoment(t *testing.T) {
	seeds := []int64{1, 2, 3}
	if v := os.Getenv("HISTORY_SEED"); v != "" {
		n, _ := strconv.ParseInt(v, 10, 64)
		seeds = []int64{n}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatInt(seed, 10), func(t *testing.T) {
			l := newLab(t)
			for _, p := range []string{"a", "b", "d/a", "d/b", "d/e/a", "d/e/f/a", "g/a", "g/h/a", "g/h/b"} {
				l.write(p, "the real "+p)
			}
			os.Symlink("a", filepath.Join(l.dir, "s"))
			env := []string{"TREE=" + l.dir, "SEED=" + strconv.FormatInt(seed, 10), "ROUNDS=25"}
			res := l.boxed(runOpts{env: env}, "change at random")
			if res.err != nil || res.code != 0 {
				t.Fatalf("%v, code %d: %s", res.err, res.code, res.stderr)
			}
			var ms []moment
			for dec := json.NewDecoder(strings.NewReader(strings.TrimSuffix(res.out, "end\n"))); dec.More(); {
				var m moment
				if err := dec.Decode(&m); err != nil {
					t.Fatal(err)
				}
				ms = append(ms, m)
			}
			if len(ms) != 26 {
				t.Fatalf("%d moments", len(ms))
			}
			b := layers.Dir(filepath.Join(l.home, "boxes", "b"))
			order := []int{25, 24, 20, 12, 18, 5, 0, 25, 9, 22, 1}
			for _, i := range order {
				if _, err := b.Return(context.Background(), layers.RollbackOptions{Time: time.Unix(0, ms[i].Time)}); err != nil {
					for k := i; k < len(ms); k++ {
						t.Logf("%d at %d:\n%s", k, ms[k].Time, ms[k].After)
					}
					t.Fatalf("back to moment %d (of %v): %v", i, order, err)
				}
				res := l.boxed(runOpts{env: env, quiet: true}, "describe")
				var got map[string]string
				if err := json.Unmarshal([]byte(strings.TrimSuffix(res.out, "end\n")), &got); err != nil {
					t.Fatalf("%v: %q %s", err, res.out, res.stderr)
				}
				if diff := treesDiffer(ms[i].Tree, got); diff != "" {
					for k := i; k < len(ms); k++ {
						t.Logf("%d at %d:\n%s", k, ms[k].Time, ms[k].After)
					}
					t.Fatalf("moment %d (of order %v):\n%s", i, order, diff)
				}
			}
		})
	}
}

// TestARenamedRealDirectoryComesBack: the supervisor renames it by copying. What the box has
// of its own in it comes back too, though none of its content may be kept.
func TestARenamedRealDirectoryComesBack(t *testing.T) {
	const setUp = `mkdir d/mine; echo own > d/mine/own; echo changed > d/a; rm d/b; ln -s a d/link; mkdir g/new; echo own > g/new/x; ln d/mine/own d/same`
	for _, do := range []string{
		"mv d moved",
		"mv d g/moved",
		"mv d moved; echo later > moved/a; rm moved/mine/own; mv moved d",
		"mv d moved; mv g d; mv moved g",
		"mv --exchange d g 2>/dev/null || { mv d x; mv g d; mv x g; }",
		"mkdir over; mv -T d over; echo anew > over/e/a",
	} {
		t.Run(do, func(t *testing.T) {
			l := newLab(t)
			for _, p := range []string{"d/a", "d/b", "d/e/a", "g/a", "g/h/b"} {
				l.write(p, "the real "+p)
			}
			env := []string{"TREE=" + l.dir}
			o := runOpts{}
			if !strings.Contains(do, "later") {
				o.policy = func(p *core.Policy) { p.Limits.VersionFile = 1 }
			}
			l.sh(setUp)
			look := func() (tree map[string]string) {
				t.Helper()
				res := l.boxed(runOpts{env: env, quiet: true}, "describe")
				if err := json.Unmarshal([]byte(strings.TrimSuffix(res.out, "end\n")), &tree); err != nil {
					t.Fatalf("%v: %q %s", err, res.out, res.stderr)
				}
				return tree
			}
			was := look()
			at := time.Now()
			if r := l.run(o, "/bin/sh", "-ec", do); r.code != 0 {
				t.Fatalf("exit code %d: %s", r.code, r.stderr)
			}
			if treesDiffer(was, look()) == "" && !strings.Contains(do, "mv moved d") {
				t.Fatal("nothing was renamed")
			}
			b := layers.Dir(l.boxDir("b"))
			if _, err := b.RollbackTo(context.Background(), at); err != nil {
				t.Fatal(err)
			}
			if diff := treesDiffer(was, look()); diff != "" {
				t.Errorf("after the rollback:\n%s", diff)
			}
		})
	}
}

func treesDiffer(want, got map[string]string) string {
	var b bytes.Buffer
	var names []string
	for k := range want {
		names = append(names, k)
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	for _, k := range names {
		if want[k] != got[k] {
			fmt.Fprintf(&b, "%s\n  was %s\n  is  %s\n", k, want[k], got[k])
		}
	}
	return b.String()
}
