// Package core is the domain of Sandglass: boxes, sessions, operations, surfaces,
// verdicts and the policy that decides them.
//
// What comes in: typed operations from the driver, encoded ones from the stream.
// What goes out: decisions, and folds of operations into state. Nothing here reads
// a file, a clock or a socket, so the same inputs give the same outputs for ever:
// that is what makes a replay possible.
//
// The one idea to know: an [Operation] with its [Verdict] is the only fact there
// is. Everything that is shown anywhere is a fold of operations.
package core
