#!/bin/sh
# The paper's ablations at the demo model's scale: one short run each, on the codes of tools/train_demo.sh.
#
#     tools/ablations.sh WORK [options for every command of aim]
#
# Leaves WORK/ablations/NAME with the run, and prints a line for each: held-out NLL with and without the class, and how often
# the judge (aim-judge, WORK/judge.safetensors) takes 400 samples for their class, without guidance and with a factor of 2.
set -eu
AIM=${AIM:-build/aim} JUDGE=${JUDGE:-build/tools/judge/aim-judge} STEPS=${STEPS:-3000}
work=$1
shift

# run NAME WIDTH [how the network has its class, and more]; 7 layers
run()
{
    name=$1 width=$2 out=$work/ablations/$1
    shift 2
    "$AIM" train ar $common --codes "$work/codes" --tokenizer "$work/tokenizer/bf16" -o "$out" --bf16 -q --preset tiny \
        --width "$width" --layers 7 --d-state 128 "$@" --steps "$STEPS" --batch 128 --lr 1.5e-3 \
        --warmup 200 --schedule cosine --ema 0.999 --eval-every 0 --save-every 0 --sample-every 0 >/dev/null
    for cfg in 1 2; do
        "$AIM" generate $common -m "$out/model" -n 400 --cfg $cfg -o "$out/cfg$cfg.npz" -q >/dev/null
    done
    printf '%-12s %s  %s  %s\n' "$name" "$(grep '"nll"' "$out/log.jsonl" | tail -1)" \
        "$("$JUDGE" score "$work/judge.safetensors" "$out/cfg1.npz" | head -1)" \
        "$("$JUDGE" score "$work/judge.safetensors" "$out/cfg2.npz" | head -1)"
}

common=$*
mkdir -p "$work/ablations"
run base 256 --adaln group --groups 2
run no-positions 256 --adaln group --groups 2 --no-positions
run layer 256 --adaln layer
run groups-4 256 --adaln group --groups 4
run single 256 --adaln single
run width-192 192 --adaln group --groups 2
run width-128 128 --adaln group --groups 2
