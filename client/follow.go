package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"time"
)

// FollowOptions change how a log is followed. The zero value is to start now.
type FollowOptions struct {
	// After is the Position of an event: the events after it come. Empty for
	// the events from now on.
	After string
	// Opened is called, if it is not nil, each time that a stream is open: all
	// that becomes visible from then on comes.
	Opened func()
}

const (
	// feedSilence is after which time without a sign of life a stream counts
	// as lost: the server gives one every 15 seconds.
	feedSilence = 45 * time.Second
	// maxFeedLine bounds a line of a stream, in bytes.
	maxFeedLine = 4 << 20
)

// message is a message of a stream of server-sent events (WHATWG HTML, section
// 9.2).
type message struct {
	id   string
	data json.RawMessage
}

// follow returns the messages of a stream. A stream that is lost, or that the
// server ends because it stops or has no database for a while, is opened again
// after the last message, for as long as ctx lasts: no message is left out and
// none comes twice. An error that trying again would not mend ends it, as does
// a first attempt that reaches no server.
func follow(ctx context.Context, cl *Client, c *call, opt FollowOptions) iter.Seq2[message, error] {
	c.set("follow", "true")
	return func(yield func(message, error) bool) {
		after, opened := opt.After, false
		for attempt := 0; ; attempt++ {
			c.headers.Del("Last-Event-ID")
			c.header("Last-Event-ID", after)
			more := true
			err := cl.stream(ctx, c, func() {
				attempt, opened = 0, true
				if opt.Opened != nil {
					opt.Opened()
				}
			}, func(m message) bool {
				after = m.id
				if m.data != nil {
					more = yield(m, nil)
				}
				return more
			})
			switch {
			case !more:
				return
			case ctx.Err() != nil:
				yield(message{}, context.Cause(ctx))
				return
			}
			wait, again := c.again(err, attempt)
			var refused *Error
			if errors.Is(err, errFeedLost) || opened && !errors.As(err, &refused) {
				wait, again = max(wait, firstWait), true
			}
			if !again || !opened && attempt >= cl.retries {
				yield(message{}, err)
				return
			}
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
	}
}

// errFeedLost is the error of a stream that has ended without a reason.
var errFeedLost = errors.New("the server has ended the stream")

// stream opens a stream once and passes on its messages until one of them is
// not wanted any more, the stream ends or is silent for too long.
func (cl *Client) stream(ctx context.Context, c *call, opened func(), next func(message) bool) error {
	if c.err != nil {
		return c.err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := cl.request(ctx, c)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	silence := time.AfterFunc(feedSilence, func() { cancel(errFeedLost) })
	defer silence.Stop()
	resp, err := cl.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return newError(resp, answer)
	}
	in := bufio.NewScanner(resp.Body)
	in.Buffer(make([]byte, 0, 64<<10), maxFeedLine)
	var m message
	var event string
	for in.Scan() {
		silence.Reset(feedSilence)
		if opened != nil {
			opened()
			opened = nil
		}
		name, value, _ := bytes.Cut(in.Bytes(), []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "id":
			m.id = string(value)
		case "event":
			event = string(value)
		case "data":
			m.data = append(m.data, value...)
		case "":
			if len(in.Bytes()) > 0 {
				continue // a comment
			}
			if event == "problem" {
				return endOfFeed(resp, m.data)
			}
			if m.id != "" && !next(m) {
				return nil
			}
			m, event = message{}, ""
		}
	}
	if err := in.Err(); err != nil && !errors.Is(context.Cause(ctx), errFeedLost) {
		return fmt.Errorf("%w: %w", errFeedLost, err)
	}
	return errFeedLost
}

// endOfFeed returns the error that a server ends a stream with.
func endOfFeed(resp *http.Response, body []byte) error {
	e := &Error{RequestID: resp.Header.Get("X-Request-Id")}
	if err := decode(body, e); err != nil {
		return err
	}
	e.Raw = body
	return e
}

// followed decodes messages. position, if it is not nil, gets the position of
// each.
func followed[T any](messages iter.Seq2[message, error], position func(*T, string)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for m, err := range messages {
			var v T
			if err == nil {
				err = decode(m.data, &v)
			}
			if err != nil {
				yield(v, err)
				return
			}
			if elem, ok := any(&v).(interface{ meta() *Meta }); ok {
				elem.meta().Raw = m.data
			}
			if position != nil {
				position(&v, m.id)
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// FollowChildrenAudit returns the audit entries of an organization and what is
// below it in the order of their log: from q.From on, or else from now on, and
// then as they are made, until ctx ends or the key may not see them any more.
// Each comes once, also when the connection is lost in between. q.To is not
// used.
func (cl *Client) FollowChildrenAudit(ctx context.Context, orgID string, q AuditQuery, opts ...CallOption) iter.Seq2[AuditEntry, error] {
	return followed[AuditEntry](follow(ctx, cl, newCall("GET", []string{"orgs", orgID, "children_audit"}, opts).setTime("from", q.From).
		set("action", q.Action).set("actor", q.Actor).set("org", q.Org).set("scope", q.Scope), FollowOptions{}), nil)
}
