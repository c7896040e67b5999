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
