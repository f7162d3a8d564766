-- Calls of a task's URL that were turned away because too many came.
ALTER TABLE trigger_urls ADD COLUMN turned_away BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trigger_urls ADD COLUMN turned_away_at BIGINT;
