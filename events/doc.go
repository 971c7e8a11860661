// Package events carries what happened from the supervisor to whoever wants to know.
//
// What comes in: operations, one by one, from one goroutine of a session's supervisor
// ([Log.Append]), and the few facts of a session's life ([Log.Begin], [Log.End]). What
// goes out: batches in the streams of NATS JetStream, each exactly once and in order,
// handed to projectors by [Consume].
//
// The one idea to know: the spool is the log and the bus is a copy. Every record is
// appended to a file of the session's own before anything else is done with it; a
// publisher follows that file and copies it to the stream, whenever there is one. So a
// daemon may die, a disk of the bus may be replaced, a supervisor may be killed: what is
// in the spool goes out later, and a position counts as copied only when the stream has
// said so. A batch names the hash of the one before it and a signature seals the last,
// so that what was copied can be proved to be what was written.
package events
