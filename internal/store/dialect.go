package store

import (
	"regexp"
	"strings"

	"github.com/pressly/goose/v3"
)

// Kinds of engines, as Store.Kind returns them.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// dialect is what differs between the engines. Every SQL text is written once,
// with $1 placeholders and in what both engines understand, apart from:
//
//   - FOR UPDATE [SKIP LOCKED] and FOR [KEY] SHARE: SQLite has one writer and needs none;
//   - json_each($1): the strings of a JSON array in a column named value. What is looked
//     for IN them is, on PostgreSQL, an array: a part of what an index is asked for,
//     whatever the statistics say. A join could go through all rows of a root for it;
//   - text_of(column): the UTF-8 text in a column of bytes;
//   - in the schema, the names of the types, the collation (bytes on both
//     engines), WITHOUT ROWID, and PARTITION BY RANGE, which SQLite lacks.
type dialect struct {
	kind  string
	goose goose.Dialect
	// query translates the text of a statement.
	query func(string) string
	// schema translates the text of a migration.
	schema func(string) string
	// statistics tells the planner, after a change of the schema, what the
	// tables hold; empty if the engine finds out by itself.
	statistics string
	// ordersSubquery says that the rows of an ordered subquery keep their
	// order only if the outer query asks for it. SQLite always keeps it, and
	// would read and sort the whole subquery if asked.
	ordersSubquery bool
	// sendsAhead says that rows are made and sent whether or not anybody will
	// want them. SQLite makes one at a time.
	sendsAhead bool
}

var (
	placeholder = regexp.MustCompile(`\$(\d+)`)
	partitioned = regexp.MustCompile(` PARTITION BY RANGE \(\w+\)`)
	textOf      = regexp.MustCompile(`text_of\((\w+)\)`)
	// partitionedTable is a statement that makes such a table.
	partitionedTable = regexp.MustCompile(`CREATE TABLE (\w+) \([^;]*\) PARTITION BY RANGE \(\w+\);`)
	inList           = regexp.MustCompile(`IN \(SELECT value FROM json_each\((\$\d+)\)\)`)
	rowLock          = regexp.MustCompile(` FOR (UPDATE( SKIP LOCKED)?|(KEY )?SHARE)`)
	types            = strings.NewReplacer(
		"TEXT ", `TEXT COLLATE "C" `, "INTEGER ", "BIGINT ", "BLOB ", "BYTEA ", " WITHOUT ROWID", "")
)

var sqliteDialect = &dialect{
	kind:  SQLite,
	goose: goose.DialectSQLite3,
	query: func(text string) string {
		// In SQLite $1 is a name like any other, numbered by its first use.
		text = textOf.ReplaceAllString(rowLock.ReplaceAllString(text, ""), "CAST($1 AS TEXT)")
		return placeholder.ReplaceAllString(text, "?$1")
	},
	schema:     func(text string) string { return partitioned.ReplaceAllString(text, "") },
	statistics: sqliteStatistics,
}

var postgresDialect = &dialect{
	kind:  Postgres,
	goose: goose.DialectPostgres,
	query: func(text string) string {
		text = inList.ReplaceAllString(text, "= ANY (ARRAY(SELECT json_array_elements_text($1)))")
		return textOf.ReplaceAllString(strings.ReplaceAll(text, "json_each(", "json_array_elements_text("), "convert_from($1, 'UTF8')")
	},
	schema: func(text string) string {
		return partitionedTable.ReplaceAllString(types.Replace(text), "$0\nCREATE TABLE ${1}"+otherTimes+" PARTITION OF $1 DEFAULT;")
	},
	ordersSubquery: true,
	sendsAhead:     true,
}
