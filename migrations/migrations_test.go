package migrations

import (
	"regexp"
	"testing"
)

func TestFilesAreNumberedWithoutAGap(t *testing.T) {
	entries, err := files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`^(\d{4})_[a-z_]+\.sql$`)
	for i, e := range entries {
		m := name.FindStringSubmatch(e.Name())
		if want := i + 1; m == nil || m[1] != "000"+string(rune('0'+want)) {
			t.Errorf("file %d is %s", want, e.Name())
		}
	}
}

func TestTheVersionFollowsTheRules(t *testing.T) {
	s, v := Projections(1)
	if _, w := Projections(2); v == w || v <= 0 || w <= 0 || s == "" {
		t.Errorf("versions %d and %d", v, w)
	}
	if _, w := Projections(1); v != w {
		t.Errorf("versions %d and %d of the same", v, w)
	}
}
