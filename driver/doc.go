// Package driver makes boxes on Linux and sees every operation in them.
//
// What comes in: a command, a box's folder and a policy ([Options]). What goes out:
// typed operations with their verdicts, handed in order to a function of the caller,
// and the command's exit code. The driver does not know what becomes of an operation.
//
// The one idea to know: what must not happen is made impossible by the kernel, before
// the boxed program starts - namespaces, overlay mounts, masks, no capabilities, a
// seccomp filter. What the supervisor reads of a trapped call (a path, an argument) is
// for the log: the program could have changed it a moment later, so no wall stands on it.
//
// The parts, in the order in which a run meets them:
//
//	run.go       one session, from the caller's side
//	plan.go      which mounts make up the box's view (pure, from mountinfo)
//	layers.go    the box's folder: upper layers, locks, who runs in it
//	stage.go     PID 1 of the session: mounts, drops privileges, starts the command, reaps
//	landlock.go  the second wall around the command (its rules are pure)
//	filter.go    the seccomp program (pure)
//	supervise.go the loop that answers trapped calls
//	resolve.go   which file a call names, as the kernel would find it
//	process.go   which process asks; birth and death
//	changed.go   what the box itself has changed
//	terminal.go  the pty between the caller's terminal and the box's
//	probe.go     what this machine can do
package driver
