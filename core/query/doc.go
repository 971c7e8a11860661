// Package query is the language in which people, pages, permalinks and alert rules
// ask for operations.
//
//	verdict:blocked surface:net.* exe:curl since:1h
//	target:~/.ssh/* or target:"/my files"/*.kdbx
//	(pid>100 or seq<=20) not errno:ENOENT -leak:true detail.argv:*--force*
//	passwd                       searches the target, in any case of its letters
//
// What comes in: text, typed by a person or found in a link. What goes out: one
// syntax tree ([Query.Root]) that can do three things: say whether an operation
// matches ([Query.Match]), become a condition in SQL (package store), and be written
// again as text ([Query.String]). The three agree: the same operations match in the
// live view, in the database and through the link that is kept.
//
// # Terms
//
// A term is field:value. Without a field, a word searches the target for that text
// anywhere, A-Z equal to a-z; everything else is exact to the byte. Terms side by
// side must all hold; "and", "or", "not", a "-" before a term, and parentheses
// combine them, "or" binding least. field!=value is the opposite of field:value, also
// where an operation does not have the field (a detail it lacks). A comma between
// values means any of them: verdict:blocked,redirected.
//
// In a value, * stands for any bytes, '/' among them, and ? for one character (one
// byte, where the bytes are not UTF-8). Quotes take their meaning from them, from
// spaces and from commas: "a*b". \ does so for one character, in quotes or out, and
// \n, \r, \t and \xNN are bytes. ~ at the start of a value is the home folder.
//
// exe:curl, a value without '/', is compared with the last part of the path; with a
// '/' it is the whole path. pid and seq are numbers and can be compared (pid>100);
// so can details that are decimal numbers.
//
// A time is a date, a date and time, a time of today, all with or without a zone, or
// a span before now: 2026-11-23, 2026-11-23T10:15, 10:15:30, 90s, 1h30m, 2d, now,
// today, yesterday. It stands for all it covers: time:2026-11-23 is that day, and
// until:10:15 includes that minute. Times are resolved when the text is read and
// written back as absolute ones, so that a link stays true.
//
// # The one idea to know
//
// Everything that an operation names was chosen by a program that nobody trusts, so
// strings are bytes here, never assumed to be UTF-8, and [Quote] makes any of them
// a value that means just itself. Text is only shown with control bytes escaped.
package query
