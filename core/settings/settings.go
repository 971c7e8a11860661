package settings

import (
	"bytes"
	"slices"
	"strings"
)

// Entry is one setting.
type Entry struct {
	Group string `json:"group"` // dconf: "org/gnome/desktop/interface"; Wine: `HKEY_CURRENT_USER\Software\Wine`
	Name  string `json:"name"`  // of the key in its group; "" for the group itself, where it is there without keys
	Value string `json:"value"`
}

// Database is what a file of settings holds, sorted by group and name, each once.
type Database []Entry

// The kinds of databases.
const (
	DConf   = "dconf"   // a database of dconf, and whatever else is kept in the same format
	Wine    = "wine"    // a branch of Wine's registry
	KeyFile = "keyfile" // keys as dconf compiles them into a database, and as GSettings keeps them without dconf
)

// MaxFile is the size of the largest file that is read, in bytes.
const MaxFile = 16 << 20

// Decode reads the database in the file at path, which is data. It is recognised by how
// it begins; path tells only what has no such beginning. ok is false when it is none that
// can be read: then it is bytes.
func Decode(path string, data []byte) (db Database, kind string, ok bool) {
	if len(data) > MaxFile {
		return nil, "", false
	}
	switch {
	case isGVDB(data):
		db, ok = decodeGVDB(data)
		kind = DConf
	case bytes.HasPrefix(data, []byte(wineHeader)):
		db, ok = decodeWine(path, string(data))
		kind = Wine
	case isKeyFile(path):
		db, ok = decodeKeyFile(string(data))
		kind = KeyFile
	}
	if !ok {
		return nil, "", false
	}
	return sorted(db), kind, true
}

// Named says whether a path is one that a file of settings usually has, so that it is worth
// reading it.
func Named(path string) bool {
	dir, name := split(path)
	_, folder := split(dir)
	return folder == "dconf" || dir == "/etc/dconf/db" || isKeyFile(path) || name == "system.reg" || name == "user.reg" || name == "userdef.reg"
}

func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func less(a, b Entry) int {
	if c := strings.Compare(a.Group, b.Group); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// sorted sorts db; of several entries of one key the last one counts, as for who reads the file.
func sorted(db Database) Database {
	slices.SortStableFunc(db, less)
	out := db[:0]
	for _, e := range db {
		if n := len(out); n > 0 && less(out[n-1], e) == 0 {
			out[n-1] = e
			continue
		}
		out = append(out, e)
	}
	return out
}

// Change is a setting in which two databases differ.
type Change struct {
	Group string  `json:"group"`
	Name  string  `json:"name"`
	Old   *string `json:"old"` // nil: it was not there
	New   *string `json:"new"` // nil: it is not there any more
}

// Compare returns what became of old in new, sorted. Either may be nil: none. Both must be
// sorted, as [Decode] returns them.
func Compare(old, new Database) (cs []Change) {
	for len(old) > 0 || len(new) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(new) == 0:
			order = -1
		default:
			order = less(old[0], new[0])
		}
		switch {
		case order < 0:
			cs = append(cs, Change{Group: old[0].Group, Name: old[0].Name, Old: &old[0].Value})
			old = old[1:]
		case order > 0:
			cs = append(cs, Change{Group: new[0].Group, Name: new[0].Name, New: &new[0].Value})
			new = new[1:]
		default:
			if old[0].Value != new[0].Value {
				cs = append(cs, Change{Group: old[0].Group, Name: old[0].Name, Old: &old[0].Value, New: &new[0].Value})
			}
			old, new = old[1:], new[1:]
		}
	}
	return cs
}

// String is the change for people: "[org/gnome/x] key: 'old' -> 'new'".
func (c Change) String() string {
	side := func(v *string) string {
		switch {
		case v == nil:
			return "(none)"
		case *v == "":
			return "(empty)"
		}
		return *v
	}
	name := c.Name
	if name == "" {
		name = "(the group itself)"
	}
	return "[" + c.Group + "] " + name + ": " + side(c.Old) + " -> " + side(c.New)
}
