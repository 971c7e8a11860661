// Package store keeps the projections: tables that answer what pages and commands ask.
//
// What comes in: messages of the event streams ([Store.FoldBatches]). What goes out: views
// ([Store.Boxes], [Store.Session], [Store.Processes] ...) and pages of operations that a
// query finds ([Store.Ops]).
//
// The one idea to know: everything here is a fold of the streams and can be thrown away.
// What a message changes and the number of that message are written in one transaction,
// and an operation is known by its session and sequence number; so a message that comes
// twice, late or after a crash changes nothing twice. A schema of another version or a
// damaged file is not mended: it is made anew, and the streams are folded again.
//
// # Strings
//
// What a box chose is arbitrary bytes. A string is TEXT when it is UTF-8 without NUL and
// BLOB otherwise: so all come back as they were, those that can be are legible in any
// SQLite shell and found by trigrams, and each kind is compared byte by byte. SQLite
// never finds a TEXT equal to a BLOB, and each string has just one form.
//
// # Writing and reading
//
// One connection writes, held by the process that holds projections.lock. Readers have
// connections of their own, which cannot write; in WAL mode neither waits for the other.
// Commits are not synced (synchronous=NORMAL): what a power loss takes back is in the
// stream, behind the checkpoint that it takes back with it.
package store
