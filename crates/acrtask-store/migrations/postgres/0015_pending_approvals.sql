-- Runs that wait for an approval have a quota of their own; `approval` tells them from other queued runs.
DROP INDEX runs_queued_task;
CREATE INDEX runs_queued_task ON runs (task_name, approval) WHERE state = 'queued' AND task_name IS NOT NULL;
-- Prefixes of names are compared by bytes, whatever the collation of the database is.
ALTER TABLE quotas ALTER COLUMN subject TYPE TEXT COLLATE "C", ALTER COLUMN kind TYPE TEXT COLLATE "C";
ALTER TABLE quota_usage ALTER COLUMN subject TYPE TEXT COLLATE "C", ALTER COLUMN kind TYPE TEXT COLLATE "C";
-- Branch and tag of the commit of a run that waits for an approval, as JSON. Lists read them here and not in `spec`.
ALTER TABLE runs ADD COLUMN pending_facts TEXT COLLATE "C";
UPDATE runs SET pending_facts = (spec::json -> 'facts')::text WHERE approval = 'pending';
