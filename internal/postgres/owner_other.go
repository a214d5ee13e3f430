//go:build !linux

package postgres

import "syscall"

// owner is the system user the server runs as: here always the current one.
type owner struct{}

func serverOwner() (*owner, error) { return nil, nil }

func (*owner) tempDir() string { return "" }

func (*owner) own(string) error { return nil }

func sysProcAttr(*owner) *syscall.SysProcAttr { return nil }
