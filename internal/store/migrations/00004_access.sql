CREATE TABLE access_events_before AS SELECT * FROM access_events;
DROP TABLE access_events;
CREATE TABLE access_events (
	root_id    TEXT    NOT NULL,
	at         INTEGER NOT NULL,
	seq        INTEGER NOT NULL, -- grows in the order in which a root's events become visible
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
	PRIMARY KEY (root_id, at, seq)
) WITHOUT ROWID PARTITION BY RANGE (at);
CREATE INDEX access_events_org ON access_events (root_id, org_id, at, seq);
CREATE INDEX access_events_seq ON access_events (root_id, seq);

CREATE TABLE access_heads (
	root_id TEXT    NOT NULL PRIMARY KEY,
	last    INTEGER NOT NULL -- the greatest seq of the root's events
) WITHOUT ROWID;

CREATE TABLE access_claims (
	root_id TEXT    NOT NULL,
	id      TEXT    NOT NULL, -- that a product gave an event
	at      INTEGER NOT NULL, -- of the event
	PRIMARY KEY (root_id, id)
) WITHOUT ROWID;
CREATE INDEX access_claims_at ON access_claims (root_id, at, id);

CREATE TABLE access_retentions (
	root_id    TEXT    NOT NULL PRIMARY KEY,
	days       INTEGER NOT NULL,
	updated_at INTEGER NOT NULL
) WITHOUT ROWID;

-- What is there already became visible in the order of its time, as far as
-- anybody can tell.
INSERT INTO access_events (root_id, at, seq, id, org_id, user_name, action, status, ip, user_agent, method, path, request_id, api_key_id)
	SELECT root_id, at, row_number() OVER (PARTITION BY root_id ORDER BY at, id), id, org_id, user_name, action, status, ip,
		user_agent, method, path, request_id, api_key_id FROM access_events_before;
INSERT INTO access_heads (root_id, last) SELECT root_id, max(seq) FROM access_events GROUP BY root_id;
DROP TABLE access_events_before;
