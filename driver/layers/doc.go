// Package layers is what a box holds: its folder on disk with the upper layers, and what
// people do with them.
//
// What comes in: a box's folder ([Dir]), as the driver made it, and what a person wants
// done. What goes out: how the box differs from the real system, as [core.Change]s, and
// changes of the real system or of the box itself.
//
// The one idea to know: everything below layers/ was written by a program that nobody
// trusts. A symbolic link there leads where the program wants, so none is followed; a name
// is any bytes; a directory may be closed, deep or huge; and while a session runs, all of
// it can change between two looks.
//
//	dir.go       the folder: layers, locks, who runs in it
//	manifest.go  what the layers were like at the last stop, and what differs
//	damage.go    a folder that was damaged from outside, and its repair
//	changes.go   how the box differs from the real system
//	level.go     the same of one directory alone
//	settings.go  the same of files of settings, key by key
//	commit.go    a commit: what there is to do, and what stands in the way
//	choice.go    which changes it is about, and what it leaves in the layers
//	staging.go   new content, written beside its targets
//	apply.go     the renames
//	release.go   what is committed leaves the layers
//	journal.go   what makes it all or nothing: undoing and finishing
//	known.go     what commits themselves left, and is nobody else's doing
//	tree.go      real directories that go away
//	open.go      either version of a file
//	patch.go     what differs in it, for people
//	discard.go   throwing changes away
package layers
