-- Which parent an organization had, and when, in microseconds since 1970.
CREATE TABLE org_places (
	root_id   TEXT    NOT NULL,
	parent_id TEXT    NOT NULL,
	org_id    TEXT    NOT NULL,
	since     INTEGER NOT NULL, -- inclusive
	until     INTEGER NOT NULL, -- exclusive; 0 for the present parent
	PRIMARY KEY (root_id, parent_id, org_id, since)
) WITHOUT ROWID;
CREATE INDEX org_places_org ON org_places (root_id, org_id);

-- The statements of months that are closed, in parts.
CREATE TABLE usage_statements (
	root_id  TEXT    NOT NULL,
	month    TEXT    NOT NULL,
	entry_id TEXT    NOT NULL, -- of the audit entry with its hash
	size     INTEGER NOT NULL, -- bytes
	parts    INTEGER NOT NULL,
	PRIMARY KEY (root_id, month)
) WITHOUT ROWID;
CREATE TABLE usage_statement_parts (
	root_id TEXT    NOT NULL,
	month   TEXT    NOT NULL,
	part    INTEGER NOT NULL,
	content TEXT    NOT NULL, -- canonical JSON
	PRIMARY KEY (root_id, month, part)
) WITHOUT ROWID;
