-- What servers note about the database as a whole.
CREATE TABLE marks (
	name  TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
) WITHOUT ROWID;
