-- Imports under way. Their rows that are not there for anybody yet are in orgs,
-- with deleted_at 1 and a deletion_id of the import's id, a period, and the
-- number of their chunk.
CREATE TABLE imports (
	id         TEXT    NOT NULL PRIMARY KEY,
	actor_type TEXT    NOT NULL,
	actor_id   TEXT    NOT NULL,
	actor_name TEXT    NOT NULL,
	request_id TEXT    NOT NULL,
	ip         TEXT    NOT NULL,
	user_agent TEXT    NOT NULL,
	chunks     INTEGER NOT NULL,
	revealed   INTEGER NOT NULL, -- chunks; once it is more than 0 the import is completed
	step       INTEGER NOT NULL  -- grows with each transaction of the import
) WITHOUT ROWID;
CREATE INDEX orgs_staged ON orgs (deletion_id, depth, id) WHERE deleted_at = 1;
