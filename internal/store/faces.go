package store

import (
	"context"

	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

// Metering returns the store as the package metering uses it.
func (s *Store) Metering() metering.Store { return meteringStore{s} }

type meteringStore struct{ *Store }

func (s meteringStore) Read(ctx context.Context, fn func(metering.Tx) error) error {
	return s.engine.read(ctx, false, s.traced(func(t *tx) error { return fn(t) }))
}

func (s meteringStore) ReadHeavy(ctx context.Context, fn func(metering.Tx) error) error {
	return s.engine.read(ctx, true, s.traced(func(t *tx) error { return fn(t) }))
}

func (s meteringStore) Write(ctx context.Context, fn func(metering.Tx) error) error {
	return s.write(ctx, func(t *tx) error { return fn(t) })
}

// In unwraps what the domain has wrapped around a transaction of this store.
func (meteringStore) In(wrapped org.Tx) metering.Tx {
	for {
		if t, ok := wrapped.(*tx); ok {
			return t
		}
		wrapped = wrapped.(interface{ Unwrap() org.Tx }).Unwrap()
	}
}

var (
	_ metering.Store = meteringStore{}
	_ metering.Tx    = (*tx)(nil)
)
