-- Orders the access events of a root by receipt, and keeps its retention.
CREATE TABLE access_heads (
	root_id        TEXT    NOT NULL PRIMARY KEY,
	seq            INTEGER NOT NULL, -- the greatest one given out
	retention_days INTEGER NOT NULL
) WITHOUT ROWID;

-- The ids that callers gave to access events, so that none is stored twice.
CREATE TABLE access_ids (
	root_id TEXT    NOT NULL,
	id      TEXT    NOT NULL,
	seq     INTEGER NOT NULL, -- of about the time when the id was given
	PRIMARY KEY (root_id, id)
) WITHOUT ROWID;
CREATE INDEX access_ids_seq ON access_ids (root_id, seq);
