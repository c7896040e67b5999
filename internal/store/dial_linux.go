package store

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// boundUnconfirmed has a connection end once the other side has left what was
// sent to it unconfirmed for userTimeout, tcp(7): without, the kernel sends it
// again for a quarter of an hour.
func boundUnconfirmed(network, _ string, c syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}
