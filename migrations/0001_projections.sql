-- The projections: a fold of the streams, thrown away and folded again when these files
-- change. Times are nanoseconds since 1970. A column without a type holds arbitrary
-- bytes: TEXT when they are UTF-8 without NUL, BLOB otherwise.

-- How far each stream is folded, in the same transaction as what was folded.
CREATE TABLE streams (
    name       TEXT PRIMARY KEY,
    epoch      TEXT NOT NULL,    -- the stream's own name for itself; '' when nobody told
    generation INTEGER NOT NULL, -- how often it had lost what was already folded
    base       INTEGER NOT NULL, -- added to a message's number, so that batches.id ascends through generations
    seq        INTEGER NOT NULL  -- the last message that is folded
) WITHOUT ROWID;

-- A column is written from one stream alone, or by max and min: so it does not matter in
-- which order the two streams come.
CREATE TABLE boxes (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    first   INTEGER NOT NULL,           -- first fact of either stream
    last    INTEGER NOT NULL DEFAULT 0, -- operations: the latest
    created INTEGER NOT NULL DEFAULT 0, -- control: the last creation; 0 when none is known
    policy  TEXT NOT NULL DEFAULT '',   -- control: of that creation
    removed INTEGER NOT NULL DEFAULT 0  -- control
);

CREATE TABLE sessions (
    id            INTEGER PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE, -- its ULID
    box           INTEGER NOT NULL,
    host          TEXT NOT NULL,
    -- control
    began         INTEGER NOT NULL DEFAULT 0,
    command       NOT NULL DEFAULT '',
    policy        NOT NULL DEFAULT '',
    observe       NOT NULL DEFAULT '',
    net           NOT NULL DEFAULT '',
    ended         INTEGER NOT NULL DEFAULT 0,
    exit          INTEGER NOT NULL DEFAULT 0,
    lost          INTEGER NOT NULL DEFAULT 0,
    sealed        INTEGER NOT NULL DEFAULT 0, -- the last operation, as its end says
    -- operations
    first         INTEGER NOT NULL DEFAULT 0, -- time
    last          INTEGER NOT NULL DEFAULT 0, -- time
    last_seq      INTEGER NOT NULL DEFAULT 0,
    missing       INTEGER NOT NULL DEFAULT 0, -- the sum of its gaps
    op_began      INTEGER NOT NULL DEFAULT 0,
    op_command    NOT NULL DEFAULT '',
    op_policy     NOT NULL DEFAULT '',
    op_observe    NOT NULL DEFAULT '',
    op_net        NOT NULL DEFAULT '',
    op_ended      INTEGER NOT NULL DEFAULT 0,
    op_exit       INTEGER NOT NULL DEFAULT 0,
    processes     INTEGER NOT NULL DEFAULT 0,
    live          INTEGER NOT NULL DEFAULT 0, -- processes without an end
    allowed       INTEGER NOT NULL DEFAULT 0,
    redirected    INTEGER NOT NULL DEFAULT 0,
    blocked       INTEGER NOT NULL DEFAULT 0,
    leaks         INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX sessions_box ON sessions (box, name);

-- Operations of a session that have not arrived though later ones have.
CREATE TABLE gaps (
    session INTEGER NOT NULL,
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL,
    PRIMARY KEY (session, first)
) WITHOUT ROWID;

-- proc '' is the supervisor itself; it is no process of the session.
CREATE TABLE processes (
    id         INTEGER PRIMARY KEY,
    session    INTEGER NOT NULL,
    proc       NOT NULL,
    pid        INTEGER NOT NULL,
    parent     NOT NULL,
    exe        NOT NULL,
    argv       NOT NULL,
    start      INTEGER NOT NULL,
    "end"      INTEGER NOT NULL, -- 0 while it lives
    exit       NOT NULL,
    allowed    INTEGER NOT NULL,
    redirected INTEGER NOT NULL,
    blocked    INTEGER NOT NULL,
    leaks      INTEGER NOT NULL
);
CREATE UNIQUE INDEX processes_session ON processes (session, proc);

-- Dictionaries. What the supervisor alone chooses comes in few combinations.
CREATE TABLE kinds (
    id      INTEGER PRIMARY KEY,
    surface NOT NULL,
    action  NOT NULL,
    verdict INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    rule    NOT NULL,
    errno   NOT NULL,
    leak    INTEGER NOT NULL
);
CREATE TABLE exes (
    id   INTEGER PRIMARY KEY,
    text NOT NULL UNIQUE
);
CREATE TABLE targets (
    id   INTEGER PRIMARY KEY,
    text NOT NULL UNIQUE
);
CREATE INDEX targets_blob ON targets (id) WHERE typeof(text) = 'blob';
CREATE TABLE details (
    id   INTEGER PRIMARY KEY, -- 0 is no detail and not here
    body BLOB NOT NULL        -- see detail.go
);
CREATE INDEX details_body ON details (body) WHERE length(body) <= 128; -- longer ones hardly come twice

-- A batch of operations of one session, as it was one message. Its id is 1024 times the
-- message's number in the stream. kinds, exes and procs have a bit for each (id mod 64)
-- that occurs in it, so that a search passes by batches that cannot have what it seeks.
CREATE TABLE batches (
    id      INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    box     INTEGER NOT NULL,
    first   INTEGER NOT NULL, -- the sequence number that its first operation has or would have
    since   INTEGER NOT NULL, -- earliest time
    until   INTEGER NOT NULL, -- latest time
    kinds   INTEGER NOT NULL,
    exes    INTEGER NOT NULL,
    procs   INTEGER NOT NULL
);
CREATE INDEX batches_session ON batches (session, id);
CREATE INDEX batches_box ON batches (box, id);

-- An operation. Its id is its batch's plus its place in it (0 to 1023), which also gives
-- its sequence number, and by it the table is in the order in which it was folded.
CREATE TABLE ops (
    id     INTEGER PRIMARY KEY,
    time   INTEGER NOT NULL,
    pid    INTEGER NOT NULL,
    proc   INTEGER NOT NULL,
    exe    INTEGER NOT NULL,
    kind   INTEGER NOT NULL,
    target INTEGER NOT NULL,
    detail INTEGER NOT NULL
);
CREATE INDEX ops_target ON ops (target);

CREATE TABLE counters (
    session INTEGER NOT NULL,
    kind    INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    PRIMARY KEY (session, kind)
) WITHOUT ROWID;

CREATE TABLE box_counters (
    box  INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    n    INTEGER NOT NULL,
    PRIMARY KEY (box, kind)
) WITHOUT ROWID;

CREATE TABLE buckets (
    box        INTEGER NOT NULL,
    second     INTEGER NOT NULL, -- since 1970
    allowed    INTEGER NOT NULL,
    redirected INTEGER NOT NULL,
    blocked    INTEGER NOT NULL,
    leaks      INTEGER NOT NULL,
    PRIMARY KEY (box, second)
) WITHOUT ROWID;

CREATE TABLE paths (
    box        INTEGER NOT NULL,
    target     INTEGER NOT NULL,
    last       INTEGER NOT NULL, -- time
    kind       INTEGER NOT NULL, -- of the last operation
    changed    INTEGER NOT NULL,
    allowed    INTEGER NOT NULL,
    redirected INTEGER NOT NULL,
    blocked    INTEGER NOT NULL,
    leaks      INTEGER NOT NULL,
    PRIMARY KEY (box, target)
) WITHOUT ROWID;
