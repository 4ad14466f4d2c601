-- What jobs reported as their results, if they were asked for one.
ALTER TABLE jobs ADD COLUMN result TEXT CHECK (result IS NULL OR json_valid(result));
ALTER TABLE jobs ADD COLUMN result_error TEXT;
