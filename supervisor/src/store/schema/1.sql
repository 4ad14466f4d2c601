-- Sessions: what a client holds or has detached. History outlives them, so nothing refers to them by a foreign key.
CREATE TABLE sessions (
    id            TEXT NOT NULL PRIMARY KEY,
    name          TEXT,
    parent        TEXT,
    on_disconnect TEXT NOT NULL CHECK (on_disconnect IN ('detach', 'stop')),
    ttl_ms        INTEGER CHECK (ttl_ms >= 0),
    state         TEXT NOT NULL CHECK (state IN ('attached', 'detached', 'closed')),
    opened_at     TEXT NOT NULL,
    changed_at    TEXT NOT NULL,
    closed_at     TEXT,
    CHECK ((state = 'closed') = (closed_at IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- Processes: what was accepted, and how far it has come.
CREATE TABLE processes (
    id         TEXT NOT NULL PRIMARY KEY,
    session    TEXT,
    name       TEXT,
    labels     TEXT NOT NULL CHECK (json_valid(labels)),
    argv       TEXT NOT NULL CHECK (json_valid(argv)),
    cwd        TEXT,
    policy     TEXT,
    confined   INTEGER NOT NULL CHECK (confined IN (0, 1)),
    request_id TEXT,
    asked      TEXT,
    queued_at  TEXT,
    boot_id    TEXT,
    state      TEXT NOT NULL CHECK (state IN ('accepted', 'live', 'sealed')),
    CHECK ((request_id IS NULL) = (asked IS NULL))
) STRICT;
CREATE UNIQUE INDEX processes_by_request ON processes (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX processes_by_session ON processes (session) WHERE session IS NOT NULL;
CREATE INDEX processes_unsealed ON processes (id) WHERE state <> 'sealed';

-- Records: one for each sealed process. `record` is the whole of it; the other columns repeat what people ask for.
CREATE TABLE records (
    process          TEXT NOT NULL PRIMARY KEY REFERENCES processes (id) ON DELETE CASCADE,
    outcome          TEXT NOT NULL,
    reason           TEXT,
    exit_code        INTEGER,
    signal           TEXT,
    succeeded        INTEGER NOT NULL CHECK (succeeded IN (0, 1)),
    denied           INTEGER NOT NULL CHECK (denied IN (0, 1)),
    started_at       TEXT,
    ended_at         TEXT NOT NULL,
    duration_ms      INTEGER NOT NULL,
    output_bytes     INTEGER NOT NULL,
    output_dropped   INTEGER NOT NULL,
    denials_total    INTEGER NOT NULL,
    denials_complete INTEGER NOT NULL CHECK (denials_complete IN (0, 1)),
    kept_bytes       INTEGER NOT NULL,
    record           TEXT NOT NULL CHECK (json_valid(record))
) STRICT;
CREATE INDEX records_by_end ON records (ended_at, process, kept_bytes);

-- Denials: each that was told as an event. `seq` is that event's number.
CREATE TABLE denials (
    process   TEXT NOT NULL REFERENCES processes (id) ON DELETE CASCADE,
    seq       INTEGER NOT NULL,
    time      TEXT NOT NULL,
    class     TEXT NOT NULL,
    operation TEXT NOT NULL,
    target    TEXT NOT NULL CHECK (json_valid(target)),
    rule      TEXT NOT NULL,
    errno     TEXT NOT NULL,
    certainty TEXT NOT NULL,
    decision  TEXT NOT NULL,
    comm      TEXT,
    pid       INTEGER,
    PRIMARY KEY (process, seq)
) STRICT, WITHOUT ROWID;
