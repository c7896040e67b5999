package api

import (
	"bytes"
	"encoding/base64"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) usageEventRoutes() []web.Route {
	return []web.Route{
		{Method: "POST", Pattern: "/orgs/{org_id}/consumption/events", Operation: "ingestUsage", Action: "INGEST_USAGE",
			Rule: web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionWrite}}, MaxBody: web.MaxBulkBody, Swell: usageSwell, Handle: a.ingestUsage},
		{Method: "POST", Pattern: "/api/v1/events", Operation: "ingestEvents", Action: "INGEST_USAGE",
			Rule: web.Rule{Permissions: []string{key.ConsumptionWrite}}, MaxBody: web.MaxBulkBody, Swell: usageSwell, Handle: a.ingestEvents},
	}
}

// maxEvents is the number of events that one request may bring.
const maxEvents = 10_000

// Media types of events.
const (
	typeJSON       = "application/json"
	typeNDJSON     = "application/x-ndjson"
	typeCloudEvent = "application/cloudevents+json"
	typeCloudBatch = "application/cloudevents-batch+json"
)

// eventsStored is what a request did that brought events.
const eventsStored = "The events were stored"

func (a *API) ingestUsage(r *web.Request) (*web.Response, error) {
	var events []metering.UsageEvent
	var err error
	if r.Header["Ce-Specversion"] != nil {
		events, err = binaryEvent(r)
	} else {
		events, err = bodyEvents(r, false)
	}
	if err != nil {
		return nil, err
	}
	render := func(result any) *web.Response {
		n := result.(metering.Ingestion)
		return web.JSON(http.StatusOK, struct {
			Accepted   int `json:"accepted"`
			Duplicates int `json:"duplicates"`
		}{n.Accepted, n.Duplicates})
	}
	n, err := a.metering.Ingest(r.Context(), r.Call(render), r.Org.ID, events)
	if err != nil {
		return nil, err
	}
	r.Did = eventsStored
	return render(n), nil
}

// ingestEvents takes events as clients of OpenMeter send them: CloudEvents
// whose subject is the organization.
func (a *API) ingestEvents(r *web.Request) (*web.Response, error) {
	events, err := bodyEvents(r, true)
	if err != nil {
		return nil, err
	}
	for i := range events {
		if events[i].OrgID == "" {
			events[i].OrgID = r.Actor.OrgID
		}
	}
	render := func(any) *web.Response { return &web.Response{Status: http.StatusNoContent} }
	if _, err := a.metering.Ingest(r.Context(), r.Call(render), "", events); err != nil {
		return nil, err
	}
	r.Did = eventsStored
	return render(nil), nil
}

// bodyEvents reads events from a body of JSON or NDJSON. cloud says that
// application/json holds CloudEvents.
func bodyEvents(r *web.Request, cloud bool) ([]metering.UsageEvent, error) {
	mediaType, err := r.MediaType(typeJSON, typeNDJSON, typeCloudEvent, typeCloudBatch)
	if err != nil {
		return nil, err
	}
	body, err := r.Raw()
	if err != nil {
		return nil, err
	}
	d := &eventDecoder{cloud: cloud || mediaType == typeCloudEvent || mediaType == typeCloudBatch}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	switch isList := len(bytes.TrimLeft(body, " \t\r\n")) > 0 && bytes.TrimLeft(body, " \t\r\n")[0] == '['; {
	case mediaType == typeNDJSON:
		line := 0
		for text := range bytes.Lines(body) {
			line++
			if text = bytes.TrimSpace(text); len(text) > 0 {
				d.event(text, line)
			}
		}
	case mediaType == typeCloudBatch && !isList:
		return nil, problem.Body("", "must be a JSON array of events")
	case isList && mediaType != typeCloudEvent:
		list, n, err := web.DecodeList(body, maxEvents)
		if err != nil {
			return nil, err
		}
		d.events = make([]metering.UsageEvent, 0, len(list))
		for _, raw := range list {
			d.event(raw, 0)
		}
		d.seen = n
	default:
		var raw jsontext.Value
		if err := web.DecodeJSON(body, &raw); err != nil {
			return nil, err
		}
		d.event(raw, 0)
	}
	return d.done()
}

// eventDecoder reads events one after the other and goes on after bad ones.
type eventDecoder struct {
	cloud  bool
	events []metering.UsageEvent
	seen   int
	bad    problem.Rows
}

func (d *eventDecoder) done() ([]metering.UsageEvent, error) {
	switch {
	case d.seen > maxEvents:
		return nil, problem.New(problem.TooLarge, "The request has %d events; it may have %d.", d.seen, maxEvents).
			WithFix("Send the events in several requests.")
	case d.bad.Count() > 0:
		e := problem.New(problem.EventInvalid, "%d of %d events cannot be read; none was counted.", d.bad.Count(), d.seen).
			WithFix("Correct the events that errors names, and send all of them again.")
		if d.bad.Count() == 1 {
			e.Detail = "One event is invalid, so none was counted: " + d.bad.First()
		}
		e.Fields = d.bad.Fields()
		return nil, e
	case d.seen == 0:
		return nil, problem.Body("", "holds no event")
	}
	return d.events, nil
}

func (d *eventDecoder) event(raw jsontext.Value, line int) {
	index := d.seen
	if d.seen++; d.seen > maxEvents {
		return
	}
	var e metering.UsageEvent
	var err error
	if d.cloud {
		e, err = cloudEvent(raw)
	} else {
		e, err = plainEvent(raw)
	}
	if err == nil {
		e.Line = line
		d.events = append(d.events, e)
		return
	}
	d.bad.Add(problem.Field{Index: &index, Line: line}, err)
}

// plainEvent reads an event in orgd's own form.
func plainEvent(raw jsontext.Value) (metering.UsageEvent, error) {
	var b struct {
		ID        string         `json:"id"`
		Source    string         `json:"source"`
		Timestamp *time.Time     `json:"timestamp"`
		Meter     string         `json:"meter"`
		Quantity  *usage.Decimal `json:"quantity"`
		OrgID     string         `json:"org_id"`
	}
	if err := web.DecodeJSON(raw, &b); err != nil {
		return metering.UsageEvent{}, err
	}
	if b.Meter == "" {
		return metering.UsageEvent{}, problem.Body("/meter", "is missing")
	}
	at, err := eventTime("/timestamp", b.Timestamp)
	if err != nil {
		return metering.UsageEvent{}, err
	}
	e := metering.UsageEvent{ID: b.ID, Source: b.Source, OrgID: b.OrgID, Meter: b.Meter, At: at}
	quantity := b.Quantity
	e.Quantity = func(m *usage.Meter) (usage.Decimal, error) {
		switch {
		case quantity != nil:
			return *quantity, nil
		case m.Aggregation == usage.Count:
			return usage.One, nil
		}
		return 0, problem.Body("/quantity", "is missing")
	}
	return e, nil
}

// eventTime returns when an event happened, the zero time if it does not say.
// The zero time itself, which programs send for a time that they never set, is
// an error: the event would count as one of now.
func eventTime(pointer string, at *time.Time) (time.Time, error) {
	switch {
	case at == nil:
		return time.Time{}, nil
	case at.IsZero():
		return time.Time{}, problem.Body(pointer, "is a time that was never set; leave it out for now")
	}
	return *at, nil
}

// cloudEvent reads a CloudEvent in its JSON format (CloudEvents 1.0.2, JSON
// event format, section 3). Extension attributes are allowed and not kept.
func cloudEvent(raw jsontext.Value) (metering.UsageEvent, error) {
	var b struct {
		SpecVersion string         `json:"specversion"`
		ID          string         `json:"id"`
		Source      string         `json:"source"`
		Type        string         `json:"type"`
		Subject     *string        `json:"subject"`
		Time        *time.Time     `json:"time"`
		Data        jsontext.Value `json:"data"`
		DataBase64  *string        `json:"data_base64"`
	}
	if err := web.DecodeOpenJSON(raw, &b); err != nil {
		return metering.UsageEvent{}, err
	}
	if b.DataBase64 != nil {
		data, err := base64.StdEncoding.DecodeString(*b.DataBase64)
		if err != nil {
			return metering.UsageEvent{}, problem.Body("/data_base64", "is not base64")
		}
		b.Data = data
	}
	at, err := eventTime("/time", b.Time)
	if err != nil {
		return metering.UsageEvent{}, err
	}
	subject := ""
	if b.Subject != nil {
		subject = *b.Subject
	}
	return newCloudEvent(b.SpecVersion, b.ID, b.Source, b.Type, subject, at, b.Data)
}

func newCloudEvent(version, id, source, eventType, subject string, at time.Time, data jsontext.Value) (metering.UsageEvent, error) {
	switch {
	case version != "1.0":
		return metering.UsageEvent{}, problem.Body("/specversion", "must be 1.0")
	case source == "":
		return metering.UsageEvent{}, problem.Body("/source", "is missing")
	case eventType == "":
		return metering.UsageEvent{}, problem.Body("/type", "is missing")
	}
	return metering.UsageEvent{ID: id, Source: source, OrgID: subject, At: at, Type: eventType,
		Quantity: func(m *usage.Meter) (usage.Decimal, error) {
			if m.Aggregation == usage.Count {
				return usage.One, nil
			}
			return quantityAt(data, m.Value)
		}}, nil
}

// quantityAt returns the quantity at a JSON Pointer into the data of an event.
func quantityAt(data jsontext.Value, pointer string) (usage.Decimal, error) {
	at := "/data" + pointer
	var v jsontext.Value
	var err error
	if len(data) > 0 {
		v, err = valueAt(data, pointer)
	}
	if err != nil {
		return 0, problem.Body("/data", "is not JSON, and the meter takes its quantity from %s", at)
	}
	if v == nil {
		return 0, problem.Body(at, "is missing: the meter takes its quantity from there")
	}
	var q usage.Decimal
	if err := q.UnmarshalJSON(v); err != nil {
		return 0, problem.Body(at, "%s", problem.From(err).Fields[0].Detail)
	}
	return q, nil
}

// valueAt returns the value at a JSON Pointer (RFC 6901), nil if there is none.
func valueAt(data jsontext.Value, pointer string) (jsontext.Value, error) {
	d := jsontext.NewDecoder(bytes.NewReader(data))
	unescape := strings.NewReplacer("~1", "/", "~0", "~")
	for pointer != "" {
		token := pointer[1:]
		if end := strings.IndexByte(token, '/'); end >= 0 {
			token, pointer = token[:end], token[end:]
		} else {
			pointer = ""
		}
		token = unescape.Replace(token)
		opening, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		found := false
		switch opening.Kind() {
		case '{':
			for !found && d.PeekKind() == '"' {
				name, err := d.ReadToken()
				if err != nil {
					return nil, err
				}
				if found = name.String() == token; !found {
					if err := d.SkipValue(); err != nil {
						return nil, err
					}
				}
			}
		case '[':
			for i := 0; !found && d.PeekKind() != ']'; i++ {
				if found = token == string(appendInt(nil, int64(i))); !found {
					if err := d.SkipValue(); err != nil {
						return nil, err
					}
				}
			}
		}
		if !found {
			return nil, nil
		}
	}
	return d.ReadValue()
}

// binaryEvent reads a CloudEvent whose attributes are header fields
// (CloudEvents 1.0.2, HTTP protocol binding, section 3.1).
func binaryEvent(r *web.Request) ([]metering.UsageEvent, error) {
	attribute := func(name string) (string, error) {
		v := r.Header.Get("Ce-" + name)
		text, err := url.PathUnescape(v)
		if err != nil {
			return "", problem.New(problem.EventInvalid, "The header ce-%s is not percent-encoded as CloudEvents says.", name)
		}
		return text, nil
	}
	var values [5]string
	for i, name := range []string{"specversion", "id", "source", "type", "subject"} {
		v, err := attribute(name)
		if err != nil {
			return nil, err
		}
		values[i] = v
	}
	var at time.Time
	if v := r.Header.Get("Ce-Time"); v != "" {
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil || t.IsZero() {
			return nil, problem.New(problem.EventInvalid, "The header ce-time %s.", web.TimeRule)
		}
		at = t
	}
	body, err := r.Raw()
	if err != nil {
		return nil, err
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if len(body) > 0 && err != nil {
		return nil, problem.New(problem.UnsupportedMediaType, "The data of the event has no Content-Type.").WithFix("Send the header Content-Type: application/json.")
	}
	if len(body) > 0 && (mediaType == typeJSON || strings.HasSuffix(mediaType, "+json")) {
		var data jsontext.Value
		if err := web.DecodeJSON(body, &data); err != nil {
			return nil, err
		}
	}
	e, err := newCloudEvent(values[0], values[1], values[2], values[3], values[4], at, body)
	if err != nil {
		p := problem.From(err)
		p.Code = problem.EventInvalid
		return nil, p
	}
	return []metering.UsageEvent{e}, nil
}
