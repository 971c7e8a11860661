-- The flows of a session's network. A flow's id is that of its first operation. One that
-- was open when its session ended has no end of its own: the session's is.
CREATE TABLE flows (
    id          INTEGER PRIMARY KEY,
    box         INTEGER NOT NULL,
    session     INTEGER NOT NULL,
    flow        NOT NULL,         -- its number in the session
    proc        NOT NULL,
    pid         INTEGER NOT NULL,
    exe         INTEGER NOT NULL,
    surface     NOT NULL,
    inbound     INTEGER NOT NULL,
    proto       NOT NULL,
    target      NOT NULL,
    name        NOT NULL,
    "by"        NOT NULL,
    alpn        NOT NULL,
    cert        NOT NULL,
    verdict     INTEGER NOT NULL,
    rule        NOT NULL,
    errno       NOT NULL,
    start       INTEGER NOT NULL,
    "end"       INTEGER NOT NULL, -- 0 while it is open
    reason      NOT NULL,
    sent        INTEGER NOT NULL,
    received    INTEGER NOT NULL,
    packets_out INTEGER NOT NULL,
    packets_in  INTEGER NOT NULL,
    rtt         INTEGER NOT NULL  -- microseconds
);
CREATE UNIQUE INDEX flows_session ON flows (session, flow);
CREATE INDEX flows_latest ON flows (session, id);
CREATE INDEX flows_box ON flows (box, id);
CREATE INDEX flows_open ON flows (session, id) WHERE "end" = 0;

CREATE TABLE flow_totals (
    box      INTEGER NOT NULL,
    session  INTEGER NOT NULL,
    flows    INTEGER NOT NULL,
    sent     INTEGER NOT NULL,
    received INTEGER NOT NULL,
    PRIMARY KEY (box, session)
) WITHOUT ROWID;

-- Names that a box asked for: so many at most, those that were asked for last.
CREATE TABLE names (
    box     INTEGER NOT NULL,
    name    NOT NULL,
    asked   INTEGER NOT NULL, -- id of the last operation
    first   INTEGER NOT NULL, -- time
    last    INTEGER NOT NULL, -- time
    n       INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    verdict INTEGER NOT NULL,
    rule    NOT NULL,
    rcode   NOT NULL,
    types   NOT NULL,
    PRIMARY KEY (box, name)
) WITHOUT ROWID;
CREATE INDEX names_asked ON names (box, asked);
