-- What SQLite is to assume about the tables, in the form of
-- https://sqlite.org/fileformat2.html#stat1tab: the rows of an index, then how
-- many of them share a value of its first column, its first two, and so on.
-- The numbers are those of a large installation with few roots. With them a
-- query takes the same plan however the tables grow; without them SQLite takes
-- the primary key of a log where only the index by organization is selective.
ANALYZE;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
	('orgs', 'orgs', '1000000 100000 1'),
	('orgs', 'orgs_id', '1000000 1'),
	('orgs', 'orgs_path', '1000000 100000 1 1 1'),
	('orgs', 'orgs_parent', '1000000 100000 20 1'),
	('orgs', 'orgs_root', '1000 1'),
	('orgs', 'orgs_name', '1000000 100000 2 1'),
	('orgs', 'orgs_name_any', '1000000 10 1'),
	('orgs', 'orgs_external', '1000000 100000 2 1'),
	('orgs', 'orgs_external_any', '1000000 5 1'),
	('orgs', 'orgs_deletion', '10000 1000 100 1'),
	('orgs', 'orgs_expiry', '1000 2 1'),
	('org_tags', 'org_tags', '1000000 100000 1000 1'),
	('org_tags', 'org_tags_any', '1000000 10000 1'),
	('org_places', 'org_places', '1000000 100000 20 1 1'),
	('org_places', 'org_places_org', '1000000 100000 1'),
	('customization_schemas', 'customization_schemas', '100 1'),
	('api_keys', 'api_keys', '1000000 100000 3 1'),
	('api_keys', 'api_keys_id', '1000000 1'),
	('audit_heads', 'audit_heads', '1000 2 1'),
	('audit_entries', 'audit_entries', '10000000 1000000 1000000 1'),
	('audit_entries', 'audit_entries_org', '10000000 1000000 20 20 1'),
	('audit_entries', 'audit_entries_id', '10000000 1000000 1 1'),
	('audit_tiles', 'audit_tiles', '40000 4000 4000 200 1'),
	('audit_checkpoints', 'audit_checkpoints', '1000 2 1'),
	('audit_checkpoints', 'audit_checkpoints_signed', '1000 2'),
	('audit_values', 'audit_values', '10000000 1000000 1000000 1'),
	('access_events', 'access_events', '10000000 1000000 2 1'),
	('access_events', 'access_events_org', '10000000 1000000 100 2 1'),
	('access_events', 'access_events_seq', '10000000 1000000 1'),
	('access_heads', 'access_heads', '1000 1'),
	('access_claims', 'access_claims', '10000000 1000000 1'),
	('access_claims', 'access_claims_at', '10000000 1000000 2 1'),
	('access_retentions', 'access_retentions', '100 1'),
	('usage_totals', 'usage_totals', '10000000 1000000 100000 3 3 1'),
	('usage_totals', 'usage_totals_parent', '10000000 1000000 100000 100 20'),
	('usage_limits', 'usage_limits', '100000 10000 2 1'),
	('spool_positions', 'spool_positions', '10 1'),
	('idempotency', 'idempotency', '100000 1000 1'),
	('idempotency', 'idempotency_created', '100000 2');
