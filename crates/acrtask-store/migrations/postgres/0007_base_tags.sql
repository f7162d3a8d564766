-- Newer tags of base images: which tags there are, and what the rules of tasks make of them.

-- JSON, from images to the tags that runs of the task get: those that a run has succeeded with.
ALTER TABLE tasks ADD COLUMN base_tags TEXT COLLATE "C" NOT NULL DEFAULT '{}';

-- A repository whose tags are listed because a rule of a task asks for newer ones. A scope is the id of a task that has a
-- login of its own for that registry, or empty. `tags` is JSON; nothing: they were never listed.
CREATE TABLE tag_lists (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository TEXT COLLATE "C" NOT NULL,
    registry TEXT COLLATE "C" NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    tags TEXT COLLATE "C",
    status TEXT COLLATE "C" NOT NULL DEFAULT 'new',
    detail TEXT COLLATE "C",
    failures BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    checked_at BIGINT,
    next_check_at BIGINT NOT NULL,
    lease_until BIGINT,
    UNIQUE (repository, scope),
    CHECK (status IN ('new', 'ok', 'vanished', 'denied', 'unreachable', 'limited'))
);
CREATE INDEX tag_lists_due ON tag_lists (next_check_at);

-- A newer tag that a rule of a task allows in place of the one in use. `run_id`: the run that tries it, which there is once
-- for each tag; no reference to runs. `blocked`: why there could be none.
CREATE TABLE base_proposals (
    task_id TEXT COLLATE "C" NOT NULL,
    repository TEXT COLLATE "C" NOT NULL,
    used TEXT COLLATE "C" NOT NULL,
    newest TEXT COLLATE "C" NOT NULL,
    found_at BIGINT NOT NULL,
    run_id TEXT COLLATE "C",
    blocked TEXT COLLATE "C",
    PRIMARY KEY (task_id, repository, used)
);
