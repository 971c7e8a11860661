package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
)

// conn is the connection that writes. It talks to the driver without package
// database/sql, which would cost as much for each of an operation's columns as SQLite
// does. It is used by one goroutine at a time.
type conn struct {
	c     driver.Conn
	stmts map[string]driver.Stmt
	args  []driver.NamedValue
}

func newConn(c driver.Conn) *conn { return &conn{c: c, stmts: map[string]driver.Stmt{}} }

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.c.Close())...)
}

func (c *conn) prepare(sql string) (driver.Stmt, error) {
	if s := c.stmts[sql]; s != nil {
		return s, nil
	}
	s, err := c.c.Prepare(sql)
	if err != nil {
		return nil, fmt.Errorf("prepare %.60q: %w", sql, err)
	}
	c.stmts[sql] = s
	return s, nil
}

// values makes the arguments of a statement: int64, string, []byte or nil. They are
// valid until the next call.
func (c *conn) values(args []any) []driver.NamedValue {
	for len(c.args) < len(args) {
		c.args = append(c.args, driver.NamedValue{Ordinal: len(c.args) + 1})
	}
	for i, a := range args {
		c.args[i].Value = a
	}
	return c.args[:len(args)]
}

// exec runs a statement and says how many rows it changed.
func (c *conn) exec(sql string, args ...any) (int64, error) {
	s, err := c.prepare(sql)
	if err != nil {
		return 0, err
	}
	r, err := s.(driver.StmtExecContext).ExecContext(context.Background(), c.values(args))
	if err != nil {
		return 0, fmt.Errorf("%.60q: %w", sql, err)
	}
	return r.RowsAffected()
}

// query hands each row to fn, whose argument is valid until it returns. A nil fn asks for
// nothing.
func (c *conn) query(fn func(row []driver.Value) error, sql string, args ...any) error {
	s, err := c.prepare(sql)
	if err != nil {
		return err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(context.Background(), c.values(args))
	if err != nil {
		return fmt.Errorf("%.60q: %w", sql, err)
	}
	row := make([]driver.Value, len(rows.Columns()))
	for {
		if err = rows.Next(row); err != nil {
			break
		}
		if err = fn(row); err != nil {
			break
		}
	}
	if err == io.EOF {
		err = nil
	}
	if cerr := rows.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%.60q: %w", sql, err)
	}
	return nil
}

// int reads one integer; 0 when there is no row or it is NULL.
func (c *conn) int(sql string, args ...any) (n int64, err error) {
	err = c.query(func(row []driver.Value) error {
		n, _ = row[0].(int64)
		return nil
	}, sql, args...)
	return n, err
}

// bulk collects rows for one table and inserts many with each statement: of the cost of a
// small row most is that of a statement.
type bulk struct {
	head, tail string // INSERT INTO t VALUES, ON CONFLICT ...
	columns    int
	rows       int // of the largest statement: a power of two
	args       []any
	sql        map[int]string
}

func newBulk(head, tail string, columns, rows int) *bulk {
	b := &bulk{head: head, tail: tail, columns: columns, rows: rows, sql: map[int]string{}}
	row := "(?" + strings.Repeat(", ?", columns-1) + ")"
	for n := 1; n <= rows; n *= 2 {
		b.sql[n] = head + " " + row + strings.Repeat(", "+row, n-1) + " " + tail
	}
	return b
}

// add adds a row.
func (b *bulk) add(c *conn, row ...any) error {
	b.args = append(b.args, row...)
	if len(b.args) == b.rows*b.columns {
		return b.flush(c)
	}
	return nil
}

// flush inserts what has been collected.
func (b *bulk) flush(c *conn) error {
	for n, args := b.rows, b.args; len(args) > 0; {
		for n*b.columns > len(args) {
			n /= 2
		}
		if _, err := c.exec(b.sql[n], args[:n*b.columns]...); err != nil {
			return err
		}
		args = args[n*b.columns:]
	}
	clear(b.args)
	b.args = b.args[:0]
	return nil
}

// text returns the string that a column holds, whatever its type.
func text(v driver.Value) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}

func number(v driver.Value) int64 { n, _ := v.(int64); return n }

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
