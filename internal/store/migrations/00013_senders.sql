-- The id of an event is a name that its sender gives it: each organization that
-- sends has its own. Who sent what is here already is not known; it keeps the
-- sender '', and its organization tells who may have.
CREATE TABLE usage_events_sent (
	root_id  TEXT    NOT NULL,
	sender   TEXT    NOT NULL DEFAULT '',
	source   TEXT    NOT NULL,
	id       TEXT    NOT NULL,
	part     INTEGER NOT NULL, -- 0, and further ones if several meters count the event
	org_id   TEXT    NOT NULL,
	meter    TEXT    NOT NULL,
	at       INTEGER NOT NULL,
	quantity INTEGER NOT NULL, -- millionths
	PRIMARY KEY (root_id, sender, source, id, part)
) WITHOUT ROWID;
INSERT INTO usage_events_sent (root_id, source, id, part, org_id, meter, at, quantity)
	SELECT root_id, source, id, part, org_id, meter, at, quantity FROM usage_events;
DROP TABLE usage_events;
ALTER TABLE usage_events_sent RENAME TO usage_events;

CREATE TABLE access_claims_sent (
	root_id TEXT    NOT NULL,
	sender  TEXT    NOT NULL DEFAULT '',
	id      TEXT    NOT NULL, -- that a product gave an event
	at      INTEGER NOT NULL, -- of the event
	org_id  TEXT    NOT NULL DEFAULT '', -- of the event, where the sender is not known
	PRIMARY KEY (root_id, sender, id)
) WITHOUT ROWID;
INSERT INTO access_claims_sent (root_id, id, at, org_id)
	SELECT c.root_id, c.id, c.at, coalesce((SELECT e.org_id FROM access_events AS e
		WHERE e.root_id = c.root_id AND e.at = c.at AND e.id = c.id LIMIT 1), '') FROM access_claims AS c;
DROP TABLE access_claims;
ALTER TABLE access_claims_sent RENAME TO access_claims;
CREATE INDEX access_claims_at ON access_claims (root_id, at, id);

-- Where the organization was when the last event was counted, '' if that is not
-- known, and what of the value was counted there.
ALTER TABLE usage_states ADD COLUMN path TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_states ADD COLUMN here INTEGER NOT NULL DEFAULT 0;
