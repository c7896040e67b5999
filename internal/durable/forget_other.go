//go:build !linux

package durable

import "os"

func forget(*os.File) error { return nil }
