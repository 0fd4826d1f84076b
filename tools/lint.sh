#!/bin/sh
# Formatting, structure, clang-tidy, cppcheck: tools/lint.sh [JOBS]. Wants build/compile_commands.json. All of them run.
cd "$(dirname "$0")/.." || exit 1
jobs=${1:-2}
failed=

echo "== clang-format"
tools/sources.sh | xargs clang-format --dry-run -Werror || failed="$failed clang-format"

echo "== includes and lengths"
tools/check_includes.sh || failed="$failed includes"

echo "== cppcheck"
cppcheck --quiet --error-exitcode=1 --inline-suppr -j "$jobs" --std=c11 --enable=warning,performance,portability \
    --suppressions-list=tools/cppcheck.txt -Iinclude -Isrc src examples || failed="$failed cppcheck"

echo "== clang-tidy"
tools/sources.sh | grep -E '^(src|examples|bench)/.*\.c$' | xargs -P "$jobs" -n 4 clang-tidy --quiet -p build ||
    failed="$failed clang-tidy"

[ -z "$failed" ] || { echo "lint: failed:$failed" >&2; exit 1; }
echo "lint: all is well"
