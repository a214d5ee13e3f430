#!/usr/bin/env bash
# Runs every fuzz target of the library's package for a while, one after another:
#
#   fuzz.sh [TIME [NAME...]]    TIME such as 2m (the default) for each
#
# What is found is kept in testdata/fuzz, from where every go test tries it again.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-2m}
shift || true
for target in ${*:-$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' ./*_test.go)}; do
	echo "== $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" .
done
