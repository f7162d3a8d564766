-- Renames tables, columns and states to the terms of the glossary.

ALTER TABLE classes RENAME TO runner_requirements;

ALTER TABLE runs RENAME COLUMN class_id TO requirement_id;
ALTER TABLE runs RENAME COLUMN warm_key TO affinity_key;
ALTER TABLE runs RENAME COLUMN order_key TO queue_rank;
ALTER TABLE runs RENAME COLUMN held TO blocked;
ALTER TABLE runs RENAME COLUMN losses TO lost_attempts;
ALTER TABLE runs RENAME COLUMN lane TO ref_key;
ALTER TABLE runs RENAME COLUMN pending_facts TO pending_variables;
DROP INDEX runs_lane;
CREATE INDEX runs_ref ON runs (ref_key, commit_id) WHERE ref_key IS NOT NULL AND state IN ('queued', 'leased', 'running');
DROP INDEX runs_lane_newest;
CREATE INDEX runs_ref_newest ON runs (ref_key, seq) WHERE ref_key IS NOT NULL;

-- Position of a chunk or part, in bytes.
ALTER TABLE log_chunks RENAME COLUMN begins TO offset_bytes;
ALTER TABLE context_parts RENAME COLUMN begins TO offset_bytes;

ALTER TABLE triggers RENAME COLUMN suppressed_reason TO ignored_reason;
ALTER TABLE triggers RENAME COLUMN suppressed_at TO ignored_at;
DROP INDEX triggers_suppressed;
CREATE INDEX triggers_ignored ON triggers (ignored_at) WHERE ignored_at IS NOT NULL;

ALTER TABLE commit_statuses RENAME COLUMN over TO done;
ALTER TABLE notices RENAME TO notifications;
ALTER TABLE notifications RENAME COLUMN over TO done;
DROP INDEX notices_due;
CREATE INDEX notifications_due ON notifications (next_at) WHERE done = 0;

ALTER TABLE task_version RENAME COLUMN one TO id;
ALTER TABLE timers_made RENAME TO timer_sync;
ALTER TABLE timer_sync RENAME COLUMN one TO id;
ALTER TABLE ticks RENAME TO timer_firings;
DROP INDEX ticks_trigger;
CREATE UNIQUE INDEX timer_firings_trigger ON timer_firings (trigger_id);

ALTER TABLE base_changes RENAME COLUMN at TO changed_at;

-- SQLite cannot change a CHECK, so the tables of cascades are copied. Tables that refer to `cascades` are dropped first,
-- because dropping a table deletes the rows that refer to it.
ALTER TABLE cascade_state RENAME COLUMN one TO id;

CREATE TABLE new_cascades (
    id BIGINT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL,
    phase TEXT NOT NULL,
    follows BIGINT,
    head TEXT NOT NULL,
    awaiting_approval BIGINT NOT NULL DEFAULT 0,
    stages_images BIGINT,
    finished_at BIGINT,
    active BIGINT NOT NULL DEFAULT 1,
    promotion TEXT NOT NULL DEFAULT 'none',
    promotion_by TEXT,
    promotion_at BIGINT,
    promotion_error TEXT,
    promotion_next_at BIGINT,
    CHECK (phase IN ('settling', 'active', 'canceling', 'finished')),
    CHECK ((phase = 'finished') = (finished_at IS NOT NULL)),
    CHECK (active = 1 OR phase = 'finished')
);
INSERT INTO new_cascades (id, created_at, phase, follows, head, awaiting_approval, stages_images, finished_at, active,
    promotion, promotion_by, promotion_at, promotion_error, promotion_next_at)
SELECT id, created_at, CASE phase WHEN 'over' THEN 'finished' ELSE phase END, follows, head, waits, holds, over_at, active,
    CASE promotion WHEN 'held' THEN 'staged' WHEN 'dropped' THEN 'discarded' ELSE promotion END, promotion_by,
    promotion_at, promotion_error, promotion_next_at FROM cascades;

CREATE TABLE new_cascade_nodes (
    cascade_id BIGINT NOT NULL REFERENCES new_cascades (id) ON DELETE CASCADE,
    task TEXT NOT NULL,
    state TEXT NOT NULL,
    node TEXT NOT NULL,
    PRIMARY KEY (cascade_id, task)
) WITHOUT ROWID;
INSERT INTO new_cascade_nodes (cascade_id, task, state, node) SELECT cascade_id, task, state, node FROM cascade_nodes;

CREATE TABLE new_cascade_runs (
    cascade_id BIGINT NOT NULL REFERENCES new_cascades (id) ON DELETE CASCADE,
    task TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    push_by_digest BIGINT NOT NULL,
    seen BIGINT NOT NULL DEFAULT 0,
    moved TEXT,
    PRIMARY KEY (cascade_id, task, attempt)
) WITHOUT ROWID;
INSERT INTO new_cascade_runs (cascade_id, task, attempt, run_id, push_by_digest, seen, moved)
SELECT cascade_id, task, attempt, run_id, held, seen, moved FROM cascade_runs;

CREATE TABLE new_cascade_images (
    cascade_id BIGINT NOT NULL REFERENCES new_cascades (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    task TEXT NOT NULL,
    run_id TEXT NOT NULL,
    before_digest TEXT,
    after_digest TEXT NOT NULL,
    state TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    error TEXT,
    moving BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (cascade_id, name),
    CHECK (state IN ('staged', 'promoted', 'rolledBack', 'discarded'))
) WITHOUT ROWID;
INSERT INTO new_cascade_images (cascade_id, name, task, run_id, before_digest, after_digest, state, changed_at, error, moving)
SELECT cascade_id, name, task, run_id, before_digest, after_digest,
    CASE state WHEN 'held' THEN 'staged' WHEN 'moved' THEN 'promoted' WHEN 'dropped' THEN 'discarded' ELSE state END,
    at, error, moving FROM cascade_images;

DROP TABLE cascade_images;
DROP TABLE cascade_runs;
DROP TABLE cascade_nodes;
DROP TABLE cascades;
ALTER TABLE new_cascades RENAME TO cascades;
ALTER TABLE new_cascade_nodes RENAME TO cascade_nodes;
ALTER TABLE new_cascade_runs RENAME TO cascade_runs;
ALTER TABLE new_cascade_images RENAME TO cascade_images;

CREATE INDEX cascades_active ON cascades (id) WHERE active = 1;
CREATE INDEX cascades_finished ON cascades (finished_at) WHERE active = 0;
CREATE UNIQUE INDEX cascade_runs_run ON cascade_runs (run_id);
CREATE INDEX cascade_runs_open ON cascade_runs (cascade_id, task, attempt) WHERE seen = 0;
CREATE INDEX cascade_images_staged ON cascade_images (cascade_id) WHERE state = 'staged';
CREATE INDEX cascade_images_unpromoted ON cascade_images (cascade_id, name) WHERE state IN ('staged', 'discarded');
