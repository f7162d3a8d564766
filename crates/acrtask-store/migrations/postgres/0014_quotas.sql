-- Limits that an administrator set; `subject` and `kind` as the API has them.
CREATE TABLE quotas (
    subject TEXT NOT NULL,
    kind TEXT NOT NULL,
    value BIGINT NOT NULL,
    PRIMARY KEY (subject, kind)
);
-- Use that no index counts: bytes of stored logs, and runs that were created since `since`.
CREATE TABLE quota_usage (
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    since BIGINT NOT NULL DEFAULT 0,
    used BIGINT NOT NULL,
    PRIMARY KEY (kind, subject)
);
-- The principal whose quotas the run counts against. NULL: only the quotas of its task.
ALTER TABLE runs ADD COLUMN charged_to TEXT;
CREATE INDEX runs_queued_task ON runs (task_name) WHERE state = 'queued' AND task_name IS NOT NULL;
CREATE INDEX runs_queued_charged ON runs (charged_to) WHERE state = 'queued' AND charged_to IS NOT NULL;
CREATE INDEX contexts_owner ON contexts (owner, complete, size);
CREATE INDEX contexts_unfinished ON contexts (created_at) WHERE complete = 0;
INSERT INTO quota_usage (kind, subject, used)
SELECT 'logBytes', 'task:' || r.task_name, SUM(c.length) FROM log_chunks c JOIN runs r ON r.id = c.run_id
WHERE r.task_name IS NOT NULL GROUP BY r.task_name;
