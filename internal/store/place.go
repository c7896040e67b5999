package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/orgd/orgd/internal/durable"
)

// placeFile notes which file orgd.db is, as the file system knows it. A copy is
// another file: that is how one is recognized.
const placeFile = "orgd.place"

// progressTime is how often the log says that a check is under way.
const progressTime = 10 * time.Second

// howToCopy says what to do about a copy that is not whole.
const howToCopy = "copy the data directory again, while the server is stopped or from a snapshot of its file system, never file by file under a running server"

// checkCopy checks a database that is not in the file in which this directory
// last had it, before anything of it is changed. A copy that was made file by
// file under a running server can lack changes or hold parts of them, and seem
// sound: the write-ahead log is then that of another state of the database. So can
// one that was written over the database in its file, beside a log that is left.
//
// It reads the whole database, once: a place that was checked is noted.
func checkCopy(dir, uri string, log *slog.Logger) error {
	path := filepath.Join(dir, "orgd.db")
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 {
			return fmt.Errorf("it is not whole: there is a write-ahead log, and no database; %s", howToCopy)
		}
		return nil
	}
	if err != nil {
		return err
	}
	place, err := placeOf(path)
	if err != nil {
		return err
	}
	if noted, err := os.ReadFile(filepath.Join(dir, placeFile)); err == nil && bytes.Equal(noted, place) && !newerThanWAL(info, path+"-wal") {
		return nil
	}
	log.Info("the database may be a copy, or was never checked: it is checked once, as a whole", "bytes", info.Size())
	start := time.Now()
	progress := time.NewTicker(progressTime)
	done := make(chan struct{})
	go func() {
		defer progress.Stop()
		for {
			select {
			case <-progress.C:
				log.Info("the database is being checked", "for", time.Since(start).Round(time.Second).String())
			case <-done:
				return
			}
		}
	}()
	fault, err := findFault(uri)
	close(done)
	if err != nil {
		return err
	}
	if fault != "" {
		return fmt.Errorf("it is not whole: %s; if it is a copy, %s", fault, howToCopy)
	}
	log.Info("the database is whole", "after", time.Since(start).Round(time.Millisecond).String())
	return nil
}

// newerThanWAL reports whether a database was written later than the write-ahead log beside it
// that has something: somebody may have copied another database into its file. It
// may also have been the last that an earlier process did, to copy the log.
func newerThanWAL(db fs.FileInfo, wal string) bool {
	info, err := os.Stat(wal)
	return err == nil && info.Size() > 0 && db.ModTime().After(info.ModTime())
}

// notePlace notes where the database is.
func notePlace(dir string) error {
	place, err := placeOf(filepath.Join(dir, "orgd.db"))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, placeFile)
	if noted, err := os.ReadFile(path); err == nil && bytes.Equal(noted, place) {
		return nil
	}
	return durable.Write(path, place)
}

// findFault looks for what is wrong with a database; empty for nothing.
func findFault(uri string) (fault string, err error) {
	c, err := openSQLite(uri, true)
	if err != nil {
		return "", err
	}
	defer c.close()
	err = c.query(func(r row) error {
		if err := r.Scan(&fault); err != nil {
			return err
		}
		if fault == "ok" {
			fault = ""
		}
		return errEnough
	}, `PRAGMA integrity_check(1)`)
	if fault != "" {
		return fault, nil
	}
	if err != nil && err != errEnough {
		return "", err
	}
	// Every log has as many entries as its head says.
	var tables int64
	if err := c.query(into(&tables), `SELECT count(*) FROM sqlite_schema WHERE name IN ('audit_heads', 'audit_entries')`); err != nil || tables < 2 {
		return "", err
	}
	err = c.query(func(r row) error {
		var rootID string
		var size, entries, next int64
		if err := r.Scan(&rootID, &size, &entries, &next); err != nil {
			return err
		}
		fault = fmt.Sprintf("the audit log of %s has %d entries up to number %d, and should have %d", rootID, entries, next-1, size)
		return errEnough
	}, `SELECT h.root_id, h.size, count(e.seq), coalesce(max(e.seq) + 1, 0) FROM audit_heads AS h
		LEFT JOIN audit_entries AS e ON e.root_id = h.root_id AND e.epoch = h.epoch
		GROUP BY h.root_id, h.epoch, h.size HAVING h.size <> count(e.seq) OR h.size <> coalesce(max(e.seq) + 1, 0) LIMIT 1`)
	if err == errEnough {
		err = nil
	}
	return fault, err
}
