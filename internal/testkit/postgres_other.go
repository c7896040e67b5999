//go:build !unix

package testkit

import (
	"os/exec"
	"syscall"
)

func chownToServer(string) error { return nil }

func asServer(*exec.Cmd) {}

// Signal ends a daemon: other signals need Unix.
func (d *Daemon) Signal(syscall.Signal) { d.cmd.Process.Kill() }
