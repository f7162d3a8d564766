-- The platforms that a base was used for, as a JSON list; nothing, or an empty one: not known.
ALTER TABLE image_bases ADD COLUMN platforms TEXT;
