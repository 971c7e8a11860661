package settings

import (
	"strings"
)

// A branch of Wine's registry is a text file (server/registry.c of Wine: dump_branch,
// load_keys):
//
//	WINE REGISTRY Version 2
//	;; All keys relative to \\User\\S-1-5-21-0-0-0-1000
//
//	#arch=win64
//
//	[Software\\Wine\\X11 Driver] 1700000000
//	#time=1da1b2c3d4e5f60
//	@="the value without a name"
//	"Managed"="Y"
//	"Depth"=dword:00000018
//	"Data"=hex:01,02,\
//	  03
//
// A \ before the end of a line means that the value goes on. Times are no settings.

const (
	wineHeader = "WINE REGISTRY Version 2"
	winePrefix = `;; All keys relative to `
)

// wineRoots are the names by which programs know what a branch is relative to.
var wineRoots = []struct{ begins, root string }{
	{`REGISTRY\Machine`, `HKEY_LOCAL_MACHINE`}, {`Machine`, `HKEY_LOCAL_MACHINE`}, // the longer one is of before Wine 1.3
	{`REGISTRY\User\.Default`, `HKEY_USERS\.Default`}, {`User\.Default`, `HKEY_USERS\.Default`},
	{`REGISTRY\User`, `HKEY_CURRENT_USER`}, {`User`, `HKEY_CURRENT_USER`},
}

func decodeWine(path, text string) (Database, bool) {
	first, text, _ := strings.Cut(text, "\n")
	if strings.TrimRight(first, "\r ") != wineHeader {
		return nil, false
	}
	var root string
	switch _, name := split(path); name {
	case "system.reg":
		root = "HKEY_LOCAL_MACHINE"
	case "user.reg":
		root = "HKEY_CURRENT_USER"
	case "userdef.reg":
		root = `HKEY_USERS\.Default`
	}
	var db Database
	group, keys := root, 1
	end := func() { // a key that is there without values is a setting, too
		if keys == 0 {
			db = append(db, Entry{Group: group})
		}
	}
	for text != "" {
		var line string
		line, text = wineLine(text)
		switch {
		case line == "" || line[0] == '#' && !strings.HasPrefix(line, "#class=") && line != "#link":
		case strings.HasPrefix(line, winePrefix):
			at := strings.TrimPrefix(unescapeKey(strings.TrimPrefix(line, winePrefix)), `\`)
			for _, r := range wineRoots {
				if at == r.begins || strings.HasPrefix(at, r.begins+`\`) {
					root = r.root
					break
				}
			}
		case line[0] == ';':
		case line[0] == '[':
			key, _, ok := cutUnescaped(line[1:], ']')
			if !ok {
				return nil, false
			}
			end()
			group, keys = strings.TrimPrefix(root+`\`+unescapeKey(key), `\`), 0
		case line[0] == '@' || line[0] == '#':
			name, value, _ := strings.Cut(line, "=")
			db, keys = append(db, Entry{group, name, value}), keys+1
		case line[0] == '"':
			name, rest, ok := cutUnescaped(line[1:], '"')
			value, is := strings.CutPrefix(rest, "=")
			if !ok || !is {
				return nil, false
			}
			db, keys = append(db, Entry{group, `"` + name + `"`, value}), keys+1
		default:
			return nil, false
		}
	}
	end()
	return db, true
}

// wineLine takes the first line off text, and those that it goes on in.
func wineLine(text string) (line, rest string) {
	line, rest, _ = strings.Cut(text, "\n")
	line = strings.TrimSpace(line)
	if !strings.HasSuffix(line, `,\`) {
		return line, rest
	}
	var b strings.Builder
	for strings.HasSuffix(line, `,\`) && rest != "" {
		b.WriteString(strings.TrimSuffix(line, `\`))
		line, rest, _ = strings.Cut(rest, "\n")
		line = strings.TrimSpace(line)
	}
	b.WriteString(line)
	return b.String(), rest
}

// cutUnescaped cuts s at the first end that has no \ before it.
func cutUnescaped(s string, end byte) (before, after string, ok bool) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case end:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// unescapeKey reads \\ in a key as the \ between its parts. Other characters stay written
// as they are in the file: they print.
func unescapeKey(s string) string { return strings.ReplaceAll(s, `\\`, `\`) }

// isKeyFile says whether a file is where dconf compiles databases from, or where
// GSettings keeps keys without dconf.
func isKeyFile(path string) bool {
	dir, _ := split(path)
	up, db := split(dir)
	return up == "/etc/dconf/db" && strings.HasSuffix(db, ".d") || strings.HasSuffix(path, "/glib-2.0/settings/keyfile")
}

// decodeKeyFile reads a file of groups and keys (the Desktop Entry Specification).
func decodeKeyFile(text string) (db Database, ok bool) {
	group := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			group = line[1 : len(line)-1]
		default:
			name, value, is := strings.Cut(line, "=")
			if !is {
				return nil, false
			}
			db = append(db, Entry{group, strings.TrimSpace(name), strings.TrimSpace(value)})
		}
	}
	return db, true
}
