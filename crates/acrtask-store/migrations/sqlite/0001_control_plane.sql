-- The tables of a control plane. Times are milliseconds since 1970 in UTC; truth is 0 or 1; lists and objects are JSON.

-- What a runner must have for a run. Rows are never changed or removed.
CREATE TABLE classes (
    id INTEGER PRIMARY KEY,
    pool TEXT NOT NULL,
    platform TEXT NOT NULL,
    labels TEXT NOT NULL,
    UNIQUE (pool, platform, labels)
);

CREATE TABLE contexts (
    id TEXT NOT NULL PRIMARY KEY,
    size BIGINT NOT NULL,
    digest TEXT NOT NULL,
    received BIGINT NOT NULL DEFAULT 0,
    complete BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    CHECK (received <= size),
    CHECK (complete = 0 OR received = size)
);
CREATE INDEX contexts_digest ON contexts (digest, size) WHERE complete = 1;
CREATE INDEX contexts_used ON contexts (last_used_at);

CREATE TABLE context_parts (
    context_id TEXT NOT NULL REFERENCES contexts (id) ON DELETE CASCADE,
    begins BIGINT NOT NULL,
    length BIGINT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (context_id, begins)
) WITHOUT ROWID;

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT,
    task_name TEXT,
    spec TEXT NOT NULL,
    queue TEXT NOT NULL,
    class_id BIGINT NOT NULL REFERENCES classes (id),
    context_id TEXT REFERENCES contexts (id),
    secrets BLOB,
    started_by TEXT NOT NULL,
    requested_by TEXT,
    rerun_of TEXT,
    timeout_secs BIGINT,
    traceparent TEXT NOT NULL,
    warm_key TEXT NOT NULL,
    max_attempts BIGINT NOT NULL,
    group_name TEXT,
    group_max BIGINT,
    order_key BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    -- From here on, what the life of a run changes.
    state TEXT NOT NULL DEFAULT 'queued',
    held BIGINT NOT NULL DEFAULT 0,
    reason TEXT,
    attempt BIGINT NOT NULL DEFAULT 0,
    losses BIGINT NOT NULL DEFAULT 0,
    runner_id TEXT,
    lease_until BIGINT,
    accept_by BIGINT,
    run_until BIGINT,
    deadline BIGINT,
    leased_at BIGINT,
    started_at BIGINT,
    finished_at BIGINT,
    cancel_requested_at BIGINT,
    cancel_reason TEXT,
    log_length BIGINT NOT NULL DEFAULT 0,
    log_sha256 TEXT,
    result TEXT,
    CHECK (state IN ('queued', 'leased', 'running', 'succeeded', 'failed', 'canceled', 'timed_out', 'error')),
    CHECK ((state IN ('leased', 'running')) = (deadline IS NOT NULL)),
    CHECK (state NOT IN ('leased', 'running') OR runner_id IS NOT NULL),
    CHECK ((state IN ('queued', 'leased', 'running')) = (finished_at IS NULL)),
    CHECK (held = 0 OR (state = 'queued' AND group_name IS NOT NULL AND group_max IS NOT NULL))
);
-- The queue.
CREATE INDEX runs_ready ON runs (class_id, order_key, seq) WHERE state = 'queued' AND held = 0;
-- The reaper.
CREATE INDEX runs_deadline ON runs (deadline, seq) WHERE state IN ('leased', 'running');
CREATE INDEX runs_runner ON runs (runner_id) WHERE state IN ('leased', 'running');
CREATE INDEX runs_cancel ON runs (id) WHERE state IN ('leased', 'running') AND cancel_requested_at IS NOT NULL;
CREATE INDEX runs_group ON runs (group_name, held, order_key, seq)
    WHERE group_name IS NOT NULL AND state IN ('queued', 'leased', 'running');
-- Lists, newest first.
CREATE INDEX runs_created ON runs (created_at, id);
CREATE INDEX runs_task ON runs (task_name, created_at, id) WHERE task_name IS NOT NULL;
CREATE INDEX runs_state ON runs (state, created_at, id);
-- Retention.
CREATE INDEX runs_finished ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_context ON runs (context_id) WHERE context_id IS NOT NULL;

CREATE TABLE attempts (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    runner_id TEXT NOT NULL,
    leased_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    outcome TEXT,
    log_length BIGINT NOT NULL DEFAULT 0,
    log_sha256 TEXT,
    PRIMARY KEY (run_id, attempt)
) WITHOUT ROWID;

CREATE TABLE log_chunks (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    begins BIGINT NOT NULL,
    length BIGINT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (run_id, attempt, begins)
) WITHOUT ROWID;

-- Everything that was accepted and had to lead to a run, or to a reason why not. No reference to runs: a trigger whose run
-- is missing has to be found, not prevented from being written down.
CREATE TABLE triggers (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    task TEXT,
    received_at BIGINT NOT NULL,
    idempotency_key TEXT UNIQUE,
    run_id TEXT,
    suppressed_reason TEXT,
    suppressed_at BIGINT
);
CREATE INDEX triggers_run ON triggers (run_id);

CREATE TABLE tasks (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    definition TEXT NOT NULL,
    generation BIGINT NOT NULL DEFAULT 1,
    source TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Encrypted. A scope is the id of a task, or empty for all of them.
CREATE TABLE secrets (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (scope, name)
);

CREATE TABLE credentials (
    scope TEXT NOT NULL,
    host TEXT NOT NULL,
    username TEXT NOT NULL,
    password BLOB NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (scope, host)
);

CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    hash BLOB NOT NULL,
    scopes TEXT NOT NULL,
    tasks TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    subject TEXT,
    revoked BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE federations (
    name TEXT NOT NULL PRIMARY KEY,
    definition TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE runner_tokens (
    id TEXT NOT NULL PRIMARY KEY,
    hash BLOB NOT NULL,
    pool TEXT,
    labels TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT
);

-- A removed runner stays: its runs show its name.
CREATE TABLE runners (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    key_hash BLOB NOT NULL,
    token_pool TEXT,
    token_labels TEXT NOT NULL,
    pool TEXT NOT NULL,
    labels TEXT NOT NULL,
    platforms TEXT NOT NULL DEFAULT '[]',
    slots BIGINT NOT NULL DEFAULT 0,
    features TEXT NOT NULL DEFAULT '{}',
    version TEXT NOT NULL DEFAULT '',
    draining BIGINT NOT NULL DEFAULT 0,
    free_disk BIGINT NOT NULL DEFAULT 0,
    last_seen_at BIGINT,
    server_id TEXT,
    registered_at BIGINT NOT NULL,
    removed_at BIGINT
);
CREATE UNIQUE INDEX runners_name ON runners (name) WHERE removed_at IS NULL;
