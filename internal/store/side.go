package store

import (
	"context"

	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
)

// Side is the store as a package of the domain sees it: V is what that reads within one
// transaction, T what it writes as well. There is one type of transaction, which has the
// methods of all of them.
type Side[V, T any] struct{ *Store }

// Read implements org.Transactions.
func (s Side[V, T]) Read(ctx context.Context, fn func(V) error) error {
	return s.engine.read(ctx, false, s.traced(func(t *tx) error { return fn(side[V](t)) }))
}

// ReadHeavy implements org.Transactions.
func (s Side[V, T]) ReadHeavy(ctx context.Context, fn func(V) error) error {
	return s.engine.read(ctx, true, s.traced(func(t *tx) error { return fn(side[V](t)) }))
}

// Write implements org.Transactions.
func (s Side[V, T]) Write(ctx context.Context, fn func(T) error) error {
	return s.write(ctx, func(t *tx) error { return fn(side[T](t)) })
}

// ViewOf implements org.Face.
func (Side[V, T]) ViewOf(v org.View) V { return side[V](v) }

// TxOf implements org.Face.
func (Side[V, T]) TxOf(t org.Tx) T { return side[T](t) }

// side returns a transaction as S. That a *tx is every S is said below.
func side[S any](t any) S { return t.(S) }

var (
	_ org.Tx            = (*tx)(nil)
	_ tree.Tx           = (*tx)(nil)
	_ tree.ImportTx     = (*tx)(nil)
	_ trail.Tx          = (*tx)(nil)
	_ evidence.Tx       = (*tx)(nil)
	_ metering.Tx       = (*tx)(nil)
	_ metering.MonthsTx = (*tx)(nil)
)
