package durable

import (
	"errors"
	"fmt"
	"syscall"
)

// FullError says that there is too little space on a disk.
type FullError struct {
	Dir   string // a directory on it
	Free  int64  // bytes that are free
	Needs int64  // how many more have to be
	Err   error
}

func (e *FullError) Error() string {
	return fmt.Sprintf("the disk of %s is full: free at least %d bytes there (%v)", e.Dir, e.Needs, e.Err)
}

func (e *FullError) Unwrap() error { return e.Err }

// IsFull reports whether something has failed for want of space.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Full returns a FullError for err, if that has failed for want of space in dir
// and enough bytes are what it takes. Otherwise it returns err, also where the disk
// cannot be asked.
func Full(dir string, enough int64, err error) error {
	var known *FullError
	if !IsFull(err) || errors.As(err, &known) {
		return err
	}
	return lacking(dir, enough, err)
}

func lacking(dir string, enough int64, err error) error {
	_, free, failed := Space(dir)
	if failed != nil {
		return err
	}
	// Where a quota is what has been reached, the disk may have enough.
	return &FullError{Dir: dir, Free: free, Needs: max(enough-free, 4096), Err: err}
}

// Lacks is Full for an error that does not say why it failed: it is a FullError if
// less than enough is free.
func Lacks(dir string, enough int64, err error) error {
	if _, free, failed := Space(dir); failed != nil || free >= enough {
		return err
	}
	return lacking(dir, enough, err)
}
