package core

import (
	"strings"
	"testing"
)

func TestAPolicySaysHowManyVersionsAreKept(t *testing.T) {
	for _, c := range []struct {
		name, text     string
		all, one       int64
		refusedBecause string
	}{
		{name: "nothing is said", text: "observe: full", all: 2 << 30, one: 256 << 20},
		{name: "off", text: "versions: off", all: NoVersions, one: 256 << 20},
		{name: "both", text: "versions:\n  per-file: 64MiB\n  per-box: 1GiB", all: 1 << 30, one: 64 << 20},
		{name: "no limit", text: "versions:\n  per-box: none", all: 0, one: 256 << 20},
		{name: "a limit by its own name", text: "limits:\n  versions: off", all: NoVersions, one: 256 << 20},
		{name: "a misspelt key", text: "versions:\n  per-files: 64MiB", refusedBecause: `unknown key "per-files"`},
		{name: "no size", text: "versions:\n  per-file: much", refusedBecause: "not a size"},
		{name: "another word", text: "versions: on", refusedBecause: `"on" is not known`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := ParsePolicy("p", []byte(c.text))
			if c.refusedBecause != "" {
				if err == nil || !strings.Contains(err.Error(), c.refusedBecause) {
					t.Fatalf("%v, want an error with %q", err, c.refusedBecause)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Limits.Versions != c.all || p.Limits.VersionFile != c.one {
				t.Errorf("versions %d, of a file %d; want %d, %d", p.Limits.Versions, p.Limits.VersionFile, c.all, c.one)
			}
		})
	}
}
