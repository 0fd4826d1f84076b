"""aim extract-codes: data sets to code caches."""

import json
import os
import resource
import signal
import struct
import subprocess
import time

from support import (GROUP, IMAGES, PROGRAM, Case, complaints, environment, golden_picture, main, read_npy, read_png,
                     read_safetensors, run, write_png)

VQ = os.path.join(GROUP, "expected_vq.safetensors")


def metadata(path):
    with open(path, "rb") as f:
        return json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))["__metadata__"]


class Extract(Case):
    """Two classes: two photographs, and the golden picture."""

    def setUp(self):
        super().setUp()
        for name in ("dog", "ant"):
            os.makedirs(self.path("data", "train", name))
        golden_picture(self.path("data", "train", "dog", "p.png"))
        for name in ("photo.jpg", "grey.jpg"):
            os.symlink(os.path.join(IMAGES, name), self.path("data", "train", "ant", name))

    def extract(self, *args, data="data", out="codes"):
        return self.succeed("extract-codes", "--data", data, "--tokenizer", GROUP, "-o", out, *args)

    def encode(self, *pictures):
        self.succeed("encode", "--tokenizer", GROUP, "--size", "64", *pictures, "-o", "encoded.npy")
        return read_npy(self.path("encoded.npy")).values

    def test_cache(self):
        self.assertEqual(self.extract(), "codes\n")
        self.assertEqual(os.listdir(self.path("codes")), ["codes.safetensors"])
        cache = self.path("codes", "codes.safetensors")
        codes, labels = read_safetensors(cache, "codes", "labels")
        self.assertEqual((codes.descr, codes.shape, labels.descr, labels.values), ("U16", (3, 2, 16), "I32", [0, 0, 1]))
        golden = read_safetensors(VQ, "codes").values
        self.assertEqual(codes.values[64:80], golden)
        plain = [os.path.join("data", "train", "ant", name) for name in ("grey.jpg", "photo.jpg")]
        self.assertEqual(codes.values[0:16] + codes.values[32:48], self.encode(*plain))
        width, height, rgb = read_png(self.path("data", "train", "dog", "p.png"))
        rows = [rgb[3 * width * y : 3 * width * (y + 1)] for y in range(height)]
        mirrored = b"".join(row[3 * x : 3 * x + 3] for row in map(bytes, rows) for x in reversed(range(width)))
        write_png(self.path("m.png"), width, height, mirrored)
        self.assertEqual(codes.values[80:96], self.encode("m.png"))
        about = metadata(cache)
        self.assertEqual(json.loads(about["classes"]), ["ant", "dog"])
        self.assertEqual((about["format"], about["vocabulary"], about["size"], about["views"]), ("aim-codes-1", "256", "64", "flip"))
        self.assertRegex(about["tokenizer"], "^[0-9a-f]{16}$")

    def test_batch_and_threads(self):
        self.extract("--ten-crop", out="a")
        self.extract("--ten-crop", "--batch", "1", "--threads", "1", out="b")
        self.extract("--ten-crop", "--batch", "25", "--threads", "3", out="c")
        files = []
        for name in "abc":
            with open(self.path(name, "codes.safetensors"), "rb") as f:
                files.append(f.read())
        self.assertEqual(files[0], files[1])
        self.assertEqual(files[0], files[2])

    def test_ten_crop(self):
        """A picture of int(64 * 1.25) = 80 pixels is not scaled: its crops are cut here and encoded one by one."""
        width, _, rgb = read_png(os.path.join(IMAGES, "photo.png"))
        os.makedirs(self.path("large", "a"))
        pixels = [[rgb[3 * (y * width + x) : 3 * (y * width + x) + 3] for x in range(80)] for y in range(80)]
        names, corners = [], ((0, 0), (16, 0), (0, 16), (16, 16), (8, 8))
        for mirrored in (False, True):
            rows = [row[::-1] for row in pixels] if mirrored else pixels
            if not mirrored:
                write_png(self.path("large", "a", "x.png"), 80, 80, b"".join(b"".join(row) for row in rows))
            for x, y in corners:
                names.append(f"{len(names):02d}.png")
                write_png(self.path(names[-1]), 64, 64, b"".join(b"".join(row[x : x + 64]) for row in rows[y : y + 64]))
        self.extract("--ten-crop", "--crop-range", "1.25", data="large")
        codes = read_safetensors(self.path("codes", "codes.safetensors"), "codes")
        self.assertEqual(codes.shape, (1, 10, 16))
        self.assertEqual(codes.values, self.encode(*names))
        about = metadata(self.path("codes", "codes.safetensors"))
        self.assertEqual((about["views"], about["crop_range"]), ("ten-crop", "1.25"))

    def test_held_out(self):
        os.makedirs(self.path("data", "val", "dog"))
        golden_picture(self.path("data", "val", "dog", "q.png"))
        out = self.succeed_json("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "codes")
        self.assertEqual((out["pictures"], out["held_out"], out["classes"], out["variants"], out["tokens"]), (3, 1, 2, 2, 16))
        codes, labels = read_safetensors(self.path("codes", "val.safetensors"), "codes", "labels")
        self.assertEqual((codes.shape, codes.values, labels.values), ((1, 1, 16), read_safetensors(VQ, "codes").values, [1]))

    def test_llamagen(self):
        self.extract("--format", "llamagen", "--size", "32")
        self.assertEqual(sorted(os.listdir(self.path("codes"))), ["imagenet32_codes", "imagenet32_labels"])
        self.assertEqual(sorted(os.listdir(self.path("codes", "imagenet32_codes"))), ["0.npy", "1.npy", "2.npy"])
        codes = read_npy(self.path("codes", "imagenet32_codes", "2.npy"))
        label = read_npy(self.path("codes", "imagenet32_labels", "2.npy"))
        self.assertEqual((codes.descr, codes.shape), ("<i8", (1, 2, 4)))
        self.assertEqual((label.descr, label.shape, label.values), ("<i8", (1,), [1]))

    def test_unreadable(self):
        with open(self.path("data", "train", "ant", "a.png"), "wb") as f:
            f.write(b"no picture")
        result = run("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "codes", "--json", cwd=self.dir)
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("a.png is not a PNG, JPEG or WebP picture", lines[0])
        self.assertEqual((json.loads(result.stdout)["pictures"], json.loads(result.stdout)["skipped"]), (3, 1))
        self.assertEqual(read_safetensors(self.path("codes", "codes.safetensors"), "labels").values, [0, 0, 1])

    def test_mistakes(self):
        def fail(says, *args, data="data"):
            self.fail_with("extract-codes", "--data", data, "--tokenizer", GROUP, "-o", "codes", *args, says=says)

        self.refuse("extract-codes", "--tokenizer", GROUP, "-o", "codes", says="--data")
        self.refuse("extract-codes", "--data", "data", "--tokenizer", GROUP, says="-o OUT is missing")
        fail("multiple of 16", "--size", "40")
        fail("cannot read the folder absent", data="absent")
        os.makedirs(self.path("empty"))
        fail("there are no pictures", data="empty")
        os.makedirs(self.path("data", "train", "cat"))
        fail("cat holds no pictures")
        for name in ("cat/1.png", "cat/2.png"):
            with open(self.path("data", "train", name), "wb") as f:
                f.write(b"x")
        result = run("extract-codes", "--data", "data/train/cat", "--tokenizer", GROUP, "-o", "codes", cwd=self.dir)
        self.assertEqual(result.returncode, 1)
        self.assertIn("none of the pictures can be read", result.stderr)
        self.assertFalse(os.path.exists(self.path("codes")))

    def test_existing(self):
        for form, name in (("aim", "codes.safetensors"), ("llamagen", "imagenet64_codes")):
            self.extract("--format", form)
            self.fail_with("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "codes", "--format", form, says=name)

    def test_full_disk(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

        for form in ("aim", "llamagen"):
            self.fail_with("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "deep/codes", "--format", form,
                           says="cannot write", preexec_fn=limit)

    def test_interrupt(self):
        """Nothing is left, not even the folder."""
        for i in range(500):
            os.symlink("photo.jpg", self.path("data", "train", "ant", f"{i}.jpg"))
        for form in ("aim", "llamagen"):
            process = subprocess.Popen([PROGRAM, "extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "codes", "--format",
                                        form], cwd=self.dir, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(600):
                if os.path.exists(self.path("codes")) and os.listdir(self.path("codes")):
                    break
                time.sleep(0.05)
            time.sleep(0.5)
            self.assertIsNone(process.poll(), "it should still be at work")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, complaints(err.decode())), (130, ["aim: cancelled"]))
            self.assertEqual(os.listdir(self.dir), ["data"])


if __name__ == "__main__":
    main()
