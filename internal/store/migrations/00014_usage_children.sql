-- What the children of an organization consumed, in the order of their ids: a
-- page of it is one stretch of the index.
CREATE INDEX usage_totals_child ON usage_totals (root_id, month, parent_id, meter, org_id);
DROP INDEX usage_totals_parent;
