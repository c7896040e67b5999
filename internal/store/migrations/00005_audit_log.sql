-- The epoch of the tables of the audit trail numbers all trees that the id of
-- a root ever had; log_epoch numbers those of one log.
ALTER TABLE audit_heads ADD COLUMN log_epoch INTEGER NOT NULL DEFAULT 0;
CREATE INDEX audit_entries_id ON audit_entries (root_id, id, epoch);
CREATE TABLE audit_tiles (
	root_id TEXT    NOT NULL,
	epoch   INTEGER NOT NULL,
	level   INTEGER NOT NULL, -- from 1 on: those of level 0 are the leaf hashes
	place   INTEGER NOT NULL, -- within the level
	hash    BLOB    NOT NULL, -- the root of a complete tile of the level below
	PRIMARY KEY (root_id, epoch, level, place)
) WITHOUT ROWID;
CREATE TABLE audit_checkpoints (
	root_id     TEXT    NOT NULL,
	epoch       INTEGER NOT NULL,
	size        INTEGER NOT NULL,
	content     BLOB    NOT NULL, -- the last signed checkpoint
	signed_at   INTEGER NOT NULL,
	key_seed    TEXT    NOT NULL, -- the id of the seed of the key that signs
	key_version INTEGER NOT NULL,
	old_seed    TEXT    NOT NULL, -- of the key that signs too until old_until; '' for none
	old_version INTEGER NOT NULL,
	old_until   INTEGER NOT NULL, -- 0 for none
	PRIMARY KEY (root_id, epoch)
) WITHOUT ROWID;
CREATE INDEX audit_checkpoints_signed ON audit_checkpoints (signed_at);
