package store

import "slices"

// Owner says whose the rows of a table are.
type Owner string

const (
	// OwnedByOrg is a table whose rows are each of an organization.
	OwnedByOrg Owner = "organization"
	// OwnedByRoot is a table whose rows are of a root with all that is below it.
	OwnedByRoot Owner = "root"
	// OwnedByNone is a table about the database or the processes on it.
	OwnedByNone Owner = "none"
)

// Class says what a column of text or bytes holds.
type Class string

const (
	// Identifier names a row, of this table or another: an id, a slug, a month.
	Identifier Class = "identifier"
	// Personal is what may say something of people: names, addresses, texts that
	// somebody has written.
	Personal Class = "personal"
	// Neither is everything else; Why says what.
	Neither Class = "neither"
)

// Erasure says what becomes of a personal column when somebody asks to be
// forgotten whom it holds.
type Erasure string

const (
	// Erased columns hold the subject no longer.
	Erased Erasure = "erased"
	// Counted columns stay, since they are in force and their owners change
	// them, or since the audit trail must stay provable. The answer says how many
	// rows hold the subject.
	Counted Erasure = "counted"
	// Follows is a column that holds what a counted one does, and changes with it.
	Follows Erasure = "follows"
	// Passes is a column whose rows go by themselves soon; Why says when.
	Passes Erasure = "passes"
	// Stays is a column that no erasure looks at; Why says why.
	Stays Erasure = "stays"
)

// Column is a column of text or bytes.
type Column struct {
	Name    string
	Class   Class
	Erasure Erasure // of what is personal
	Why     string
}

// Action is what a purge does with rows.
type Action string

const (
	Removes Action = "removes"
	// Renames gives the purged organization a name that no organization has,
	// where ancestors' totals hold it: see metering.FormerMark. The rows lose what
	// is personal.
	Renames Action = "renames"
	Keeps   Action = "keeps"
)

// Parts of a purge: see purgeParts.
const (
	partRows          = "rows"
	partTotals        = "totals"
	partKeys          = "keys"
	partOrganizations = "organizations"
)

// Purge says what a purge does with the rows of what it removes.
type Purge struct {
	Do Action
	// Part is the part of a purge that does it. The part "rows" needs nothing but
	// what is said here; others have SQL of their own.
	Part string
	// By are the columns with the id of an organization that is purged: those
	// that rows to remove are found by, each by itself, or that are renamed. It
	// is empty for a root: its rows have its id in the column Root.
	By []string
	// Weight is as how many rows each counts, where rows are large.
	Weight int
	// Once says that a root has so few rows that one statement removes them all.
	Once bool
	Why  string // of what is kept
}

// Reference leads from a row to one of another table, whose columns To hold what
// its own Columns hold.
type Reference struct {
	Columns []string
	Table   string
	To      []string
}

// Mention is a column that may hold the id of an organization that is purged in
// rows that are of others, and keeps it; Why says what it is there.
type Mention struct{ Column, Why string }

// Table says all that must be known of a table by what goes through the whole
// database: a purge, an erasure, a copy.
type Table struct {
	Name string
	// Key are the columns of the primary key in its order. Without one, nothing
	// names a row.
	Key   []string
	Owner Owner
	// Root is the column with the id of the root that rows belong to, Orgs are
	// those with the ids of the organizations that own them. Where rows do not say
	// so themselves, Via leads to the row of another table that does.
	Root string
	Orgs []string
	Via  Reference
	// Columns are all columns that do not hold numbers.
	Columns []Column
	// OfRoot says what the purge of a root does, OfOrg what that of an organization
	// below one does, for each of the columns that it may be found by.
	OfRoot   Purge
	OfOrg    []Purge
	Mentions []Mention
}

func columns(groups ...[]Column) []Column { return slices.Concat(groups...) }

func identifiers(names ...string) []Column { return classed(Identifier, "", "", names) }

func personal(e Erasure, why string, names ...string) []Column {
	return classed(Personal, e, why, names)
}

func neither(why string, names ...string) []Column { return classed(Neither, "", why, names) }

func classed(c Class, e Erasure, why string, names []string) []Column {
	var list []Column
	for _, name := range names {
		list = append(list, Column{name, c, e, why})
	}
	return list
}

func cols(names ...string) []string { return names }

func removed() Purge { return Purge{Do: Removes, Part: partRows, Weight: 1} }

func removedOnce() Purge { return Purge{Do: Removes, Part: partRows, Once: true} }

func removedIn(part string) Purge { return Purge{Do: Removes, Part: part} }

func removedBy(by ...string) []Purge {
	return []Purge{{Do: Removes, Part: partRows, By: by, Weight: 1}}
}

func renamed(part string, by ...string) Purge {
	return Purge{Do: Renames, Part: part, By: by, Weight: 1}
}

func kept(why string) Purge { return Purge{Do: Keeps, Why: why} }

func keptOf(why string) []Purge { return []Purge{kept(why)} }

const (
	whyTrail     = "the audit trail outlives what it is about"
	whyRoots     = "it is the root's, which stays"
	whyStatement = "what an ancestor was told of a month that is closed stays as it was"
	whyImports   = "it is of whoever imports, until the import has ended"
	whyProcesses = "it is about the processes and the database, not about what somebody owns"
)

// tables are in the order in which a purge goes through what it removes by what
// is said here. Transactions that count consumption take totals, days and
// adjustments in the same order.
var tables = []Table{
	{
		Name: "orgs", Key: cols("root_id", "id"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("id"),
		Columns: columns(
			identifiers("root_id", "id", "parent_id", "path", "deletion_id"),
			personal(Counted, "", "name"),
			personal(Follows, "the name, folded for searches", "name_key"),
			personal(Counted, "", "description", "external_id", "tags", "settings"),
			personal(Counted, "names of members of the settings", "locked"),
			neither("one of a few words", "type")),
		OfRoot: removedIn(partOrganizations),
		OfOrg:  []Purge{{Do: Removes, Part: partOrganizations, By: cols("id")}},
	},
	{
		Name: "org_tags", Key: cols("root_id", "tag", "org_id"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: columns(
			identifiers("root_id", "org_id"),
			personal(Follows, "the tags of the organization", "tag")),
		OfRoot: removedIn(partOrganizations),
		OfOrg:  []Purge{{Do: Removes, Part: partOrganizations, By: cols("org_id")}},
	},
	{
		Name: "api_keys", Key: cols("root_id", "org_id", "id"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: columns(
			identifiers("root_id", "org_id", "id", "created_by"),
			personal(Erased, "once the key is revoked; until then it is in force, and counted", "name"),
			personal(Counted, "while the key is not revoked; after that it stays and is not counted", "allowed_cidrs"),
			personal(Erased, "", "last_used_ip", "old_last_used_ip"),
			neither("names of permissions, and one of a few words", "permissions", "reach"),
			neither("hashes and last letters of secrets", "secret_hash", "old_hash", "hint", "old_hint")),
		OfRoot: removedIn(partKeys),
		OfOrg:  []Purge{{Do: Removes, Part: partKeys, By: cols("org_id")}},
	},
	{
		Name: "idempotency", Key: cols("actor_id", "idem_key"), Owner: OwnedByOrg, Via: Reference{cols("actor_id"), "api_keys", cols("id")},
		Columns: columns(
			identifiers("actor_id", "idem_key"),
			personal(Passes, "it is sealed with a key that only the caller has, and goes when it can be replayed no longer", "answer"),
			neither("a hash", "request_hash")),
		OfRoot: removedIn(partKeys),
		OfOrg:  []Purge{{Do: Removes, Part: partKeys}},
	},
	{
		Name: "access_events", Key: cols("root_id", "at", "seq"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: columns(
			identifiers("root_id", "id", "org_id", "api_key_id"),
			personal(Erased, "", "user_name"),
			personal(Counted, "what was done stays", "action"),
			personal(Erased, "", "ip", "user_agent"),
			personal(Counted, "what was done stays", "method"),
			personal(Erased, "", "path", "request_id"),
			neither("one of a few words", "status")),
		OfRoot: removed(),
		OfOrg:  removedBy("org_id"),
	},
	{
		Name: "access_claims", Key: cols("root_id", "sender", "id"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("sender"),
		Columns: identifiers("root_id", "sender", "id", "org_id"),
		OfRoot:  removed(),
		OfOrg:   removedBy("sender"),
		Mentions: []Mention{
			{"org_id", "only claims from before senders were kept have it, and they go by their age"},
		},
	},
	{
		Name: "access_heads", Key: cols("root_id"), Owner: OwnedByRoot, Root: "root_id",
		Columns: identifiers("root_id"),
		OfRoot:  kept("nobody who follows the events of a later root of that id must find smaller numbers"),
		OfOrg:   keptOf(whyRoots),
	},
	{
		Name: "access_retentions", Key: cols("root_id"), Owner: OwnedByRoot, Root: "root_id",
		Columns: identifiers("root_id"),
		OfRoot:  removedOnce(),
		OfOrg:   keptOf(whyRoots),
	},
	{
		Name: "org_places", Key: cols("root_id", "parent_id", "org_id", "since"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id", "parent_id"),
		Columns: identifiers("root_id", "parent_id", "org_id"),
		OfRoot:  removed(),
		OfOrg:   removedBy("org_id", "parent_id"),
	},
	{
		Name: "customization_schemas", Key: cols("root_id"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id"),
			personal(Counted, "", "content")),
		OfRoot: removedOnce(),
		OfOrg:  keptOf(whyRoots),
	},
	{
		Name: "usage_limits", Key: cols("root_id", "org_id", "meter"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: columns(
			identifiers("root_id", "org_id", "meter"),
			neither("one of a few words", "enforcement")),
		OfRoot: removed(),
		OfOrg:  removedBy("org_id"),
	},
	{
		Name: "usage_totals", Key: cols("root_id", "month", "org_id", "parent_id", "meter"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id", "parent_id"),
		Columns: identifiers("root_id", "month", "org_id", "parent_id", "meter"),
		OfRoot:  removed(),
		OfOrg:   []Purge{renamed(partTotals, "org_id", "parent_id")},
	},
	{
		Name: "usage_days", Key: cols("root_id", "org_id", "day", "parent_id", "meter"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id", "parent_id"),
		Columns: identifiers("root_id", "org_id", "day", "parent_id", "meter"),
		OfRoot:  removed(),
		// No index leads to the days of a parent; its totals do.
		OfOrg: []Purge{renamed(partRows, "org_id"), renamed(partTotals, "parent_id")},
	},
	{
		Name: "usage_adjustments", Key: cols("root_id", "org_id", "month", "id"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: columns(
			identifiers("root_id", "org_id", "month", "id", "for_month", "meter", "created_by"),
			personal(Erased, "", "reason"),
			neither("one of a few words", "origin")),
		OfRoot: removed(),
		OfOrg:  []Purge{renamed(partRows, "org_id")},
	},
	{
		Name: "usage_events", Key: cols("root_id", "sender", "source", "id", "part"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("sender"),
		Columns: identifiers("root_id", "sender", "source", "id", "org_id", "meter"),
		OfRoot:  removed(),
		// Who gets the id has not sent what its former owner did. What that
		// counted for others stays.
		OfOrg: []Purge{renamed(partRows, "sender")},
		Mentions: []Mention{
			{"org_id", "it is for whom its sender had it counted, and the sender stays; so do, until their month is pruned, events from before senders were kept"},
		},
	},
	{
		Name: "usage_states", Key: cols("root_id", "period", "org_id", "meter"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: identifiers("root_id", "period", "org_id", "meter", "path"),
		OfRoot:  removed(),
		OfOrg:   removedBy("org_id"),
		Mentions: []Mention{
			{"path", "it is where an organization that has moved away since was counted last"},
		},
	},
	{
		Name: "usage_statement_parts", Key: cols("root_id", "month", "part"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id", "month"),
			neither("ids, meters and quantities", "content")),
		OfRoot: Purge{Do: Removes, Part: partRows, Weight: 100},
		OfOrg:  keptOf(whyStatement),
	},
	{
		Name: "usage_statements", Key: cols("root_id", "month"), Owner: OwnedByRoot, Root: "root_id",
		Columns: identifiers("root_id", "month", "entry_id"),
		OfRoot:  removed(),
		OfOrg:   keptOf(whyStatement),
	},
	{
		Name: "usage_months", Key: cols("root_id", "month"), Owner: OwnedByRoot, Root: "root_id",
		Columns: identifiers("root_id", "month"),
		OfRoot:  removed(),
		OfOrg:   keptOf(whyRoots),
	},
	{
		Name: "meters", Key: cols("root_id", "slug"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id", "slug"),
			personal(Stays, "it says what a meter counts, is in force, and its owners change it; it is not counted", "description"),
			neither("what is counted, and how", "unit", "aggregation", "event_type", "value")),
		OfRoot: removed(),
		OfOrg:  keptOf(whyRoots),
	},
	{
		Name: "quotas", Key: cols("root_id"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id"),
			neither("numbers, under names that orgd knows", "members")),
		OfRoot: removedOnce(),
		OfOrg:  keptOf(whyRoots),
	},
	{
		Name: "idempotency_hours", Key: cols("root_id", "hour"), Owner: OwnedByRoot, Root: "root_id",
		Columns: identifiers("root_id"),
		OfRoot:  removedOnce(),
		OfOrg:   keptOf(whyRoots),
	},
	{
		Name: "audit_heads", Key: cols("root_id", "epoch"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id", "log_id"),
			neither("hashes", "root_hash", "hashes")),
		OfRoot: kept(whyTrail + "; the log is closed, and a later root of that id has another one"),
		OfOrg:  keptOf(whyTrail),
	},
	{
		Name: "audit_entries", Key: cols("root_id", "epoch", "seq"), Owner: OwnedByOrg, Root: "root_id", Orgs: cols("org_id"),
		Columns: columns(
			identifiers("root_id", "id", "org_id", "path", "actor_id"),
			personal(Counted, "the trail is provable by it; values that say something of people are in it as salted hashes only", "leaf"),
			neither("one of a few words", "action"),
			neither("a hash", "leaf_hash")),
		OfRoot: kept(whyTrail),
		OfOrg:  keptOf(whyTrail),
	},
	{
		Name: "audit_values", Key: cols("root_id", "epoch", "seq"), Owner: OwnedByOrg, Root: "root_id",
		Via: Reference{cols("root_id", "epoch", "seq"), "audit_entries", cols("root_id", "epoch", "seq")},
		Columns: columns(
			identifiers("root_id"),
			personal(Erased, "", "content")),
		OfRoot: kept(whyTrail + "; an erasure reaches it"),
		OfOrg:  keptOf(whyTrail + "; an erasure reaches it"),
	},
	{
		Name: "audit_tiles", Key: cols("root_id", "epoch", "level", "place"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id"),
			neither("a hash", "hash")),
		OfRoot: kept(whyTrail),
		OfOrg:  keptOf(whyTrail),
	},
	{
		Name: "audit_checkpoints", Key: cols("root_id", "epoch"), Owner: OwnedByRoot, Root: "root_id",
		Columns: columns(
			identifiers("root_id", "key_seed", "old_seed"),
			neither("a hash of the log, and who has signed it", "content")),
		OfRoot: kept(whyTrail),
		OfOrg:  keptOf(whyTrail),
	},
	{
		Name: "imports", Key: cols("id"), Owner: OwnedByNone,
		Columns: columns(
			identifiers("id", "actor_id"),
			personal(Passes, "the row goes when the import ends; its audit entries are reached by an erasure", "actor_name", "request_id", "ip", "user_agent"),
			neither("one of a few words", "actor_type")),
		OfRoot: kept(whyImports),
		OfOrg:  keptOf(whyImports),
	},
	{
		Name: "spool_positions", Key: cols("spool_id"), Owner: OwnedByNone,
		Columns: columns(
			identifiers("spool_id", "run_nonce"),
			personal(Stays, "the operator has written it about a machine", "given_up_for"),
			neither("a host and a directory of the operator", "place")),
		OfRoot: kept(whyProcesses),
		OfOrg:  keptOf(whyProcesses),
	},
	{
		Name: "marks", Key: cols("name"), Owner: OwnedByNone,
		Columns: columns(
			identifiers("name"),
			neither("a time, a version or the id of a seed", "value")),
		OfRoot: kept(whyProcesses),
		OfOrg:  keptOf(whyProcesses),
	},
	{
		Name: "changes", Owner: OwnedByNone, // each row is read once and swept away
		Columns: identifiers("process", "root_id", "org_id"),
		OfRoot:  kept("processes hear of changes by it; its rows are swept away within minutes"),
		OfOrg:   keptOf("processes hear of changes by it; its rows are swept away within minutes"),
	},
	{
		Name: "processes", Key: cols("id"), Owner: OwnedByNone,
		Columns: columns(
			identifiers("id"),
			neither("a host of the operator, and a version", "name")),
		OfRoot: kept(whyProcesses),
		OfOrg:  keptOf(whyProcesses),
	},
	{
		Name: "goose_db_version", Key: cols("id"), Owner: OwnedByNone, // that of the migrations
		Columns: neither("when a migration was made", "tstamp"),
		OfRoot:  kept(whyProcesses),
		OfOrg:   keptOf(whyProcesses),
	},
}

// tableOf returns a table that is in the registry.
func tableOf(name string) *Table {
	i := slices.IndexFunc(tables, func(t Table) bool { return t.Name == name })
	if i < 0 {
		panic("store: the table " + name + " is not in tables.go")
	}
	return &tables[i]
}

// number reports whether a column holds numbers.
func (t *Table) number(column string) bool {
	return !slices.ContainsFunc(t.Columns, func(c Column) bool { return c.Name == column })
}

// row returns the columns that name a row of a root.
func (t *Table) row() []string {
	return slices.DeleteFunc(slices.Clone(t.Key), func(c string) bool { return c == t.Root })
}

// personal returns the personal columns with which an erasure does one of these
// things; all of them if nothing is named.
func (t *Table) personal(do ...Erasure) (names []string) {
	for _, c := range t.Columns {
		if c.Class == Personal && (len(do) == 0 || slices.Contains(do, c.Erasure)) {
			names = append(names, c.Name)
		}
	}
	return names
}

// searched returns the columns in which an erasure looks for its subject.
func (t *Table) searched() []string { return t.personal(Erased, Counted) }
