// Package settings reads databases of settings as keys and values, so that people see
// which setting a box has changed instead of bytes.
//
// What comes in: the path and the content of a file. What goes out: a [Database], sorted,
// each value as the text by which its own tools show it; and what differs between two.
//
// The one idea to know: the file was written by a program that nobody trusts. Whatever it
// holds, reading it ends soon, takes memory in proportion to the file, and what cannot be
// read is said to be so, key by key, instead of being left out.
//
//	settings.go  which kind of database a file is; how two differ
//	gvdb.go      dconf's databases: hash tables on disk
//	variant.go   values of GVariant, as their text
//	wine.go      the registry of Wine, and files of keys as dconf compiles them
package settings
