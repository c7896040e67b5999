//go:build !linux

package store

import "os"

// machine names the running system: locks hold between its processes.
func machine() string {
	name, _ := os.Hostname()
	return name
}

// mountOf names the file system that a directory is in, as it is mounted.
func mountOf(string) string { return "0" }

// tryRangeLock does nothing: one kind of lock is known here.
func tryRangeLock(*os.File) (locked bool, err error) { return true, nil }

// fileSystem names the kind of file system that a directory is in.
func fileSystem(string) string { return "unknown" }
