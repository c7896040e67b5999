package access

import (
	"log/slog"
	"os"
	"time"

	"github.com/orgd/orgd/internal/durable"
)

// Options of a Recorder. The zero value of a field means its default.
type Options struct {
	// MaxBytes is the most that may wait to be stored. Beyond it Record fails
	// until the Sink has caught up. Default 1 GiB, or an eighth of a disk that is
	// smaller than 8 GiB. The spool takes up to two segments more on disk, which
	// it reserves: see Recorder.
	MaxBytes int64
	// SegmentBytes is the size at which a new segment is started. Default 16 MiB,
	// or a part in 32 of a disk that is smaller than 512 MiB.
	SegmentBytes int64
	// SegmentAge is the age at which a segment is ended, so that no file of the
	// spool keeps for longer what the Sink has stored. Default 10 minutes.
	SegmentAge time.Duration
	// FlushInterval is how long a record waits for others to be stored with
	// it. Default 100 ms.
	FlushInterval time.Duration
	// BatchSize is the most records in one Batch, and the number of waiting
	// records that are stored without waiting for more. Default 2000.
	BatchSize int
	// SyncInterval is how often records that are not stored yet are synced to
	// disk, and space for the next segment is reserved, in the background.
	// Default 1 s; negative for never.
	SyncInterval time.Duration
	// Logger gets what goes wrong in the background. Default slog.Default().
	Logger *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time

	open    func(name string) (file, error)
	remove  func(name string) error
	syncDir func(dir string) error
}

func (o Options) withDefaults(dir string) Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = durable.ShareOf(dir, 8, 1<<30)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = durable.ShareOf(dir, 32, 16<<20)
	}
	if o.SegmentAge == 0 {
		o.SegmentAge = 10 * time.Minute
	}
	if o.FlushInterval == 0 {
		o.FlushInterval = 100 * time.Millisecond
	}
	if o.BatchSize == 0 {
		o.BatchSize = 2000
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.open == nil {
		o.open = openFile
	}
	if o.remove == nil {
		o.remove = os.Remove
	}
	if o.syncDir == nil {
		o.syncDir = durable.SyncDir
	}
	return o
}
