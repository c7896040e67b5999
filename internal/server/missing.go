package server

import (
	"os"
	"path/filepath"
)

// anchorPath returns the file that keeps what was signed.
func anchorPath(c *Config) string {
	if c.AuditAnchor != "" {
		return c.AuditAnchor
	}
	return filepath.Join(c.DataDir, "audit.anchor")
}

// missing says what a data directory lacks that was in use before: a start makes
// it again, but what was in it is gone. It must be asked before that.
func missing(dir, anchor string) (lacks []string) {
	there := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	database, spool := there(filepath.Join(dir, "orgd.db")), there(filepath.Join(dir, "spool", "spool.id"))
	segments, _ := filepath.Glob(filepath.Join(escape(dir), "spool", "*.spool"))
	if (database || there(anchor)) && !spool && len(segments) == 0 {
		lacks = append(lacks, "the data directory was used before, and its spool is gone: what was recorded and had not reached the database is lost, and months wait until it is given up; a new one is made in "+
			filepath.Join(dir, "spool"))
	}
	if (database || spool) && !there(anchor) {
		lacks = append(lacks, "the data directory was used before, and the audit anchor is gone: until logs are signed again, this server cannot notice that the database lacks what was signed; restore it from a copy, a new one is made in "+
			anchor)
	}
	return lacks
}
