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
//	prepare.go   the layers and frames of the plan; the folder itself is package layers'
//	private.go   private places: where they are and what the view has instead
//	mask.go      what hides them on disk
//	grant.go     who may read them after all, judged and performed
//	stage.go     PID 1 of the session: mounts, drops privileges, starts the command, reaps
//	landlock.go  the second wall around the command (its rules are pure)
//	procfs.go    the box's /proc: the kernel's part of it is read-only
//	filter.go    the seccomp program (pure)
//	supervise.go the loop that answers trapped calls, and those on files
//	settings.go  which files hold settings
//	guard.go     calls on processes, shared memory and interfaces of the kernel
//	socket.go    calls that make sockets and reach for somebody
//	net.go       the box's own network, which is package network's: whose sockets are whose
//	relay.go     the bytes of granted connections, and nothing else
//	device.go    devices, and the terminal's ioctls
//	bus.go       the box's own session bus
//	perform.go   what the supervisor does for the box: a granted connection, a device
//	rename.go    renames of directories of the real tree, which the overlay refuses
//	resolve.go   which file a call names, as the kernel would find it
//	process.go   which process asks; birth and death
//	changed.go   what the box itself has changed
//	keep.go      what is kept of a file before it changes
//	limits.go    what a session may use, where the kernel or the supervisor bounds it
//	watch.go     what a session uses, a few times a second
//	inside.go    the session's own /proc, read from outside
//	outside.go   what others of the machine do to the box
//	damaged.go   what was done to a box's files while it did not run
//	intrude.go   who reaches into them while it does
//	control.go   freeze, thaw, kill, another policy: orders to a running session
//	question.go  what waits for a person's answer
//	terminal.go  the pty between the caller's terminal and the box's
//	probe.go     what this machine can do
package driver
