CREATE TABLE changes (
	tx      INTEGER NOT NULL, -- the number of the transaction
	process TEXT    NOT NULL, -- that made the change
	root_id TEXT    NOT NULL, -- whose tree has changed; '' for none
	org_id  TEXT    NOT NULL  -- whose row alone has changed; '' for none
);
CREATE INDEX changes_tx ON changes (tx);

CREATE TABLE processes (
	id         TEXT    NOT NULL PRIMARY KEY,
	name       TEXT    NOT NULL, -- host and version
	started_at INTEGER NOT NULL,
	beat_at    INTEGER NOT NULL
) WITHOUT ROWID;
