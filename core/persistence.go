package core

import (
	"path"
	"strings"
)

// Persists says of an absolute path what would run, or would be trusted, later and outside
// of a box if a file were there: a word or two for people ("autostart"), "" for an ordinary
// file. It is a hint for who reviews changes, and no wall: a program can wait in any file.
// It looks at the path alone.
func Persists(p string) string {
	for d := path.Clean(p); d != "/" && d != "."; d = path.Dir(d) {
		if what := persistsAt(d, d == p); what != "" {
			return what
		}
	}
	return ""
}

// persistsAt looks at one path; last says that it is the whole, not a directory above.
func persistsAt(d string, last bool) string {
	for _, r := range persistence {
		if r.dir && strings.HasSuffix(d, r.path) && (r.path[0] != '=' || d == r.path[1:]) || r.path[0] == '=' && d == r.path[1:] && (r.dir || last) {
			return r.what
		}
		if !r.dir && last && r.path[0] != '=' && strings.HasSuffix(d, r.path) {
			return r.what
		}
	}
	if last {
		return persistsByName(path.Base(d))
	}
	return ""
}
