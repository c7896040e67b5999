-- deletion_top is 2 for an organization that a delete named once its purge has
-- begun.
CREATE INDEX orgs_purging ON orgs (deleted_at, id) WHERE deletion_top = 2;
CREATE INDEX usage_states_org ON usage_states (root_id, org_id);

-- What ancestors' totals hold of an organization that has been purged has a
-- name that no organization has: its id, an exclamation mark, and what tells it
-- from others that had the id.
UPDATE usage_totals SET org_id = org_id || '!' WHERE NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = usage_totals.root_id AND o.id = usage_totals.org_id);
UPDATE usage_totals SET parent_id = parent_id || '!' WHERE parent_id <> '' AND NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = usage_totals.root_id AND o.id = usage_totals.parent_id);
UPDATE usage_days SET org_id = org_id || '!' WHERE NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = usage_days.root_id AND o.id = usage_days.org_id);
UPDATE usage_days SET parent_id = parent_id || '!' WHERE parent_id <> '' AND NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = usage_days.root_id AND o.id = usage_days.parent_id);
UPDATE usage_adjustments SET org_id = org_id || '!', reason = '' WHERE NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = usage_adjustments.root_id AND o.id = usage_adjustments.org_id);
DELETE FROM usage_states WHERE NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = usage_states.root_id AND o.id = usage_states.org_id);
DELETE FROM org_places WHERE NOT EXISTS (
	SELECT 1 FROM orgs AS o WHERE o.root_id = org_places.root_id AND o.id = org_places.parent_id);
