//go:build !linux && !darwin && !freebsd && !windows

package durable

import "errors"

// Space is not made for this system.
func Space(string) (size, free int64, err error) { return 0, 0, errors.ErrUnsupported }
