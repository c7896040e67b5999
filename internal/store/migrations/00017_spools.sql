-- Which start of a process has a spool, and what it has said of it: a month is
-- closed once every spool is stored past its end, or was given up. A spool of
-- which only an older release has known has the run 0 and says nothing.
ALTER TABLE spool_positions ADD COLUMN run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spool_positions ADD COLUMN run_nonce TEXT NOT NULL DEFAULT '';
-- What was recorded before this time is stored; microseconds.
ALTER TABLE spool_positions ADD COLUMN stored_until INTEGER NOT NULL DEFAULT 0;
-- The process ended with nothing left to store.
ALTER TABLE spool_positions ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
-- Where the spool is, for people: host and directory.
ALTER TABLE spool_positions ADD COLUMN place TEXT NOT NULL DEFAULT '';
-- When the operator gave it up, 0 if not, and why.
ALTER TABLE spool_positions ADD COLUMN given_up_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spool_positions ADD COLUMN given_up_for TEXT NOT NULL DEFAULT '';
