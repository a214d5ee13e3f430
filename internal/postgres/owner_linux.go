package postgres

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// owner is the system user the server runs as; nil is the current user.
type owner struct{ uid, gid uint32 }

// serverOwner is the current user, but for root the user postgres: the server
// refuses to run as root.
func serverOwner() (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("a server cannot run as root, and there is no other user for it: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &owner{uid: uint32(uid), gid: uint32(gid)}, nil
}

// tempDir is the parent for the cluster's directory; "" is the default. Root's
// own temporary directory may be one that other users cannot enter.
func (o *owner) tempDir() string {
	if o == nil {
		return ""
	}
	return "/tmp"
}

func (o *owner) own(path string) error {
	if o == nil {
		return nil
	}
	return os.Chown(path, int(o.uid), int(o.gid))
}

// sysProcAttr runs a program as the owner and ends it with this one: SIGINT is
// the server's fast shutdown.
func sysProcAttr(o *owner) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
	if o != nil {
		attr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	// A group of its own keeps the terminal's Ctrl-C away from the server: the
	// program it was meant for decides when to stop.
	attr.Setpgid = true
	return attr
}
