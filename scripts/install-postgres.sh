#!/usr/bin/env bash
# Installs, from the packages of Debian or Ubuntu, what this repository needs of
# Postgres and what is not there yet:
#
#   install-postgres.sh server   a PostgreSQL server with pg_cron and PL/Python, for
#                                the demo; nothing where there is any server
#   install-postgres.sh test     what the tests need: those, pgbouncer, and a C
#                                compiler for go test -race
#
# No database is created and no service started: tests and demo run clusters of
# their own from the installed binaries.
set -euo pipefail

usage() {
	echo "usage: $0 server|test" >&2
	exit 2
}
[ $# -eq 1 ] || usage

have() { command -v "$1" >/dev/null 2>&1; }

server_found() {
	local bin
	for bin in /usr/lib/postgresql/*/bin/postgres "$(pg_config --bindir 2>/dev/null || true)/postgres"; do
		[ -x "$bin" ] && return
	done
	have postgres
}

# The major version to install: 15, or where that is not packaged the one that the
# distribution is built around.
major() {
	if apt-cache show postgresql-15-cron >/dev/null 2>&1; then
		echo 15
	else
		apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1
	fi
}

wanted() {
	local v
	v=$(major)
	# Before the first apt-get update, nothing is known to be packaged.
	echo "postgresql-${v:=15} postgresql-$v-cron postgresql-plpython3-$v"
	[ "$1" = test ] || return 0
	echo pgbouncer
	have gcc || have clang || echo "gcc libc6-dev"
}

missing() {
	local package
	for package in $(wanted "$1"); do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
	done
}

case $1 in
server) server_found && exit ;;
test) ;;
*) usage ;;
esac

if ! have apt-get; then
	echo "$0: there is no apt-get here. Install PostgreSQL 14 or newer (for the tests with pg_cron, PL/Python and" >&2
	echo "pgbouncer) by the means of this system, and put the directory of its programs in PATH." >&2
	exit 1
fi

[ -n "$(missing "$1")" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	if ! have sudo; then
		echo "$0: to be installed: $(missing "$1" | xargs). Run this script as root, or install sudo." >&2
		exit 1
	fi
	exec sudo -- bash "$0" "$1"
fi

# One at a time, because apt does not wait for another apt-get update.
exec 9>/run/lock/scheduler-install-postgres
flock 9

no_main_cluster=/etc/postgresql-common/createcluster.d/scheduler-install.conf
policy=/usr/sbin/policy-rc.d
own_policy=

restore() {
	rm -f "$no_main_cluster"
	rmdir "${no_main_cluster%/*}" 2>/dev/null || true # unless it is somebody's
	if [ -n "$own_policy" ]; then
		rm -f "$policy"
	fi
}
trap restore EXIT

# Debian's package of a server would create and start the cluster "main" on port
# 5432. This says no for as long as the installation takes.
mkdir -p "${no_main_cluster%/*}"
echo "create_main_cluster = false" >"$no_main_cluster"
# The same for the services, where nobody else has a say in that.
if [ ! -e "$policy" ]; then
	own_policy=yes
	cat >"$policy" <<-'POLICY'
		#!/bin/sh
		case $1 in postgresql* | pgbouncer*) exit 101 ;; esac
	POLICY
	chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
packages=$(missing "$1") # now that the names are known, and perhaps after another run
[ -n "$packages" ] || exit 0
echo "installing" $packages
# shellcheck disable=SC2086 # one word a package
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 $packages 9>&-

# Installed for its program; enabled it would listen after the next boot.
case " $(echo $packages) " in
*" pgbouncer "*)
	if have systemctl; then
		systemctl disable --quiet pgbouncer
	elif have update-rc.d; then
		update-rc.d pgbouncer disable
	fi
	;;
esac
