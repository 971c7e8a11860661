package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"modernc.org/sqlite"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/events"
	"github.com/sandglass/sandglass/migrations"
)

// The files of the projections, in the folder that [Open] is given.
const (
	fileName    = "projections.db"
	lockName    = "projections.lock"
	damagedName = "projections.damaged" // a reader found damage; the next writer makes them anew
)

// lockPatience is how long [Open] and the first write wait for another process that
// writes the projections: a command that ends, or the daemon on its way down.
const lockPatience = 5 * time.Second

// readers is how many reads run at once; more wait.
const readers = 4

// ErrRestart is wrapped by the error of a fold after the projections were made anew: who
// folds asks [Store.Checkpoint] where to begin again.
var ErrRestart = errors.New("the projections were made anew")

// ErrBusy is wrapped by errors that say that another process writes the projections.
var ErrBusy = errors.New("another process writes the projections")

// Store is the projections in one folder. Its methods may be called from any number of
// goroutines. Any number of processes may have one open; one of them at a time writes.
type Store struct {
	dir     string
	script  string
	version int32
	now     func() time.Time
	wait    time.Duration // for the lock

	files sync.RWMutex // shared by who reads the files; held by who replaces them
	read  *sql.DB

	writing   sync.Mutex
	lock      *os.File // held from the first write until Close
	folder    *folder  // nil before the first write
	restart   bool
	recovered string
	closed    bool
}

// Open opens the projections in dir, and makes them when there are none, when they are of
// another version or when they are damaged; damaged ones are moved aside: see
// [Store.Recovered].
func Open(dir string) (*Store, error) {
	if err := registerAll(); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, now: time.Now, wait: lockPatience}
	s.script, s.version = migrations.Projections(foldRules)
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", s.path(), err)
	}
	return s, nil
}

func (s *Store) path() string { return filepath.Join(s.dir, fileName) }

// open makes what must be made and opens the pool of readers.
func (s *Store) open() error {
	ctx := context.Background()
	err := s.inspect(ctx)
	if err != nil {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return err
		}
		lock, lerr := s.takeLock(ctx)
		if lerr != nil {
			return errors.Join(lerr, err)
		}
		// Who held the lock until now may have done what is to be done.
		if err = s.inspect(ctx); err != nil {
			err = s.replace(err)
		}
		if cerr := lock.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	s.read, err = s.openPool()
	return err
}

// dsn names the database for the driver. Pragmas are in it because a pool sets them for
// each connection that it opens.
func dsn(path, mode string, pragmas ...string) string {
	v := url.Values{"mode": {mode}, "_txlock": {"deferred"}}
	if mode != "ro" {
		v.Set("_txlock", "immediate")
	}
	for _, p := range append([]string{"busy_timeout(5000)", "trusted_schema(0)", "temp_store(2)"}, pragmas...) {
		v.Add("_pragma", p)
	}
	u := url.URL{Path: path}
	return "file:" + u.EscapedPath() + "?" + v.Encode()
}

// openPool opens the readers. Their connections cannot write; nor do they, when the last
// one is closed, delete the log of a database that has taken the place of theirs.
func (s *Store) openPool() (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(s.path(), "ro", "query_only(1)", "cache_size(-8192)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(readers)
	db.SetMaxIdleConns(readers)
	return db, nil
}

// errVersion says that the database is of another version.
var errVersion = errors.New("a database of another version")

// inspect says whether the database can be used: nil, fs.ErrNotExist, errVersion or that
// it is damaged. It looks at a few pages; damage elsewhere is noticed when it is met.
func (s *Store) inspect(ctx context.Context) error {
	if _, err := os.Stat(s.path()); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.dir, damagedName)); err == nil {
		return errDamaged
	}
	db, err := sql.Open("sqlite", dsn(s.path(), "ro"))
	if err != nil {
		return err
	}
	defer db.Close()
	var version int32
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version != s.version {
		return errVersion
	}
	for _, q := range []string{
		"SELECT count(*) FROM (SELECT * FROM streams)", "SELECT count(*) FROM (SELECT * FROM kinds LIMIT 100)", "SELECT count(*) FROM (SELECT * FROM boxes LIMIT 100)",
		"SELECT count(*) FROM (SELECT * FROM sessions ORDER BY id DESC LIMIT 10)", "SELECT count(*) FROM (SELECT * FROM ops ORDER BY id DESC LIMIT 10)",
		"SELECT count(*) FROM (SELECT * FROM ops LIMIT 10)", "SELECT count(*) FROM search",
	} {
		var n int
		if err := db.QueryRowContext(ctx, q).Scan(&n); err != nil {
			return err
		}
	}
	return nil
}

var errDamaged = errors.New("the database is damaged")

// damaged says whether err means that the file's content is not what SQLite wrote.
func damaged(err error) bool {
	if errors.Is(err, errDamaged) {
		return true
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	const corrupt, notADatabase, shortRead = 11, 26, 10 | 2<<8 // sqlite.org/rescode.html
	return e.Code()&0xff == corrupt || e.Code()&0xff == notADatabase || e.Code() == shortRead
}

// takeLock becomes the process that writes.
func (s *Store) takeLock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(s.wait)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		wait := time.NewTimer(10 * time.Millisecond)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			f.Close()
			return nil, context.Cause(ctx)
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, core.Hint(ErrBusy, "`sandglass stop` ends the daemon; the next command starts it again")
		}
	}
}

// replace makes a new database in the place of the one that why is about: nothing there,
// another version, or damage. The lock is held. What is damaged is moved aside; the last
// such one is kept.
func (s *Store) replace(why error) error {
	gone, other := errors.Is(why, fs.ErrNotExist), errors.Is(why, errVersion)
	if !gone && !other && !damaged(why) {
		return why // no permission, say
	}
	made := s.path() + ".new"
	if err := s.create(made); err != nil {
		return fmt.Errorf("make %s: %w", made, err)
	}
	if !gone && !other {
		aside := s.path() + ".corrupt-" + s.now().UTC().Format("20060102T150405Z")
		old, err := filepath.Glob(escapeGlob(s.path()) + ".corrupt-*")
		if err != nil {
			return err
		}
		for _, name := range old {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
		if err := os.Rename(s.path(), aside); err != nil {
			return err
		}
		if err := os.Rename(s.path()+"-wal", aside+"-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.recovered = aside
	}
	// The log and the index of the old one must not be taken for those of the new one.
	for _, name := range []string{s.path(), s.path() + "-wal", s.path() + "-shm"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(made, s.path()); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.dir, damagedName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

// create makes an empty database.
func (s *Store) create(path string) error {
	for _, name := range []string{path, path + "-wal", path + "-shm", path + "-journal"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(path, "rw", "page_size(4096)", "journal_mode(DELETE)"))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	_, err = db.Exec("BEGIN; " + s.script + fmt.Sprintf("; PRAGMA user_version = %d; COMMIT", s.version))
	if err == nil {
		_, err = db.Exec("PRAGMA journal_mode = WAL")
	}
	return errors.Join(err, db.Close())
}

// writer returns the folder, which it makes when this is the first write. s.writing is
// held.
func (s *Store) writer(ctx context.Context) (*folder, error) {
	if s.closed {
		return nil, fs.ErrClosed
	}
	if s.folder != nil {
		if _, err := os.Stat(filepath.Join(s.dir, damagedName)); err == nil {
			return nil, s.heal(errDamaged)
		}
		return s.folder, nil
	}
	if s.lock == nil {
		lock, err := s.takeLock(ctx)
		if err != nil {
			return nil, err
		}
		s.lock = lock
	}
	if err := s.inspect(ctx); err != nil {
		return nil, s.heal(err)
	}
	if err := s.openWriter(); err != nil {
		if damaged(err) {
			return nil, s.heal(err)
		}
		return nil, err
	}
	return s.folder, nil
}

// walPages is how long the log may become, in pages, before a commit writes it back.
const walPages = 4096

func (s *Store) openWriter() error {
	c, err := s.read.Driver().Open(dsn(s.path(), "rw", "journal_mode(WAL)", "synchronous(NORMAL)", "cache_size(-65536)",
		fmt.Sprintf("wal_autocheckpoint(%d)", walPages), fmt.Sprintf("journal_size_limit(%d)", 4*walPages*4096)))
	if err != nil {
		return err
	}
	s.folder = newFolder(newConn(c))
	return nil
}

// heal makes the projections anew because of err, which it returns when it cannot, or
// with ErrRestart when it has. s.writing is held, and so is the lock.
func (s *Store) heal(err error) error {
	if rerr := s.remake(err); rerr != nil {
		return errors.Join(err, rerr)
	}
	s.restart = true
	return fmt.Errorf("%w: %w", ErrRestart, err)
}

// remake replaces the files, and opens the new ones.
func (s *Store) remake(why error) error {
	s.files.Lock()
	defer s.files.Unlock()
	var errs []error
	if s.folder != nil {
		if err := s.folder.close(); err != nil && !damaged(err) {
			errs = append(errs, err)
		}
		s.folder = nil
	}
	if err := s.read.Close(); err != nil && !damaged(err) {
		errs = append(errs, err)
	}
	rerr := s.replace(why)
	pool, err := s.openPool()
	if err != nil {
		return errors.Join(append(errs, rerr, err)...)
	}
	s.read = pool
	if rerr != nil {
		return errors.Join(append(errs, rerr)...)
	}
	return errors.Join(append(errs, s.openWriter())...)
}

// write runs fn with the folder, and makes the projections anew when they turn out to be
// damaged.
func (s *Store) write(ctx context.Context, fn func(*folder) error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	f, err := s.writer(ctx)
	if err != nil {
		return err
	}
	if err = fn(f); damaged(err) {
		return s.heal(err)
	}
	return err
}

// FoldBatches folds messages in one transaction: all of them or, with an error, none.
// Messages up to the checkpoint of their stream are passed over; those of one stream come
// in its order. It fails with [ErrRestart] when the projections had to be made anew: then
// nothing is folded before [Store.Checkpoint] or [Store.Begin] has been asked.
func (s *Store) FoldBatches(ctx context.Context, ds []events.Delivered) error {
	return s.write(ctx, func(f *folder) error {
		if s.restart {
			return fmt.Errorf("%w: fold again from the checkpoint", ErrRestart)
		}
		if len(ds) == 0 {
			return nil
		}
		return f.fold(ctx, ds)
	})
}

// Fold folds one batch of the stream of operations: see [Store.FoldBatches].
func (s *Store) Fold(ctx context.Context, b *events.Batch, streamSeq uint64) error {
	return s.FoldBatches(ctx, []events.Delivered{{Stream: events.StreamOps, StreamSeq: streamSeq, Batch: b}})
}

// Tidy does some of the work that folds have put off for later: searches are faster when
// it is done. It says whether there is more to do. Who folds calls it when there is
// nothing to fold.
func (s *Store) Tidy(ctx context.Context) (more bool, err error) {
	err = s.write(ctx, func(f *folder) error {
		return f.transact(ctx, func() error {
			err := f.index(indexIdle)
			more = f.indexed+1 < f.paths.next
			return err
		})
	})
	if err != nil {
		return false, fmt.Errorf("tidy the projections: %w", err)
	}
	return more, nil
}

// Checkpoint returns the number of the last message of the stream that is folded, 0 when
// none is, and the epoch: the name of the stream that the number is of, as [Store.Begin]
// was told.
func (s *Store) Checkpoint(ctx context.Context, name string) (seq uint64, epoch string, err error) {
	err = s.write(ctx, func(f *folder) error {
		return f.transact(ctx, func() error {
			st, err := f.stream(name)
			if err != nil {
				return err
			}
			seq, epoch = uint64(st.seq), st.epochName()
			return nil
		})
	})
	if errors.Is(err, ErrRestart) { // just now
		return s.Checkpoint(ctx, name)
	}
	if err != nil {
		return 0, "", fmt.Errorf("read the checkpoint of stream %s: %w", name, err)
	}
	s.writing.Lock()
	s.restart = false
	s.writing.Unlock()
	return seq, epoch, nil
}

func (s *stream) epochName() string {
	if s.generation == 0 {
		return s.epoch
	}
	return fmt.Sprintf("%s+%d", s.epoch, s.generation)
}

// Loss says that a stream no longer has what was folded from it.
type Loss struct {
	Stream     string
	Folded     uint64 // the checkpoint
	Last       uint64 // the stream's last message
	Epoch, Was string // the stream's name for itself, now and then; another one is another stream
}

func (l Loss) String() string {
	if l.Epoch != l.Was {
		return fmt.Sprintf("stream %s is another one than was folded up to message %d", l.Stream, l.Folded)
	}
	return fmt.Sprintf("stream %s ends with message %d, but was folded up to %d: it has lost messages", l.Stream, l.Last, l.Folded)
}

// Begin compares the streams with what was folded from them, and returns for each the
// message after which to go on. A stream that ends before its checkpoint, or that is
// another one than before, has lost messages: it is reported, begins a new epoch, and is
// folded from its beginning. What was folded stays, and nothing is folded twice.
func (s *Store) Begin(ctx context.Context, states map[string]events.StreamState) (from map[string]uint64, lost []Loss, err error) {
	for name := range states {
		if _, _, err := s.Checkpoint(ctx, name); err != nil {
			return nil, nil, err
		}
	}
	from = map[string]uint64{}
	err = s.write(ctx, func(f *folder) error {
		return f.transact(ctx, func() error {
			for name, state := range states {
				st, err := f.stream(name)
				if err != nil {
					return err
				}
				if st.epoch != "" && st.epoch != state.Epoch || uint64(st.seq) > state.Last {
					lost = append(lost, Loss{name, uint64(st.seq), state.Last, state.Epoch, st.epoch})
					max, err := f.int("SELECT max(id) FROM batches")
					if err != nil {
						return err
					}
					st.generation, st.base, st.seq = st.generation+1, max>>batchBits, 0
				}
				st.dirty = st.dirty || st.epoch != state.Epoch || len(lost) > 0
				st.epoch = state.Epoch
				from[name] = uint64(st.seq)
			}
			return f.flushStreams()
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("compare the streams with what is folded: %w", err)
	}
	return from, lost, nil
}

// Reset throws everything away. What reads at the time is waited for.
func (s *Store) Reset(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if _, err := s.writer(ctx); err != nil && !errors.Is(err, ErrRestart) {
		return err
	}
	if err := s.remake(errVersion); err != nil {
		return fmt.Errorf("empty the projections: %w", err)
	}
	s.restart = false
	return nil
}

// Recovered returns the path to which a damaged database was moved since [Open] began, ""
// when there was none.
func (s *Store) Recovered() string {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.recovered
}

// Close ends the store. It waits for what runs.
func (s *Store) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.files.Lock()
	defer s.files.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	errs := []error{s.read.Close()}
	if s.folder != nil { // the last one out writes the log back and removes it
		errs = append(errs, s.folder.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the projections: %w", err)
	}
	return nil
}

// view runs a read on one connection, in one snapshot.
func (s *Store) view(ctx context.Context, fn func(*sql.Tx) error) error {
	err := s.snapshot(ctx, fn)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if damaged(err) {
		return s.reportDamage(err)
	}
	return err
}

func (s *Store) snapshot(ctx context.Context, fn func(*sql.Tx) error) (err error) {
	s.files.RLock()
	defer s.files.RUnlock()
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() {
		if rerr := tx.Rollback(); err == nil && rerr != nil && ctx.Err() == nil {
			err = rerr
		}
	}()
	return fn(tx)
}

// reportDamage has the projections made anew after a read found damage: by this process
// when it writes them, else by the one that does, or will.
func (s *Store) reportDamage(err error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.closed {
		return err
	}
	ctx := context.Background()
	if s.lock != nil {
		return s.heal(err)
	}
	// The file may have been replaced under the eyes of this read. A fresh look tells.
	if cerr := s.check(ctx); cerr == nil || !damaged(cerr) {
		return err
	}
	f, ferr := os.OpenFile(filepath.Join(s.dir, damagedName), os.O_WRONLY|os.O_CREATE, 0o600)
	if ferr == nil {
		ferr = f.Close()
	}
	return core.Hint(errors.Join(err, ferr), "the daemon makes the projections anew from the stream; ask again in a moment")
}

// check looks at every page of the database.
func (s *Store) check(ctx context.Context) error {
	db, err := sql.Open("sqlite", dsn(s.path(), "ro"))
	if err != nil {
		return err
	}
	defer db.Close()
	var said string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&said); err != nil {
		return err
	}
	if said != "ok" {
		return fmt.Errorf("%w: %s", errDamaged, said)
	}
	return nil
}
