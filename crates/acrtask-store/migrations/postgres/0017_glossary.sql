-- Renames tables, columns and states to the terms of the glossary.

ALTER TABLE classes RENAME TO runner_requirements;

ALTER TABLE runs RENAME COLUMN class_id TO requirement_id;
ALTER TABLE runs RENAME COLUMN warm_key TO affinity_key;
ALTER TABLE runs RENAME COLUMN order_key TO queue_rank;
ALTER TABLE runs RENAME COLUMN held TO blocked;
ALTER TABLE runs RENAME COLUMN losses TO lost_attempts;
ALTER TABLE runs RENAME COLUMN lane TO ref_key;
ALTER TABLE runs RENAME COLUMN pending_facts TO pending_variables;
ALTER INDEX runs_lane RENAME TO runs_ref;
ALTER INDEX runs_lane_newest RENAME TO runs_ref_newest;

-- Position of a chunk or part, in bytes.
ALTER TABLE log_chunks RENAME COLUMN begins TO offset_bytes;
ALTER TABLE context_parts RENAME COLUMN begins TO offset_bytes;

ALTER TABLE triggers RENAME COLUMN suppressed_reason TO ignored_reason;
ALTER TABLE triggers RENAME COLUMN suppressed_at TO ignored_at;
ALTER INDEX triggers_suppressed RENAME TO triggers_ignored;

ALTER TABLE commit_statuses RENAME COLUMN over TO done;
ALTER TABLE notices RENAME TO notifications;
ALTER TABLE notifications RENAME COLUMN over TO done;
ALTER INDEX notices_due RENAME TO notifications_due;

ALTER TABLE task_version RENAME COLUMN one TO id;
ALTER TABLE timers_made RENAME TO timer_sync;
ALTER TABLE timer_sync RENAME COLUMN one TO id;
ALTER TABLE ticks RENAME TO timer_firings;
ALTER INDEX ticks_trigger RENAME TO timer_firings_trigger;

ALTER TABLE base_changes RENAME COLUMN at TO changed_at;

ALTER TABLE cascade_state RENAME COLUMN one TO id;

ALTER TABLE cascades RENAME COLUMN waits TO awaiting_approval;
ALTER TABLE cascades RENAME COLUMN holds TO stages_images;
ALTER TABLE cascades RENAME COLUMN over_at TO finished_at;
ALTER INDEX cascades_over RENAME TO cascades_finished;
ALTER TABLE cascades DROP CONSTRAINT cascades_phase_check, DROP CONSTRAINT cascades_check, DROP CONSTRAINT cascades_check1;
UPDATE cascades SET phase = CASE phase WHEN 'over' THEN 'finished' ELSE phase END,
    promotion = CASE promotion WHEN 'held' THEN 'staged' WHEN 'dropped' THEN 'discarded' ELSE promotion END
WHERE phase = 'over' OR promotion IN ('held', 'dropped');
ALTER TABLE cascades ADD CHECK (phase IN ('settling', 'active', 'canceling', 'finished')),
    ADD CHECK ((phase = 'finished') = (finished_at IS NOT NULL)),
    ADD CHECK (active = 1 OR phase = 'finished');

ALTER TABLE cascade_runs RENAME COLUMN held TO push_by_digest;

ALTER TABLE cascade_images RENAME COLUMN at TO changed_at;
ALTER TABLE cascade_images DROP CONSTRAINT cascade_images_state_check;
DROP INDEX cascade_images_held;
DROP INDEX cascade_images_unpromoted;
UPDATE cascade_images SET state = CASE state WHEN 'held' THEN 'staged' WHEN 'moved' THEN 'promoted' ELSE 'discarded' END
WHERE state IN ('held', 'moved', 'dropped');
ALTER TABLE cascade_images ADD CHECK (state IN ('staged', 'promoted', 'rolledBack', 'discarded'));
CREATE INDEX cascade_images_staged ON cascade_images (cascade_id) WHERE state = 'staged';
CREATE INDEX cascade_images_unpromoted ON cascade_images (cascade_id, name) WHERE state IN ('staged', 'discarded');
