// Package migrations holds the schema of the projections, as numbered SQL.
//
// What goes out: the statements in their order, and a version. The one idea to know:
// projections are rebuilt, not migrated. Whoever finds another version in a database
// throws it away, makes it anew from these files and folds the streams again; so a file
// may be edited, and the version follows by itself.
package migrations

import (
	"embed"
	"fmt"
	"hash/fnv"
	"strings"
)

//go:embed *.sql
var files embed.FS

// Projections returns the schema as one script, and its version: a positive number that
// changes whenever a file does, or rules, which names the version of the code that fills
// the tables.
func Projections(rules int) (script string, version int32) {
	entries, err := files.ReadDir(".") // sorted by name
	if err != nil {
		panic(err) // an embedded folder can be read
	}
	var b strings.Builder
	h := fnv.New32a()
	fmt.Fprintf(h, "%d", rules)
	for _, e := range entries {
		text, err := files.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(h, "\n%s\n", e.Name())
		h.Write(text)
		b.Write(text)
	}
	return b.String(), int32(h.Sum32()&(1<<31-1)) | 1
}
