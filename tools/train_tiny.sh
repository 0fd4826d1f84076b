#!/bin/sh
# The whole way at a small size, in a few minutes on two cores: draws a data set, trains a tokenizer on it and AiM on its
# codes, and paints a grid of pictures, a row for each class. Usage: tools/train_tiny.sh BUILD OUT
set -eu

build=$1
out=$2
classes="balloon,cactus,fish,lighthouse,mushroom,planet,sunflower,tree"

rm -rf "$out"
mkdir -p "$out"
"$build"/tools/draw/aim-draw --out "$out"/drawings/train --count 100 --size 64 --classes "$classes"
"$build"/tools/draw/aim-draw --out "$out"/drawings/val --count 8 --size 64 --classes "$classes" --split val

# Without the weights of VGG, absolute error keeps edges sharper than squared error alone; codes start spread over pictures.
"$build"/aim train tokenizer --data "$out"/drawings -o "$out"/tokenizer --size 64 \
  --channels 32 --multipliers 1,1,2,2 --res-blocks 1 --z 32 --codebook 256x8 --codebook-start spread --revive 50 \
  --steps 700 --batch 8 --lr 2e-3 --schedule cosine --warmup 50 --l1 1 --perceptual 0 --disc none

"$build"/aim extract-codes --data "$out"/drawings --tokenizer "$out"/tokenizer/model -o "$out"/codes --size 64
"$build"/aim train ar --codes "$out"/codes --tokenizer "$out"/tokenizer/model -o "$out"/ar \
  --preset tiny --layers 6 --width 128 --steps 700 --batch 32 --lr 3e-3 --schedule cosine --warmup 50 --ema 0.99

"$build"/aim generate -m "$out"/ar/model -c 0-7 -n 64 --cfg 2 --seed 1 -o "$out"/pictures.png
echo "The classes, a column for each, are $classes: look at $out/pictures.png"
