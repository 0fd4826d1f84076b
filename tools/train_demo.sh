#!/bin/sh
# The demo model from nothing: drawings, tokenizer, codes, network; models/demo/README.md tells what came out of it.
#
#     tools/train_demo.sh STEP WORK [options for every command of aim, such as --device cuda --threads 16]
#
# STEP is one of data, tokenizer, codes, network, or all of them with `all`; each goes on from what the ones before left in the
# folder WORK. Wants a build (make build data); AIM and DRAW name the programs if they are elsewhere.
set -eu
AIM=${AIM:-build/aim} DRAW=${DRAW:-build/tools/draw/aim-draw}
step=$1 work=$2
shift 2
wants() { [ "$step" = "$1" ] || [ "$step" = all ]; }

if wants data; then
    "$DRAW" --out "$work/drawings/train" --count 4000
    "$DRAW" --out "$work/drawings/val" --count 25 --split val
fi
if wants tokenizer; then
    "$AIM" train tokenizer "$@" --data "$work/drawings" -o "$work/tokenizer" --bf16 \
        --channels 32 --multipliers 1,2,2,2,4 --norm-groups 8 --res-blocks 1 --z 64 \
        --codebook 1024x8 --codebook-start spread --revive 200 \
        --l1 1 --l2 1 --disc patch --disc-channels 32 --adaptive --disc-weight 0.5 --disc-start 3000 --disc-warmup 1000 \
        --steps 16000 --batch 32 --lr 5e-4 --warmup 500 --schedule cosine --ema 0.999 \
        --eval-every 2000 --save-every 0 --sample-every 4000
    "$AIM" convert -m "$work/tokenizer/model" -o "$work/tokenizer/bf16" --weights bf16
fi
if wants codes; then
    "$AIM" extract-codes "$@" --data "$work/drawings" --tokenizer "$work/tokenizer/bf16" -o "$work/codes"
fi
if wants network; then
    "$AIM" train ar "$@" --codes "$work/codes" --tokenizer "$work/tokenizer/bf16" -o "$work/network" --bf16 \
        --preset tiny --width 256 --layers 7 --d-state 128 --adaln group --groups 2 \
        --steps 20000 --batch 128 --lr 1.5e-3 --warmup 200 --schedule cosine --ema 0.999 \
        --eval-every 2000 --save-every 0 --sample-every 10000
    "$AIM" convert -m "$work/network/model" -o "$work/demo" --weights bf16
fi
