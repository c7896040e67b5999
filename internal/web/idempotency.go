package web

import (
	"crypto/sha256"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/seal"
)

// stored is a Response as it is kept for an Idempotency-Key.
type stored struct {
	Status      int      `json:"status"`
	ContentType string   `json:"content_type"`
	Header      []string `json:"header"`
	Body        []byte   `json:"body"`
}

// answerSealer returns what seals one caller's answers. Its key is derived from
// the caller's secret, which the server does not keep: an answer may hold a
// new API key, and nothing in the database can open it.
func answerSealer(credential, idempotencyKey string) (*seal.Sealer, error) {
	return seal.New(seal.Answers, []byte(credential), []byte(idempotencyKey))
}

func sealAnswer(credential, idempotencyKey string, r *Response) ([]byte, error) {
	plain, err := json.Marshal(stored{r.Status, r.ContentType, r.Header, r.Body})
	if err != nil {
		return nil, err
	}
	sealer, err := answerSealer(credential, idempotencyKey)
	if err != nil {
		return nil, err
	}
	return sealer.Seal(plain, nil), nil
}

func openAnswer(credential, idempotencyKey string, sealed []byte) (*Response, error) {
	sealer, err := answerSealer(credential, idempotencyKey)
	if err != nil {
		return nil, err
	}
	plain, err := sealer.Open(sealed, nil)
	switch {
	case err == seal.ErrShort:
		return nil, problem.New(problem.Internal, "A stored answer is damaged.")
	case err != nil:
		return nil, problem.New(problem.IdempotencyKeyReused, "This Idempotency-Key was used with another secret of this API key.").
			WithFix("Use a new Idempotency-Key, after checking whether the first request had its effect.")
	}
	var s stored
	if err := json.Unmarshal(plain, &s); err != nil {
		return nil, err
	}
	return &Response{Status: s.Status, ContentType: s.ContentType, Header: s.Header, Body: s.Body}, nil
}

// once handles a POST that carries an Idempotency-Key: handle runs at most
// once for all requests with the same key, and the others get its answer.
func (s *Server) once(r *Request, handle Handler) (*Response, error) {
	idempotencyKey := r.Header.Get("Idempotency-Key")
	if len(idempotencyKey) > 255 || !visibleASCII(idempotencyKey) {
		return nil, problem.New(problem.InvalidParameter, "The header Idempotency-Key must be 1 to 255 visible ASCII characters.")
	}
	body, err := r.Raw()
	if err != nil {
		return nil, err
	}
	hash := fingerprint(r, body)

	flight := r.Actor.ID + "\x00" + idempotencyKey
	if _, busy := s.inFlight.LoadOrStore(flight, true); busy {
		e := problem.New(problem.RequestInFlight, "A request with this Idempotency-Key is still being processed.").
			WithFix("Send the same request again in a moment to get its answer.")
		e.RetryAfter = time.Second
		return nil, e
	}
	defer s.inFlight.Delete(flight)

	replay, err := s.service.Replay(r.Context(), r.Actor, idempotencyKey)
	if err != nil {
		return nil, err
	}
	if replay != nil {
		if string(replay.RequestHash) != string(hash) {
			return nil, problem.New(problem.IdempotencyKeyReused, "This Idempotency-Key was used for another request in the last 24 hours.").
				WithFix("Use a new Idempotency-Key for a new request.")
		}
		r.Did = "This request was made before, with this Idempotency-Key"
		return openAnswer(r.credential, idempotencyKey, replay.Answer)
	}
	if err := s.keepable(r); err != nil {
		return nil, err
	}
	r.idempotent = &org.Idempotency{Key: idempotencyKey, RequestHash: hash}
	resp, err := handle(r)
	if err != nil || resp.Status >= 300 || resp.Stream != nil || r.kept {
		return resp, err
	}
	// The request made no change with which its answer could be stored. If it
	// cannot be stored now, the same request may be made again.
	sealed, err := sealAnswer(r.credential, idempotencyKey, resp)
	if err == nil {
		err = s.service.KeepAnswer(r.Context(), r.Actor, r.idempotent, sealed)
	}
	if err != nil {
		s.log.Warn("an answer could not be kept for its Idempotency-Key", "request_id", r.ID, "error", err)
	} else if r.Did == "" {
		r.Did = "Nothing was changed, and the answer is kept for its Idempotency-Key"
	}
	return resp, nil
}

// fingerprint returns a hash of all that decides about what a request does:
// its method, target, media type and body, and those header fields that a
// handler goes by. Requests with the same one may have the same answer.
func fingerprint(r *Request, body []byte) []byte {
	h := sha256.New()
	part := func(s string) {
		io.WriteString(h, s)
		h.Write([]byte{0})
	}
	part(r.Method)
	part(r.URL.RequestURI())
	part(r.Header.Get("Content-Type"))
	h.Write(body)
	hash := h.Sum(nil)

	var fields []string
	for name, values := range r.Header {
		name = strings.ToLower(name)
		switch {
		case strings.HasPrefix(name, "ce-"): // the attributes of a CloudEvent in binary mode
		case name == "if-match":
		case name == "content-encoding" && !strings.EqualFold(strings.Join(values, ","), "identity"):
		default:
			continue
		}
		// Neither a name nor a value holds NUL or a line break.
		fields = append(fields, name+"\x00"+strings.Join(values, "\x00"))
	}
	if len(fields) == 0 {
		return hash
	}
	slices.Sort(fields)
	h.Reset()
	h.Write(hash)
	part("")
	part(strings.Join(fields, "\n"))
	return h.Sum(nil)
}

func visibleASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return len(s) > 0
}
