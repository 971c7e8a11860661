package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// opaqueAttr says of a directory of an upper layer that nothing real shows through.
const opaqueAttr = "user.overlay.opaque"

// planPrivate puts the private places into the plan.
func (r *run) planPrivate(vis map[string]mountEntry, over []string) error {
	pr, f, err := findPrivate(r.o.Policy, r.o.Env, sharesIn(vis))
	if err != nil {
		return err
	}
	if len(r.o.Policy.Grants) > 0 && r.o.Session.Observe != core.ObserveFull {
		return core.Hint(fmt.Errorf("grants of private places: observe is %q, and the supervisor must see each file that is opened", r.o.Session.Observe), "--observe full")
	}
	r.steps, r.veils = viewPrivate(r.steps, vis, f, &pr, over)
	r.private = pr
	if err := r.planShares(vis, f.held); err != nil {
		return err
	}
	return pr.checkDir(r.o.Dir)
}

// hidePrivate makes on disk what the plan says of private places, before the box's mounts.
func (r *run) hidePrivate(cfg *stageConfig) error {
	if err := r.b.mask(r.layers, r.veils); err != nil {
		return fmt.Errorf("hide private places: %w", err)
	}
	for i := range r.private.Places {
		pl := &r.private.Places[i]
		if pl.How == privFile {
			if err := r.b.makeVeilFile(pl.Path); err != nil {
				return fmt.Errorf("hide %s: %w", pl.Path, err)
			}
		}
		if pl.How == privFile || pl.How == privVeil && len(pl.Roots) > 0 {
			cfg.Clones = append(cfg.Clones, pl.Path)
		}
	}
	var err error
	if r.private.Programs, err = r.b.programs(r.o.Policy, r.layers, r.o.Hide); err != nil {
		return err
	}
	for _, p := range r.private.Programs {
		cfg.Programs = append(cfg.Programs, stageBind{p.Copy, p.Real})
	}
	data, err := json.Marshal(&r.private)
	if err != nil {
		return err
	}
	file := r.b.At("run", privateRecord)
	if old, err := os.ReadFile(file); err == nil && string(old) == string(data) {
		return nil
	}
	return layers.WriteAtomic(file, data, 0o600)
}

// privateRecord has in the box's folder what its view does with private places.
const privateRecord = "private"

// joinPrivate takes over what the session that made the view found; the policy must want the same.
func (r *run) joinPrivate() error {
	data, err := os.ReadFile(r.b.At("run", privateRecord))
	var pr private
	if err == nil {
		err = json.Unmarshal(data, &pr)
	}
	if err != nil {
		return fmt.Errorf("read what is private in the box: %w", err)
	}
	if pr.View != r.o.Policy.PrivateView() {
		return core.Hint(errors.New("the box runs with other private places or grants than this policy's"),
			"the sessions of a box have one view: run it with the same policy, or in another box")
	}
	r.private = pr
	return nil
}

// mask makes the whiteouts of the places in want, and takes those of earlier sessions away
// that are not wanted any more. What the box has put in such a place hides the real one as
// well, and stays. No session may run; ls has the longest path first.
func (b boxDir) mask(ls []layers.Layer, want []string) error {
	have, err := b.Masks()
	if err != nil {
		return err
	}
	wanted := make(map[string]bool, len(want))
	var fresh []string
	for _, p := range want {
		wanted[p] = true
		if have[p] {
			if l, rel, ok := layers.Place(ls, p); ok && rel != "" {
				if mode, rdev, err := sys.Lstat(-100, filepath.Join(b.Upper(l), rel)); err == nil && mode&syscall.S_IFMT == syscall.S_IFCHR && rdev == 0 {
					continue // nearly always
				}
			}
		}
		fresh = append(fresh, p)
	}
	var stale []string
	all := slices.Clone(want)
	for p := range have {
		if !wanted[p] {
			stale, all = append(stale, p), append(all, p)
		}
	}
	if len(all) > len(have) { // first, so that none is taken for a change of the box's
		if err := b.WriteMasks(all); err != nil {
			return err
		}
	}
	for _, p := range fresh {
		if err := b.hide(ls, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	for _, p := range stale {
		if err := b.unhide(ls, p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if len(stale) > 0 {
		return b.WriteMasks(want)
	}
	return nil
}

// alter changes something of the upper layers by itself. The record of the box's last stop,
// which was compared before, tells nothing from then on: the session's end writes another.
func (b boxDir) alter(do func() error) error {
	if err := b.ForgetManifest(); err != nil {
		return err
	}
	return do()
}

// hide makes the whiteout of p, and the way there as it is in the real tree.
func (b boxDir) hide(ls []layers.Layer, p string) error {
	l, rel, ok := layers.Place(ls, p)
	if !ok || rel == "" {
		return errors.New("no layer above it")
	}
	real, up := l.Path, b.Upper(l)
	names := strings.Split(rel, "/")
	for _, name := range names[:len(names)-1] {
		parent := up
		real, up = join(real, name), filepath.Join(up, name)
		fi, err := os.Lstat(up)
		switch {
		case err == nil && (!fi.IsDir() || layers.Opaque(up)):
			return nil // what the box has put in the way hides all of it
		case err == nil:
		case errors.Is(err, fs.ErrNotExist):
			if rfi, err := os.Lstat(real); err != nil || !rfi.IsDir() {
				return nil // gone since it was looked for
			}
			if err := b.within(parent, func() error { return copyDir(real, up) }); err != nil {
				return err
			}
		default:
			return err
		}
	}
	at := filepath.Join(up, names[len(names)-1])
	fi, err := os.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return b.within(up, func() error { return sys.MakeWhiteout(-100, at) })
	case err != nil:
		return err
	case fi.IsDir() && !layers.Opaque(at): // the box has changed something in it, when it was not private
		return b.alter(func() error { return sys.Lsetxattr(at, opaqueAttr, []byte("y")) })
	}
	return nil
}

// unhide takes away what hides p: the whiteout, or that the box's own directory there hides
// the real one. What the box has deleted or replaced stays so.
func (b boxDir) unhide(ls []layers.Layer, p string) error {
	// A layer of its own, where it has got one since, is mounted over the one with the whiteout.
	l, rel, ok := layers.Place(slices.DeleteFunc(slices.Clone(ls), func(l layers.Layer) bool { return l.Path == p }), p)
	if !ok || rel == "" {
		return nil
	}
	dir, ok := b.Upper(l), true
	if path.Dir(rel) != "." {
		if dir, ok = folderIn(b.Upper(l), path.Dir(rel)); !ok {
			return nil
		}
	}
	at := filepath.Join(dir, path.Base(rel))
	is, err := layers.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case layers.Whiteout(at, is):
		return b.within(dir, func() error { return os.Remove(at) })
	case is.Type == core.TypeDir && layers.Opaque(at):
		return b.alter(func() error { return sys.Lremovexattr(at, opaqueAttr) })
	}
	return nil
}

// within changes something in a directory of a layer, which may be nobody's to write in and
// keeps its mode and time.
func (b boxDir) within(dir string, do func() error) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if err := b.ForgetManifest(); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	err = do()
	if cerr := os.Chmod(dir, fi.Mode()&modeBits); err == nil {
		err = cerr
	}
	if terr := os.Chtimes(dir, fi.ModTime(), fi.ModTime()); err == nil {
		err = terr
	}
	return err
}

// copyDir is [makeLike] with the extended attributes, so that the way to a whiteout is no
// change. One that cannot be had or set is one that the box has not got either.
func copyDir(real, up string) error {
	if err := makeLike(real, up); err != nil {
		return err
	}
	for n, v := range layers.Xattrs(real) {
		sys.Lsetxattr(up, n, v)
	}
	return nil
}

// maxSkeleton bounds the entries of a skeleton.
const maxSkeleton = 1 << 16

// makeSkeleton makes dir a skeleton of what is in the real directory: of each of roots, and
// the way there. Nothing that is below hide is in it.
func (b boxDir) makeSkeleton(real, dir string, roots, hide []string) error {
	if err := layers.RemoveTree(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	left := maxSkeleton
	for _, r := range roots {
		if !under(r, real) {
			continue
		}
		var way []string
		if r != real {
			way = strings.Split(strings.TrimPrefix(r[len(real):], "/"), "/")
		}
		at, to := real, dir
		for _, name := range way[:max(len(way)-1, 0)] {
			at, to = join(at, name), filepath.Join(to, name)
			if fi, err := os.Lstat(at); err != nil || !fi.IsDir() {
				to = ""
				break
			}
			if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		if to == "" {
			continue
		}
		if len(way) > 0 {
			at, to = r, filepath.Join(to, way[len(way)-1])
		}
		if err := bones(at, to, hide, &left); err != nil {
			return fmt.Errorf("look at %s: %w", r, err)
		}
		// The way there last, as what is made in a directory changes its time.
		for i := len(way) - 1; i >= 0; i-- {
			sub := strings.Join(way[:i], "/")
			if err := makeLike(filepath.Join(real, sub), filepath.Join(dir, sub)); err != nil {
				return err
			}
		}
	}
	return makeLike(real, dir)
}

// bones makes the skeleton to of what is at real.
func bones(real, to string, hide []string, left *int) error {
	if slices.ContainsFunc(hide, func(h string) bool { return under(real, h) }) {
		return nil
	}
	if *left--; *left < 0 {
		return core.Hint(fmt.Errorf("more than %d files", maxSkeleton), "grant what is needed of it")
	}
	fi, err := os.Lstat(real)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case fi.IsDir():
		if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		ents, err := os.ReadDir(real)
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		for _, e := range ents {
			if err := bones(join(real, e.Name()), filepath.Join(to, e.Name()), hide, left); err != nil {
				return err
			}
		}
		return makeLike(real, to)
	case fi.Mode().IsRegular():
		return boneFile(real, to, fi)
	case fi.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(real)
		if err != nil {
			return nil
		}
		if err := os.Symlink(link, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil // sockets, FIFOs and devices are not of the box
}

// boneFile makes a file of that size without content.
func boneFile(real, to string, fi fs.FileInfo) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // two grants name it
	}
	if err != nil {
		return err
	}
	err = f.Truncate(fi.Size())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	mode := fi.Mode() & fs.ModePerm
	uid, gid := sys.Owner(fi)
	if err := os.Chown(to, uid, gid); err != nil && uid != os.Geteuid() {
		mode = mode&^0o700 | fs.FileMode(sys.AccessBits(real))<<6
	}
	if err := os.Chmod(to, mode); err != nil {
		return err
	}
	return os.Chtimes(to, fi.ModTime(), fi.ModTime())
}

// veilFile is where the skeleton of a single file is.
func (b boxDir) veilFile(p string) string { return b.At("veils", nameOf(p)) }

func nameOf(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:16])
}

func (b boxDir) makeVeilFile(real string) error {
	if err := os.MkdirAll(b.At("veils"), 0o700); err != nil {
		return err
	}
	to := b.veilFile(real)
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fi, err := os.Lstat(real)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errors.New("it is no file any more")
	}
	return boneFile(real, to, fi)
}

// maxProgram is the largest program that is copied.
const maxProgram = 1 << 30

// programs makes the copies of the programs that grants name. One that is not there, or that
// the box has changed, is none: its grants open nothing.
func (b boxDir) programs(p *core.Policy, ls []layers.Layer, hide []string) (out []program, err error) {
	dir := b.At("programs")
	keep := map[string]bool{}
	seen := map[string]bool{}
	for i := range p.Grants {
		exe := p.Grants[i].Exe
		if p.Grants[i].Stance == core.Block || seen[exe] {
			continue
		}
		seen[exe] = true
		pr := program{Exe: exe}
		if pr.Real, err = filepath.EvalSymlinks(exe); err != nil {
			continue
		}
		if head := headOf(pr.Real); bytesHasShebang(head) {
			pr.Script = pr.Real
			if pr.Real, err = filepath.EvalSymlinks(interpreterOf(head)); err != nil || bytesHasShebang(headOf(pr.Real)) {
				continue
			}
		}
		if slices.ContainsFunc(hide, func(h string) bool { return under(pr.Real, h) }) || !b.isReal(ls, pr.Real) {
			continue
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if !sys.Executable(dir) {
			return nil, core.Hint(fmt.Errorf("grant %q: programs cannot be executed from %s", core.Shorten(p.Grants[i].String(), 200), dir), "the state folder must be on a file system without noexec: set SANDGLASS_HOME")
		}
		if pr.Copy, err = copyProgram(pr.Real, dir); err != nil {
			return nil, fmt.Errorf("grant %q: %w", core.Shorten(p.Grants[i].String(), 200), err)
		}
		if pr.Copy == "" {
			continue
		}
		keep[filepath.Base(pr.Copy)] = true
		out = append(out, pr)
	}
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, e := range ents {
		if !keep[e.Name()] {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	return out, err
}

func bytesHasShebang(head []byte) bool { return len(head) > 1 && head[0] == '#' && head[1] == '!' }

// headOf reads the beginning of a regular file.
func headOf(p string) []byte {
	f, err := layers.OpenRegular(p)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, 256) // BINPRM_BUF_SIZE
	n, _ := io.ReadFull(f, b)
	return b[:n]
}

// isReal says whether what the box sees at p is the real thing: nothing of the box's own is
// there nor on the way to it, which is without symbolic links.
func (b boxDir) isReal(ls []layers.Layer, p string) bool {
	l, rel, ok := layers.Place(ls, p)
	if !ok || rel == "" {
		return false
	}
	up := b.Upper(l)
	for name := range strings.SplitSeq(rel, "/") {
		up = filepath.Join(up, name)
		fi, err := os.Lstat(up)
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		if err != nil || !fi.IsDir() || layers.Opaque(up) {
			return false
		}
	}
	return false
}

// copyProgram makes a copy in dir that everybody can execute and nobody read, and returns
// its path; "" when real is no program. A copy that is there of the same file is taken.
func copyProgram(real, dir string) (string, error) {
	fi, err := os.Stat(real)
	if err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
		return "", nil
	}
	st := fi.Sys().(*syscall.Stat_t)
	to := filepath.Join(dir, nameOf(fmt.Sprintf("%s\x00%d %d %d %d %d %d", real, st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Ctim.Sec, st.Ctim.Nsec)))
	if have, err := os.Lstat(to); err == nil && have.Mode() == 0o111 && have.Size() == fi.Size() {
		return to, nil
	}
	in, err := layers.OpenRegular(real)
	if errors.Is(err, fs.ErrPermission) {
		return "", nil // it cannot be read by anybody already
	}
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, ".copy-")
	if err != nil {
		return "", err
	}
	n, err := io.Copy(out, io.LimitReader(in, maxProgram+1))
	if n > maxProgram {
		err = fmt.Errorf("%s is larger than %d bytes", real, maxProgram)
	}
	if err == nil {
		err = out.Chmod(0o111)
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chtimes(out.Name(), fi.ModTime(), fi.ModTime())
	}
	if err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		os.Remove(out.Name())
		return "", err
	}
	return to, nil
}
