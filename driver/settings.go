package driver

import (
	"path"
	"strings"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// settingsFiles knows which files hold settings, by where they are. For the log, and for
// what a policy blocks: a program can keep such a file elsewhere and read it there.
type settingsFiles struct {
	dconf  string // where the caller keeps dconf's databases
	prefix string // of Wine; "" where it is not said
}

// settingsOf reads from an environment where settings are kept (dconf(7), wine(1)).
func settingsOf(env []string) (f settingsFiles) {
	vars := map[string]string{}
	for _, e := range env {
		if name, value, ok := strings.Cut(e, "="); ok {
			vars[name] = value
		}
	}
	config := vars["XDG_CONFIG_HOME"]
	if !path.IsAbs(config) {
		config = path.Join(vars["HOME"], ".config")
	}
	f.dconf = path.Join(config, "dconf")
	if p := vars["WINEPREFIX"]; path.IsAbs(p) {
		f.prefix = path.Clean(p)
	}
	return f
}

// surface says of which settings p is a file, "" of none. exists says whether there is
// something at a path of the box's.
func (f *settingsFiles) surface(p string, exists func(string) bool) core.Surface {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ""
	}
	dir, name := p[:i], p[i+1:]
	// A database is replaced whole: what it is made in has another name in the same folder.
	if dir == f.dconf || strings.HasSuffix(dir, "/.config/dconf") || under(p, "/etc/dconf") {
		return core.SettingsDconf
	}
	if branch := strings.HasSuffix(name, ".reg"); !branch && !(strings.HasPrefix(name, "reg") && strings.HasSuffix(name, ".tmp")) {
		return ""
	}
	if dir == f.prefix || path.Base(dir) == ".wine" || exists(dir+"/system.reg") {
		return core.SettingsWine
	}
	return ""
}

// exists says whether there is something at p, seen from the box's root.
func (s *supervisor) exists(p string) bool {
	_, _, err := sys.Lstat(s.paths.root, strings.TrimPrefix(p, "/"))
	return err == nil
}
