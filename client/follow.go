package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"
)

// follow returns the messages of a stream of server-sent events as they come,
// from the position lastID on, or without one from where the server starts. A
// connection that is lost is opened again where it broke off. It ends with ctx,
// with an error, or when the server refuses to go on, which is an *Error.
func follow[T any](ctx context.Context, cl *Client, c *call, lastID string) iter.Seq2[T, error] {
	c.setBool("follow", true)
	return func(yield func(T, error) bool) {
		var zero T
		for attempt := 0; ; attempt++ {
			stopped, came, err := followOnce(ctx, cl, c, &lastID, func(data []byte) (bool, error) {
				var v T
				if err := decode(data, &v); err != nil {
					return false, err
				}
				if m, ok := any(&v).(interface{ meta() *Meta }); ok {
					m.meta().Raw = data
				}
				return yield(v, nil), nil
			})
			if stopped {
				return
			}
			if ctx.Err() != nil {
				yield(zero, ctx.Err())
				return
			}
			if came {
				attempt = 0
			}
			wait, again := c.again(err, attempt)
			if !again || attempt >= cl.retries {
				yield(zero, err)
				return
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// errStreamEnded says that the server closed a stream.
var errStreamEnded = fmt.Errorf("the stream ended: %w", io.ErrUnexpectedEOF)

// followOnce reads one connection's messages. came says that something did;
// stopped that take wants no more.
func followOnce(ctx context.Context, cl *Client, c *call, lastID *string, take func(data []byte) (bool, error)) (stopped, came bool, err error) {
	req, err := cl.request(ctx, c)
	if err != nil {
		return false, false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if *lastID != "" {
		req.Header.Set("Last-Event-ID", *lastID)
	}
	resp, err := cl.http.Do(req)
	if err != nil {
		return false, false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return false, false, err
		}
		return false, false, newError(resp, body)
	}
	in := bufio.NewReaderSize(resp.Body, 64<<10)
	var event, id string
	var data []byte
	for {
		line, err := readLine(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errStreamEnded
			}
			return false, came, err
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			event = value
		case "id":
			id = value
		case "data":
			data = []byte(value)
		}
		if line != "" {
			continue
		}
		came = true
		if event == "problem" {
			e := &Error{RequestID: resp.Header.Get("X-Request-Id")}
			if err := json.Unmarshal(data, e); err != nil {
				return false, came, fmt.Errorf("the end of the stream cannot be read: %w", err)
			}
			e.Raw = data
			return false, came, e
		}
		if data != nil {
			more, err := take(data)
			if err != nil || !more {
				return err == nil, came, err
			}
		}
		// Only now: what was not taken comes again.
		if id != "" {
			*lastID = id
		}
		event, data = "", nil
	}
}

// readLine returns the next line without its end, of at most maxAnswer bytes.
func readLine(in *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return strings.TrimRight(string(line), "\r\n"), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		case len(line) > maxAnswer:
			return "", fmt.Errorf("a message of the stream is longer than %d bytes", maxAnswer)
		}
	}
}

// FollowChildrenAudit returns the audit entries of an organization and what is
// below it in the order of their log: from q.From on, or else from now on, and
// then as they are made, without an end. Each comes once, also when the
// connection is lost in between. q.To is not used.
func (cl *Client) FollowChildrenAudit(ctx context.Context, orgID string, q AuditQuery, opts ...CallOption) iter.Seq2[AuditEntry, error] {
	return follow[AuditEntry](ctx, cl, newCall("GET", []string{"orgs", orgID, "children_audit"}, opts).setTime("from", q.From).
		set("action", q.Action).set("actor", q.Actor).set("org", q.Org).set("scope", q.Scope), "")
}
