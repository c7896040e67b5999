package testkit

import (
	"context"

	"github.com/orgd/orgd/internal/org"
)

// Around is a side of a store each of whose writes is made, or not, by a function.
type Around[V, T any] struct {
	org.Face[V, T]
	Make func(write func() error) error
}

// Write implements org.Transactions.
func (a Around[V, T]) Write(ctx context.Context, fn func(T) error) error {
	return a.Make(func() error { return a.Face.Write(ctx, fn) })
}

// AroundOrgs is Around for the side of the organizations.
type AroundOrgs struct {
	org.Store
	Make func(write func() error) error
}

// Write implements org.Transactions.
func (a AroundOrgs) Write(ctx context.Context, fn func(org.Tx) error) error {
	return a.Make(func() error { return a.Store.Write(ctx, fn) })
}

// WriteTogether implements org.Store.
func (a AroundOrgs) WriteTogether(ctx context.Context, rootID string, fn func(org.Tx) error) error {
	return a.Make(func() error { return a.Store.WriteTogether(ctx, rootID, fn) })
}
