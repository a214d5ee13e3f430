package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// preferredMajor comes first among the versions that have pg_cron, so that tests
// run on the same one wherever there is a choice.
const preferredMajor = 15

var errNoServer = errors.New("no PostgreSQL server found (postgres, initdb and pg_ctl in one directory): " +
	"on Debian and Ubuntu run scripts/install-postgres.sh server, " +
	"elsewhere install PostgreSQL 14 or newer and put its bin directory in PATH")

// BinDirEnv names the environment variable that says where the server binaries
// are, in place of looking for them.
const BinDirEnv = "SCHEDULER_POSTGRES_BIN"

// BinDir is the directory of the server binaries that Start uses: what BinDirEnv
// says, where it is set. Otherwise on Debian and Ubuntu those of a version that
// has pg_cron, 15 before the newest, else of the newest version; elsewhere what pg_config names or PATH holds. The error says
// what to install.
func BinDir() (string, error) {
	if dir := os.Getenv(BinDirEnv); dir != "" {
		if !isBinDir(dir) {
			return "", fmt.Errorf("%s is %q: expected a directory with postgres, initdb and pg_ctl", BinDirEnv, dir)
		}
		return dir, nil
	}
	installed, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // fails on bad patterns only
	slices.SortFunc(installed, func(a, b string) int { return cmp.Compare(rank(b), rank(a)) })
	for _, dir := range installed {
		if isBinDir(dir) {
			return dir, nil
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		if dir := strings.TrimSpace(string(out)); isBinDir(dir) {
			return dir, nil
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if dir := filepath.Dir(path); isBinDir(dir) {
			return dir, nil
		}
	}
	return "", errNoServer
}

// HasCron reports whether pg_cron is installed for the server that Start uses.
func HasCron() bool {
	bin, err := BinDir()
	return err == nil && hasLibrary(bin, "pg_cron")
}

// rank orders /usr/lib/postgresql/<major>/bin; the highest is to be used.
func rank(bin string) int {
	const withCron, preferred = 1 << 20, 1 << 21
	major, err := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	switch {
	case err != nil:
		return 0
	case !hasLibrary(bin, "pg_cron"):
		return major
	case major == preferredMajor:
		return preferred
	default:
		return withCron + major
	}
}

func isBinDir(dir string) bool {
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}

// hasLibrary looks where Debian keeps a server's loadable modules, then where
// a plain installation does.
func hasLibrary(bin, name string) bool {
	for _, lib := range []string{"lib", "lib/postgresql"} {
		found, _ := filepath.Glob(filepath.Join(filepath.Dir(bin), lib, name+".*"))
		if len(found) > 0 {
			return true
		}
	}
	return false
}
