package core

import (
	"fmt"

	"github.com/goccy/go-yaml/ast"
)

// versionKeys are the keys below `versions:`, with the names of the limits that they set.
var versionKeys = []struct{ key, limit string }{{"per-box", "versions"}, {"per-file", "version-file"}}

// versions reads what is kept of old contents: `off`, or limits by name.
func (d *policyReader) versions(n ast.Node) {
	const want = "off, or per-file and per-box with a size each"
	if word, ok := scalar(n); ok {
		if word != "off" && word != "false" { // off is false in YAML 1.1
			d.wrong(n.GetToken(), fmt.Errorf("versions: %q is not known", Shorten(word, 80)), want)
			return
		}
		d.p.Limits.Versions = NoVersions
		return
	}
	var names []string
	for _, k := range versionKeys {
		names = append(names, k.key)
	}
	for _, e := range d.entries(n, "versions", names) {
		for _, k := range versionKeys {
			if k.key != e.name {
				continue
			}
			if t, ok := d.word(e.value, e.name, "a size, as 64MiB"); ok {
				if err := d.p.Limits.Set(k.limit, t); err != nil {
					d.wrong(e.value.GetToken(), fmt.Errorf("versions: %s: %w", k.key, err))
				}
			}
		}
	}
}
