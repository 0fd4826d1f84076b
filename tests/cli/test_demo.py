"""The model that comes with the program, from end to end: it is found without options, and its numbers stay what they were."""

import hashlib
import os

from support import DATA, SANITIZED, Case, main, read_png

CODES = ["--codes", os.path.join(DATA, "demo", "codes.npy"), "--labels", os.path.join(DATA, "demo", "labels.npy")]


class Demo(Case):
    def nll(self, *args):
        name, value = self.succeed("score", *CODES, *args).split()
        self.assertEqual(name, "nll")
        return float(value)

    def test_found_without_options(self):
        self.succeed("generate", "-c", "castle", "-o", "x.png", "--cfg", "1")
        self.assertEqual(read_png(self.path("x.png"))[:2], (256, 256))

    def test_codes(self):
        """The same in every tier: no logits of these pictures are closer than rounding."""
        self.succeed("generate", "-c", "castle,cat", "--seed", "7", "--cfg", "2", "--weights", "f32", "--codes-out", "codes.npy")
        with open(self.path("codes.npy"), "rb") as f:
            self.assertEqual(hashlib.sha256(f.read()).hexdigest(),
                             "9c39a0e7dc5ce5d96b1310aea226c8ef55077d4c73191da33979597282962341")

    def test_likelihood(self):
        """One held-out drawing of each class (docs/demo.md): near the 2.95 of all of them, and worse a position further."""
        self.assertAlmostEqual(self.nll(), 2.982843, delta=1e-4)
        self.assertAlmostEqual(self.nll("--pos-offset", "1"), 3.471528, delta=1e-4)

    def test_likelihood_in_8_bits(self):
        self.assertAlmostEqual(self.nll("--weights", "q8"), 2.982843, delta=0.01)

    def test_grid(self):
        if SANITIZED:
            self.skipTest("takes minutes with the sanitizers; the parts are tested on smaller models")
        self.succeed("generate", "-n", "20", "--captions", "-o", "demo.png")
        width, height, rgb = read_png(self.path("demo.png"))
        self.assertEqual((width, height), (5 * 260 - 4, 4 * 280 - 4))
        self.assertGreater(len(set(rgb)), 200)


if __name__ == "__main__":
    main()
