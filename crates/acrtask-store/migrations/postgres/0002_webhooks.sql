-- Deliveries of forges and registries, and what is told to forges and people of the runs that they start.

-- Where deliveries are sent to. The definition is JSON; its secrets are encrypted.
CREATE TABLE webhooks (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    definition TEXT COLLATE "C" NOT NULL,
    secrets BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Everything that a sender who has proved itself has sent. A body that is not long is in the row, another one in a blob.
CREATE TABLE deliveries (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    webhook TEXT COLLATE "C" NOT NULL,
    sender_id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    repository TEXT COLLATE "C",
    summary TEXT COLLATE "C" NOT NULL,
    note TEXT COLLATE "C",
    redelivery_of TEXT COLLATE "C",
    headers TEXT COLLATE "C" NOT NULL,
    size BIGINT NOT NULL,
    sha256 TEXT COLLATE "C" NOT NULL,
    body BYTEA,
    blob TEXT COLLATE "C",
    received_at BIGINT NOT NULL,
    UNIQUE (webhook, sender_id),
    CHECK ((body IS NULL) <> (blob IS NULL))
);
CREATE INDEX deliveries_received ON deliveries (received_at, id);
CREATE INDEX deliveries_webhook ON deliveries (webhook, received_at, id);
CREATE INDEX deliveries_body ON deliveries (webhook, sha256);

-- The delivery that a trigger came with, its place there, and why it did what it did where a run came of it.
ALTER TABLE triggers ADD COLUMN delivery_id TEXT COLLATE "C";
ALTER TABLE triggers ADD COLUMN place BIGINT;
ALTER TABLE triggers ADD COLUMN joined BIGINT NOT NULL DEFAULT 0;
ALTER TABLE triggers ADD COLUMN detail TEXT COLLATE "C";
CREATE INDEX triggers_delivery ON triggers (delivery_id, place) WHERE delivery_id IS NOT NULL;
CREATE INDEX triggers_task ON triggers (task, received_at, id) WHERE task IS NOT NULL;

-- What moved: runs of one lane are of the same branch, tag or pull request.
ALTER TABLE runs ADD COLUMN lane TEXT COLLATE "C";
ALTER TABLE runs ADD COLUMN commit_id TEXT COLLATE "C";
-- A stranger's commit: pending until somebody has approved it.
ALTER TABLE runs ADD COLUMN approval TEXT COLLATE "C" CHECK (approval IN ('pending', 'approved'));
ALTER TABLE runs ADD COLUMN approved_by TEXT COLLATE "C";
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
CREATE FUNCTION tasks_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE task_version SET version = version + 1;
    RETURN NULL;
END
$$;
CREATE TRIGGER tasks_changed AFTER INSERT OR UPDATE OR DELETE ON tasks
    FOR EACH STATEMENT EXECUTE FUNCTION tasks_changed();

-- What a forge is told of a commit. `sent` is what it was told last; what it is to be told is where the run stands.
CREATE TABLE commit_statuses (
    run_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    target TEXT COLLATE "C" NOT NULL,
    sent TEXT COLLATE "C",
    over BIGINT NOT NULL DEFAULT 0,
    attempts BIGINT NOT NULL DEFAULT 0,
    next_at BIGINT NOT NULL,
    last_error TEXT COLLATE "C"
);
CREATE INDEX commit_statuses_due ON commit_statuses (next_at) WHERE over = 0;

-- What people are told of a result.
CREATE TABLE notices (
    run_id TEXT COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    over BIGINT NOT NULL DEFAULT 0,
    attempts BIGINT NOT NULL DEFAULT 0,
    next_at BIGINT NOT NULL,
    last_error TEXT COLLATE "C",
    PRIMARY KEY (run_id, place)
);
CREATE INDEX notices_due ON notices (next_at) WHERE over = 0;
