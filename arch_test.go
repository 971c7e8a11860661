package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport is who may import whom: the table in ARCHITECTURE.md. An arrow that is not
// here is a change of design, to be argued for there. A package may import the packages
// below its own folder.
var mayImport = map[string][]string{
	".":              {"cli", "driver"}, // driver for its re-exec stage, which must run before everything else
	"cli":            {"core", "core/query", "core/settings", "driver", "driver/layers", "events", "hooks", "store", "web"},
	"core":           {},
	"core/settings":  {"core"},
	"core/query":     {"core"},
	"driver":         {"core"},
	"driver/sys":     {},
	"driver/network": {"core", "driver/sys"},
	"driver/layers":  {"core", "core/settings", "driver/sys"},
	"events":         {"core"},
	"migrations":     {},
	// tools stand alone: they use the built binary as a person does
	"tools/bench":    {"driver/sys"}, // bare notification, to compare with
	"tools/compare":  {},
	"tools/netbench": {"testworld"},
	"attacks":        {"core"},
	// of tests and benchmarks alone: every package's tests may import it
	"testworld": {"driver/sys"}, // tun devices
	"store":     {"core", "core/query", "events", "migrations"},
	"web":       {"core", "core/query", "core/settings", "events"},
	"hooks":     {"core", "core/query", "events", "store"},
}

// doors are the packages through which alone something outside is used. A prefix stands
// for all packages below it.
var doors = map[string]string{
	"unsafe":                           "driver/sys",
	"golang.org/x/sys":                 "driver/sys",
	"github.com/nats-io":               "events",
	"gvisor.dev/gvisor":                "driver/network",
	"github.com/quic-go/quic-go":       "testworld",
	"golang.org/x/net":                 "driver/network",
	"golang.org/x/crypto":              "driver/network",
	"modernc.org/sqlite":               "store",
	"database/sql":                     "store",
	"github.com/go-chi/chi/v5":         "web",
	"github.com/a-h/templ":             "web",
	"github.com/alexedwards/scs/v2":    "web",
	"github.com/aymanbagabas/go-udiff": "driver/layers",
	"github.com/spf13/cobra":           "cli",
	"golang.org/x/term":                "cli",
}

// pure packages do no input or output: the same arguments give the same results for ever.
var pure = map[string][]string{
	"core":          {"os", "net", "net/http", "os/exec", "syscall", "path/filepath", "io/fs", "log", "log/slog"},
	"core/settings": {"os", "net", "net/http", "os/exec", "syscall", "path/filepath", "io/fs", "log", "log/slog"},
	"core/query":    {"os", "net", "net/http", "os/exec", "syscall", "path/filepath", "io/fs", "log", "log/slog"},
}

const modulePath = "github.com/sandglass/sandglass"

// TestEveryImportIsInTheTable reads the sources rather than ask `go list`: the go command
// caches a test's result by the files that the test opens, and so sees these change.
func TestEveryImportIsInTheTable(t *testing.T) {
	packages := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() {
			if file != "." && (name == "testdata" || name == "vendor" || name[0] == '.' || name[0] == '_') {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		pkg, test := path.Dir(filepath.ToSlash(file)), strings.HasSuffix(file, "_test.go")
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return nil
		}
		if !test {
			packages[pkg] = true
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if why := forbidden(pkg, imported, test); why != "" {
				t.Errorf("%s imports %s: %s", file, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := range packages {
		if _, ok := owner(p); !ok {
			t.Errorf("package %s is not in the table", p)
		}
	}
	if !packages["."] || !packages["core"] {
		t.Errorf("only found the packages %v: the test looks in the wrong place", packages)
	}
}

// forbidden says why pkg must not import another package; "" when it may.
func forbidden(pkg, imported string, test bool) string {
	me, _ := owner(pkg)
	if rest, ours := strings.CutPrefix(imported, modulePath); ours {
		them := strings.TrimPrefix(rest, "/")
		switch {
		case them == pkg, strings.HasPrefix(them, me+"/"), strings.HasPrefix(pkg, them+"/") && test:
			return ""
		case slices.Contains(mayImport[me], them), them == "testworld" && test:
			return ""
		case strings.HasPrefix(them, "web/") && me == "web":
			return ""
		}
		return "not in the table of ARCHITECTURE.md"
	}
	for prefix, door := range doors {
		if test && strings.HasPrefix(door, pkg+"/") {
			continue // the tests of driver make system calls as a hostile program would
		}
		if (imported == prefix || strings.HasPrefix(imported, prefix+"/")) && me != door {
			return "only " + door + " may"
		}
	}
	if !test && slices.Contains(pure[me], imported) {
		return me + " does no input or output"
	}
	return ""
}

// owner finds the entry of the table that a package falls under: its own, or that of the
// nearest folder above it.
func owner(pkg string) (string, bool) {
	for p := pkg; ; p = path.Dir(p) {
		if _, ok := mayImport[p]; ok && (p != "." || pkg == ".") {
			return p, true
		}
		if p == "." {
			return pkg, false
		}
	}
}

// TestTheStageRunsFirst holds main to its one rule: in a re-exec'd child nothing else of
// main runs.
func TestTheStageRunsFirst(t *testing.T) {
	src, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := strings.Cut(string(src), "func main() {\n")
	if !ok || !strings.HasPrefix(strings.TrimSpace(body), "driver.Stage()") {
		t.Error("the first statement of main is not driver.Stage()")
	}
}
