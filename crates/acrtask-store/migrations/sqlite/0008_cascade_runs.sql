-- The bases that made a run of a cascade necessary, with the digests before and after, as JSON; nothing: not written down.
ALTER TABLE cascade_runs ADD COLUMN moved TEXT;

-- What no tag holds yet, or ever: it is asked for before each start.
CREATE INDEX cascade_images_unpromoted ON cascade_images (cascade_id, name) WHERE state IN ('held', 'dropped');
