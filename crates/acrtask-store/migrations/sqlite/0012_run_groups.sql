-- A group's name begins with its kind, so that no name that users choose is that of a group of the server.
UPDATE runs SET group_name = CASE
    WHEN group_name = 'approval of ' || id THEN 'approval ' || id
    WHEN group_name = lane THEN 'ref ' || group_name
    ELSE 'named ' || group_name
END WHERE group_name IS NOT NULL;
-- The run that canceled this one because it is newer.
ALTER TABLE runs ADD COLUMN superseded_by TEXT;
UPDATE runs SET superseded_by = substr(COALESCE(reason, cancel_reason), 15)
WHERE COALESCE(reason, cancel_reason) LIKE 'superseded by %' AND (state = 'canceled' OR cancel_requested_at IS NOT NULL);
