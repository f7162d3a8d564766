-- Cascades: what is built again because bases have moved, in which order, and where that stands.

-- One row. `version` grows with each change, and of two servers that change one version one wins; `next` counts cascades;
-- `settings` is JSON, nothing: none were stored.
CREATE TABLE cascade_state (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    version BIGINT NOT NULL,
    next BIGINT NOT NULL,
    settings TEXT COLLATE "C"
);
INSERT INTO cascade_state (one, version, next) VALUES (1, 0, 0);

-- `head` is the cascade without its tasks, as JSON. `waits`: for somebody's approval. `holds`: its runs push without tags;
-- nothing: none has started. `active`: it may still change; others are kept for those who ask.
-- `promotion` and what follows: where its held images, or what it moved, stand as a whole.
CREATE TABLE cascades (
    id BIGINT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL,
    phase TEXT COLLATE "C" NOT NULL,
    follows BIGINT,
    head TEXT COLLATE "C" NOT NULL,
    waits BIGINT NOT NULL DEFAULT 0,
    holds BIGINT,
    over_at BIGINT,
    active BIGINT NOT NULL DEFAULT 1,
    promotion TEXT COLLATE "C" NOT NULL DEFAULT 'none',
    promotion_by TEXT COLLATE "C",
    promotion_at BIGINT,
    promotion_error TEXT COLLATE "C",
    promotion_next_at BIGINT,
    CHECK (phase IN ('settling', 'active', 'canceling', 'over')),
    CHECK ((phase = 'over') = (over_at IS NOT NULL)),
    CHECK (active = 1 OR phase = 'over')
);
CREATE INDEX cascades_active ON cascades (id) WHERE active = 1;
CREATE INDEX cascades_over ON cascades (over_at) WHERE active = 0;

CREATE TABLE cascade_nodes (
    cascade_id BIGINT NOT NULL REFERENCES cascades (id) ON DELETE CASCADE,
    task TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL,
    node TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (cascade_id, task)
);

-- What each task was last run for, as JSON.
CREATE TABLE cascade_attempts (
    task TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    attempt TEXT COLLATE "C" NOT NULL
);

-- Runs of cascades. `seen`: the cascade knows of its end. No reference to runs: one that is gone has to be found.
CREATE TABLE cascade_runs (
    cascade_id BIGINT NOT NULL REFERENCES cascades (id) ON DELETE CASCADE,
    task TEXT COLLATE "C" NOT NULL,
    attempt BIGINT NOT NULL,
    run_id TEXT COLLATE "C" NOT NULL,
    held BIGINT NOT NULL,
    seen BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (cascade_id, task, attempt)
);
CREATE UNIQUE INDEX cascade_runs_run ON cascade_runs (run_id);
CREATE INDEX cascade_runs_open ON cascade_runs (cascade_id, task, attempt) WHERE seen = 0;

-- What a cascade's runs pushed, and what the tag held before. `held`: no tag holds it yet.
CREATE TABLE cascade_images (
    cascade_id BIGINT NOT NULL REFERENCES cascades (id) ON DELETE CASCADE,
    name TEXT COLLATE "C" NOT NULL,
    task TEXT COLLATE "C" NOT NULL,
    run_id TEXT COLLATE "C" NOT NULL,
    before_digest TEXT COLLATE "C",
    after_digest TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    error TEXT COLLATE "C",
    PRIMARY KEY (cascade_id, name),
    CHECK (state IN ('held', 'moved', 'rolledBack', 'dropped'))
);
CREATE INDEX cascade_images_held ON cascade_images (cascade_id) WHERE state = 'held';
