CREATE TABLE meters (
	root_id     TEXT    NOT NULL,
	slug        TEXT    NOT NULL,
	unit        TEXT    NOT NULL,
	aggregation TEXT    NOT NULL,
	description TEXT    NOT NULL,
	event_type  TEXT    NOT NULL,
	value       TEXT    NOT NULL, -- a JSON Pointer
	created_at  INTEGER NOT NULL,
	updated_at  INTEGER NOT NULL,
	version     INTEGER NOT NULL,
	PRIMARY KEY (root_id, slug)
) WITHOUT ROWID;

CREATE TABLE usage_months (
	root_id   TEXT    NOT NULL,
	month     TEXT    NOT NULL,
	closed_at INTEGER NOT NULL, -- 0 for open
	pruned_at INTEGER NOT NULL, -- 0 while its events are kept
	PRIMARY KEY (root_id, month)
) WITHOUT ROWID;
CREATE INDEX usage_months_open ON usage_months (month, root_id) WHERE closed_at = 0;
CREATE INDEX usage_months_kept ON usage_months (month, root_id) WHERE pruned_at = 0;

CREATE TABLE usage_events (
	root_id  TEXT    NOT NULL,
	source   TEXT    NOT NULL,
	id       TEXT    NOT NULL,
	part     INTEGER NOT NULL, -- 0, and further ones if several meters count the event
	org_id   TEXT    NOT NULL,
	meter    TEXT    NOT NULL,
	at       INTEGER NOT NULL,
	quantity INTEGER NOT NULL, -- millionths
	PRIMARY KEY (root_id, source, id, part)
) WITHOUT ROWID;

CREATE TABLE usage_states (
	root_id   TEXT    NOT NULL,
	period    TEXT    NOT NULL, -- a month or a day
	org_id    TEXT    NOT NULL,
	meter     TEXT    NOT NULL,
	value     INTEGER NOT NULL, -- millionths: the aggregate of the events
	latest_at INTEGER NOT NULL, -- of the newest event; 0 before the first
	PRIMARY KEY (root_id, period, org_id, meter)
) WITHOUT ROWID;

ALTER TABLE usage_totals ADD COLUMN recorded INTEGER NOT NULL DEFAULT 0;
-- Until here only recorded requests were counted, and not by days.
UPDATE usage_totals SET recorded = own;
INSERT INTO usage_months (root_id, month, closed_at, pruned_at) SELECT DISTINCT root_id, month, 0, 0 FROM usage_totals;

CREATE TABLE usage_days (
	root_id   TEXT    NOT NULL,
	org_id    TEXT    NOT NULL,
	day       TEXT    NOT NULL,
	parent_id TEXT    NOT NULL, -- '' for a root
	meter     TEXT    NOT NULL,
	own       INTEGER NOT NULL, -- millionths
	total     INTEGER NOT NULL, -- millionths, own and all descendants
	PRIMARY KEY (root_id, org_id, day, parent_id, meter)
) WITHOUT ROWID;

CREATE TABLE usage_adjustments (
	root_id    TEXT    NOT NULL,
	org_id     TEXT    NOT NULL,
	month      TEXT    NOT NULL, -- in which it is counted
	id         TEXT    NOT NULL,
	for_month  TEXT    NOT NULL,
	meter      TEXT    NOT NULL,
	quantity   INTEGER NOT NULL, -- millionths
	reason     TEXT    NOT NULL,
	origin     TEXT    NOT NULL,
	created_by TEXT    NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (root_id, org_id, month, id)
) WITHOUT ROWID;
