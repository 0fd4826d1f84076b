/* The options and commands of the program. */
#include "cli/cli.h"

#define AT(field) offsetof(struct arguments, field)

enum { FOR_PICTURES = FOR_ENCODE | FOR_RECONSTRUCT };

const struct option options_table[] = {
    {"classes", 'c', "CLASSES", OPTION_TEXT, AT(classes), 0, 0, NULL, NULL, FOR_GENERATE, GROUP_COMMAND,
     "what to paint: numbers, ranges (3-7) and names, separated by commas; by default every class in turn"},
    {"count", 'n', "N", OPTION_INTEGER, AT(count), 1, 10000000, "1 to 10000000", NULL, FOR_GENERATE, GROUP_COMMAND,
     "number of pictures in all, the classes taken in turn; by default one per class, at most 16 when -c is not given"},
    {"output", 'o', "OUT", OPTION_TEXT, AT(output), 0, 0, NULL, NULL,
     FOR_GENERATE | FOR_ENCODE | FOR_DECODE | FOR_RECONSTRUCT | FOR_INIT | FOR_EXTRACT | FOR_CONVERT, GROUP_COMMAND,
     "where the result goes, see Output below"},
    {"codes-out", 0, "FILE.npy", OPTION_TEXT, AT(codes_out), 0, 0, NULL, NULL, FOR_GENERATE, GROUP_COMMAND,
     "also write the codes, int64 (pictures, tokens); without -o the codes are all that is made"},
    {"cfg", 0, "W", OPTION_REAL, AT(cfg), 0, 1000, "0 to 1000", "4", FOR_GENERATE, GROUP_COMMAND,
     "guidance: how strongly pictures are pushed towards their class; 1 is none and takes half the work"},
    {"top-k", 0, "K", OPTION_INTEGER, AT(top_k), 0, 1000000000, "0 or more", "0", FOR_GENERATE, GROUP_COMMAND,
     "sample among the K most likely codes; 0 is all"},
    {"top-p", 0, "P", OPTION_REAL, AT(top_p), 1e-300, 1, "above 0, at most 1", "1", FOR_GENERATE, GROUP_COMMAND,
     "sample among the most likely codes that have probability P together"},
    {"temperature", 0, "T", OPTION_REAL, AT(temperature), 0, 1000, "0 to 1000", "1", FOR_GENERATE, GROUP_COMMAND,
     "above 1 more varied, below 1 more typical; 0 is always the most likely code"},
    {"data", 0, "DIR", OPTION_TEXT, AT(data), 0, 0, NULL, NULL, FOR_EXTRACT, GROUP_COMMAND,
     "the data set: class folders with pictures in DIR/train, or in DIR itself"},
    {"ten-crop", 0, NULL, OPTION_FLAG, AT(ten_crop), 0, 0, NULL, NULL, FOR_EXTRACT, GROUP_COMMAND,
     "ten crops of each picture (corners and middle, of it and of its mirror image) instead of two"},
    {"crop-range", 0, "R", OPTION_REAL, AT(crop_range), 1, 4, "1 to 4", "1.1", FOR_EXTRACT, GROUP_COMMAND,
     "with --ten-crop: crops are taken from a picture whose side is R times theirs"},
    {"format", 0, "NAME", OPTION_CHOICE, AT(format), 0, 0, "aim|llamagen", "aim", FOR_EXTRACT, GROUP_COMMAND,
     "form of the cache, see Output below"},
    {"batch", 0, "B", OPTION_INTEGER, AT(batch), 0, 10000000, "0 to 10000000", "0", FOR_GENERATE | FOR_EXTRACT, GROUP_COMMAND,
     "pictures worked on together; 0 is chosen to fit in memory. It does not change the result"},
    {"preset", 0, "NAME", OPTION_CHOICE, AT(preset), 0, 0, "AiM-B|AiM-L|AiM-XL|AiM-1B|tiny", NULL, FOR_INIT, GROUP_COMMAND,
     "size of the model"},
    {"preset", 0, "NAME", OPTION_CHOICE, AT(preset), 0, 0, "AiM-B|AiM-L|AiM-XL|AiM-1B|tiny", "AiM-B", FOR_BENCH, GROUP_COMMAND,
     "size of the model"},
    {"batch", 0, "B", OPTION_INTEGER, AT(batch), 0, 10000, "0 to 10000", "0", FOR_BENCH, GROUP_COMMAND,
     "pictures painted together; 0 is 1, 8, 64 and 256, one after the other"},
    {"weights", 0, "TYPE", OPTION_CHOICE, AT(weights), 0, 0, "auto|f32|bf16", "auto", FOR_BENCH, GROUP_COMMAND,
     "how matrices are kept; auto is bf16"},
    {"seed", 0, "S", OPTION_SEED, AT(seed), 0, 0, "a whole number from 0 to 18446744073709551615", "0",
     FOR_GENERATE | FOR_INIT | FOR_TRAIN, GROUP_COMMAND, "start of the random numbers; the same seed gives the same result"},
    {"size", 0, "N", OPTION_INTEGER, AT(size), 1, 65536, "1 to 65536", NULL, FOR_PICTURES | FOR_EXTRACT | FOR_TRAIN,
     GROUP_COMMAND,
     "pixels along one side that pictures are scaled and cropped to; by default the model's, or 256 for a tokenizer alone"},
    {"codes", 0, "FILE.npy", OPTION_TEXT, AT(codes), 0, 0, NULL, NULL, FOR_SCORE, GROUP_COMMAND,
     "codes of the pictures, integers (pictures, tokens)"},
    {"labels", 0, "FILE.npy", OPTION_TEXT, AT(labels), 0, 0, NULL, NULL, FOR_SCORE, GROUP_COMMAND,
     "classes of the pictures, integers (pictures); the number of classes itself means no class"},
    {"logits", 0, "OUT.npy", OPTION_TEXT, AT(logits), 0, 0, NULL, NULL, FOR_SCORE, GROUP_COMMAND,
     "also write the logits, float32 (pictures, tokens, vocabulary)"},
    {"output", 'o', "RUN", OPTION_TEXT, AT(output), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "folder of a new run, see Output below"},
    {"resume", 0, "RUN", OPTION_TEXT, AT(resume), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "go on with a run that was stopped, from its last checkpoint; it knows all other options"},
    {"data", 0, "DIR", OPTION_TEXT, AT(data), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "pictures to train on: class folders in DIR/train, or in DIR itself"},
    {"codes", 0, "PATH", OPTION_TEXT, AT(codes), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "codes to train on instead: a folder of 'aim extract-codes' or LlamaGen, or a .npy, integers (pictures, tokens)"},
    {"labels", 0, "FILE.npy", OPTION_TEXT, AT(labels), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "classes of the pictures when the codes are a .npy"},
    {"order", 0, "NAME", OPTION_CHOICE, AT(order), 0, 0, "random|file", "random", FOR_TRAIN_AR, GROUP_COMMAND,
     "order of the codes in a .npy; file is for comparisons with other programs"},
    {"val", 0, "F", OPTION_REAL, AT(val), 0, 0.9, "0 to 0.9", "0.01", FOR_TRAIN, GROUP_COMMAND,
     "fraction that is held out for evaluation when the data has no pictures of its own for it"},
    {"init", 0, "PATH", OPTION_TEXT, AT(init), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "start from this model; classes are matched by name, another grid of codes gets interpolated positions"},
    {"preset", 0, "NAME", OPTION_TEXT, AT(preset_name), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "size of a new network: AiM-B (unless given), AiM-L, AiM-XL, AiM-1B or tiny"},
    {"config", 0, "FILE", OPTION_TEXT, AT(config), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "a config.json whose sizes the new network gets"},
    {"layers", 0, "N", OPTION_INTEGER, AT(layers), 0, 4096, "0 to 4096", "0", FOR_TRAIN_AR, GROUP_COMMAND,
     "layers of the new network; 0 is the preset's number, here and below"},
    {"width", 0, "N", OPTION_INTEGER, AT(width), 0, 65536, "0 to 65536", "0", FOR_TRAIN_AR, GROUP_COMMAND,
     "its width, d_model"},
    {"d-state", 0, "N", OPTION_INTEGER, AT(d_state), 0, 65536, "0 to 65536", "0", FOR_TRAIN_AR, GROUP_COMMAND,
     "size of its state"},
    {"adaln", 0, "FORM", OPTION_CHOICE, AT(adaln), 0, 0, "preset|group|layer|single", "preset", FOR_TRAIN_AR, GROUP_COMMAND,
     "how classes modulate layers: in groups, each layer by a matrix of its own, all by one"},
    {"groups", 0, "N", OPTION_INTEGER, AT(groups), 0, 4096, "0 to 4096", "0", FOR_TRAIN_AR, GROUP_COMMAND,
     "number of groups of adaLN"},
    {"no-positions", 0, NULL, OPTION_FLAG, AT(no_positions), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "no position embedding, an ablation of the paper"},
    {"steps", 0, "N", OPTION_INTEGER, AT(steps), 0, 1000000000, "0 to 1000000000", "0", FOR_TRAIN, GROUP_COMMAND,
     "how long to train, in batches"},
    {"epochs", 0, "E", OPTION_REAL, AT(epochs), 0, 1000000, "0 to 1000000", "0", FOR_TRAIN, GROUP_COMMAND,
     "the same in rounds through the data"},
    {"batch", 0, "B", OPTION_INTEGER, AT(batch), 1, 1000000, "1 to 1000000", "64", FOR_TRAIN, GROUP_COMMAND,
     "pictures in a step"},
    {"accum", 0, "N", OPTION_INTEGER, AT(accumulate), 1, 1000000, "1 to 1000000", "1", FOR_TRAIN, GROUP_COMMAND,
     "parts that a batch is worked out in, to save memory"},
    {"lr", 0, "R", OPTION_REAL, AT(lr), 0, 10, "0 to 10", "0", FOR_TRAIN_AR, GROUP_COMMAND,
     "learning rate; 0 is the paper's, 1e-4 for every 256 pictures of a batch"},
    {"schedule", 0, "NAME", OPTION_CHOICE, AT(schedule), 0, 0, "linear|cosine|constant", "linear", FOR_TRAIN_AR, GROUP_COMMAND,
     "how the rate falls to 0 at the end"},
    {"warmup", 0, "N", OPTION_INTEGER, AT(warmup), 0, 1000000000, "0 to 1000000000", "0", FOR_TRAIN, GROUP_COMMAND,
     "steps in which the rate climbs to its full height first"},
    {"decay", 0, "D", OPTION_REAL, AT(decay), 0, 10, "0 to 10", "0.05", FOR_TRAIN_AR, GROUP_COMMAND,
     "weight decay of matrices and embeddings"},
    {"official-decay", 0, NULL, OPTION_FLAG, AT(official_decay), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "no weight decay at all, as the released code has it in effect"},
    {"clip", 0, "N", OPTION_REAL, AT(clip), 0, 1000000, "0 to 1000000", "1", FOR_TRAIN, GROUP_COMMAND,
     "largest norm of the gradient; 0 is any"},
    {"label-drop", 0, "P", OPTION_REAL, AT(label_drop), 0, 1, "0 to 1", "0.1", FOR_TRAIN_AR, GROUP_COMMAND,
     "fraction of pictures that are learned without their class, which guidance needs"},
    {"ema", 0, "D", OPTION_REAL, AT(ema), 0, 0.999999999, "0 to below 1", "0", FOR_TRAIN, GROUP_COMMAND,
     "average the weights with this decay (0.9999) and give out the average; 0 is none"},
    {"bf16", 0, NULL, OPTION_FLAG, AT(bf16), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "matrix products take bf16 inputs; weights and optimizer stay float32"},
    {"checkpointing", 0, NULL, OPTION_FLAG, AT(checkpointing), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "compute the layers a second time rather than keep all their results: less memory, the same numbers"},
    {"eval-every", 0, "N", OPTION_INTEGER, AT(eval_every), 0, 1000000000, "0 to 1000000000", "500", FOR_TRAIN, GROUP_COMMAND,
     "steps between evaluations on held-out data; 0 is at the end alone, here and below"},
    {"save-every", 0, "N", OPTION_INTEGER, AT(save_every), 0, 1000000000, "0 to 1000000000", "500", FOR_TRAIN, GROUP_COMMAND,
     "steps between checkpoints"},
    {"sample-every", 0, "N", OPTION_INTEGER, AT(sample_every), 0, 1000000000, "0 to 1000000000", "1000", FOR_TRAIN,
     GROUP_COMMAND, "steps between sample pictures"},
    {"keep", 0, "N", OPTION_INTEGER, AT(keep), 1, 1000000, "1 to 1000000", "2", FOR_TRAIN, GROUP_COMMAND,
     "checkpoints that are kept"},
    {"dry-run", 0, NULL, OPTION_FLAG, AT(dry_run), 0, 0, NULL, NULL, FOR_TRAIN, GROUP_COMMAND,
     "only tell the memory that training takes"},
    {"adaln", 0, "FORM", OPTION_CHOICE, AT(adaln), 0, 0, "same|layer|single", "same", FOR_CONVERT, GROUP_COMMAND,
     "how classes modulate layers: as it is, by a matrix for each layer, or by one for all"},
    {"ema", 0, NULL, OPTION_FLAG, AT(average), 0, 0, NULL, NULL, FOR_CONVERT, GROUP_COMMAND,
     "of a checkpoint (RUN/checkpoints/step-N.safetensors), take the averaged weights"},
    {"tensors", 0, NULL, OPTION_FLAG, AT(tensors), 0, 0, NULL, NULL, FOR_INFO, GROUP_COMMAND, "list every tensor too"},

    {"model", 'm', "PATH", OPTION_TEXT, AT(model), 0, 0, NULL, NULL, FOR_MODEL, GROUP_MODEL,
     "folder with config.json and model.safetensors, a .safetensors file or a torch file; by default $AIM_MODEL, else the "
     "demo model that came with the program"},
    {"tokenizer", 0, "PATH", OPTION_TEXT, AT(tokenizer), 0, 0, NULL, NULL, FOR_TRAIN_AR, GROUP_COMMAND,
     "the tokenizer: encodes pictures, paints samples, and becomes part of the result"},
    {"tokenizer", 0, "PATH", OPTION_TEXT, AT(tokenizer), 0, 0, NULL, NULL, FOR_MODEL, GROUP_MODEL,
     "where the tokenizer is, when it is not with the model"},
    {"weights", 0, "TYPE", OPTION_CHOICE, AT(weights), 0, 0, "auto|f32|bf16", "auto", FOR_MODEL, GROUP_MODEL,
     "how matrices are kept; auto takes bf16 where nothing is lost by it"},
    {"pos-offset", 0, "N", OPTION_CHOICE, AT(pos_offset), 0, 0, "auto|0|1", "auto", FOR_MODEL, GROUP_MODEL,
     "position convention in decoding: 0 as in training, 1 as in the official decoder; auto asks the model"},

    {"device", 0, "NAME", OPTION_TEXT, AT(device), 0, 0, NULL, "cpu", FOR_ALL, GROUP_GENERAL,
     "where to compute: cpu, or in a build with CUDA cuda or cuda:N"},
    {"cpu", 0, "TIER", OPTION_TEXT, AT(cpu), 0, 0, NULL, NULL, FOR_ALL, GROUP_GENERAL,
     "instructions to use: generic, avx2, avx512; by default $AIM_CPU, else the best that this machine has"},
    {"threads", 0, "N", OPTION_INTEGER, AT(threads), 0, 1024, "0 to 1024", "0", FOR_ALL, GROUP_GENERAL,
     "0 is one per available core. It does not change the result"},
    {"json", 0, NULL, OPTION_FLAG, AT(json), 0, 0, NULL, NULL, FOR_ALL, GROUP_GENERAL, "print results as one JSON object"},
    {"quiet", 'q', NULL, OPTION_FLAG, AT(quiet), 0, 0, NULL, NULL, FOR_ALL, GROUP_GENERAL,
     "no progress bar and no notes on stderr; warnings stay"},
    {"help", 'h', NULL, OPTION_FLAG, AT(help), 0, 0, NULL, NULL, FOR_ALL, GROUP_GENERAL, "print this page"},
    {0},
};

#define PICTURE_OUTPUT                                                                                                         \
    "OUT ending in .png is one picture, or a grid of several; a folder (existing, or written with a slash at the end: "        \
    "DIR/) gets 000000.png and so on; .npz gets arr_0, uint8 (pictures, height, width, 3)"

const struct command commands_table[] = {
    {"generate", FOR_GENERATE, command_generate, "paint pictures of the classes you name",
     "[-m PATH] [-c CLASSES] [-n N] [-o OUT] [--cfg W] [--codes-out FILE.npy]", NULL, NULL, false,
     "Picture i depends on the seed, on i and on the settings alone: neither --batch nor --threads changes it. "
     "'aim info' tells the classes of a model.",
     "-o is aim.png unless given. " PICTURE_OUTPUT ", and arr_1, the classes. PNG files carry seed, class and settings "
     "as text. What was written is printed, one path per line. When the work is stopped, the finished pictures of a folder "
     "stay.",
     "aim generate -m aim-base -c 207\n"
     "aim generate -m aim-base -c 'goldfish,tabby,970-979' -o grid.png --seed 7\n"
     "aim generate -m aim-base -n 50000 -o samples.npz --cfg 1.75\n"
     "aim generate -m ar.bin --tokenizer vq.pt -c 88 -n 4 -o parrots/ --codes-out parrots.npy"},
    {"encode", FOR_ENCODE, command_encode, "turn pictures into codes of the tokenizer", "[-m PATH] PICTURE... -o codes.npy",
     "output", "PICTURE", true,
     "PICTURE is a PNG, JPEG or WebP file, or a folder, which stands for the pictures in it in the order of their names. "
     "Each is scaled and cropped to a square first, the way evaluations do it.",
     "an int64 array (pictures, tokens); the tokens of a picture go row by row.",
     "aim encode -m aim-base photo.jpg -o codes.npy\n"
     "aim encode --tokenizer vq_ds16_c2i.pt --size 384 holiday/ -o codes.npy"},
    {"decode", FOR_DECODE, command_decode, "turn codes back into pictures", "[-m PATH] codes.npy -o OUT", "output", "codes.npy",
     false, "The codes are integers (pictures, tokens), or (tokens) for one picture, of square pictures.",
     PICTURE_OUTPUT ". OUT ending in .npy gets the decoder's raw output, float32 (pictures, 3, height, width), about -1 to 1.",
     "aim decode -m aim-base codes.npy -o pictures.png\n"
     "aim decode --tokenizer vq_ds16_c2i.pt codes.npy -o raw.npy"},
    {"reconstruct", FOR_RECONSTRUCT, command_reconstruct, "encode and decode pictures, and tell how much is lost",
     "[-m PATH] PICTURE... -o OUT", "output", "PICTURE", true,
     "PICTURE is a PNG, JPEG or WebP file, or a folder, which stands for the pictures in it. Each is scaled and cropped to "
     "a square first. Prints PSNR (dB) and SSIM of every picture and their means.",
     "OUT ending in .png shows the originals above their reconstructions; a folder (existing, or DIR/) gets the "
     "reconstructions as 000000.png and so on; .npz gets them as arr_0, uint8 (pictures, height, width, 3). --json adds "
     "SSIM as LlamaGen computes it, with a data range of 2.",
     "aim reconstruct -m aim-base photo.jpg -o compare.png\n"
     "aim reconstruct --tokenizer vq_ds16_c2i.pt --json holiday/ -o out/"},
    {"score", FOR_SCORE, command_score, "tell how likely a model finds given codes",
     "[-m PATH] --codes F.npy --labels F.npy [--logits OUT.npy]", "codes labels", NULL, false,
     "The negative log-likelihood of the codes given their classes, in nats per token, averaged over all tokens; every "
     "token is predicted from the true ones before it. A model that knows nothing scores ln(vocabulary): 9.70 for 16384.",
     "'nll N.NNNNNN' on stdout.",
     "aim score -m aim-base --codes codes.npy --labels labels.npy\n"
     "aim score -m aim-base --codes codes.npy --labels labels.npy --pos-offset 0 --logits logits.npy"},
    {"init", FOR_INIT, command_init, "make a new, untrained model", "--preset NAME -o DIR [--seed S]", "preset output", NULL,
     false, "The weights are drawn as the paper does and depend on preset and seed alone.",
     "a folder with config.json and model.safetensors, in the format of the official code. A folder that holds a model "
     "already is left alone.",
     "aim init --preset tiny -o tiny\n"
     "aim init --preset AiM-B -o untrained --seed 1"},
    {"extract-codes", FOR_EXTRACT, command_extract_codes, "turn a data set into codes to train on",
     "--data DIR --tokenizer PATH -o OUT [--ten-crop] [--format NAME]", "data output", NULL, false,
     "Training on codes spares running the tokenizer in every step. Each picture is scaled and cropped to a square and kept in "
     "two variants, itself and its mirror image, or in ten. Pictures that cannot be read are left out, each with a warning.",
     "OUT is a folder. aim: codes.safetensors, and val.safetensors with the pictures of DIR/val, if there are any beside "
     "DIR/train. llamagen: imagenetN_codes/0.npy and so on, int64 (1, variants, tokens), and imagenetN_labels/0.npy, N being "
     "the size.",
     "aim extract-codes --data drawings --tokenizer vq_ds16_c2i.pt -o drawings-codes\n"
     "aim extract-codes --data imagenet --tokenizer vq_ds16_c2i.pt -o codes --ten-crop --size 256"},
    {"train ar", FOR_TRAIN_AR, command_train_ar, "train the network that generates (stage 2)",
     "--codes PATH|--data DIR [--tokenizer PATH] -o RUN --steps N [options]", NULL, NULL, false,
     "Trains AiM on codes of pictures, by the paper's recipe unless told otherwise: AdamW, the rate falling linearly, a tenth "
     "of the classes dropped. The numbers depend on data, seed and options alone: neither --threads nor a stop and --resume "
     "changes them. Ctrl-C stops after a checkpoint.",
     "RUN is a folder: log.jsonl (a line for each step and evaluation), curves.png, samples/, checkpoints/ with the last "
     "states, and model/, which every other command takes with -m. The model's path is printed at the end.",
     "aim train ar --codes codes --tokenizer vq_ds16_c2i.pt -o run --steps 2000 --batch 32 --lr 3e-4\n"
     "aim train ar --data flowers --init aim-base -o run --epochs 20 --batch 64 --accum 8 --ema 0.9999\n"
     "aim train ar --resume run\n"
     "aim train ar --codes codes --preset AiM-XL --batch 256 --bf16 --dry-run"},
    {"convert", FOR_CONVERT, command_convert, "rewrite a model in another form",
     "[-m PATH] -o DIR [--adaln FORM] [--ema] [--weights TYPE]", "output", NULL, false,
     "adaLN in groups is also, exactly, adaLN of each layer (with larger tables), or a single one where the groups are equal. "
     "--weights bf16 rounds the large matrices.",
     "a folder with config.json and model.safetensors, in the format of the official code.",
     "aim convert -m run/model -o per-layer --adaln layer\n"
     "aim convert -m run/model -o small --weights bf16"},
    {"bench", FOR_BENCH, command_bench, "measure how fast this machine paints", "[--preset NAME] [--batch B] [--weights TYPE]",
     NULL, NULL, false,
     "Paints with a new model of random weights, guidance on, with and without turning codes into pictures; the shares are of "
     "what memory copies and large products reach in the same run.",
     "a table on stdout, or one JSON object with --json.",
     "aim bench --device cuda --preset AiM-XL\n"
     "aim bench --preset tiny --batch 8 --json"},
    {"info", FOR_INFO, command_info, "describe a model: sizes, parameters, memory", "[-m PATH] [--tensors] [--json]", NULL,
     NULL, false,
     "Memory is what 'aim generate' needs, weights included, for one picture and for eight at once, with guidance.",
     "a table on stdout, or one JSON object with --json.",
     "aim info -m aim-base\n"
     "aim info -m aim_b.bin --tensors\n"
     "aim info -m aim-base --json"},
    {0},
};
