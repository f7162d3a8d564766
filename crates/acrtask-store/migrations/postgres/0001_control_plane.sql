-- The tables of a control plane. Times are milliseconds since 1970 in UTC; truth is 0 or 1; lists and objects are JSON.

-- What a runner must have for a run. Rows are never changed or removed.
CREATE TABLE classes (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pool TEXT COLLATE "C" NOT NULL,
    platform TEXT COLLATE "C" NOT NULL,
    labels TEXT COLLATE "C" NOT NULL,
    UNIQUE (pool, platform, labels)
);

CREATE TABLE contexts (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    size BIGINT NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
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
    context_id TEXT COLLATE "C" NOT NULL REFERENCES contexts (id) ON DELETE CASCADE,
    begins BIGINT NOT NULL,
    length BIGINT NOT NULL,
    blob TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (context_id, begins)
);

CREATE TABLE runs (
    seq BIGINT GENERATED ALWAYS AS IDENTITY,
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    task_id TEXT COLLATE "C",
    task_name TEXT COLLATE "C",
    spec TEXT COLLATE "C" NOT NULL,
    queue TEXT COLLATE "C" NOT NULL,
    class_id BIGINT NOT NULL REFERENCES classes (id),
    context_id TEXT COLLATE "C" REFERENCES contexts (id),
    secrets BYTEA,
    started_by TEXT COLLATE "C" NOT NULL,
    requested_by TEXT COLLATE "C",
    rerun_of TEXT COLLATE "C",
    timeout_secs BIGINT,
    traceparent TEXT COLLATE "C" NOT NULL,
    warm_key TEXT COLLATE "C" NOT NULL,
    max_attempts BIGINT NOT NULL,
    group_name TEXT COLLATE "C",
    group_max BIGINT,
    order_key BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    -- From here on, what the life of a run changes.
    state TEXT COLLATE "C" NOT NULL DEFAULT 'queued',
    held BIGINT NOT NULL DEFAULT 0,
    reason TEXT COLLATE "C",
    attempt BIGINT NOT NULL DEFAULT 0,
    losses BIGINT NOT NULL DEFAULT 0,
    runner_id TEXT COLLATE "C",
    lease_until BIGINT,
    accept_by BIGINT,
    run_until BIGINT,
    deadline BIGINT,
    leased_at BIGINT,
    started_at BIGINT,
    finished_at BIGINT,
    cancel_requested_at BIGINT,
    cancel_reason TEXT COLLATE "C",
    log_length BIGINT NOT NULL DEFAULT 0,
    log_sha256 TEXT COLLATE "C",
    result TEXT COLLATE "C",
    CHECK (state IN ('queued', 'leased', 'running', 'succeeded', 'failed', 'canceled', 'timed_out', 'error')),
    CHECK ((state IN ('leased', 'running')) = (deadline IS NOT NULL)),
    CHECK (state NOT IN ('leased', 'running') OR runner_id IS NOT NULL),
    CHECK ((state IN ('queued', 'leased', 'running')) = (finished_at IS NULL)),
    CHECK (held = 0 OR (state = 'queued' AND group_name IS NOT NULL AND group_max IS NOT NULL))
) WITH (
    -- Each run is written several times: what is dead is cleared away early, so that the head of the queue stays short.
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
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
    run_id TEXT COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    runner_id TEXT COLLATE "C" NOT NULL,
    leased_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    outcome TEXT COLLATE "C",
    log_length BIGINT NOT NULL DEFAULT 0,
    log_sha256 TEXT COLLATE "C",
    PRIMARY KEY (run_id, attempt)
);

CREATE TABLE log_chunks (
    run_id TEXT COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    begins BIGINT NOT NULL,
    length BIGINT NOT NULL,
    blob TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (run_id, attempt, begins)
);

-- Everything that was accepted and had to lead to a run, or to a reason why not. No reference to runs: a trigger whose run
-- is missing has to be found, not prevented from being written down.
CREATE TABLE triggers (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    kind TEXT COLLATE "C" NOT NULL,
    task TEXT COLLATE "C",
    received_at BIGINT NOT NULL,
    idempotency_key TEXT COLLATE "C" UNIQUE,
    run_id TEXT COLLATE "C",
    suppressed_reason TEXT COLLATE "C",
    suppressed_at BIGINT
);
CREATE INDEX triggers_run ON triggers (run_id);

CREATE TABLE tasks (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    definition TEXT COLLATE "C" NOT NULL,
    generation BIGINT NOT NULL DEFAULT 1,
    source TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Encrypted. A scope is the id of a task, or empty for all of them.
CREATE TABLE secrets (
    scope TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    value BYTEA NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (scope, name)
);

CREATE TABLE credentials (
    scope TEXT COLLATE "C" NOT NULL,
    host TEXT COLLATE "C" NOT NULL,
    username TEXT COLLATE "C" NOT NULL,
    password BYTEA NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (scope, host)
);

CREATE TABLE tokens (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL,
    scopes TEXT COLLATE "C" NOT NULL,
    tasks TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    subject TEXT COLLATE "C",
    revoked BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE federations (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    definition TEXT COLLATE "C" NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE runner_tokens (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    hash BYTEA NOT NULL,
    pool TEXT COLLATE "C",
    labels TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT
);

-- A removed runner stays: its runs show its name.
CREATE TABLE runners (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    key_hash BYTEA NOT NULL,
    token_pool TEXT COLLATE "C",
    token_labels TEXT COLLATE "C" NOT NULL,
    pool TEXT COLLATE "C" NOT NULL,
    labels TEXT COLLATE "C" NOT NULL,
    platforms TEXT COLLATE "C" NOT NULL DEFAULT '[]',
    slots BIGINT NOT NULL DEFAULT 0,
    features TEXT COLLATE "C" NOT NULL DEFAULT '{}',
    version TEXT COLLATE "C" NOT NULL DEFAULT '',
    draining BIGINT NOT NULL DEFAULT 0,
    free_disk BIGINT NOT NULL DEFAULT 0,
    last_seen_at BIGINT,
    server_id TEXT COLLATE "C",
    registered_at BIGINT NOT NULL,
    removed_at BIGINT
);
CREATE UNIQUE INDEX runners_name ON runners (name) WHERE removed_at IS NULL;
