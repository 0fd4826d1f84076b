"""Every command at its work, against the golden data."""

import json
import math
import os
import struct
import unittest

from support import (ADALN, GROUP, IMAGES, SANITIZED, TORCH, Case, golden_picture, main, png_text, read_npy, read_npz, read_png,
                     read_safetensors, relative_error, to_bytes, write_npy)

AR = os.path.join(GROUP, "expected_ar.safetensors")
VQ = os.path.join(GROUP, "expected_vq.safetensors")


def with_names(case, names):
    """tiny-group with class names."""
    folder = case.path("named")
    os.makedirs(folder)
    os.symlink(os.path.join(GROUP, "model.safetensors"), os.path.join(folder, "model.safetensors"))
    with open(os.path.join(GROUP, "config.json")) as f:
        config = json.load(f)
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    return folder


class Generate(Case):
    def generate(self, *args, model=GROUP):
        return self.succeed("generate", "-m", model, *args)

    def test_one_picture(self):
        self.assertEqual(self.generate("-c", "3"), "aim.png\n")
        width, height, _ = read_png(self.path("aim.png"))
        self.assertEqual((width, height), (64, 64))
        self.assertEqual(os.listdir(self.dir), ["aim.png"])

    def test_text(self):
        self.generate("-c", "3", "-o", "x.png", "--seed", "18446744073709551615", "--cfg", "1.5", "--top-k", "20", "--top-p",
                      "0.9", "--temperature", "0.7")
        wanted = {"aim.seed": "18446744073709551615", "aim.index": "0", "aim.class": "3", "aim.cfg": "1.5", "aim.top_k": "20",
                  "aim.top_p": "0.9", "aim.temperature": "0.7", "aim.model": "tiny-group", "Software": "aim"}
        text = png_text(self.path("x.png"))
        self.assertEqual({k: text.get(k) for k in wanted}, wanted)
        self.assertRegex(text["aim.version"], r"^\d+\.\d+")

    def test_captions(self):
        self.generate("-c", "0-4", "-o", "plain.png")
        self.generate("-c", "0-4", "-o", "grid.png", "--captions")
        width, height, rgb = read_png(self.path("grid.png"))
        _, _, plain = read_png(self.path("plain.png"))
        self.assertEqual((width, height), (3 * 66 - 2, 2 * 76 - 2))  # ten rows below each picture
        row = 3 * width
        self.assertEqual(rgb[:64 * row], plain[:64 * row])
        self.assertTrue(any(rgb[64 * row:74 * row]))
        self.assertEqual(rgb[76 * row:140 * row], plain[66 * row:130 * row])

    def test_grid(self):
        self.generate("-c", "0-4", "-o", "grid.png")
        width, height, rgb = read_png(self.path("grid.png"))
        self.assertEqual((width, height), (3 * 66 - 2, 2 * 66 - 2))
        text = png_text(self.path("grid.png"))
        self.assertEqual((text["aim.class"], text["aim.index"]), ("0,1,2,3,4", "0,1,2,3,4"))
        self.generate("-c", "0-4", "-o", "each/")
        for i in range(5):
            w, h, one = read_png(self.path("each", f"{i:06d}.png"))
            left, top = i % 3 * 66, i // 3 * 66
            for y in (0, 31, 63):
                at = ((top + y) * width + left) * 3
                self.assertEqual(rgb[at : at + w * 3], one[y * w * 3 : (y + 1) * w * 3])

    def test_folder(self):
        self.assertEqual(self.generate("-c", "2,7", "-n", "3", "-o", "a/b/c/"), "a/b/c/\n")
        self.assertEqual(sorted(os.listdir(self.path("a/b/c"))), ["000000.png", "000001.png", "000002.png"])
        text = [png_text(self.path("a/b/c", f"{i:06d}.png")) for i in range(3)]
        self.assertEqual([t["aim.class"] for t in text], ["2", "7", "2"])
        self.assertEqual([t["aim.index"] for t in text], ["0", "1", "2"])
        os.makedirs(self.path("there"))
        self.generate("-c", "2", "-o", "there")
        self.assertEqual(os.listdir(self.path("there")), ["000000.png"])

    def test_npz(self):
        out = self.succeed_json("generate", "-m", GROUP, "-c", "1,8", "-n", "5", "-o", "s.npz", "--codes-out", "c.npy")
        arrays = read_npz(self.path("s.npz"))
        self.assertEqual(sorted(arrays), ["arr_0.npy", "arr_1.npy"])
        self.assertEqual((arrays["arr_0.npy"].descr, arrays["arr_0.npy"].shape), ("|u1", (5, 64, 64, 3)))
        self.assertEqual((arrays["arr_1.npy"].descr, arrays["arr_1.npy"].shape), ("<i8", (5,)))
        self.assertEqual(arrays["arr_1.npy"].values, [1, 8, 1, 8, 1])
        codes = read_npy(self.path("c.npy"))
        self.assertEqual((codes.descr, codes.shape), ("<i8", (5, 16)))
        self.assertTrue(all(0 <= c < 256 for c in codes.values))
        self.assertEqual((out["outputs"], out["pictures"], out["seed"], out["labels"]), (["s.npz", "c.npy"], 5, 0, [1, 8, 1, 8, 1]))
        self.assertGreater(out["seconds"], 0)

    def test_pictures_are_their_codes(self):
        """Decoding the codes gives the pictures that were written."""
        self.generate("-c", "0-2", "-o", "a.npz", "--codes-out", "c.npy")
        self.succeed("decode", "-m", GROUP, "c.npy", "-o", "b.npz")
        a, b = read_npz(self.path("a.npz"))["arr_0.npy"], read_npz(self.path("b.npz"))["arr_0.npy"]
        self.assertLessEqual(max(abs(x - y) for x, y in zip(a.values, b.values)), 1)

    def test_codes_only(self):
        self.assertEqual(self.generate("-c", "4", "--codes-out", "c.npy"), "c.npy\n")
        self.assertEqual(os.listdir(self.dir), ["c.npy"])
        self.assertEqual(self.succeed("generate", "-m", ADALN, "--codes-out", "d.npy"), "d.npy\n")  # needs no tokenizer
        self.assertEqual(read_npy(self.path("d.npy")).shape, (5, 16))

    def test_default_classes(self):
        self.assertEqual(self.succeed_json("generate", "-m", GROUP, "--codes-out", "c.npy")["labels"], list(range(10)))
        labels = self.succeed_json("generate", "-m", GROUP, "-n", "13", "--codes-out", "c.npy")["labels"]
        self.assertEqual(labels, [*range(10), 0, 1, 2])

    def test_names(self):
        names = ["goldfish, Carassius auratus", "great white shark", "Tiger-Cat", "hen", "ostrich", "crane", "crane fly",
                 "hermit crab", "tabby", 'a "quoted\\" na\u00efve name']
        model = with_names(self, names)
        asked = "goldfish, great white shark ,TIGER-CAT,3-4,carassius AURATUS,crane"
        out = self.succeed_json("generate", "-m", model, "-c", asked, "--codes-out", "c.npy")
        self.assertEqual(out["labels"], [0, 1, 2, 3, 4, 0, 5])
        self.assertIn("great white shark", self.refuse("generate", "-m", model, "-c", "white shark"))
        self.assertIn("tabby", self.refuse("generate", "-m", model, "-c", "taby"))
        self.assertIn("aim info", self.refuse("generate", "-m", model, "-c", "zzzzzzzz"))
        self.generate("-c", "0,9", "-o", "x.png", model=model)
        self.assertEqual(png_text(self.path("x.png"))["aim.class_name"], "; ".join([names[0], names[9]]))
        info = self.succeed_json("info", "-m", model)
        self.assertEqual((info["class_names"], info["named_classes"]), (names, 10))
        self.assertIn("hermit crab", self.succeed("info", "-m", model))

    def test_settings_matter(self):
        codes = set()
        settings = ([], ["--seed", "1"], ["--cfg", "1"], ["--cfg", "0"], ["--temperature", "0"], ["--top-k", "2"], ["--top-p", "0.2"],
                    ["--pos-offset", "0"])
        for setting in settings:
            self.generate("-c", "0-9", "-n", "20", "--codes-out", "c.npy", *setting)
            codes.add(tuple(read_npy(self.path("c.npy")).values))
        self.assertEqual(len(codes), len(settings))

    def test_zero_temperature_ignores_the_seed(self):
        self.generate("-c", "5", "--temperature", "0", "--codes-out", "a.npy")
        self.generate("-c", "5", "--temperature", "0", "--seed", "9", "--codes-out", "b.npy")
        self.assertEqual(read_npy(self.path("a.npy")).values, read_npy(self.path("b.npy")).values)


class Determinism(Case):
    def files(self, *args, model=GROUP):
        self.succeed("generate", "-m", model, "-n", "7", "-o", "s.npz", "--codes-out", "c.npy", *args)
        with open(self.path("c.npy"), "rb") as c:
            return c.read(), read_npz(self.path("s.npz"))["arr_0.npy"].values

    def test_threads_and_batch(self):
        codes, pictures = self.files("--threads", "1", "--batch", "1")
        for args in (["--threads", "2"], ["--batch", "3"], ["--threads", "2", "--batch", "7"], ["--threads", "1", "--batch", "1"]):
            more_codes, more_pictures = self.files(*args)
            self.assertEqual(codes, more_codes, args)
            self.assertLessEqual(max(abs(x - y) for x, y in zip(pictures, more_pictures)), 1, args)

    def test_rounded_weights(self):
        for weights in ("bf16", "q8"):
            codes = [self.files("--weights", weights, "--batch", b, "--threads", t)[0] for b, t in (("1", "1"), ("3", "2"))]
            self.assertEqual(codes[0], codes[1])

    def test_count_does_not_change_a_picture(self):
        self.succeed("generate", "-m", GROUP, "-c", "0-9", "-n", "2", "--codes-out", "a.npy")
        self.succeed("generate", "-m", GROUP, "-c", "0-9", "-n", "9", "--codes-out", "b.npy")
        self.assertEqual(read_npy(self.path("a.npy")).values, read_npy(self.path("b.npy")).values[:32])


class Encode(Case):
    def test_golden(self):
        golden_picture(self.path("p.png"))
        self.assertEqual(self.succeed("encode", "-m", GROUP, "p.png", "-o", "c.npy"), "c.npy\n")
        codes = read_npy(self.path("c.npy"))
        self.assertEqual((codes.descr, codes.shape), ("<i8", (1, 16)))
        self.assertEqual(codes.values, read_safetensors(VQ, "codes").values)

    def test_folder_and_formats(self):
        os.makedirs(self.path("in"))
        golden_picture(self.path("in", "b.PNG"))
        os.symlink(os.path.join(IMAGES, "photo.jpg"), self.path("in", "a.jpg"))
        os.symlink(os.path.join(IMAGES, "photo.webp"), self.path("in", "c.webp"))
        with open(self.path("in", "notes.txt"), "w") as f:
            f.write("no picture")
        os.makedirs(self.path("in", "folder.png"))
        golden_picture(self.path("last.png"))
        out = self.succeed_json("encode", "-m", GROUP, "in", "last.png", "-o", "c.npy")
        self.assertEqual((out["pictures"], out["tokens"], out["size"], out["outputs"]), (4, 16, 64, ["c.npy"]))
        codes, golden = read_npy(self.path("c.npy")), read_safetensors(VQ, "codes").values
        self.assertEqual(codes.shape, (4, 16))
        self.assertEqual((codes.values[16:32], codes.values[48:]), (golden, golden))
        self.succeed("encode", "-m", GROUP, os.path.join(IMAGES, "photo.jpg"), "-o", "d.npy")
        self.assertEqual(read_npy(self.path("d.npy")).values, codes.values[:16])

    def test_many(self):
        """More pictures than go through the network together."""
        golden_picture(self.path("p.png"))
        self.succeed("encode", "-m", GROUP, *["p.png"] * 70, "-o", "c.npy")
        self.assertEqual(read_npy(self.path("c.npy")).values, read_safetensors(VQ, "codes").values * 70)

    def test_size(self):
        picture = os.path.join(IMAGES, "photo.png")
        self.succeed("encode", "-m", GROUP, picture, "-o", "c.npy", "--size", "32")
        self.assertEqual(read_npy(self.path("c.npy")).shape, (1, 4))

    def test_threads(self):
        picture = os.path.join(IMAGES, "photo.png")
        values = []
        for threads in ("1", "2"):
            self.succeed("encode", "-m", GROUP, picture, "-o", "c.npy", "--threads", threads)
            values.append(read_npy(self.path("c.npy")).values)
        self.assertEqual(values[0], values[1])


class Decode(Case):
    def setUp(self):
        super().setUp()
        self.golden = read_safetensors(VQ, "reconstruction")
        codes = read_safetensors(VQ, "codes").values
        write_npy(self.path("c.npy"), "<i8", (1, 16), codes)
        write_npy(self.path("two.npy"), "<i4", (2, 16), codes + codes[::-1])
        write_npy(self.path("flat.npy"), "<i8", (16,), codes)

    def decode(self, codes, out):
        self.assertEqual(self.succeed("decode", "-m", GROUP, codes, "-o", out), out + "\n")

    def test_raw(self):
        self.decode("c.npy", "raw.npy")
        raw = read_npy(self.path("raw.npy"))
        self.assertEqual((raw.descr, raw.shape), ("<f4", (1, 3, 64, 64)))
        self.assertLessEqual(relative_error(raw.values, self.golden.values), 1e-4)

    def test_flat(self):
        self.decode("flat.npy", "raw.npy")
        self.assertLessEqual(relative_error(read_npy(self.path("raw.npy")).values, self.golden.values), 1e-4)

    def assert_golden_picture(self, rgb):
        wanted = [to_bytes(self.golden.values[c * 4096 + i]) for i in range(4096) for c in range(3)]
        self.assertLessEqual(max(abs(a - b) for a, b in zip(rgb, wanted)), 1)

    def test_png(self):
        self.decode("c.npy", "x.png")
        width, height, rgb = read_png(self.path("x.png"))
        self.assertEqual((width, height), (64, 64))
        self.assert_golden_picture(rgb)
        self.assertEqual(png_text(self.path("x.png"))["aim.index"], "0")

    def test_several(self):
        self.decode("two.npy", "x.png")
        self.assertEqual(read_png(self.path("x.png"))[:2], (130, 64))
        self.decode("two.npy", "x.npz")
        arrays = read_npz(self.path("x.npz"))
        self.assertEqual((sorted(arrays), arrays["arr_0.npy"].shape), (["arr_0.npy"], (2, 64, 64, 3)))
        self.assert_golden_picture(arrays["arr_0.npy"].values[: 64 * 64 * 3])
        self.decode("two.npy", "folder/")
        self.assert_golden_picture(read_png(self.path("folder", "000000.png"))[2])
        self.decode("two.npy", "raw.npy")
        self.assertEqual(read_npy(self.path("raw.npy")).shape, (2, 3, 64, 64))

    def test_json(self):
        out = self.succeed_json("decode", "-m", GROUP, "two.npy", "-o", "x.npz")
        self.assertEqual((out["outputs"], out["pictures"], out["size"]), (["x.npz"], 2, 64))

    def test_wrong_codes(self):
        cases = {
            "range.npy": ("<i8", (1, 16), [256] + [0] * 15),
            "negative.npy": ("<i8", (1, 16), [0] * 15 + [-1]),
            "oblong.npy": ("<i8", (1, 15), [0] * 15),
            "empty.npy": ("<i8", (0, 16), []),
            "scalar.npy": ("<i8", (), [3]),
            "deep.npy": ("<i8", (1, 1, 16), [0] * 16),
            "halves.npy": ("<f4", (1, 16), [0.5] * 16),
            "nan.npy": ("<f4", (1, 16), [math.nan] * 16),
        }
        for name, (descr, shape, values) in cases.items():
            with self.subTest(name=name):
                write_npy(self.path(name), descr, shape, values)
                for out in ("x.png", "x.npy", "x/", "x.npz"):
                    self.fail_with("decode", "-m", GROUP, name, "-o", out, says=name)


class Reconstruct(Case):
    def test_golden(self):
        golden_picture(self.path("p.png"))
        text = self.succeed("reconstruct", "-m", GROUP, "p.png", "-o", "r.npz")
        self.assertRegex(text, r"^PSNR +[\d.]+  SSIM -?[\d.]+  p.png\nPSNR .*  mean of 1\nr.npz\n$")
        rgb = read_npz(self.path("r.npz"))["arr_0.npy"].values
        golden = read_safetensors(VQ, "reconstruction").values
        wanted = [to_bytes(golden[c * 4096 + i]) for i in range(4096) for c in range(3)]
        self.assertLessEqual(max(abs(a - b) for a, b in zip(rgb, wanted)), 1)
        original = read_png(self.path("p.png"))[2]
        error = sum((a - b) ** 2 for a, b in zip(original, rgb)) / len(rgb)
        psnr = 10 * math.log10(255**2 / error)
        self.assertAlmostEqual(float(text.split()[1]), psnr, places=3)

    def test_png(self):
        golden_picture(self.path("p.png"))
        photo = os.path.join(IMAGES, "photo.png")
        out = self.succeed_json("reconstruct", "-m", GROUP, "p.png", photo, "p.png", "-o", "r.png")
        width, height, rgb = read_png(self.path("r.png"))
        self.assertEqual((width, height), (3 * 66 - 2, 2 * 66 - 2))
        original = read_png(self.path("p.png"))[2]
        for y in (0, 40):
            self.assertEqual(rgb[y * width * 3 : y * width * 3 + 192], original[y * 192 : (y + 1) * 192])
        self.assertEqual([p["picture"] for p in out["pictures"]], ["p.png", photo, "p.png"])
        for key in ("psnr", "ssim", "ssim_llamagen"):
            self.assertAlmostEqual(out[key], sum(p[key] for p in out["pictures"]) / 3, places=4)
        self.assertNotEqual(out["ssim"], out["ssim_llamagen"])

    def test_folder(self):
        golden_picture(self.path("p.png"))
        self.succeed("reconstruct", "-m", GROUP, "p.png", "p.png", "-o", "r/")
        self.assertEqual(sorted(os.listdir(self.path("r"))), ["000000.png", "000001.png"])


class Score(Case):
    def setUp(self):
        super().setUp()
        self.tokens, self.labels, self.loss = read_safetensors(AR, "tokens", "labels", "loss_pos0")
        write_npy(self.path("c.npy"), "<i8", self.tokens.shape, self.tokens.values)
        write_npy(self.path("l.npy"), "<i8", self.labels.shape, self.labels.values)

    def score(self, *args, model=GROUP):
        return self.succeed("score", "-m", model, "--codes", "c.npy", "--labels", "l.npy", "--weights", "f32", *args)

    def test_golden(self):
        text = self.score("--pos-offset", "0")
        self.assertRegex(text, r"^nll \d+\.\d{6}\n$")
        self.assertLessEqual(abs(float(text.split()[1]) / self.loss.values[0] - 1), 1e-4)

    def test_logits(self):
        for offset in ("0", "1"):
            self.score("--pos-offset", offset, "--logits", "x.npy")
            logits, golden = read_npy(self.path("x.npy")), read_safetensors(AR, f"logits_pos{offset}")
            self.assertEqual((logits.descr, logits.shape), ("<f4", (2, 16, 256)))
            self.assertLessEqual(relative_error(logits.values, golden.values), 1e-4)

    def test_null_class(self):
        write_npy(self.path("l.npy"), "<i4", (2,), [10, 10])
        self.score("--pos-offset", "1", "--logits", "x.npy")
        golden = read_safetensors(AR, "logits_uncond_pos1")
        self.assertLessEqual(relative_error(read_npy(self.path("x.npy")).values, golden.values), 1e-4)

    def test_adaln(self):
        ar = os.path.join(ADALN, "expected_ar.safetensors")
        tokens, labels, loss = read_safetensors(ar, "tokens", "labels", "loss_pos0")
        write_npy(self.path("c.npy"), "<i8", tokens.shape, tokens.values)
        write_npy(self.path("l.npy"), "<i8", labels.shape, labels.values)
        nll = float(self.score("--pos-offset", "0", model=ADALN).split()[1])
        self.assertLessEqual(abs(nll / loss.values[0] - 1), 1e-4)

    def test_json(self):
        out = self.succeed_json("score", "-m", GROUP, "--codes", "c.npy", "--labels", "l.npy", "--logits", "x.npy", "--pos-offset", "0")
        self.assertAlmostEqual(out["nll"], self.loss.values[0], places=2)
        self.assertEqual((out["pictures"], out["tokens"], out["pos_offset"], out["outputs"]), (2, 16, 0, ["x.npy"]))

    def test_wrong_arrays(self):
        codes, labels = list(self.tokens.values), list(self.labels.values)
        cases = [
            ("<i8", (2, 16), [256] + codes[1:], (2,), labels),
            ("<i8", (2, 16), [-1] + codes[1:], (2,), labels),
            ("<i8", (2, 15), codes[:30], (2,), labels),
            ("<i8", (2, 16), codes, (1,), labels[:1]),
            ("<i8", (2, 16), codes, (2,), [0, 11]),
            ("<i8", (2, 16), codes, (2,), [0, -1]),
            ("<i8", (2, 16), codes, (2, 1), labels),
            ("<i8", (0, 16), [], (0,), []),
        ]
        for descr, shape, values, label_shape, label_values in cases:
            with self.subTest(shape=shape, label_shape=label_shape, labels=label_values):
                write_npy(self.path("c.npy"), descr, shape, values)
                write_npy(self.path("l.npy"), descr, label_shape, label_values)
                self.fail_with("score", "-m", GROUP, "--codes", "c.npy", "--labels", "l.npy", "--logits", "x.npy", says=".npy")


class Init(Case):
    def weights(self, folder):
        with open(self.path(folder, "model.safetensors"), "rb") as f:
            return f.read()

    def test_tiny(self):
        self.assertEqual(self.succeed("init", "--preset", "tiny", "-o", "a"), "a\n")
        self.assertEqual(sorted(os.listdir(self.path("a"))), ["config.json", "model.safetensors"])
        with open(self.path("a", "config.json")) as f:
            self.assertEqual(json.load(f)["pos_offset"], 0)
        info = self.succeed_json("info", "-m", "a")
        self.assertEqual((info["generator"]["pos_offset"], info["generator"]["pos_offset_from"]), (0, "config"))
        self.assertIsNotNone(info["tokenizer"])
        self.succeed("generate", "-m", "a", "-c", "0", "-o", "x.png")

    def test_seed(self):
        self.succeed("init", "--preset", "tiny", "-o", "a", "--seed", "3")
        self.succeed("init", "--preset", "tiny", "-o", "b/c", "--seed", "3", "--threads", "1")
        self.assertEqual(self.succeed_json("init", "--preset", "tiny", "-o", "d")["outputs"], ["d"])
        self.assertEqual(self.weights("a"), self.weights("b/c"))
        self.assertNotEqual(self.weights("a"), self.weights("d"))

    def test_existing_folder(self):
        os.makedirs(self.path("a"))
        self.succeed("init", "--preset", "tiny", "-o", "a/")
        self.fail_with("init", "--preset", "tiny", "-o", "a", says="already")


class Info(Case):
    def test_group(self):
        info = self.succeed_json("info", "-m", GROUP, "--tensors")
        stage2, tokenizer = info["generator"], info["tokenizer"]
        wanted = {"d_model": 64, "n_layer": 4, "vocab_size": 256, "num_classes": 10, "num_tokens": 16, "adaln_group": True, "num_groups": 2}
        self.assertEqual({k: stage2[k] for k in wanted}, wanted)
        wanted = {"codebook_size": 256, "codebook_dim": 8, "downsample": 16}
        self.assertEqual({k: tokenizer[k] for k in wanted}, wanted)
        self.assertEqual((info["model"], info["image_size"], info["file_dtype"]), ("tiny-group", 64, "F32"))
        self.assertEqual(info["bytes_on_disk"], os.path.getsize(os.path.join(GROUP, "model.safetensors")))
        self.assertGreater(info["memory"]["batch_8"], info["memory"]["batch_1"])
        self.assertEqual(info["matrices"], "f32")
        self.assertEqual(info["named_classes"], 0)
        with open(os.path.join(GROUP, "model.safetensors"), "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        header.pop("__metadata__")
        self.assertEqual({t["name"]: t["shape"] for t in info["tensors"]}, {k: v["shape"] for k, v in header.items()})
        self.assertEqual(stage2["tensors"], sum(k.startswith("mamba.") for k in header))
        self.assertEqual(tokenizer["tensors"], sum(k.startswith("vqvae.") for k in header))

    def test_matrices(self):
        needed = []
        for weights in ("f32", "bf16", "q8"):
            info = self.succeed_json("info", "-m", GROUP, "--weights", weights)
            self.assertEqual(info["matrices"], weights)
            needed.append(info["memory"]["batch_1"])
            self.assertIn(f"matrices in {weights}\n", self.succeed("info", "-m", GROUP, "--weights", weights))
        self.assertEqual(needed, sorted(needed, reverse=True))

    def test_table(self):
        text = self.succeed("info", "-m", GROUP)
        for words in ("generator", "tokenizer", "position offset", "parameters", "batch 1", "batch 8", "64 x 64"):
            self.assertIn(words, text)
        self.assertNotIn("mamba.backbone", text)
        text = self.succeed("info", "-m", GROUP, "--tensors")
        self.assertIn("mamba.backbone.norm_f.weight (64)", text)

    def test_parts(self):
        info = self.succeed_json("info", "-m", ADALN)
        self.assertIsNone(info["tokenizer"])
        self.assertEqual((info["generator"]["num_classes"], info["generator"]["adaln_group"], info["image_size"]), (5, False, 0))
        self.assertIn("per layer", self.succeed("info", "-m", ADALN))
        info = self.succeed_json("info", "-m", ADALN, "--tokenizer", GROUP)
        self.assertEqual((info["generator"]["num_classes"], info["tokenizer"]["downsample"], info["image_size"]), (5, 16, 64))

    def test_offset(self):
        for offset in (0, 1):
            stage2 = self.succeed_json("info", "-m", GROUP, "--pos-offset", str(offset))["generator"]
            self.assertEqual((stage2["pos_offset"], stage2["pos_offset_from"]), (offset, "option"))

    def test_safetensors_file(self):
        info = self.succeed_json("info", "-m", os.path.join(GROUP, "model.safetensors"))
        self.assertEqual((info["generator"]["num_classes"], info["generator"]["n_layer"]), (10, 4))

    def test_cpu_tier(self):
        self.assertIn("generic", self.succeed_json("info", "-m", GROUP, "--cpu", "generic")["device"])


class TwoFiles(Case):
    """Stage 2 and tokenizer in different places."""

    def test_generate(self):
        self.succeed("generate", "-m", ADALN, "--tokenizer", GROUP, "-c", "0-4", "-o", "x.png")
        self.assertEqual(read_png(self.path("x.png"))[:2], (3 * 66 - 2, 2 * 66 - 2))

    def test_tokenizer_alone(self):
        golden_picture(self.path("p.png"))
        self.succeed("encode", "--tokenizer", GROUP, "p.png", "-o", "c.npy", "--size", "64")
        self.assertEqual(read_npy(self.path("c.npy")).values, read_safetensors(VQ, "codes").values)

    def test_torch_file(self):
        path = os.path.join(TORCH, "zip_bf16_bare.bin")
        info = self.succeed_json("info", "-m", path)
        self.assertEqual((info["file_dtype"], info["generator"]["d_model"]), ("BF16", 64))


class Tiers(Case):
    def test_generic_agrees(self):
        """Plain C and the fastest kernels find the same likelihood."""
        tokens, labels = read_safetensors(AR, "tokens", "labels")
        write_npy(self.path("c.npy"), "<i8", tokens.shape, tokens.values)
        write_npy(self.path("l.npy"), "<i8", labels.shape, labels.values)
        nll = [self.succeed_json("score", "-m", GROUP, "--codes", "c.npy", "--labels", "l.npy", *more)["nll"]
               for more in ([], ["--cpu", "generic"])]
        self.assertLessEqual(abs(nll[0] / nll[1] - 1), 1e-5)


class Bench(Case):
    @unittest.skipIf(SANITIZED, "what is measured takes minutes with sanitizers")
    def test_numbers(self):
        got = self.succeed_json("bench", "--preset", "tiny", "--batch", "2", "--weights", "q8")
        self.assertEqual(got["weights"], "q8")
        self.assertEqual([p["preset"] for p in got["presets"]], ["tiny"])
        tiny = got["presets"][0]
        self.assertEqual([b["batch"] for b in tiny["batches"]], [2])
        for values in (tiny["batches"][0], tiny["training"]):
            self.assertTrue(all(v > 0 for v in values.values()), values)
        info = self.succeed_json("info", "-m", GROUP)["generator"]  # tiny too
        self.assertEqual(tiny["training"]["token_operations"], 6 * info["parameters"])

    def test_unknown_preset(self):
        self.assertIn("AiM-XL", self.fail_with("bench", "--preset", "huge"))


if __name__ == "__main__":
    main()
