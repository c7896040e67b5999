package settings

import (
	"container/list"
	"context"
	"crypto/sha256"
	"runtime"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/schema"
)

// Limits of a customization schema and of one check against it. The steps are
// those of schema.Budget; they are used up within some tens of milliseconds.
// The time is for a machine that does not get to it.
const (
	MaxSchemaSize  = 64 << 10 // bytes, as it was sent
	maxSchemaDepth = 64
	// maxCompiledSize is how much all compiled schemas that are kept take in
	// memory, in bytes.
	maxCompiledSize = 8 << 20
	maxCheckSteps   = 4_000_000
	maxCheckTime    = 250 * time.Millisecond
	// quickSteps is what nearly all checks do with, within a millisecond.
	quickSteps = 50_000
)

// longChecks are the checks that take more than quickSteps. One root's never keep
// all processors.
var longChecks = budget.NewTurns(runtime.GOMAXPROCS(0))

// Schema is a compiled JSON Schema (draft 2020-12) for customizations. It is
// safe for concurrent use.
type Schema struct{ compiled *schema.Schema }

// compiledSchemas remembers the schemas that were used last: compiling takes
// many times as long as most checks, and each write needs the schema of its
// root.
var compiledSchemas = schemaCache{max: maxCompiledSize}

// schemaCache keeps compiled schemas up to a size in memory, as they say it
// themselves. The one that has not been used for the longest goes first.
type schemaCache struct {
	mu     sync.Mutex
	max    int // bytes
	size   int
	byHash map[[sha256.Size]byte]*list.Element
	used   list.List // of *cachedSchema, the last used in front
}

type cachedSchema struct {
	hash   [sha256.Size]byte
	schema *Schema
}

func (c *schemaCache) get(hash [sha256.Size]byte) *Schema {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byHash[hash]
	if e == nil {
		return nil
	}
	c.used.MoveToFront(e)
	return e.Value.(*cachedSchema).schema
}

func (c *schemaCache) put(hash [sha256.Size]byte, s *Schema) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byHash[hash] != nil || s.compiled.Size() > c.max {
		return
	}
	if c.byHash == nil {
		c.byHash = map[[sha256.Size]byte]*list.Element{}
	}
	c.byHash[hash] = c.used.PushFront(&cachedSchema{hash, s})
	for c.size += s.compiled.Size(); c.size > c.max; {
		oldest := c.used.Remove(c.used.Back()).(*cachedSchema)
		delete(c.byHash, oldest.hash)
		c.size -= oldest.schema.compiled.Size()
	}
}

// CompileSchema compiles a JSON Schema, draft 2020-12. format is asserted. A
// schema stands alone: references to other documents and $dynamicRef are
// refused, and so is what takes too much memory. The error is InvalidBody.
func CompileSchema(text []byte) (*Schema, *problem.Error) { return compiledSchemas.compile(text) }

func (c *schemaCache) compile(text []byte) (*Schema, *problem.Error) {
	if len(text) > MaxSchemaSize {
		return nil, problem.Body("", "must be at most %d bytes; it has %d", MaxSchemaSize, len(text))
	}
	hash := sha256.Sum256(text)
	if s := c.get(hash); s != nil {
		return s, nil
	}
	v := jsontext.Value(text)
	if !v.IsValid() {
		if _, err := parseTree(v); err != nil {
			return nil, problem.Body("", "is not valid JSON: %v", err)
		}
	}
	if at, err := checkTokens(v, maxSchemaDepth); err != nil {
		return nil, problem.Body(at, "%v", err)
	}
	compiled, p := schema.Compile(v)
	if p != nil {
		return nil, p
	}
	s := &Schema{compiled}
	c.put(hash, s)
	return s, nil
}

// Check checks settings in effect, which Effective returned. The error is
// SchemaViolation, also if the check would take too much work; its pointers
// start with /customizations. Unavailable says that the machine was too busy to
// end the check. A check that takes long waits for a turn of the root, or ends
// with the error of ctx.
func (s *Schema) Check(ctx context.Context, rootID string, effective jsontext.Value) error {
	r := s.compiled.Check(checkedAt, effective, schema.Budget{Steps: quickSteps})
	if r.Outcome == schema.TooMuch {
		if err := longChecks.Take(ctx, rootID); err != nil {
			return err
		}
		defer longChecks.Give(rootID)
		begun := time.Now()
		r = s.compiled.Check(checkedAt, effective, schema.Budget{Steps: maxCheckSteps, Expired: func() bool { return time.Since(begun) > maxCheckTime }})
	}
	if p := violation(r); p != nil {
		return p
	}
	return nil
}

// checkedAt is where pointers to what is wrong start.
const checkedAt = "/customizations"

// violation returns the error of a check, nil if all is right.
func violation(r schema.Result) *problem.Error {
	switch {
	case r.Outcome == schema.Expired:
		p := problem.New(problem.Unavailable, "Checking the settings against the schema of the root organization took more than %v and was stopped; nothing was changed.", maxCheckTime).
			WithFix("Try again. If it happens often, simplify the schema.")
		p.RetryAfter = time.Second
		return p
	case r.Outcome == schema.TooMuch:
		p := problem.New(problem.SchemaViolation, "Checking these settings against the schema of the root organization takes too much work.").
			WithFix("Make the settings smaller or the schema simpler. Costly are patterns that repeat much over long texts, long lists of names that are checked for many objects, and references that multiply.")
		detail := "takes too much work to check"
		if r.Keyword != "" {
			detail += ", most of it for " + r.Keyword
		}
		p.Fields = []problem.Field{{Pointer: "/customizations", Detail: detail}}
		return p
	case len(r.Fields) > 0:
		p := problem.New(problem.SchemaViolation, "The settings that would be in effect do not satisfy the schema of the root organization.")
		p.Fields = r.Fields
		return p
	}
	return nil
}
