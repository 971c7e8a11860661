package layers

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"
)

func TestKeysAreOrderedAsTheWalkGoes(t *testing.T) {
	want := []string{"0", "0/a", "0/a/b", "0/a/b/c", "0/a b", "0/a.b", "0/a0", "0/b", "1", "10", "10/x", "2"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareKeys)
	if !slices.Equal(got, want) {
		t.Errorf("the order is %q, want %q", got, want)
	}
}

func TestAManifestComesBackAsItWas(t *testing.T) {
	var b bytes.Buffer
	w := newManifestWriter(&b)
	var want []kept
	for i := range 1000 {
		k := kept{key: fmt.Sprintf("0/\xff\n%d/%d", i/10, i%10), mode: 0o100644, uid: uint32(i), rdev: uint64(i) << 32, size: int64(i) << 33, inode: uint64(i),
			mtime: -int64(i), ctime: int64(i) * 1e15, atime: 1, closed: i%7 == 0}
		want = append(want, k)
		w.add(&k)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	r := newManifestReader(bytes.NewReader(b.Bytes()[:b.Len()-32]))
	for i := range want {
		if k, err := r.next(); err != nil || k != want[i] {
			t.Fatalf("entry %d is %+v %v, want %+v", i, k, err, want[i])
		}
	}
	if _, err := r.next(); err != io.EOF {
		t.Errorf("at the end %v", err)
	}
}

// The manifest lies where whoever may write the box's layers may write as well.
func FuzzManifest(f *testing.F) {
	var b bytes.Buffer
	w := newManifestWriter(&b)
	w.add(&kept{key: "0", mode: 0o40755})
	w.add(&kept{key: "0/a", mode: 0o100644, size: 7})
	w.close()
	f.Add(b.Bytes())
	f.Add([]byte(manifestMagic + "\x00\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newManifestReader(bytes.NewReader(data))
		for range len(data) + 1 {
			if _, err := r.next(); err != nil {
				if err != io.EOF && err != ErrManifest {
					t.Errorf("%v", err)
				}
				return
			}
		}
		t.Error("more entries than bytes")
	})
}
