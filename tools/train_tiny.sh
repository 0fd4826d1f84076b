#!/bin/sh
# The whole way at a small size, in some five minutes on two cores: draws a data set, trains a tokenizer on it and AiM on its
# codes, and paints a grid of pictures, a column for each class. Usage: tools/train_tiny.sh BUILD OUT
set -eu

build=$1
out=$2
classes="balloon,cactus,fish,lighthouse,mushroom,planet,sunflower,tree"
size=32

rm -rf "$out"
mkdir -p "$out"
"$build"/tools/draw/aim-draw --out "$out"/drawings/train --count 500 --size $size --classes "$classes"
"$build"/tools/draw/aim-draw --out "$out"/drawings/val --count 8 --size $size --classes "$classes" --split val

# 8 x 8 codes a picture. Without the weights of VGG, absolute beside squared error keeps edges; a codebook that starts spread
# over pictures and is kept alive is in use as a whole after some hundred steps.
"$build"/aim train tokenizer --data "$out"/drawings -o "$out"/tokenizer --size $size \
  --channels 32 --multipliers 1,2,2 --res-blocks 1 --z 32 --codebook 256x8 --codebook-start spread --revive 50 \
  --steps 900 --batch 16 --lr 2e-3 --schedule cosine --warmup 50 --l1 1 --perceptual 0 --disc none

"$build"/aim extract-codes --data "$out"/drawings --tokenizer "$out"/tokenizer/model -o "$out"/codes --size $size
"$build"/aim train ar --codes "$out"/codes --tokenizer "$out"/tokenizer/model -o "$out"/ar \
  --preset tiny --layers 6 --width 128 --steps 700 --batch 32 --lr 3e-3 --schedule cosine --warmup 50 --ema 0.99

"$build"/aim generate -m "$out"/ar/model -c 0-7 -n 64 --cfg 2 --seed 1 -o "$out"/pictures.png
echo "The columns are $classes: look at $out/pictures.png"
