package web

import (
	"context"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// Source is what the pages are made from. Its methods are called by many goroutines at
// once. An error that wraps [core.ErrNotFound] becomes a page that says so.
type Source interface {
	// Boxes returns all boxes, with their latest activity.
	Boxes(ctx context.Context) ([]core.BoxView, error)
	// Box returns one box.
	Box(ctx context.Context, name string) (core.BoxView, error)
	// Sessions returns the newest sessions of a box, newest first, at most limit.
	Sessions(ctx context.Context, box string, limit int) ([]core.SessionView, error)
	// Session returns one session.
	Session(ctx context.Context, id core.SessionID) (core.SessionView, error)
	// Processes returns the processes of a session in the order of their start.
	Processes(ctx context.Context, session core.SessionID) ([]core.ProcessView, error)
	// Ops returns a page of operations, newest first. A session of "" is every session
	// of the box, a nil query every operation. With before, the newest ones that are
	// older than it; with after, the oldest ones that are newer than it. More says
	// whether there are more in the direction that was asked for, or may be, and Next
	// where to go on: a search for something rare may end before it found any.
	Ops(ctx context.Context, q *query.Query, box string, session core.SessionID, before, after core.OpCursor, limit int) (core.OpsPage, error)
	// Counts returns the counters of a box, or of one session of it.
	Counts(ctx context.Context, box string, session core.SessionID) ([]core.SurfaceCount, error)
	// Flows returns flows of a box or of one of its sessions, the one that was opened last
	// first: all, or those that are open; with before, those that are older.
	Flows(ctx context.Context, box string, session core.SessionID, open bool, before core.OpCursor, limit int) (core.FlowsPage, error)
	// FlowTotals returns what the flows of a box come to, or of one session of it.
	FlowTotals(ctx context.Context, box string, session core.SessionID) (core.FlowTotals, error)
	// Names returns the names that a box asked for, the last first, at most limit of them,
	// and how many there are.
	Names(ctx context.Context, box string, limit int) ([]core.NameView, int, error)
}
