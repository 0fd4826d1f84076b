"""Damaged files: one line and status 1, never a signal, and nothing left in the output folder."""

import json
import os
import random
import shutil
import struct
import zipfile

from support import ADALN, GROUP, IMAGES, TORCH, Case, complaints, golden_picture, main, run, tree, write_npy


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)
    return path


def flips(data, count, seed, end=None):
    """Copies of data with one to three bytes changed within data[:end]."""
    rng = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            copy[rng.randrange(end or len(copy))] = rng.randrange(256)
        yield bytes(copy)


class Damage(Case):
    def survive(self, *args):
        """Either all is well or one line tells what is not."""
        before = tree(self.dir)
        result = run(*args, cwd=self.dir)
        self.assertIn(result.returncode, (0, 1), f"{args}: {result.stderr}")
        self.assertEqual(len(complaints(result.stderr)), result.returncode, result.stderr)
        if result.returncode == 1:
            self.assertTrue(complaints(result.stderr)[0].startswith("aim: "))
            self.assertEqual(tree(self.dir), before)


class Safetensors(Damage):
    def setUp(self):
        super().setUp()
        self.data = read(os.path.join(ADALN, "model.safetensors"))
        self.end = 8 + struct.unpack("<Q", self.data[:8])[0]
        self.header = json.loads(self.data[8 : self.end])
        os.makedirs(self.path("m"))
        shutil.copy(os.path.join(ADALN, "config.json"), self.path("m"))

    def model(self, data):
        write(self.path("m", "model.safetensors"), data)

    def with_header(self, header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.model(struct.pack("<Q", len(text)) + text + self.data[self.end :])

    def refused(self, what):
        with self.subTest(what):
            self.fail_with("info", "-m", "m")

    def test_truncated(self):
        for length in (0, 1, 7, 8, 9, 500, self.end - 1, self.end, self.end + 1, len(self.data) // 2, len(self.data) - 1):
            self.model(self.data[:length])
            self.refused(f"{length} bytes")
        self.model(self.data + b"\0")
        self.refused("one byte more")

    def test_header_length(self):
        for length in (0, 1, 2**32, 2**63 - 1, 2**64 - 8, 2**64 - 1, len(self.data) - 8, len(self.data)):
            self.model(struct.pack("<Q", length) + self.data[8:])
            self.refused(f"length {length}")

    def test_header(self):
        for text in (b"", b"null", b"[]", b"{", b'{"a":', b"\xff" * 100, b"[" * 100000, b'{"a":' * 50000, b"{} x"):
            self.with_header(text)
            self.refused(repr(text[:20]))

    def test_entries(self):
        name = "mamba.backbone.norm_f.weight"
        begin, end = self.header[name]["data_offsets"]
        changes = {
            "dtype": ["F33", "", 7, None, "I64", "f32"],
            "shape": [[65], [-64], [64, 2], [2**62, 4], [0], "64", None, [64.5], [[64]], [64] * 9],
            "data_offsets": [[begin, end + 4], [begin + 4, end], [end, begin], [begin], [-4, end], [2**64, 2**64 + 256], None, "x",
                             [0, 256]],
        }
        for key, values in changes.items():
            for value in values:
                header = json.loads(json.dumps(self.header))
                header[name][key] = value
                self.with_header(header)
                self.refused(f"{key} {value}")

    def test_missing_tensor(self):
        """The order of the data is kept, the name alone changes."""
        for name in ("mamba.backbone.norm_f.weight", "mamba.backbone.layers.1.mixer.A_log"):
            header = {("other" if k == name else k): v for k, v in self.header.items()}
            self.with_header(header)
            self.assertIn(name.split(".", 2)[2], self.fail_with("info", "-m", "m"))

    def test_duplicate_name(self):
        text = self.data[8 : self.end].replace(b"mamba.backbone.layers.1.mixer.A_log", b"mamba.backbone.layers.0.mixer.A_log")
        self.with_header(text)
        self.refused("duplicate")

    def test_flipped(self):
        for data in flips(self.data, 40, 1, self.end):
            self.model(data)
            self.survive("info", "-m", "m")


class Config(Damage):
    def setUp(self):
        super().setUp()
        os.makedirs(self.path("m"))
        os.symlink(os.path.join(ADALN, "model.safetensors"), self.path("m", "model.safetensors"))
        self.config = json.loads(read(os.path.join(ADALN, "config.json")))

    def test_no_json(self):
        good = read(os.path.join(ADALN, "config.json"))
        for text in (b"", b"{", b"[]", b"3", b"\0", good[:100], good + b"x", b"\xff\xfe", b"[" * 100000):
            write(self.path("m", "config.json"), text)
            with self.subTest(text[:20]):
                self.fail_with("info", "-m", "m", says="config.json")

    def test_values(self):
        for key in ("d_model", "n_layer", "vocab_size", "num_classes", "num_tokens"):
            for value in (0, -1, 7, 2**31, 2**63 - 1, 1e300, "64", None, [], 63):
                with self.subTest(key=key, value=value):
                    write(self.path("m", "config.json"), json.dumps({**self.config, key: value}).encode())
                    self.fail_with("info", "-m", "m")

    def test_odd_labels(self):
        for labels in ([], "x", {"0": 3}, {"x": "y"}, {"-1": "y"}, {"99999999999999999999": "y"}, {"0": "a\nb\u0000c"}):
            write(self.path("m", "config.json"), json.dumps({**self.config, "id2label": labels}).encode())
            self.survive("info", "-m", "m")


class TorchFiles(Damage):
    def test_truncated(self):
        for name in ("zip_bf16_bare.bin", "zip_model_nested.pt", "legacy.pth"):
            data = read(os.path.join(TORCH, name))
            for length in (0, 1, 30, 200, len(data) // 2, len(data) - 1):
                with self.subTest(name=name, length=length):
                    write(self.path("m.pt"), data[:length])
                    self.fail_with("info", "-m", "m.pt", says="m.pt")

    def test_flipped(self):
        for name in ("zip_bf16_bare.bin", "zip_model_nested.pt", "legacy.pth"):
            data = read(os.path.join(TORCH, name))
            for copy in flips(data, 12, 2, 3000):
                write(self.path("m.pt"), copy)
                self.survive("info", "-m", "m.pt")
            tail = len(data) - 2000
            for copy in flips(data[tail:], 12, 3):
                write(self.path("m.pt"), data[:tail] + copy)
                self.survive("info", "-m", "m.pt")

    def test_no_model(self):
        """Sound files that hold something else."""
        for path in (os.path.join(TORCH, "legacy.pth"), os.path.join(GROUP, "expected_ar.safetensors"), os.path.join(IMAGES, "photo.png")):
            self.fail_with("info", "-m", path, says=os.path.basename(path))

    def test_pickle_is_not_run(self):
        """A pickle that calls os.system is data like any other."""
        evil = b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch pwned2\x85R."
        with zipfile.ZipFile(self.path("m.pt"), "w") as z:
            z.writestr("m/data.pkl", evil)
            z.writestr("m/version", "3\n")
        self.fail_with("info", "-m", "m.pt")


class Pictures(Damage):
    def encode(self, name, data):
        write(self.path(name), data)
        return ["encode", "-m", GROUP, name, "-o", "c.npy"]

    def test_truncated(self):
        for name in ("photo.png", "photo.jpg", "photo.webp", "palette.png", "grey.jpg"):
            data = read(os.path.join(IMAGES, name))
            for length in (0, 1, 12, 40, len(data) // 3):
                with self.subTest(name=name, length=length):
                    self.fail_with(*self.encode(name, data[:length]), says=name)

    def test_flipped(self):
        for name in ("photo.png", "photo.jpg", "photo.webp", "palette.png", "rgba.png"):
            data = read(os.path.join(IMAGES, name))
            for copy in [*flips(data, 8, 4), *flips(data, 8, 5, 100)]:
                arguments = self.encode(name, copy)
                self.survive(*arguments)
                if os.path.exists(self.path("c.npy")):
                    os.remove(self.path("c.npy"))

    def test_something_else(self):
        for data in (b"hello, world\n" * 50, read(os.path.join(GROUP, "config.json")), bytes(1000)):
            self.fail_with(*self.encode("x.png", data), says="x.png")

    def test_one_of_many(self):
        """The good pictures before the bad one leave nothing behind either."""
        golden_picture(self.path("a.png"))
        write(self.path("b.png"), b"no")
        many = ["a.png"] * 70 + ["b.png"]
        self.fail_with("encode", "-m", GROUP, *many, "-o", "c.npy", says="b.png")
        for out in ("r.png", "r.npz"):
            self.fail_with("reconstruct", "-m", GROUP, *many, "-o", out, says="b.png")
        self.fail_with("reconstruct", "-m", GROUP, "b.png", "-o", "new/folder/", says="b.png")


class Arrays(Damage):
    def setUp(self):
        super().setUp()
        self.good = read(write_npy(self.path("good.npy"), "<i8", (2, 16), [1] * 32))
        os.remove(self.path("good.npy"))

    def refused(self, data, what):
        with self.subTest(what):
            write(self.path("c.npy"), data)
            self.fail_with("decode", "-m", GROUP, "c.npy", "-o", "x.png", says="c.npy")
            self.fail_with("score", "-m", GROUP, "--codes", "c.npy", "--labels", "c.npy", "--logits", "x.npy", says="c.npy")

    def header(self, text, body=None):
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + (self.good[128:] if body is None else body)

    def test_truncated(self):
        for length in (0, 5, 8, 10, 40, 127, 128, 129, len(self.good) - 1):
            self.refused(self.good[:length], f"{length} bytes")

    def test_header(self):
        start = b"{'descr': '<i8', 'fortran_order': False, 'shape': "
        for shape in (b"(2, 16", b"(-2, 16)", b"(4294967296, 4294967296)", b"(9223372036854775807, 2)", b"2", b"(2, 17)", b"()",
                      b"(99999999999999999999999, 1)", b"(1,1,1,1,1,1,1,1,1,1,1,32)", b"(None,)", b"(2.0, 16)"):
            self.refused(self.header(start + shape + b"}\n"), shape)
        for descr in (b"'|O'", b"'<c16'", b"'<U3'", b"3", b"''", b"[('a', '<i8')]", b"'<i9'"):
            self.refused(self.header(b"{'descr': " + descr + b", 'fortran_order': False, 'shape': (2, 16)}\n"), descr)
        for text in (b"", b"{}\n", b"{" * 1000, b"{'descr': '<i8'}\n", b"\xff" * 60):
            self.refused(self.header(text), text[:20])

    def test_versions(self):
        self.refused(self.good[:6] + b"\x09\x00" + self.good[8:], "version 9")
        self.refused(self.good[:6] + b"\x02\x00" + b"\xff\xff\xff\xff" + self.good[12:], "a header of 4 GiB")

    def test_flipped(self):
        for copy in flips(self.good, 40, 6, 128):
            write(self.path("c.npy"), copy)
            before = tree(self.dir)
            self.survive("decode", "-m", GROUP, "c.npy", "-o", "x.npy")
            for name in set(tree(self.dir)) - set(before):
                os.remove(self.path(name))

    def test_zip(self):
        with zipfile.ZipFile(self.path("c.npz"), "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("arr_0.npy", self.good)
        data = read(self.path("c.npz"))
        self.succeed("decode", "-m", GROUP, "c.npz", "-o", "x.npy")
        os.remove(self.path("x.npy"))
        for length in (0, 4, 30, len(data) // 2, len(data) - 10):
            write(self.path("c.npz"), data[:length])
            self.fail_with("decode", "-m", GROUP, "c.npz", "-o", "x.npy", says="c.npz")
        for copy in flips(data, 40, 7):
            write(self.path("c.npz"), copy)
            self.survive("decode", "-m", GROUP, "c.npz", "-o", "x.npy")
            if os.path.exists(self.path("x.npy")):
                os.remove(self.path("x.npy"))


del Damage

if __name__ == "__main__":
    main()
