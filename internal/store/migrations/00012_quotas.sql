CREATE TABLE quotas (
	root_id    TEXT    NOT NULL PRIMARY KEY,
	members    TEXT    NOT NULL, -- a JSON object with what is set
	updated_at INTEGER NOT NULL,
	version    INTEGER NOT NULL
) WITHOUT ROWID;

-- What the answers take that are kept for Idempotency-Keys, by the hour in
-- which they were kept: their sum must be known without reading them.
CREATE TABLE idempotency_hours (
	root_id TEXT    NOT NULL, -- '' for the operator
	hour    INTEGER NOT NULL, -- since 1970
	bytes   INTEGER NOT NULL,
	PRIMARY KEY (root_id, hour)
) WITHOUT ROWID;
INSERT INTO idempotency_hours (root_id, hour, bytes)
	SELECT k.root_id, i.created_at / 3600000000, sum(length(i.answer) + length(i.request_hash) + length(i.idem_key) + 256)
	FROM idempotency AS i JOIN api_keys AS k ON k.id = i.actor_id GROUP BY k.root_id, i.created_at / 3600000000;
