-- Images that runs pushed, what they were built from, and the tags that are watched because of that.

-- What each tag holds that a run pushed last. `newest`: no later run of its task has pushed without it.
CREATE TABLE images (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    digest TEXT COLLATE "C" NOT NULL,
    task_id TEXT COLLATE "C",
    task_name TEXT COLLATE "C",
    run_id TEXT COLLATE "C" NOT NULL,
    built_at BIGINT NOT NULL,
    run_ms BIGINT,
    platforms TEXT COLLATE "C" NOT NULL,
    newest BIGINT NOT NULL DEFAULT 1
);
CREATE INDEX images_task ON images (task_id) WHERE task_id IS NOT NULL AND newest = 1;
CREATE INDEX images_built ON images (built_at);

CREATE TABLE image_builds (
    image_id BIGINT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    run_id TEXT COLLATE "C" NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
    task_name TEXT COLLATE "C",
    built_at BIGINT NOT NULL,
    PRIMARY KEY (image_id, run_id)
);
CREATE INDEX image_builds_built ON image_builds (built_at);

-- What the image as it is now was built from. A name with a digest never moves.
CREATE TABLE image_bases (
    image_id BIGINT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    name TEXT COLLATE "C" NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
    role TEXT COLLATE "C" NOT NULL,
    evidence TEXT COLLATE "C" NOT NULL,
    registry TEXT COLLATE "C" NOT NULL,
    pinned BIGINT NOT NULL,
    PRIMARY KEY (image_id, name, digest, role)
);
CREATE INDEX image_bases_name ON image_bases (name);

-- A tag that is looked at. A scope is the id of a task that has a login of its own for that registry, or empty.
CREATE TABLE base_watches (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    registry TEXT COLLATE "C" NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    digest TEXT COLLATE "C",
    etag TEXT COLLATE "C",
    status TEXT COLLATE "C" NOT NULL DEFAULT 'new',
    detail TEXT COLLATE "C",
    paused BIGINT NOT NULL DEFAULT 0,
    failures BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    checked_at BIGINT,
    changed_at BIGINT,
    next_check_at BIGINT NOT NULL,
    lease_until BIGINT,
    UNIQUE (name, scope),
    CHECK (status IN ('new', 'ok', 'vanished', 'denied', 'unreachable', 'limited'))
);
CREATE INDEX base_watches_due ON base_watches (next_check_at) WHERE paused = 0;
CREATE INDEX base_watches_registry ON base_watches (registry, scope);

-- What is known of digests of a tag: JSON, from platforms to digests; nothing: it could not be read.
CREATE TABLE base_digests (
    watch_id BIGINT NOT NULL REFERENCES base_watches (id) ON DELETE CASCADE,
    digest TEXT COLLATE "C" NOT NULL,
    platforms TEXT COLLATE "C",
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (watch_id, digest)
);

CREATE TABLE base_changes (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    watch_id BIGINT NOT NULL REFERENCES base_watches (id) ON DELETE CASCADE,
    old TEXT COLLATE "C" NOT NULL,
    new TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    moved_back BIGINT NOT NULL,
    platforms TEXT COLLATE "C" NOT NULL
);
CREATE INDEX base_changes_watch ON base_changes (watch_id, at);
