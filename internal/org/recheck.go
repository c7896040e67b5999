package org

import "context"

type recheckKey struct{}

// WithRecheck returns a context for work that goes on page by page, and may take
// long: between two pages recheck says whether whoever asked for it still may.
// The work ends with its error.
func WithRecheck(ctx context.Context, recheck func(context.Context) error) context.Context {
	return context.WithValue(ctx, recheckKey{}, recheck)
}

// GoOn fails if nobody waits for the work of ctx any more, or whoever asked for
// it may not any more. It must be called outside of transactions.
func GoOn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if recheck, ok := ctx.Value(recheckKey{}).(func(context.Context) error); ok {
		return recheck(ctx)
	}
	return nil
}
