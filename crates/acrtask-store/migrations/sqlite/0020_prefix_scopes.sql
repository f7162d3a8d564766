-- Common beginning of the names of the tasks that may use the login. NULL for one task and for all.
ALTER TABLE credentials ADD COLUMN prefix TEXT;
CREATE INDEX credentials_prefix ON credentials (host, prefix) WHERE prefix IS NOT NULL;
