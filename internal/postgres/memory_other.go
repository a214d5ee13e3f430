//go:build !linux

package postgres

// InMemory is the default of Options.Parent.
func InMemory() string { return "" }
