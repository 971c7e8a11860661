package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// digests are what [Store.Digest] reads, in an order that does not depend on how the
// messages came: numbers that the fold itself gave out are left out, and what they stand
// for is in their place.
var digests = []struct{ name, sql string }{
	{"boxes", "SELECT name, first, last, created, policy, removed FROM boxes ORDER BY name"},
	{"sessions", `SELECT s.name, x.name, host, began, command, s.policy, observe, net, ended, exit, lost, sealed, s.first, s.last, last_seq, missing,
		op_began, op_command, op_policy, op_observe, op_net, op_ended, op_exit, processes, live, allowed, redirected, blocked, leaks
		FROM sessions s JOIN boxes x ON x.id = s.box ORDER BY s.name`},
	{"gaps", "SELECT s.name, g.first, g.last FROM gaps g JOIN sessions s ON s.id = g.session ORDER BY s.name, g.first"},
	{"processes", `SELECT s.name, ` + processColumns + ` FROM (SELECT session, ` + processColumns + ` FROM processes) p JOIN (SELECT id, name FROM sessions) s ON s.id = p.session
		ORDER BY s.name, proc`},
	{"counters", `SELECT s.name, k.surface, k.action, k.verdict, k.outcome, k.rule, k.errno, k.leak, n.n FROM counters n JOIN kinds k ON k.id = n.kind JOIN sessions s ON s.id = n.session
		ORDER BY 1, 2, 3, 4, 5, 6, 7, 8`},
	{"box counters", `SELECT x.name, k.surface, k.action, k.verdict, k.outcome, k.rule, k.errno, k.leak, n.n FROM box_counters n JOIN kinds k ON k.id = n.kind JOIN boxes x ON x.id = n.box
		ORDER BY 1, 2, 3, 4, 5, 6, 7, 8`},
	{"buckets", `SELECT x.name, second, allowed, redirected, blocked, leaks FROM buckets n JOIN boxes x ON x.id = n.box ORDER BY x.name, second`},
	{"paths", `SELECT x.name, t.text, p.last, k.surface, k.action, k.verdict, k.outcome, k.rule, k.errno, k.leak, p.changed, p.allowed, p.redirected, p.blocked, p.leaks
		FROM paths p JOIN boxes x ON x.id = p.box JOIN targets t ON t.id = p.target JOIN kinds k ON k.id = p.kind ORDER BY x.name, t.text`},
	{"flows", `SELECT x.name, s.name, f.flow, f.proc, f.pid, e.text, f.surface, f.inbound, f.proto, f.target, f.name, f."by", f.alpn, f.cert, f.verdict, f.rule, f.errno,
		f.start, f."end", f.reason, f.sent, f.received, f.packets_out, f.packets_in, f.rtt
		FROM flows f JOIN sessions s ON s.id = f.session JOIN boxes x ON x.id = f.box JOIN exes e ON e.id = f.exe ORDER BY s.name, f.flow`},
	{"flow totals", "SELECT x.name, s.name, n.flows, n.sent, n.received FROM flow_totals n JOIN boxes x ON x.id = n.box JOIN sessions s ON s.id = n.session ORDER BY s.name, x.name"},
	{"names", "SELECT x.name, n.name, n.first, n.last, n.n, n.blocked, n.verdict, n.rule, n.rcode, n.types FROM names n JOIN boxes x ON x.id = n.box ORDER BY x.name, n.name"},
}

const digestOps = `SELECT b.first + o.id - b.id AS seq, o.time, o.pid, p.proc, e.text, k.surface, k.action, k.verdict, k.outcome, k.rule, k.errno, k.leak, t.text, d.body, x.name
	FROM batches b CROSS JOIN ops o ON o.id >= b.id AND o.id < b.id + 1024 CROSS JOIN kinds k ON k.id = o.kind CROSS JOIN targets t ON t.id = o.target
	CROSS JOIN exes e ON e.id = o.exe CROSS JOIN processes p ON p.id = o.proc CROSS JOIN boxes x ON x.id = b.box LEFT JOIN details d ON d.id = o.detail
	WHERE b.session = ? ORDER BY seq`

// Digest returns the SHA-256 of all that the projections hold, in hexadecimal. It is the
// same for the same messages, however often and in whatever portions they came; so it
// proves that a rebuild gave the same content. It reads everything: a few seconds for a
// million operations.
func (s *Store) Digest(ctx context.Context) (string, error) {
	h := sha256.New()
	err := s.view(ctx, func(tx *sql.Tx) error {
		var scratch []byte
		add := func(row []driver.Value) error {
			scratch = scratch[:0]
			for _, v := range row {
				switch v := v.(type) {
				case int64:
					scratch = binary.AppendVarint(append(scratch, 'i'), v)
				default: // of a string's two forms it has the one that its bytes ask for
					t := text(v)
					scratch = append(binary.AppendUvarint(append(scratch, 's'), uint64(len(t))), t...)
				}
			}
			h.Write(scratch)
			return nil
		}
		for _, d := range digests {
			title(h, d.name)
			if err := each(ctx, tx, add, d.sql); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
		var ids []int64
		var names []string
		err := each(ctx, tx, func(row []driver.Value) error {
			ids, names = append(ids, number(row[0])), append(names, text(row[1]))
			return nil
		}, "SELECT id, name FROM sessions ORDER BY name")
		if err != nil {
			return err
		}
		for i, id := range ids {
			title(h, "operations of "+names[i])
			if err := each(ctx, tx, add, digestOps, id); err != nil {
				return fmt.Errorf("operations of session %s: %w", names[i], err)
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("digest the projections: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func title(h hash.Hash, name string) { fmt.Fprintf(h, "\n%q\n", name) }
