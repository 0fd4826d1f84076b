#!/bin/sh
# The figures and numbers of docs/demo.md that the shipped model gives: tools/demo_figures.sh WORK. Wants a build with tests
# (make test) and, in WORK, the drawings of tools/train_demo.sh and the judge that it trains here when it is missing.
set -eu
AIM=${AIM:-build/aim} JUDGE=${JUDGE:-build/tools/judge/aim-judge}
work=$1 out=docs/demo
mkdir -p "$out" "$work/figures"
[ -e "$work/judge.safetensors" ] || "$JUDGE" train "$work/drawings" -o "$work/judge.safetensors"

# paint NAME OPTIONS...: samples and how many of them the judge takes for their class
paint()
{
    name=$1
    shift
    "$AIM" generate -q -n 400 -o "$work/figures/$name.npz" "$@" >/dev/null
    printf '%-14s %s\n' "$name" "$("$JUDGE" score "$work/judge.safetensors" "$work/figures/$name.npz" | head -1)"
}

"$AIM" generate -q --captions -n 20 --cfg 2 --seed 1 -o "$out/classes.png"
"$AIM" reconstruct -q "$work"/drawings/val/*/000003.png -o "$work/figures/rec.npz" | tail -1
for cfg in 1 1.5 2 4 7; do paint "cfg-$cfg" --cfg $cfg; done
for k in 50 200; do paint "top-k-$k" --cfg 2 --top-k $k; done
paint top-p-0.9 --cfg 2 --top-p 0.9
for t in 0.7 1.2; do paint "temperature-$t" --cfg 2 --temperature $t; done
paint pos-offset-1 --cfg 2 --pos-offset 1
f=$work/figures
"$JUDGE" sheet "$f/cfg-1.npz" "$f/cfg-1.5.npz" "$f/cfg-2.npz" "$f/cfg-4.npz" "$f/cfg-7.npz" -o "$out/guidance.png"
"$JUDGE" sheet "$f/top-k-50.npz" "$f/top-k-200.npz" "$f/top-p-0.9.npz" "$f/temperature-0.7.npz" "$f/temperature-1.2.npz" \
    -o "$out/sampling.png"
"$JUDGE" sheet "$f/cfg-2.npz" "$f/pos-offset-1.npz" -o "$out/offset.png"
each=
for class in "$work"/drawings/val/*; do
    class=$(basename "$class")
    "$AIM" generate -q -n 10 -c "$class" --cfg 2 -o "$f/class-$class.npz" >/dev/null
    each="$each $f/class-$class.npz"
done
"$JUDGE" sheet $each -o "$f/each-class.png"
"$JUDGE" nearest "$f/cfg-2.npz" "$work/drawings" -o "$out/nearest.png"
