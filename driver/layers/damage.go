package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// maxFindings is how much of a damage is told one by one.
const maxFindings = 100

// findings is what was found to be wrong with a box's folder, for people.
type findings struct {
	texts []string
	more  int
	shut  bool // the box cannot be mounted at all
}

func (d *findings) add(format string, args ...any) {
	if len(d.texts) >= maxFindings {
		d.more++
		return
	}
	d.texts = append(d.texts, fmt.Sprintf(format, args...))
}

func (d *findings) all() []string {
	if d.more > 0 {
		return append(slices.Clone(d.texts), fmt.Sprintf("and %d more", d.more))
	}
	return d.texts
}

// DamageError is a box's folder that was damaged from outside so that what it holds cannot be
// mounted, or must not be committed.
type DamageError struct {
	Found []string
}

func (e *DamageError) Error() string {
	if len(e.Found) == 0 {
		return "the box's folder is damaged"
	}
	return "the box's folder is damaged: " + strings.Join(e.Found, "; ")
}

// Damage says what is wrong with the box's folder in a way that no session of the box can
// have brought about: folders that are missing, links or open to others, a record that
// cannot be read, device nodes and attributes of the overlay that the kernel has not made.
// nil: nothing. Cost: that of [Dir.CompareManifest]; where there is no manifest each file's attributes
// are looked at too.
func (b Dir) Damage() []string {
	found, _, err := b.Inspect(context.Background(), nil)
	if err != nil {
		found = append(found, err.Error())
	}
	return found
}

// Inspect is Damage and [Dir.CompareManifest] in one walk; f may be nil. mountable says
// whether the box can be mounted read-only nevertheless. An error is f's, or ctx's.
func (b Dir) Inspect(ctx context.Context, f func(OutsideChange) error) (found []string, mountable bool, err error) {
	var d findings
	ls := b.inspectFolders(&d)
	refs, err := b.Running()
	if err != nil {
		d.add("%v", err)
	}
	if ls != nil && len(refs) == 0 {
		err = b.inspectHeld(ctx, ls, &d, f)
	}
	return d.all(), !d.shut, err
}

// own says that a path is a directory of the user's that others cannot enter.
func (d *findings) own(p string, must bool) bool {
	fi, err := os.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !must:
		return true
	case err != nil:
		d.add("%v", err)
		return false
	case !fi.IsDir():
		d.add("%s is not a directory", p)
		return false
	}
	if uid, _ := sys.Owner(fi); uid != os.Geteuid() {
		d.add("%s belongs to user %d, not %d", p, uid, os.Geteuid())
		return false
	}
	if fi.Mode().Perm()&0o077 != 0 {
		d.add("%s is open to others: mode %04o, not 0700", p, fi.Mode().Perm())
	}
	return true
}

// inspectFolders looks at the sandbox's own part of the folder. It returns the layers whose files
// can be looked at.
func (b Dir) inspectFolders(d *findings) (whole []Layer) {
	for _, p := range []string{b.At(), b.At("run"), b.At("mnt")} {
		if !d.own(p, p == b.At()) {
			d.shut = true
			return nil
		}
	}
	if !d.own(b.At("layers"), false) {
		d.shut = true
	}
	for _, p := range []string{"objects", "history", "snapshots"} {
		d.own(b.At(p), false)
	}
	var box struct{}
	if err := b.readJSON("box.json", &box); err != nil {
		d.add("%v", err)
	}
	if _, err := b.Masks(); err != nil {
		d.add("%v", err)
	}
	ls, err := b.wholeLayers()
	if err != nil {
		d.add("%v", err)
		if ls, err = b.rebuiltLayers(); err != nil {
			d.shut = true
			return nil
		}
	}
	paths, dirs := map[string]bool{}, map[string]bool{}
	for _, l := range ls {
		if n, err := strconv.Atoi(l.Dir); err != nil || strconv.Itoa(n) != l.Dir || n < 0 || dirs[l.Dir] || paths[l.Path] || !path.IsAbs(l.Path) || path.Clean(l.Path) != l.Path {
			d.add("%s: no layer can be %q in folder %q", b.At("layers.json"), core.Shorten(l.Path, 200), core.Shorten(l.Dir, 40))
			d.shut = true
			return nil
		}
		dirs[l.Dir], paths[l.Path] = true, true
		if b.inspectLayer(l, d) {
			whole = append(whole, l)
		}
	}
	return whole
}

// wholeLayers is [Dir.Layers], which takes a record that is lost for one that never was: a box
// that has run has one.
func (b Dir) wholeLayers() ([]Layer, error) {
	ls, err := b.Layers()
	if err == nil && ls == nil {
		if _, err := os.Lstat(b.At("run", "changed")); err == nil {
			return nil, &fs.PathError{Op: "read", Path: b.At("layers.json"), Err: fs.ErrNotExist}
		}
	}
	return ls, err
}

// inspectLayer says whether a layer's files can be looked at.
func (b Dir) inspectLayer(l Layer, d *findings) bool {
	if !d.own(b.At("layers", l.Dir), true) {
		return false
	}
	d.own(b.Work(l), true)
	fi, err := os.Lstat(b.Upper(l))
	switch {
	case err != nil:
		d.add("%v", err)
		return false
	case !fi.IsDir():
		d.add("%s is not a directory", b.Upper(l))
		return false
	}
	// root's has the owner of the real directory
	if uid, _ := sys.Owner(fi); os.Geteuid() != 0 && uid != os.Geteuid() {
		d.add("%s belongs to user %d, not %d", b.Upper(l), uid, os.Geteuid())
		return false
	}
	return true
}

// inspectHeld looks at the files in the layers: at all, or where there is a manifest at those
// that differ from it: an attribute or a node cannot be made without its showing there.
func (b Dir) inspectHeld(ctx context.Context, ls []Layer, d *findings, f func(OutsideChange) error) error {
	if !b.HasManifest() {
		return b.inspectAll(ctx, ls, d)
	}
	err := b.compare(ctx, ls, func(c *OutsideChange, is *kept) error {
		if is != nil && c.What != "read" {
			b.inspectFile(is, ls, d)
		}
		if f == nil {
			return nil
		}
		return f(*c)
	})
	if !errors.Is(err, ErrManifest) {
		return err
	}
	// A loss of power does that too. It is no damage of what the box holds.
	if f != nil {
		if err := f(OutsideChange{Path: b.At(manifestName), What: "modified"}); err != nil {
			return err
		}
	}
	return b.inspectAll(ctx, ls, d)
}

func (b Dir) inspectAll(ctx context.Context, ls []Layer, d *findings) error {
	for k, err := range b.held(ctx, ls) {
		if err != nil {
			return err
		}
		b.inspectFile(&k, ls, d)
	}
	return nil
}

func (b Dir) inspectFile(k *kept, ls []Layer, d *findings) {
	up := b.upperOf(k.key, ls)
	for _, why := range foreign(k, up) {
		d.add("%s %s", up, why)
	}
}

// foreign says what of a file in a layer neither a box nor the kernel has made.
func foreign(k *kept, up string) (why []string) {
	switch k.mode & syscall.S_IFMT {
	case syscall.S_IFCHR:
		if k.rdev == 0 {
			return nil // a whiteout
		}
		return []string{fmt.Sprintf("is a device, %d:%d", major(k.rdev), minor(k.rdev))}
	case syscall.S_IFBLK:
		return []string{fmt.Sprintf("is a block device, %d:%d", major(k.rdev), minor(k.rdev))}
	case syscall.S_IFLNK:
		return nil
	}
	for _, n := range forged(k.is(syscall.S_IFDIR), up) {
		why = append(why, "has the attribute "+n+", which the kernel did not put there")
	}
	return why
}

// forged lists the overlay's attributes of a file that are not as the kernel sets them
// with userxattr and neither redirect_dir, metacopy, index nor nfs_export (fs/overlayfs/
// overlayfs.h, enum ovl_xattr): of a file its origin; of a directory also that it is opaque, or
// merged.
func forged(dir bool, up string) (out []string) {
	names, err := sys.Llistxattr(up)
	if err != nil {
		return nil
	}
	for _, n := range names {
		short, ours := strings.CutPrefix(n, "user.overlay.")
		if !ours {
			if strings.HasPrefix(n, "trusted.overlay.") {
				out = append(out, n)
			}
			continue
		}
		v, err := sys.Lgetxattr(up, n)
		shut := err != nil // as of a layer of a folder that is closed to its user: the name alone tells
		ok := false
		switch short {
		case "origin":
			ok = shut || len(v) <= 1 || len(v) >= 4 && v[1] == 0xfb // struct ovl_fb: version, magic; nothing or a zero where there is no handle
		case "opaque":
			ok = dir && (shut || string(v) == "y" || string(v) == "x")
		case "impure":
			ok = dir && (shut || string(v) == "y")
		case "uuid", "protattr":
			ok = true
		}
		if !ok {
			out = append(out, n)
		}
	}
	return out
}

// major and minor take a device number apart (gnu_dev_major(3)).
func major(dev uint64) uint64 { return dev>>8&0xfff | dev>>32&^0xfff }
func minor(dev uint64) uint64 { return dev&0xff | dev>>12&^0xff }

// placeName is the file in a layer's folder that says which directory the layer is of: by it
// layers.json is made anew.
const placeName = "path"

// NotePlace writes that file.
func (b Dir) NotePlace(l Layer) error {
	return WriteAtomic(b.At("layers", l.Dir, placeName), []byte(l.Path), 0o600)
}

// rebuiltLayers finds out from the layers' folders what layers.json says.
func (b Dir) rebuiltLayers() (ls []Layer, err error) {
	ents, err := os.ReadDir(b.At("layers"))
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		f, err := OpenRegular(b.At("layers", e.Name(), placeName))
		if err != nil {
			return nil, err
		}
		p := make([]byte, syscall.PathMax+1)
		n, err := f.Read(p)
		f.Close()
		if err != nil || n > syscall.PathMax || !path.IsAbs(string(p[:n])) {
			return nil, fmt.Errorf("%s says no path", f.Name())
		}
		l := Layer{Path: string(p[:n]), Dir: e.Name()}
		_, err = os.Lstat(b.Frame(l))
		l.Frame = err == nil
		ls = append(ls, l)
	}
	if len(ls) == 0 {
		return nil, fs.ErrNotExist
	}
	slices.SortFunc(ls, func(x, y Layer) int {
		n, _ := strconv.Atoi(x.Dir)
		m, _ := strconv.Atoi(y.Dir)
		return n - m
	})
	return ls, nil
}

// Salvage returns the layers of a damaged box that can be mounted below a read-only view.
func (b Dir) Salvage() []Layer {
	var d findings
	return b.inspectFolders(&d)
}

// Repair makes a damaged box's folder whole as far as that can be done, and calls did with
// each thing it does. Files that are lost stay lost; nodes and attributes that do not belong
// there are removed. It returns what is still wrong.
func (b Dir) Repair(ctx context.Context, did func(string)) (left []string, err error) {
	// The folders on the way to the lock come first.
	for _, n := range []string{"run", "mnt", "layers"} {
		if err := b.repairFolder(b.At(n), did); err != nil {
			return nil, err
		}
	}
	lock, err := b.Lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if refs, err := b.Running(); err != nil || len(refs) > 0 {
		return nil, errors.Join(err, core.Hint(fmt.Errorf("%d sessions run in the box", len(refs)), "end them first"))
	}
	if err := b.repairFolder(b.At(), did); err != nil {
		return nil, err
	}
	for _, n := range []string{"objects", "history", "snapshots"} {
		if _, err := os.Lstat(b.At(n)); err == nil {
			if err := b.repairFolder(b.At(n), did); err != nil {
				return nil, err
			}
		}
	}
	if err := b.repairLayers(did); err != nil {
		return nil, err
	}
	if err := b.repairHeld(ctx, did); err != nil {
		return nil, err
	}
	found, _, err := b.Inspect(ctx, nil)
	if err == nil && len(found) == 0 {
		err = b.WriteManifest(ctx)
	}
	return found, err
}

// repairFolder makes p a directory that only its user can enter. What is there and is none
// is moved aside.
func (b Dir) repairFolder(p string, did func(string)) error {
	fi, err := os.Lstat(p)
	if err == nil && !fi.IsDir() {
		aside := p + ".damaged"
		if err := os.Rename(p, aside); err != nil {
			return err
		}
		did("moved " + p + ", which was no directory, to " + aside)
		err = fs.ErrNotExist
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Mkdir(p, 0o700); err != nil {
			return err
		}
		did("made " + p)
		return nil
	}
	if uid, _ := sys.Owner(fi); uid != os.Geteuid() {
		if err := os.Lchown(p, os.Geteuid(), os.Getegid()); err != nil {
			return err
		}
		did("took " + p + " back from user " + strconv.Itoa(uid))
	}
	if fi.Mode().Perm() != 0o700 {
		if err := os.Chmod(p, 0o700); err != nil {
			return err
		}
		did(fmt.Sprintf("closed %s to others (it was %04o)", p, fi.Mode().Perm()))
	}
	return nil
}

func (b Dir) repairLayers(did func(string)) error {
	ls, err := b.wholeLayers()
	if err != nil {
		if ls, err = b.rebuiltLayers(); err != nil {
			return core.Hint(&DamageError{Found: []string{b.At("layers.json") + " cannot be read, nor made anew"}}, "its files are in layers/*/upper")
		}
		data, err := json.MarshalIndent(ls, "", " ")
		if err == nil {
			err = WriteAtomic(b.At("layers.json"), data, 0o600)
		}
		if err != nil {
			return err
		}
		did("made layers.json anew from the layers")
	}
	for _, l := range ls {
		for _, p := range []string{b.At("layers", l.Dir), b.Work(l)} {
			if err := b.repairFolder(p, did); err != nil {
				return err
			}
		}
		fi, err := os.Lstat(b.Upper(l))
		if err == nil && fi.IsDir() {
			if uid, _ := sys.Owner(fi); os.Geteuid() != 0 && uid != os.Geteuid() {
				return core.Hint(fmt.Errorf("%s belongs to user %d", b.Upper(l), uid), "only root can give it back: chown it")
			}
			continue
		}
		if err := b.repairFolder(b.Upper(l), did); err != nil {
			return err
		}
		if real, err := os.Stat(l.Path); err == nil {
			if err := os.Chmod(b.Upper(l), real.Mode().Perm()|real.Mode()&fs.ModeSticky); err != nil {
				return err
			}
		}
		did("what the box had changed in " + l.Path + " is lost")
	}
	return nil
}

func (b Dir) repairHeld(ctx context.Context, did func(string)) error {
	ls, err := b.Layers()
	if err != nil {
		return err
	}
	for k, err := range b.held(ctx, ls) {
		if err != nil {
			return err
		}
		up := b.upperOf(k.key, ls)
		if k.is(syscall.S_IFBLK) || k.is(syscall.S_IFCHR) {
			if len(foreign(&k, up)) > 0 {
				if err := os.Remove(up); err != nil {
					return err
				}
				did("removed the device " + up)
			}
			continue
		}
		if k.is(syscall.S_IFLNK) {
			continue
		}
		for _, n := range forged(k.is(syscall.S_IFDIR), up) {
			if err := sys.Lremovexattr(up, n); err != nil {
				return fmt.Errorf("%s: remove the attribute %s: %w", up, n, err)
			}
			did("removed the attribute " + n + " of " + up)
		}
	}
	return nil
}

// Refuse returns an error that says what is damaged, for what must not be done then.
func (b Dir) Refuse(what string) error {
	found := b.Damage()
	if len(found) == 0 {
		return nil
	}
	name := filepath.Base(string(b))
	return core.Hint(fmt.Errorf("%s: %w", what, &DamageError{Found: found}), "`sandglass box repair "+name+"` repairs what can be; `sandglass run --box "+name+"` opens it read-only")
}
