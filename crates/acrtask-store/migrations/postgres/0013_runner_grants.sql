-- A registration fixes the pool, the labels, the slots and the tasks of a runner; `tasks` is a pattern, or NULL for all runs.
ALTER TABLE runner_tokens ADD COLUMN max_slots BIGINT;
ALTER TABLE runner_tokens ADD COLUMN tasks TEXT;
ALTER TABLE runners ADD COLUMN max_slots BIGINT;
ALTER TABLE runners ADD COLUMN tasks TEXT;
-- Registered runners keep what they have.
UPDATE runners SET token_pool = pool, token_labels = labels;
UPDATE runners SET max_slots = slots WHERE slots > 0;
-- The pools that tasks of a token with a limit may name beside the default one, as JSON.
ALTER TABLE tokens ADD COLUMN pools TEXT NOT NULL DEFAULT '[]';
