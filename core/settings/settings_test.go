package settings

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// keyfile has a value of every type, and those that are written in an odd way.
const keyfile = `[org/gnome/desktop/interface]
color-scheme='prefer-dark'
text-scaling-factor=1.25
enable-animations=false

[org/example/types]
byte=byte 0x07
int16=int16 -3
uint16=uint16 65535
int32=-2147483648
uint32=uint32 4294967295
int64=int64 -9223372036854775808
uint64=uint64 18446744073709551615
handle=handle 5
whole=3.0
large=1e+300
third=0.1
negative=-12.5
path=objectpath '/org/example'
signature=signature 'a{sv}'
quoted="it's"
backslash='C:\\dir'
control='a\nb\u0001\t'
umlaut='Größe 😀'
bytes=b'text'
rawbytes=[byte 0x01, 0x00, 0xff]
nobytes=@ay []
strings=['a', '', 'ccc']
nostrings=@as []
doubles=[1.0, 2.5]
arrays=[['a'], @as [], ['b', 'c']]
int64s=[int64 1, 2]
tuple=('a', 1, true)
single=('a',)
unit=()
aligned=(byte 0x01, int64 2, 'x', uint16 3)
nested=(('a', @as []), [(1, 'b'), (2, '')])
dict={'a': 1, 'bb': 2}
nodict=@a{sv} {}
vardict={'width': <10>, 'name': <'x'>, 'deep': <{'k': <@as []>}>, 'pair': <(uint32 1, 2.0)>}
intdict={1: 'one', 2: 'two'}
variant=<int16 5>
nothing=@ms nothing
just=@ms 'x'
justint=@mi 5
justnothing=@mms just nothing
justempty=@ms ''
maybes=[@mi 1, nothing]

[/]
top='root'
`

// compiled is a database that dconf itself has made.
func compiled(t testing.TB, text string) (file string, data []byte) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keys", "all"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "db")
	if out, err := exec.Command("dconf", "compile", file, filepath.Join(dir, "keys")).CombinedOutput(); err != nil {
		t.Fatalf("dconf compile (make test installs dconf-cli): %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, data
}

// What dconf dumps of a database is what is decoded of it, to the letter.
func TestADatabaseOfDconf(t *testing.T) {
	file, data := compiled(t, keyfile)
	profile := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(profile, []byte("file-db:"+file+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("dconf", "dump", "/")
	c.Env = append(os.Environ(), "DCONF_PROFILE="+profile, "LC_ALL=C.UTF-8", "XDG_RUNTIME_DIR="+t.TempDir())
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	want, _ := decodeKeyFile(string(out))
	for i := range want {
		if want[i].Group == "/" {
			want[i].Group = ""
		}
	}
	want = sorted(want)
	got, kind, ok := Decode("/home/me/.config/dconf/user", data)
	if !ok || kind != DConf {
		t.Fatalf("not recognised: %q", kind)
	}
	if len(want) < 45 {
		t.Errorf("dconf dumps only %d keys", len(want))
	}
	for _, c := range Compare(want, got) {
		t.Error("dconf and we:", c)
	}
}

func TestAnEmptyDatabaseOfDconf(t *testing.T) {
	_, data := compiled(t, "")
	if db, kind, ok := Decode("/x", data); !ok || kind != DConf || len(db) != 0 {
		t.Errorf("%v %q %v", db, kind, ok)
	}
}

// Locks of an administrator are a table in the table.
func TestLocksOfADatabase(t *testing.T) {
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys")
	if err := os.MkdirAll(filepath.Join(keys, "locks"), 0o700); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(keys, "all"), []byte("[org/a]\nk='v'\n"), 0o600)
	os.WriteFile(filepath.Join(keys, "locks", "l"), []byte("/org/a/k\n"), 0o600)
	db := filepath.Join(dir, "db")
	if out, err := exec.Command("dconf", "compile", db, keys).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, _ := os.ReadFile(db)
	got, _, ok := Decode("/etc/dconf/db/site", data)
	if !ok || len(got) != 2 || got[0].Group != ".locks//org/a" || got[0].Name != "k" || got[1] != (Entry{"org/a", "k", "'v'"}) {
		t.Errorf("%+v %v", got, ok)
	}
}

// Numbers of a database of the other byte order are read in that. dconf makes such
// on big-endian machines only: this one is swapped here.
func TestADatabaseOfTheOtherByteOrder(t *testing.T) {
	_, data := compiled(t, "[a]\nn=uint32 258\n")
	le := binary.LittleEndian.AppendUint32(nil, 258)
	if bytes.Count(data, le) != 1 {
		t.Fatal("the value is not to be found")
	}
	data = bytes.Replace(data, le, binary.BigEndian.AppendUint32(nil, 258), 1)
	data = append([]byte(gvdbBig), data[8:]...)
	if db, _, ok := Decode("/x", data); !ok || len(db) != 1 || db[0].Value != "uint32 258" {
		t.Errorf("%+v %v", db, ok)
	}
}

// Each byte of a database is damaged in turn: it is read as something or not at all, and
// what cannot be read is said.
func TestADamagedDatabase(t *testing.T) {
	_, data := compiled(t, keyfile)
	said := 0
	for i := range data {
		for _, b := range []byte{0, 1, 0x7f, 0xff} {
			bad := slices.Clone(data)
			bad[i] = b
			db, _, _ := Decode("/x", bad)
			for _, e := range db {
				if e.Value == unreadable {
					said++
				}
			}
		}
		Decode("/x", data[:i])
	}
	if said == 0 {
		t.Error("no value was unreadable")
	}
}

// Items that all point to one large value, keys with parents in a circle, tables in
// themselves: none takes long or much memory.
func TestAHostileDatabase(t *testing.T) {
	item := func(parent, key, keySize uint32, kind byte, start, end uint32) (b []byte) {
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, parent)
		b = binary.LittleEndian.AppendUint32(b, key)
		b = binary.LittleEndian.AppendUint16(b, uint16(keySize))
		b = append(b, kind, 0)
		b = binary.LittleEndian.AppendUint32(b, start)
		return binary.LittleEndian.AppendUint32(b, end)
	}
	file := func(items []byte, rest ...byte) []byte {
		b := append([]byte(gvdbLittle), make([]byte, 8)...)
		b = binary.LittleEndian.AppendUint32(b, gvdbHeader)
		b = binary.LittleEndian.AppendUint32(b, uint32(gvdbHeader+8+len(items)))
		return append(append(append(b, make([]byte, 8)...), items...), rest...)
	}
	big := append(bytes.Repeat([]byte{7}, 1<<20), "\x00ay"...)
	var many []byte
	for range 10000 {
		many = append(many, item(gvdbNoParent, 0, 8, 'v', gvdbHeader+8+10000*gvdbItem, uint32(gvdbHeader+8+10000*gvdbItem+len(big)))...)
	}
	var chain []byte
	for i := range 300 {
		chain = append(chain, item(uint32(i+1), 0, 8, 'v', 0, 0)...)
	}
	for name, data := range map[string][]byte{
		"one value for all":  file(many, big...),
		"its own parent":     file(item(0, 0, 8, 'v', 0, 0)),
		"a parent elsewhere": file(item(7, 0, 8, 'v', 0, 0)),
		"a table in itself":  file(item(gvdbNoParent, 0, 8, 'H', gvdbHeader, gvdbHeader+8+gvdbItem)),
		"a long chain":       file(append(chain, item(gvdbNoParent, 0, 8, 'L', 0, 0)...)),
		"a key outside":      file(item(gvdbNoParent, 1<<31, 8, 'v', 0, 0)),
	} {
		if db, _, ok := Decode("/x", data); ok {
			t.Errorf("%s: read as %d settings", name, len(db))
		}
	}
	db, _, ok := Decode("/x", file(append(item(gvdbNoParent, 0, 8, 'v', 0, 1<<31), item(gvdbNoParent, 0, 8, 'X', 0, 0)...)))
	if !ok || len(db) != 1 || db[0].Value != unreadable {
		t.Errorf("a value outside, and an item of no kind: %+v", db)
	}
	if _, _, ok := Decode("/x", make([]byte, MaxFile+1)); ok {
		t.Error("a file of any size is read")
	}
}

// These files were written by hand as server/registry.c of Wine writes them: Wine itself
// is too large to be installed for a test.
const wineUser = `WINE REGISTRY Version 2
;; All keys relative to \\User\\S-1-5-21-0-0-0-1000

#arch=win64

[Control Panel\\Desktop] 1700000000 123
#time=1da1b2c3d4e5f60
"LogPixels"=dword:00000060
@="the default"

[Software\\Wine\\X11 Driver] 1700000000
#class="a class"
"Managed"="Y"
"Path"="C:\\windows\\system32;\"quoted\""
"Odd]=name"="x=y"
"Expand"=str(2):"%SystemRoot%"
"Data"=hex:01,02,03,\
  04,05,\
  06

[Software\\Empty] 1700000001

[Software\\Link] 1700000002
#link
"SymbolicLinkValue"=hex(6):5c,00

[Software\\caf\xe9] 1700000003
"\xe9"="\x263a"
`

func TestARegistryOfWine(t *testing.T) {
	db, kind, ok := Decode("/home/me/.wine/user.reg", []byte(wineUser))
	if !ok || kind != Wine {
		t.Fatalf("not recognised: %q", kind)
	}
	var got []string
	for _, e := range db {
		got = append(got, fmt.Sprintf("[%s] %s=%s", e.Group, e.Name, e.Value))
	}
	want := []string{
		`[HKEY_CURRENT_USER\Control Panel\Desktop] "LogPixels"=dword:00000060`,
		`[HKEY_CURRENT_USER\Control Panel\Desktop] @="the default"`,
		`[HKEY_CURRENT_USER\Software\Empty] =`,
		`[HKEY_CURRENT_USER\Software\Link] "SymbolicLinkValue"=hex(6):5c,00`,
		`[HKEY_CURRENT_USER\Software\Link] #link=`,
		`[HKEY_CURRENT_USER\Software\Wine\X11 Driver] "Data"=hex:01,02,03,04,05,06`,
		`[HKEY_CURRENT_USER\Software\Wine\X11 Driver] "Expand"=str(2):"%SystemRoot%"`,
		`[HKEY_CURRENT_USER\Software\Wine\X11 Driver] "Managed"="Y"`,
		`[HKEY_CURRENT_USER\Software\Wine\X11 Driver] "Odd]=name"="x=y"`,
		`[HKEY_CURRENT_USER\Software\Wine\X11 Driver] "Path"="C:\\windows\\system32;\"quoted\""`,
		`[HKEY_CURRENT_USER\Software\Wine\X11 Driver] #class="a class"`,
		`[HKEY_CURRENT_USER\Software\caf\xe9] "\xe9"="\x263a"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for header, root := range map[string]string{`\\Machine`: "HKEY_LOCAL_MACHINE", `\\User\\.Default`: `HKEY_USERS\.Default`, `REGISTRY\\Machine`: "HKEY_LOCAL_MACHINE", `\\User\\S-1-5`: "HKEY_CURRENT_USER"} {
		db, _, ok := Decode("/x/copy", []byte(wineHeader+"\n;; All keys relative to "+header+"\n[A] 1\n\"n\"=\"v\"\n"))
		if !ok || len(db) != 1 || db[0].Group != root+`\A` {
			t.Errorf("%s: %+v", header, db)
		}
	}
	for _, bad := range []string{"WINE REGISTRY Version 22\n", wineHeader + "\nwords\n", wineHeader + "\n[A\n", wineHeader + "\n[A] 1\n\"n\n", wineHeader + "\n[A] 1\n\"n\":1\n"} {
		if db, _, ok := Decode("/x", []byte(bad)); ok {
			t.Errorf("%q is read as %v", bad, db)
		}
	}
}

func TestAKeyFile(t *testing.T) {
	db, kind, ok := Decode("/etc/dconf/db/local.d/00-site", []byte("# site\n[org/a]\nk = 'v'\n\n[/]\nx=1\n"))
	if want := (Database{{"/", "x", "1"}, {"org/a", "k", "'v'"}}); !ok || kind != KeyFile || !slices.Equal(db, want) {
		t.Errorf("%v %q %v", db, kind, ok)
	}
	for _, path := range []string{"/etc/dconf/db/local", "/home/me/keyfile", "/etc/passwd"} {
		if _, kind, ok := Decode(path, []byte("[a]\nk=v\n")); ok {
			t.Errorf("%s is a %s", path, kind)
		}
	}
}

func TestCompare(t *testing.T) {
	old := Database{{"a", "gone", "1"}, {"a", "same", "2"}, {"b", "k", "'x'"}}
	now := Database{{"a", "same", "2"}, {"b", "k", ""}, {"c", "", ""}}
	var got []string
	for _, c := range Compare(old, now) {
		got = append(got, c.String())
	}
	want := []string{"[a] gone: 1 -> (none)", "[b] k: 'x' -> (empty)", "[c] (the group itself): (none) -> (empty)"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if cs := Compare(nil, now); len(cs) != 3 {
		t.Errorf("%v", cs)
	}
	if cs := Compare(old, old); cs != nil {
		t.Errorf("%v", cs)
	}
}

func FuzzDconf(f *testing.F) {
	_, data := compiled(f, keyfile)
	f.Add(data)
	_, data = compiled(f, "[a]\nb=1\n")
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if !isGVDB(data) {
			data = append([]byte(gvdbLittle), data...)
		}
		check(t, "/x", data)
	})
}

func FuzzVariant(f *testing.F) {
	for _, s := range []string{"\x05\x00\x00\x00\x00i", "a\x00b\x00\x02\x04\x00as", "k\x00\x00\x05\x00i\x02\x00{si}", "\x00m(say)"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			room := 64 * (len(data) + 16)
			if text := variantText(data, order, &room); text == "" || room < -len(data)-1024 {
				t.Errorf("%q, room %d", text, room)
			}
		}
	})
}

func FuzzWine(f *testing.F) {
	f.Add([]byte(wineUser))
	f.Fuzz(func(t *testing.T, data []byte) {
		check(t, "/x", append([]byte(wineHeader+"\n"), data...))
		check(t, "/etc/dconf/db/x.d/y", data)
	})
}

// check checks what holds for whatever is read.
func check(t *testing.T, path string, data []byte) {
	db, _, ok := Decode(path, data)
	if !ok && db != nil {
		t.Error("a database that is none")
	}
	if !slices.IsSortedFunc(db, less) {
		t.Error("not sorted")
	}
	if cs := Compare(db, db); cs != nil {
		t.Errorf("it differs from itself: %v", cs)
	}
	if cs := Compare(nil, db); len(cs) != len(db) {
		t.Errorf("%d settings, %d changes", len(db), len(cs))
	}
}
