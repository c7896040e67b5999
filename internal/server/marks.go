package server

import (
	"time"

	"github.com/orgd/orgd/internal/store"
)

// marksView is what a server reads of the database before it serves it.
type marksView interface {
	// SigningSeeds returns the ids of the seeds with which the last epochs of
	// all logs are signed, those of purged roots included, each once: those of
	// the present keys, and of old ones that sign too at the given time.
	SigningSeeds(now time.Time) ([]string, error)
	// Mark returns what is noted about the whole database under a name.
	Mark(name string) (string, error)
}

// marksTx is what a server notes in the database before it serves it.
type marksTx interface {
	marksView
	// PutMark notes something. ErrStale if there is something under that name:
	// of several that put it at once, one succeeds.
	PutMark(name, value string) error
	// ReplaceMark notes something in the place of what is there.
	ReplaceMark(name, value string) error
}

func (s *Server) marks() store.Side[marksView, marksTx] {
	return store.Side[marksView, marksTx]{Store: s.Store}
}
