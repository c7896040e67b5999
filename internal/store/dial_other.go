//go:build !linux

package store

import "syscall"

// boundUnconfirmed does nothing where there is no TCP_USER_TIMEOUT: what was sent
// is bounded by the transaction's own timeout.
func boundUnconfirmed(string, string, syscall.RawConn) error { return nil }
