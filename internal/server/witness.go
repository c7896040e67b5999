package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/background"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/key"
)

// A witness cosigns checkpoints (C2SP tlog-witness): it keeps of each log the
// last one that it has seen, and signs only what goes on from that.
//
// Only its cosignatures are signed. Whatever else it answers, such as the size
// that it claims to know, anybody on the way could have said: it is reported and
// asked about again, and never keeps a log from being signed.
type witness struct {
	url      string
	verifier note.Verifier
	service  *evidence.Service
	log      *slog.Logger
	client   *http.Client

	mu      sync.Mutex
	pending map[string]*witnessed // the audit logs that are to be cosigned, by their ids
	away    wait                  // the witness does not answer at all
	wake    chan struct{}

	sizes map[string]int64 // by origin, what the witness has last cosigned; for its job alone
}

// witnessed is a log that a witness has not cosigned as far as it is signed.
type witnessed struct {
	state *evidence.LogState // the last one signed
	wait
	// disputed says that the witness claims to know another history of the log.
	disputed bool
}

// wait says why something failed and when it is tried again.
type wait struct {
	failure error
	until   time.Time
	step    time.Duration
}

// failed notes a failure. The time until the next attempt doubles.
func (w *wait) failed(err error) {
	w.step = min(max(2*w.step, witnessRetry), witnessPatience)
	w.failure, w.until = err, time.Now().Add(w.step)
}

// errAway is the error of a witness that gives no answer, whatever log it is
// asked about.
type errAway struct{ error }

func (e errAway) Unwrap() error { return e.error }

// errDisputed is what a witness says that claims to know another history.
type errDisputed struct{ error }

const (
	witnessTimeout = 10 * time.Second
	// witnessRetry and witnessPatience are the shortest and the longest time
	// after which a witness is asked again.
	witnessRetry    = time.Second
	witnessPatience = time.Minute
)

// parseWitness parses the place and the key of a witness: "URL KEY".
func parseWitness(text string) (*witness, error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return nil, fmt.Errorf("the witness %q is not a URL and a verifier key with a space between them", text)
	}
	u, err := url.Parse(fields[0])
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%q is not the URL of a witness", key.Redact(fields[0]))
	}
	v, err := audit.NewWitnessVerifier(fields[1])
	if err != nil {
		return nil, fmt.Errorf("%q is not the verifier key of a witness", fields[1])
	}
	if _, _, err := audit.ParseOrigin(v.Name()); err == nil {
		return nil, fmt.Errorf("the witness %s has the name of an audit log of orgd: who looks at names alone would take its cosignatures for the log's own", v.Name())
	}
	return &witness{url: strings.TrimSuffix(u.String(), "/"), verifier: v, sizes: map[string]int64{},
		pending: map[string]*witnessed{}, wake: make(chan struct{}, 1)}, nil
}

// CheckWitnesses reports what is wrong with Config.Witnesses.
func CheckWitnesses(texts []string) error {
	_, err := parseWitnesses(texts)
	return err
}

// parseWitnesses parses the witnesses of a configuration. A key is one witness,
// wherever it answers: asked twice it would count for two. Two keys may share a
// name, as while a witness changes its key; their hashes tell them apart.
func parseWitnesses(texts []string) (list []*witness, err error) {
	for _, text := range texts {
		w, err := parseWitness(text)
		if err != nil {
			return nil, err
		}
		for _, o := range list {
			if o.verifier.Name() == w.verifier.Name() && o.verifier.KeyHash() == w.verifier.KeyHash() {
				return nil, fmt.Errorf("the witness %s is given twice", w.name())
			}
		}
		list = append(list, w)
	}
	return list, nil
}

// name names the witness's key as signed notes do: two may share the name alone.
func (w *witness) name() string {
	return fmt.Sprintf("%s+%08x", w.verifier.Name(), w.verifier.KeyHash())
}

// submit asks the witness, soon, for its cosignatures. A log that it did not
// cosign before is not asked about any sooner for that.
func (w *witness) submit(signed []*evidence.LogState) {
	w.mu.Lock()
	for _, l := range signed {
		if x := w.pending[l.Head.LogID]; x != nil {
			x.state = l
		} else {
			w.pending[l.Head.LogID] = &witnessed{state: l}
		}
	}
	w.mu.Unlock()
	w.rouse()
}

func (w *witness) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// due returns a log that is to be cosigned now; if there is none, how long it is
// until there may be one.
func (w *witness) due(now time.Time) (*evidence.LogState, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) == 0 {
		return nil, witnessPatience
	}
	if left := w.away.until.Sub(now); left > 0 {
		return nil, left
	}
	soonest := witnessPatience
	for _, x := range w.pending {
		left := x.until.Sub(now)
		if left <= 0 {
			return x.state, 0
		}
		soonest = min(soonest, left)
	}
	return nil, soonest
}

// cosigning asks for cosignatures. What the witness fails at it logs itself, by log.
func (w *witness) cosigning() background.Job {
	return background.Job{Name: "cosign " + w.name(), Wake: w.wake,
		Wait: func() time.Duration {
			_, left := w.due(time.Now())
			return left
		},
		Run: func(ctx context.Context) error {
			for {
				l, _ := w.due(time.Now())
				if l == nil {
					return w.state()
				}
				err := w.cosign(ctx, l)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				w.done(l, err)
			}
		}}
}

// done notes what became of an attempt.
func (w *witness) done(l *evidence.LogState, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.pending[l.Head.LogID]
	if x == nil || x.state.Origin() != l.Origin() { // forgotten meanwhile
		return
	}
	var away errAway
	if errors.As(err, &away) {
		w.away.failed(err)
		w.log.Warn("a witness does not answer; it is asked again", "witness", w.name(), "logs", len(w.pending), "error", err)
		return
	}
	w.away = wait{}
	if err == nil {
		if x.state == l {
			delete(w.pending, l.Head.LogID)
		} else {
			x.wait, x.disputed = wait{}, false
		}
		return
	}
	known := x.failure
	x.failed(err)
	var disputed errDisputed
	x.disputed = errors.As(err, &disputed)
	if known == nil || known.Error() != err.Error() {
		w.log.Warn("a witness did not cosign; the log is signed on, and the witness asked again", "witness", w.name(),
			"root_id", l.Head.RootID, "log_id", l.Head.LogID, "error", err)
	}
}

// forget drops a log: what is open of it is not to be cosigned any more.
func (w *witness) forget(logID string) {
	w.mu.Lock()
	delete(w.pending, logID)
	w.mu.Unlock()
}

// disputes reports whether the witness claims to know another history of the
// log.
func (w *witness) disputes(logID string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.pending[logID]
	return x != nil && x.disputed
}

// lacking returns how many audit logs the witness has been asked about in vain, and
// how many of them it disputes.
func (w *witness) lacking() (n, disputed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.pending {
		if x.failure != nil || w.away.failure != nil {
			n++
		}
		if x.disputed {
			disputed++
		}
	}
	return n, disputed
}

// state returns what the witness lacks; nil if nothing.
func (w *witness) state() error {
	n, disputed := w.lacking()
	if n == 0 {
		return nil
	}
	return fmt.Errorf("the witness %s has not cosigned %d audit logs, of %d of which it claims to know another history", w.name(), n, disputed)
}

// cosign asks for one cosignature. The first question says from which size on
// the witness knows the log; if that is not so, its answer says which size it
// is.
func (w *witness) cosign(ctx context.Context, l *evidence.LogState) error {
	for range 2 {
		old := min(w.sizes[l.Origin()], l.Signature.Size)
		proof, err := w.service.ProveGrowth(ctx, l.Head, old)
		if err != nil {
			return err
		}
		status, answer, err := w.post(ctx, audit.FormatAddCheckpoint(old, proof, l.Signature.Checkpoint))
		if err != nil {
			return errAway{err}
		}
		switch status {
		case http.StatusOK:
			if err := w.service.AddCosignatures(ctx, l.Head, l.Signature.Size, answer, w.verifier); err != nil {
				return err
			}
			w.sizes[l.Origin()] = l.Signature.Size
			return nil
		case http.StatusConflict:
			size, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
			if err != nil || size < 0 {
				return errors.New("the witness answered 409 without the size that it knows")
			}
			w.sizes[l.Origin()] = size
			if size > l.Signature.Size {
				return w.ahead(ctx, l, size)
			}
			if size == l.Signature.Size && old == size {
				return errDisputed{fmt.Errorf("the witness says that it has cosigned another tree of size %d", size)}
			}
		case http.StatusUnprocessableEntity:
			return errDisputed{fmt.Errorf("the witness says that it has cosigned a log of size %d that this one does not go on from", old)}
		default:
			return fmt.Errorf("the witness answered %d: %.200q", status, answer)
		}
	}
	return errors.New("the witness does not keep to one size")
}

// ahead handles a witness that says that it has seen a longer log: it may be
// one that another server has signed meanwhile, which is then asked about by
// that server.
func (w *witness) ahead(ctx context.Context, l *evidence.LogState, size int64) error {
	sig, err := w.service.LastSignature(ctx, l.Head)
	if err != nil {
		return err
	}
	if sig.Size < size {
		return errDisputed{fmt.Errorf("the witness says that it has cosigned a log of size %d, but only %d entries are signed here", size, sig.Size)}
	}
	return nil
}

// maxWitnessAnswer is how much of an answer is read.
const maxWitnessAnswer = 64 << 10

func (w *witness) post(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := w.client.Do(r)
	if err != nil {
		// What http says repeats the URL, which may hold a password.
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return 0, nil, fmt.Errorf("the witness cannot be reached: %w", err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxWitnessAnswer))
	return resp.StatusCode, answer, err
}
