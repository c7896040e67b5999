//go:build !linux

package access

import (
	"errors"
	"os"
)

// reserve gives f disk space for size bytes without changing its length. It is
// made for Linux only.
func reserve(*os.File, int64) error { return errors.ErrUnsupported }
