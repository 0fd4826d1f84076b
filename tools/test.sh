#!/bin/sh
# Builds and tests every configuration: tools/test.sh [JOBS]. All of them run, whatever fails; the last line counts.
set -eu
cd "$(dirname "$0")/.."
jobs=${1:-2}
reports= status=0

# $1: a preset; $2: where CMakePresets.json builds it; then options for CMake
configuration()
{
    preset=$1 report=$2/tests.xml
    shift 2
    cmake --preset "$preset" --log-level=WARNING "$@"
    cmake --build --preset "$preset" -j "$jobs"
    ctest --preset "$preset" -j "$jobs" --output-junit "$PWD/$report" || status=1
    reports="$reports $report"
}

configuration release build -DAIM_TESTS=ON
configuration sanitize build/sanitize -DAIM_TESTS=ON
configuration fuzz build/fuzz

awk '
    /<testcase / { tests++ }
    /<testcase .*status="fail"/ { failed++ }
    END {
        passed = tests ? int(100 * (tests - failed) / tests) : 0
        printf "\n%d%% tests passed, %d tests failed out of %d\n", passed, failed, tests
    }' $reports
exit $status
