package server

import (
	"bytes"
	"context"
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
	"github.com/orgd/orgd/internal/org"
)

// A witness cosigns checkpoints (C2SP tlog-witness): it keeps of each log the
// last one that it has seen, and signs only what goes on from that.
type witness struct {
	url      string
	verifier note.Verifier
	service  *org.Service
	log      *slog.Logger
	client   *http.Client
	// contradicted is called if the witness has seen of a log what the
	// database does not have.
	contradicted func(l *org.LogState, reason string)

	sizes map[string]int64 // by origin, what the witness has last cosigned

	mu      sync.Mutex
	pending map[string]*org.LogState // by log id, the last one signed
	busy    bool
	failure error
	wake    chan struct{}
}

const witnessTimeout = 10 * time.Second

// CheckWitness reports what is wrong with an item of Config.Witnesses.
func CheckWitness(text string) error {
	_, err := parseWitness(text)
	return err
}

// parseWitness parses the place and the key of a witness: "URL KEY".
func parseWitness(text string) (*witness, error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return nil, fmt.Errorf("the witness %q is not a URL and a verifier key with a space between them", text)
	}
	u, err := url.Parse(fields[0])
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%q is not the URL of a witness", fields[0])
	}
	v, err := audit.NewWitnessVerifier(fields[1])
	if err != nil {
		return nil, fmt.Errorf("%q is not the verifier key of a witness", fields[1])
	}
	return &witness{url: strings.TrimSuffix(u.String(), "/"), verifier: v, sizes: map[string]int64{},
		pending: map[string]*org.LogState{}, wake: make(chan struct{}, 1)}, nil
}

// submit asks the witness, soon, for its cosignatures.
func (w *witness) submit(signed []*org.LogState) {
	w.mu.Lock()
	for _, l := range signed {
		w.pending[l.Head.LogID] = l
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is to be cosigned; nil, and no longer busy, if nothing is.
func (w *witness) take() map[string]*org.LogState {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy = len(w.pending) > 0; !w.busy {
		return nil
	}
	taken := w.pending
	w.pending = map[string]*org.LogState{}
	return taken
}

// state returns why the witness did not cosign last time; nil if it did.
func (w *witness) state() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

// run asks for cosignatures until ctx ends.
func (w *witness) run(ctx context.Context) {
	wait := time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		for taken := w.take(); taken != nil; taken = w.take() {
			var failure error
			for id, l := range taken {
				err := w.cosign(ctx, l)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					failure = err
					w.again(id, l)
				}
			}
			w.mu.Lock()
			w.failure = failure
			w.mu.Unlock()
			if failure == nil {
				wait = time.Second
				continue
			}
			w.log.Warn("a witness did not cosign", "witness", w.verifier.Name(), "error", failure)
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, time.Minute)
		}
	}
}

// again puts back what was not cosigned, unless there is a later one by now.
func (w *witness) again(id string, l *org.LogState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending[id] == nil {
		w.pending[id] = l
	}
}

// cosign asks for one cosignature. The first question says from which size on
// the witness knows the log; if that is not so, its answer says which size it
// is.
func (w *witness) cosign(ctx context.Context, l *org.LogState) error {
	for range 2 {
		old := min(w.sizes[l.Origin()], l.Signature.Size)
		proof, err := w.service.ProveGrowth(ctx, l.Head, old)
		if err != nil {
			return err
		}
		status, answer, err := w.post(ctx, audit.FormatAddCheckpoint(old, proof, l.Signature.Checkpoint))
		if err != nil {
			return err
		}
		switch status {
		case http.StatusOK:
			w.sizes[l.Origin()] = l.Signature.Size
			return w.service.AddCosignatures(ctx, l.Head, l.Signature.Size, answer, w.verifier)
		case http.StatusConflict:
			size, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
			if err != nil || size < 0 {
				return fmt.Errorf("the witness answered 409 without the size that it knows")
			}
			w.sizes[l.Origin()] = size
			if size > l.Signature.Size {
				return w.ahead(ctx, l, size)
			}
			if size == l.Signature.Size && old == size {
				w.contradicted(l, fmt.Sprintf("the witness %s has cosigned another tree of size %d", w.verifier.Name(), size))
				return nil
			}
		case http.StatusUnprocessableEntity:
			w.contradicted(l, fmt.Sprintf("the witness %s has cosigned a log of size %d that this one does not go on from", w.verifier.Name(), old))
			return nil
		default:
			return fmt.Errorf("the witness answered %d: %.200s", status, answer)
		}
	}
	return fmt.Errorf("the witness does not keep to one size")
}

// ahead handles a witness that has seen a longer log: it may be one that
// another server has signed meanwhile.
func (w *witness) ahead(ctx context.Context, l *org.LogState, size int64) error {
	sig, err := w.service.LastSignature(ctx, l.Head)
	if err != nil {
		return err
	}
	if sig.Size < size {
		w.contradicted(l, fmt.Sprintf("the witness %s has cosigned a log of size %d, but only %d entries are signed here", w.verifier.Name(), size, sig.Size))
	}
	return nil
}

func (w *witness) post(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := w.client.Do(r)
	if err != nil {
		return 0, nil, fmt.Errorf("the witness cannot be reached: %w", err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, answer, err
}
