-- Deliveries of forges and registries, and what is told to forges and people of the runs that they start.

-- Where deliveries are sent to. The definition is JSON; its secrets are encrypted.
CREATE TABLE webhooks (
    name TEXT NOT NULL PRIMARY KEY,
    definition TEXT NOT NULL,
    secrets BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Everything that a sender who has proved itself has sent. A body that is not long is in the row, another one in a blob.
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    webhook TEXT NOT NULL,
    sender_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    repository TEXT,
    summary TEXT NOT NULL,
    note TEXT,
    redelivery_of TEXT,
    headers TEXT NOT NULL,
    size BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    body BLOB,
    blob TEXT,
    received_at BIGINT NOT NULL,
    UNIQUE (webhook, sender_id),
    CHECK ((body IS NULL) <> (blob IS NULL))
);
CREATE INDEX deliveries_received ON deliveries (received_at, id);
CREATE INDEX deliveries_webhook ON deliveries (webhook, received_at, id);
CREATE INDEX deliveries_body ON deliveries (webhook, sha256);

-- The delivery that a trigger came with, its place there, and why it did what it did where a run came of it.
ALTER TABLE triggers ADD COLUMN delivery_id TEXT;
ALTER TABLE triggers ADD COLUMN place BIGINT;
ALTER TABLE triggers ADD COLUMN joined BIGINT NOT NULL DEFAULT 0;
ALTER TABLE triggers ADD COLUMN detail TEXT;
CREATE INDEX triggers_delivery ON triggers (delivery_id, place) WHERE delivery_id IS NOT NULL;
CREATE INDEX triggers_task ON triggers (task, received_at, id) WHERE task IS NOT NULL;

-- What moved: runs of one lane are of the same branch, tag or pull request.
ALTER TABLE runs ADD COLUMN lane TEXT;
ALTER TABLE runs ADD COLUMN commit_id TEXT;
-- A stranger's commit: pending until somebody has approved it.
ALTER TABLE runs ADD COLUMN approval TEXT CHECK (approval IN ('pending', 'approved'));
ALTER TABLE runs ADD COLUMN approved_by TEXT;
ALTER TABLE runs ADD COLUMN approved_at BIGINT;
-- Its result is to be told to those who asked for it.
ALTER TABLE runs ADD COLUMN notify BIGINT NOT NULL DEFAULT 0;
CREATE INDEX runs_lane ON runs (lane, commit_id) WHERE lane IS NOT NULL AND state IN ('queued', 'leased', 'running');
CREATE INDEX runs_notify ON runs (finished_at) WHERE notify = 1 AND finished_at IS NOT NULL;

-- Grows with each change of a task, so that what was read of them is known to be old.
CREATE TABLE task_version (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    version BIGINT NOT NULL
);
INSERT INTO task_version (one, version) VALUES (1, 1);
CREATE TRIGGER tasks_inserted AFTER INSERT ON tasks BEGIN
    UPDATE task_version SET version = version + 1;
END;
CREATE TRIGGER tasks_updated AFTER UPDATE ON tasks BEGIN
    UPDATE task_version SET version = version + 1;
END;
CREATE TRIGGER tasks_deleted AFTER DELETE ON tasks BEGIN
    UPDATE task_version SET version = version + 1;
END;

-- What a forge is told of a commit. `sent` is what it was told last; what it is to be told is where the run stands.
CREATE TABLE commit_statuses (
    run_id TEXT NOT NULL PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    target TEXT NOT NULL,
    sent TEXT,
    over BIGINT NOT NULL DEFAULT 0,
    attempts BIGINT NOT NULL DEFAULT 0,
    next_at BIGINT NOT NULL,
    last_error TEXT
);
CREATE INDEX commit_statuses_due ON commit_statuses (next_at) WHERE over = 0;

-- What people are told of a result.
CREATE TABLE notices (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    target TEXT NOT NULL,
    over BIGINT NOT NULL DEFAULT 0,
    attempts BIGINT NOT NULL DEFAULT 0,
    next_at BIGINT NOT NULL,
    last_error TEXT,
    PRIMARY KEY (run_id, place)
);
CREATE INDEX notices_due ON notices (next_at) WHERE over = 0;
