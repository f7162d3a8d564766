-- The newest run of a lane, live or not.
CREATE INDEX runs_lane_newest ON runs (lane, seq) WHERE lane IS NOT NULL;
-- The base images that a registry reported as pushed and that were watched then, as JSON.
ALTER TABLE deliveries ADD COLUMN watches TEXT NOT NULL DEFAULT '[]';
-- Deliveries that were refused: one row for each webhook and kind of refusal, with the last one.
CREATE TABLE refused_deliveries (
    webhook TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    address TEXT NOT NULL,
    refusals BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (webhook, code)
);
-- The key and the blob store that all servers of this database share.
CREATE TABLE identity (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
