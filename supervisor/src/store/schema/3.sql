-- Job specs: what jobs run, which those of one submission share. `hash` is for finding the same one again.
CREATE TABLE job_specs (
    id   INTEGER PRIMARY KEY,
    hash TEXT NOT NULL,
    spec TEXT NOT NULL CHECK (json_valid(spec))
) STRICT;
CREATE INDEX job_specs_by_hash ON job_specs (hash);

-- Job groups: how many of their jobs run at the same time. `parallel` is null where that is left to the daemon.
CREATE TABLE job_groups (
    name      TEXT NOT NULL PRIMARY KEY,
    parallel  INTEGER CHECK (parallel > 0),
    paused    INTEGER NOT NULL CHECK (paused IN (0, 1)),
    temporary INTEGER NOT NULL CHECK (temporary IN (0, 1))
) STRICT, WITHOUT ROWID;

-- Jobs: what was submitted, how far it has come, and what became of it.
CREATE TABLE jobs (
    id           TEXT NOT NULL PRIMARY KEY,
    spec         INTEGER NOT NULL REFERENCES job_specs (id),
    request_id   TEXT,
    asked        TEXT,
    session      TEXT,
    name         TEXT,
    labels       TEXT NOT NULL CHECK (json_valid(labels)),
    argv         TEXT NOT NULL CHECK (json_valid(argv)),
    job_group    TEXT NOT NULL,
    priority     INTEGER NOT NULL,
    after_jobs   TEXT NOT NULL CHECK (json_valid(after_jobs)),
    retry        TEXT NOT NULL CHECK (json_valid(retry)),
    submitted_at TEXT NOT NULL,
    not_before   TEXT,
    deadline     TEXT,
    retry_of     TEXT,
    state        TEXT NOT NULL CHECK (state IN ('queued', 'starting', 'running', 'ended')),
    attempt      INTEGER NOT NULL CHECK (attempt >= 0),
    process      TEXT,
    cancel       TEXT,
    kill         INTEGER NOT NULL CHECK (kill IN (0, 1)),
    outcome      TEXT,
    reason       TEXT,
    exit_code    INTEGER,
    signal       TEXT,
    succeeded    INTEGER NOT NULL CHECK (succeeded IN (0, 1)),
    denied       INTEGER NOT NULL CHECK (denied IN (0, 1)),
    started_at   TEXT,
    ended_at     TEXT,
    duration_ms  INTEGER NOT NULL,
    CHECK ((request_id IS NULL) = (asked IS NULL)),
    CHECK ((state = 'ended') = (outcome IS NOT NULL) AND (state = 'ended') = (ended_at IS NOT NULL)),
    CHECK (state IN ('queued', 'ended') OR process IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX jobs_by_request ON jobs (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX jobs_by_name ON jobs (name) WHERE name IS NOT NULL;
CREATE INDEX jobs_by_group ON jobs (job_group);
CREATE INDEX jobs_by_spec ON jobs (spec);
CREATE INDEX jobs_unended ON jobs (id) WHERE state <> 'ended';
CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE state = 'ended';

-- Job attempts: one for each time that a job had its turn.
CREATE TABLE job_attempts (
    job       TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt   INTEGER NOT NULL,
    process   TEXT NOT NULL,
    begun_at  TEXT NOT NULL,
    outcome   TEXT,
    reason    TEXT,
    exit_code INTEGER,
    ended_at  TEXT,
    PRIMARY KEY (job, attempt)
) STRICT, WITHOUT ROWID;

-- Job events: every change of state, in one order. `seq` is never used again.
CREATE TABLE job_events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    time    TEXT NOT NULL,
    job     TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    state   TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    process TEXT,
    reason  TEXT
) STRICT;
CREATE INDEX job_events_by_job ON job_events (job);

-- Job notices: who is told of the end of a job, and whether that was taken.
CREATE TABLE job_notices (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    job          TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    target       TEXT NOT NULL CHECK (json_valid(target)),
    delivered_at TEXT,
    tries        INTEGER NOT NULL,
    error        TEXT
) STRICT;
CREATE INDEX job_notices_by_job ON job_notices (job);
CREATE INDEX job_notices_open ON job_notices (id) WHERE delivered_at IS NULL;
