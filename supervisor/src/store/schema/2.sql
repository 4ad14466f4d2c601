-- How much output a session may keep, where whoever opened it asked for less than the daemon's own bound.
ALTER TABLE sessions ADD COLUMN kept_bytes_max INTEGER CHECK (kept_bytes_max >= 0);
