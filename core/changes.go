package core

import "time"

// Change is one path at which a box differs from the real system.
type Change struct {
	Path string     // absolute, arbitrary bytes
	Kind ChangeKind // against the real system as it is now
	Was  *FileState // the real one; nil when there is none
	Is   *FileState // the box's; nil when it has deleted the real one
	// Parts says in what a modified path differs: "content", "type", "mode", "owner",
	// "link", "xattrs". Times alone make no change.
	Parts []string
	// Unread says why the box's own version could not be looked at, "" when it could: a
	// box may have closed a directory to its own user.
	Unread string
}

// ChangeKind says what became of a path.
type ChangeKind byte

// The kinds of changes, by the letters that people know.
const (
	Added    ChangeKind = 'A'
	Modified ChangeKind = 'M'
	Deleted  ChangeKind = 'D'
)

// String returns the kind's letter.
func (k ChangeKind) String() string { return string(rune(k)) }

// FileType says what a path names.
type FileType string

// The types of files.
const (
	TypeFile    FileType = "file"
	TypeDir     FileType = "directory"
	TypeSymlink FileType = "symlink"
	TypeFIFO    FileType = "fifo"
	TypeSocket  FileType = "socket"
	TypeDevice  FileType = "device" // of the real system: a box makes none
)

// FileState is what lstat(2) tells of a path.
type FileState struct {
	Type  FileType  `json:"type"`
	Mode  uint32    `json:"mode"` // permission bits with set-user-ID, set-group-ID and sticky: 07777
	UID   int       `json:"uid"`
	GID   int       `json:"gid"`
	Size  int64     `json:"size"` // bytes; of a symbolic link those of its text
	MTime time.Time `json:"mtime"`
	CTime time.Time `json:"ctime"`
	Inode uint64    `json:"inode"`
	Dev   uint64    `json:"dev"`
	Links uint64    `json:"links"`          // 1 for what has no other name
	Link  string    `json:"link,omitempty"` // text of a symbolic link
}

// ChangeCounts counts changes by kind.
type ChangeCounts struct {
	Added    int `json:"added"`
	Modified int `json:"modified"`
	Deleted  int `json:"deleted"`
}

// Add counts one change.
func (c *ChangeCounts) Add(k ChangeKind) {
	switch k {
	case Added:
		c.Added++
	case Modified:
		c.Modified++
	case Deleted:
		c.Deleted++
	}
}

// Total returns the number of changes.
func (c ChangeCounts) Total() int { return c.Added + c.Modified + c.Deleted }
