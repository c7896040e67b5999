CREATE TABLE usage_limits (
	root_id     TEXT    NOT NULL,
	org_id      TEXT    NOT NULL,
	meter       TEXT    NOT NULL,
	amount      INTEGER NOT NULL, -- millionths
	enforcement TEXT    NOT NULL,
	updated_at  INTEGER NOT NULL,
	version     INTEGER NOT NULL,
	PRIMARY KEY (root_id, org_id, meter)
) WITHOUT ROWID;
