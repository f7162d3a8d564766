-- 1: the tag may have been moved or put back, though nobody has written down yet that it was.
ALTER TABLE cascade_images ADD COLUMN moving BIGINT NOT NULL DEFAULT 0;
