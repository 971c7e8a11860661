package layers

import (
	"encoding/json"
	"sort"
)

// WriteMasks records the paths that [Dir.Masks] returns.
func (b Dir) WriteMasks(paths []string) error {
	ps := make([][]byte, len(paths)) // any bytes
	for i, p := range paths {
		ps[i] = []byte(p)
	}
	sort.Slice(ps, func(i, j int) bool { return string(ps[i]) < string(ps[j]) })
	data, err := json.Marshal(ps)
	if err != nil {
		return err
	}
	return WriteAtomic(b.At("masks.json"), data, 0o600)
}
