#!/bin/sh
# test.sh PROGRAM FOLDER: pictures do not depend on threads, runs or company; classes, indices, seeds and splits differ;
# mistakes end with one line and the right status.
set -eu
draw=$1 work=$2
rm -rf "$work"
mkdir -p "$work"

fail()
{
    echo "draw: $*" >&2
    exit 1
}

# Check sums of all pictures below a folder, with their names.
sums()
{
    (cd "$1" && find . -name '*.png' -exec cksum {} + | sort -k 3)
}

"$draw" --out "$work/one" --count 3 --size 128 --threads 1
"$draw" --out "$work/two" --count 3 --size 128 --threads 2
sums "$work/one" >"$work/one.txt"
sums "$work/two" >"$work/two.txt"
cmp "$work/one.txt" "$work/two.txt" || fail "two threads draw other pictures than one"

classes=$("$draw" --list | wc -l)
[ "$(wc -l <"$work/one.txt")" -eq $((3 * classes)) ] || fail "not three pictures of each of $classes classes"
[ -z "$(find "$work/one" -name '*.tmp')" ] || fail "temporary files stay behind"

"$draw" --out "$work/alone" --count 2 --size 128 --classes tree,cat
cmp "$work/alone/cat/000001.png" "$work/one/cat/000001.png" || fail "a class depends on which others are drawn"
"$draw" --out "$work/val" --count 3 --size 128 --split val
"$draw" --out "$work/seed" --count 3 --size 128 --seed 1
for folder in one val seed; do sums "$work/$folder"; done | sort -k 1,1 -u >"$work/all.txt"
[ "$(wc -l <"$work/all.txt")" -eq $((9 * classes)) ] || fail "two pictures are the same"

"$draw" --sheet "$work/sheet.png" --classes cat,tree --columns 2 --size 64 --thumb 32
[ -s "$work/sheet.png" ] || fail "no contact sheet"

# $1: status; then arguments
refuses()
{
    expected=$1 status=0
    shift
    "$draw" "$@" >"$work/out.txt" 2>"$work/err.txt" || status=$?
    [ "$status" -eq "$expected" ] || fail "'$*' ends with $status, not $expected"
    [ "$(wc -l <"$work/err.txt")" -eq 1 ] || fail "'$*' does not say why in one line"
}
refuses 2
refuses 2 --out
refuses 2 --out "$work/x" --count 0
refuses 2 --out "$work/x" --count 1x
refuses 2 --out "$work/x" --classes cat,dog
refuses 2 --out "$work/x" --classes cat,cat
refuses 2 --out "$work/x" --split test
refuses 2 --out "$work/x" more
refuses 2 --wrong
refuses 1 --out "$work/sheet.png" --count 1
refuses 1 --sheet "$work/missing/sheet.png" --classes cat --size 64
