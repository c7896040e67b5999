//go:build unix

package testkit

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// serverUser returns the user that runs the server: PostgreSQL refuses to run
// as root.
func serverUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

// chownToServer gives a directory to the user that runs the server.
func chownToServer(dir string) error {
	credential, err := serverUser()
	if err != nil || credential == nil {
		return err
	}
	return os.Chown(dir, int(credential.Uid), int(credential.Gid))
}

// asServer makes a command run as that user. It gets a process group of its
// own, so that an interrupt from the terminal does not reach it.
func asServer(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.SysProcAttr.Credential, _ = serverUser()
}

// Signal sends a signal to all processes of a daemon.
func (d *Daemon) Signal(s syscall.Signal) { syscall.Kill(-d.cmd.Process.Pid, s) }
