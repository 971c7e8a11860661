package core

import (
	"fmt"
	"time"
)

// Snapshot is a kept state of a box.
type Snapshot struct {
	Name  string    `json:"name"`
	Time  time.Time `json:"time"`
	Files int       `json:"files"` // paths that the box had changed, whiteouts included
	// Bytes is what would be free without this snapshot; Shared is of contents that other
	// snapshots or kept versions have too.
	Bytes  int64 `json:"bytes"`
	Shared int64 `json:"shared"`
	// Live says that a session ran while it was taken: each file is whole, but what was
	// written meanwhile may be of either moment.
	Live bool `json:"live"`
	// Missing counts files whose content could not be read.
	Missing int `json:"missing,omitempty"`
}

// CheckSnapshotName refuses what could not be a snapshot's name: the rules are those of a
// box's name.
func CheckSnapshotName(s string) error {
	if CheckBoxName(s) != nil {
		return Hint(fmt.Errorf("bad snapshot name %q", Shorten(s, 80)),
			"a snapshot's name has 1 to 64 letters, digits, '-', '_' or '.', and begins with a letter or digit")
	}
	return nil
}
