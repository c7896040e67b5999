package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
)

// keepPrivate takes the files that orgd keeps in the data directory away from
// other users, as a restored copy or another umask may have left them, and warns
// if others can enter the directory itself: it may be shared on purpose, and is
// not changed.
func keepPrivate(dir string, log *slog.Logger) {
	if runtime.GOOS == "windows" { // access lists are inherited from above
		return
	}
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("other users may enter the data directory, which holds keys; unless that is meant, take it from them: chmod 700 "+dir,
			"dir", dir, "mode", info.Mode().Perm().String())
	}
	for _, pattern := range []string{"orgd.*", "*.key", "audit.anchor*", filepath.Join("spool", "*")} {
		names, err := filepath.Glob(filepath.Join(escape(dir), pattern))
		if err != nil {
			continue // the patterns are well-formed
		}
		for _, name := range names {
			info, err := os.Lstat(name)
			if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
				continue
			}
			if err := os.Chmod(name, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
				log.Warn("other users may read a file of the data directory, and its mode cannot be changed", "file", name,
					"mode", info.Mode().Perm().String(), "error", err)
			}
		}
	}
}

// escape returns a pattern of filepath.Match that matches only the path.
func escape(path string) string {
	b := make([]byte, 0, len(path))
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			b = append(b, '\\')
		}
		b = append(b, path[i])
	}
	return string(b)
}
