-- Timers, their ticks, and the URLs that start runs.

-- Each timer of each task, as far as it is known; made from the definitions of tasks, which alone decide. `handled_at` is
-- the newest tick that is handled, or when the timer was made; `next_at` is when there is something to do.
CREATE TABLE timers (
    task_id TEXT NOT NULL,
    name TEXT NOT NULL,
    definition TEXT NOT NULL,
    handled_at BIGINT NOT NULL,
    next_at BIGINT,
    PRIMARY KEY (task_id, name)
) WITHOUT ROWID;
CREATE INDEX timers_due ON timers (next_at, task_id, name) WHERE next_at IS NOT NULL;

-- The version of the tasks that the timers were made from.
CREATE TABLE timers_made (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    version BIGINT NOT NULL
);
INSERT INTO timers_made (one, version) VALUES (1, 0);

-- What was handled, each scheduled time once: a tick, and those from `first_at` on that were missed and that it stands for.
-- No reference to triggers: a tick whose trigger is missing has to be found, not prevented from being written down.
CREATE TABLE ticks (
    task_id TEXT NOT NULL,
    timer TEXT NOT NULL,
    scheduled_at BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    stands_for BIGINT NOT NULL,
    handled_at BIGINT NOT NULL,
    trigger_id TEXT NOT NULL,
    PRIMARY KEY (task_id, timer, scheduled_at),
    CHECK (first_at <= scheduled_at AND stands_for >= 1)
) WITHOUT ROWID;
CREATE UNIQUE INDEX ticks_trigger ON ticks (trigger_id);

-- What starts a run of one task and can do nothing else.
CREATE TABLE trigger_urls (
    task_id TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    hash BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT,
    last_used_at BIGINT
);

-- What started nothing goes when it is old.
CREATE INDEX triggers_suppressed ON triggers (suppressed_at) WHERE suppressed_at IS NOT NULL;
