package postgres

import "syscall"

// memory is where Linux has files that are kept in memory.
const memory = "/dev/shm"

// enoughMemory is several times what the cluster of a test suite needs.
const enoughMemory = 2 << 30

// InMemory is an Options.Parent for a cluster that need not outlive the machine,
// and makes and drops many tables: that takes half of the time where their files
// are kept in memory. It is "", the default, where there is not enough of it, as
// in most containers.
func InMemory() string {
	var there syscall.Statfs_t
	if err := syscall.Statfs(memory, &there); err != nil || there.Bavail*uint64(there.Bsize) < enoughMemory {
		return ""
	}
	return memory
}
