CREATE TABLE orgs (
	root_id      TEXT    NOT NULL,
	id           TEXT    NOT NULL,
	parent_id    TEXT    NOT NULL, -- '' for a root
	path         TEXT    NOT NULL, -- 'root/child/'
	depth        INTEGER NOT NULL,
	name         TEXT    NOT NULL,
	name_key     TEXT    NOT NULL, -- folded for searches
	type         TEXT    NOT NULL,
	description  TEXT    NOT NULL,
	external_id  TEXT    NOT NULL, -- '' for none
	tags         TEXT    NOT NULL, -- JSON array of strings
	settings     TEXT    NOT NULL, -- JSON object
	locked       TEXT    NOT NULL, -- JSON array of JSON Pointers
	settings_at  INTEGER NOT NULL,
	created_at   INTEGER NOT NULL,
	updated_at   INTEGER NOT NULL,
	version      INTEGER NOT NULL,
	deleted_at   INTEGER NOT NULL, -- 0 for live
	deletion_id  TEXT    NOT NULL, -- '' for live
	deletion_top INTEGER NOT NULL, -- 1 for the organization that the delete named
	PRIMARY KEY (root_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX orgs_id ON orgs (id);
CREATE INDEX orgs_path ON orgs (root_id, path, depth, deleted_at);
CREATE INDEX orgs_parent ON orgs (root_id, parent_id, id) WHERE deleted_at = 0;
CREATE INDEX orgs_root ON orgs (path) WHERE parent_id = '' AND deleted_at = 0;
CREATE INDEX orgs_name ON orgs (root_id, name_key, id) WHERE deleted_at = 0;
CREATE INDEX orgs_name_any ON orgs (name_key, id) WHERE deleted_at = 0;
CREATE INDEX orgs_external ON orgs (root_id, external_id, id) WHERE external_id <> '' AND deleted_at = 0;
CREATE INDEX orgs_external_any ON orgs (external_id, id) WHERE external_id <> '' AND deleted_at = 0;
CREATE INDEX orgs_deletion ON orgs (root_id, deletion_id, id) WHERE deletion_id <> '';
CREATE INDEX orgs_expiry ON orgs (deleted_at, id) WHERE deletion_top = 1;

CREATE TABLE org_tags (
	root_id TEXT NOT NULL,
	tag     TEXT NOT NULL,
	org_id  TEXT NOT NULL,
	PRIMARY KEY (root_id, tag, org_id)
) WITHOUT ROWID;
CREATE INDEX org_tags_any ON org_tags (tag, org_id);

CREATE TABLE customization_schemas (
	root_id TEXT NOT NULL PRIMARY KEY,
	content TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE api_keys (
	root_id          TEXT    NOT NULL,
	org_id           TEXT    NOT NULL,
	id               TEXT    NOT NULL,
	name             TEXT    NOT NULL,
	permissions      TEXT    NOT NULL, -- JSON array of strings
	reach            TEXT    NOT NULL,
	allowed_cidrs    TEXT    NOT NULL, -- JSON array of strings
	rate_requests    INTEGER NOT NULL, -- 0 with rate_period 0 for no limit
	rate_period      INTEGER NOT NULL, -- seconds
	hint             TEXT    NOT NULL,
	created_at       INTEGER NOT NULL,
	created_by       TEXT    NOT NULL,
	updated_at       INTEGER NOT NULL,
	expires_at       INTEGER NOT NULL, -- 0 for never
	revoked_at       INTEGER NOT NULL, -- 0 for not revoked
	last_used_at     INTEGER NOT NULL, -- 0 for never
	last_used_ip     TEXT    NOT NULL,
	secret_hash      BLOB    NOT NULL,
	old_hash         BLOB    NOT NULL, -- empty for none
	old_hint         TEXT    NOT NULL,
	old_valid_until  INTEGER NOT NULL,
	old_last_used_at INTEGER NOT NULL,
	old_last_used_ip TEXT    NOT NULL,
	version          INTEGER NOT NULL,
	PRIMARY KEY (root_id, org_id, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX api_keys_id ON api_keys (id);

CREATE TABLE audit_heads (
	root_id   TEXT    NOT NULL,
	epoch     INTEGER NOT NULL,
	log_id    TEXT    NOT NULL,
	size      INTEGER NOT NULL,
	root_hash BLOB    NOT NULL,
	hashes    BLOB    NOT NULL, -- the compact range, 32 bytes each
	closed_at INTEGER NOT NULL, -- 0 for the open log of the root
	PRIMARY KEY (root_id, epoch)
) WITHOUT ROWID;

CREATE TABLE audit_entries (
	root_id   TEXT    NOT NULL,
	epoch     INTEGER NOT NULL,
	seq       INTEGER NOT NULL,
	id        TEXT    NOT NULL,
	at        INTEGER NOT NULL,
	org_id    TEXT    NOT NULL,
	path      TEXT    NOT NULL, -- of the organization at the time
	action    TEXT    NOT NULL,
	actor_id  TEXT    NOT NULL,
	leaf      BLOB    NOT NULL, -- canonical JSON
	leaf_hash BLOB    NOT NULL,
	PRIMARY KEY (root_id, epoch, seq)
) WITHOUT ROWID;
CREATE INDEX audit_entries_org ON audit_entries (root_id, org_id, epoch, seq);

CREATE TABLE audit_values (
	root_id TEXT    NOT NULL,
	epoch   INTEGER NOT NULL,
	seq     INTEGER NOT NULL,
	content TEXT    NOT NULL, -- JSON: the erasable values of the entry and their salts
	PRIMARY KEY (root_id, epoch, seq)
) WITHOUT ROWID;

CREATE TABLE access_events (
	root_id    TEXT    NOT NULL,
	at         INTEGER NOT NULL,
	id         TEXT    NOT NULL,
	org_id     TEXT    NOT NULL,
	user_name  TEXT    NOT NULL,
	action     TEXT    NOT NULL,
	status     TEXT    NOT NULL,
	ip         TEXT    NOT NULL,
	user_agent TEXT    NOT NULL,
	method     TEXT    NOT NULL,
	path       TEXT    NOT NULL, -- of the request
	request_id TEXT    NOT NULL,
	api_key_id TEXT    NOT NULL,
	PRIMARY KEY (root_id, at, id)
) WITHOUT ROWID;
CREATE INDEX access_events_org ON access_events (root_id, org_id, at, id);

CREATE TABLE usage_totals (
	root_id   TEXT    NOT NULL,
	month     TEXT    NOT NULL,
	org_id    TEXT    NOT NULL,
	parent_id TEXT    NOT NULL, -- '' for a root
	meter     TEXT    NOT NULL,
	own       INTEGER NOT NULL, -- millionths
	total     INTEGER NOT NULL, -- millionths, own and all descendants
	PRIMARY KEY (root_id, month, org_id, parent_id, meter)
) WITHOUT ROWID;
CREATE INDEX usage_totals_parent ON usage_totals (root_id, month, parent_id, meter);

CREATE TABLE spool_positions (
	spool_id TEXT    NOT NULL PRIMARY KEY,
	segment  INTEGER NOT NULL,
	position INTEGER NOT NULL -- a byte offset in the segment
) WITHOUT ROWID;

CREATE TABLE idempotency (
	actor_id     TEXT    NOT NULL,
	idem_key     TEXT    NOT NULL,
	request_hash BLOB    NOT NULL,
	answer       BLOB    NOT NULL, -- sealed
	created_at   INTEGER NOT NULL,
	PRIMARY KEY (actor_id, idem_key)
) WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency (created_at);
