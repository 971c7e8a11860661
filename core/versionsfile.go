package core

import (
	"fmt"
	"strings"
)

// versionsFile is what a policy's file says of kept versions: `off`, or limits by name.
type versionsFile struct {
	off    bool
	limits map[string]string
}

// versionKeys are the names in a policy's file, with those of the limits that they set.
var versionKeys = map[string]string{"per-file": "version-file", "per-box": "versions"}

func (v *versionsFile) UnmarshalYAML(unmarshal func(any) error) error {
	var word string
	if unmarshal(&word) == nil {
		if v.off = word == "off" || word == "false"; v.off { // off is false in YAML 1.1
			return nil
		}
		return Hint(fmt.Errorf("versions: %q is not known", Shorten(word, 80)), "versions: off, or per-file and per-box with a size each")
	}
	return unmarshal(&v.limits)
}

func (v *versionsFile) apply(l *Limits) error {
	if v.off {
		l.Versions = NoVersions
		return nil
	}
	for _, k := range sortedKeys(v.limits) {
		name, ok := versionKeys[k]
		if !ok {
			return Hint(fmt.Errorf("versions: unknown key %q", Shorten(k, 80)), "keys: per-box, per-file")
		}
		if err := l.Set(name, strings.TrimSpace(v.limits[k])); err != nil {
			return fmt.Errorf("versions: %s: %w", k, err)
		}
	}
	return nil
}
