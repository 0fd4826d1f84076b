"""aim train tokenizer: runs, their folders, stops, and tokenizers that work."""

import json
import os
import shutil
import signal
import subprocess
import time

from support import GROUP, IMAGES, PROGRAM, Case, environment, main, read_safetensors, run, tree, write_png

SIDE = 32
SMALL = ["--preset", "tiny", "--multipliers", "1,1,1", "--codebook", "64x4", "--size", str(SIDE), "--batch", "4", "--lr", "1e-3"]
NO_VGG = "aim: warning: no perceptual loss"


def picture(i):
    """A disc of one colour on a ground of another that gets lighter downwards."""
    x0, y0, r = 6 + 5 * i % 20, 8 + 7 * i % 18, 5 + i % 6
    rows = bytearray()
    for y in range(SIDE):
        for x in range(SIDE):
            inside = (x - x0) ** 2 + (y - y0) ** 2 < r * r
            rows += bytes((220, 40 + 9 * i % 90, 50) if inside else (30 + 4 * y, 60 + 3 * y, 120 + 11 * i % 100))
    return bytes(rows)


class TokenizerCase(Case):
    def setUp(self):
        super().setUp()
        for i in range(20):
            folder = self.path("data", "train" if i < 16 else "val", "odd" if i % 2 else "even")
            os.makedirs(folder, exist_ok=True)
            write_png(os.path.join(folder, f"{i:03}.png"), SIDE, SIDE, picture(i))

    def train(self, folder, *more, size=SMALL):
        return self.succeed("train", "tokenizer", "--data", "data", *size, "-o", folder, *more)

    def log(self, folder, whole=True):
        with open(self.path(folder, "log.jsonl"), encoding="utf-8") as f:
            return [json.loads(line) for line in f if whole or line.endswith("\n")]

    def lines(self, folder):
        """The log's text without the times, which no two runs share."""
        rows = self.log(folder)
        for row in rows:
            row.pop("seconds", None)
        return [json.dumps(row) for row in rows]

    def model(self, folder):
        with open(self.path(folder, "model", "model.safetensors"), "rb") as f:
            return f.read()

    def refuse_train(self, *args, says):
        result = run("train", "tokenizer", *args, cwd=self.dir)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(says, result.stderr)


class Runs(TokenizerCase):
    def test_folder(self):
        out = self.train("run", "--steps", "40", "--save-every", "20", "--eval-every", "20", "--disc", "none")
        self.assertEqual(out, "run/model\n")
        self.assertEqual(sorted(os.listdir(self.path("run", "checkpoints"))),
                         ["step-0000020.safetensors", "step-0000040.safetensors"])
        rows = self.log("run")
        steps, evaluations = [r for r in rows if "loss" in r], [r for r in rows if "psnr" in r]
        self.assertEqual([r["step"] for r in steps], list(range(1, 41)))
        self.assertEqual([r["step"] for r in evaluations], [20, 40])
        self.assertEqual(set(steps[0]), {"step", "loss", "l2", "codebook", "commit", "train_psnr", "lr", "grad_norm", "seconds"})
        self.assertLess(sum(r["l2"] for r in steps[-5:]), 0.5 * sum(r["l2"] for r in steps[:5]))
        self.assertGreater(evaluations[-1]["psnr"], evaluations[0]["psnr"])
        self.assertTrue(0 < evaluations[-1]["usage"] <= 1 <= evaluations[-1]["perplexity"] <= 64)
        for name in ("curves.png", os.path.join("samples", "000040.png")):
            with open(self.path("run", name), "rb") as f:
                self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")

    def test_model(self):
        """What reconstruct says of the held-out pictures is what the run said, and names and usage are kept."""
        self.train("run", "--steps", "10", "--ema", "0.9")
        shutil.copytree(self.path("data", "val", "odd"), self.path("held"))
        for name in os.listdir(self.path("data", "val", "even")):
            shutil.copy(self.path("data", "val", "even", name), self.path("held", name))
        said = self.succeed_json("reconstruct", "-m", "run/model", "held", "--size", str(SIDE), "-o", "out/")
        self.assertAlmostEqual(said["psnr"], self.log("run")[-1]["psnr"], places=3)
        self.assertAlmostEqual(said["ssim"], self.log("run")[-1]["ssim"], places=4)
        with open(self.path("run", "model", "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        self.assertEqual(config["id2label"], {"0": "even", "1": "odd"})
        self.assertEqual(config["vq"]["ch_mult"], [1, 1, 1])
        queue = read_safetensors(self.path("run", "model", "model.safetensors"), "vqvae.quantize.codebook_used").values
        self.assertEqual(len(queue), 65536)
        self.assertTrue(all(0 <= q < 64 for q in queue))
        self.assertEqual(self.succeed_json("info", "-m", "run/model")["tokenizer"]["codebook_size"], 64)

    def test_narrow(self):
        """The groups of the norms, which shapes do not tell, are kept by runs that go on and by every copy of the model."""
        held = self.path("data", "val", "even")
        said = lambda folder: self.succeed_json("reconstruct", "-m", folder, held, "--size", str(SIDE), "-o", "out/")["psnr"]
        wide = len(self.model(self.make_narrow("wide", "--disc-channels", "64")))
        self.make_narrow("run", "--norm-groups", "8", "--disc-channels", "16")
        self.assertLess(os.path.getsize(self.path("run", "checkpoints", "step-0000004.safetensors")),
                        os.path.getsize(self.path("wide", "checkpoints", "step-0000004.safetensors")) // 2)
        self.assertEqual(len(self.model("run")), wide)  # the same shapes
        self.succeed("convert", "-m", "run/model", "-o", "copy")
        for folder in ("run/model", "copy"):
            with open(self.path(folder, "config.json"), encoding="utf-8") as f:
                config = json.load(f)
            self.assertEqual(config["vq"].pop("norm_groups"), 8)
        self.assertEqual(said("copy"), said("run/model"))
        with open(self.path("copy", "config.json"), "w", encoding="utf-8") as f:
            json.dump(config, f)
        self.assertNotEqual(said("copy"), said("run/model"))
        before = self.model("run")
        os.remove(self.path("run", "checkpoints", "step-0000004.safetensors"))
        self.succeed("train", "tokenizer", "--resume", "run")
        self.assertEqual(self.model("run"), before)

    def make_narrow(self, folder, *more):
        self.train(folder, "--steps", "4", "--save-every", "2", "--disc-start", "1", "--perceptual", "0", *more)
        return folder

    def test_everything_on(self):
        self.train("run", "--steps", "6", "--disc-start", "3", "--disc-warmup", "2", "--adaptive", "--adv", "softplus", "--l1",
                   "0.5", "--entropy", "0.1", "--codebook-start", "spread", "--revive", "3", "--accum", "2", "--ema", "0.9",
                   "--bf16", "--schedule", "cosine", "--warmup", "2", "--decay", "0.01")
        rows = [r for r in self.log("run") if "loss" in r]
        self.assertEqual([r["step"] for r in rows if "adversarial" in r], [3, 4, 5, 6])
        self.assertTrue(all(r["discriminator"] > 0 and r["adaptive"] > 0 and r["disc_grad_norm"] > 0 for r in rows[2:]))
        for row in rows:
            parts = sum(row.get(k, 0) for k in ("l2", "l1", "codebook", "commit", "entropy", "adversarial"))
            self.assertAlmostEqual(row["loss"], parts, places=4)

    def test_style(self):
        self.train("run", "--steps", "2", "--disc", "style", "--disc-start", "1")
        self.assertGreater(self.log("run")[1]["disc_grad_norm"], 0)

    def test_fine_tuning(self):
        """From a model with both stages: its tokenizer, which a rate of next to nothing leaves alone."""
        self.train("run", "--steps", "1", size=["--init", GROUP, "--size", "64", "--batch", "2", "--lr", "1e-12"])
        name = "vqvae.quantize.embedding.weight"
        before = read_safetensors(os.path.join(GROUP, "model.safetensors"), name).values
        after = read_safetensors(self.path("run", "model", "model.safetensors"), name).values
        self.assertLess(max(abs(a - b) for a, b in zip(before, after)), 1e-6)

    def test_without_vgg(self):
        result = run("train", "tokenizer", "--data", "data", *SMALL, "-o", "run", "--steps", "1", cwd=self.dir)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sum(line.startswith(NO_VGG) for line in result.stderr.splitlines()), 1)
        result = run("train", "tokenizer", "--data", "data", *SMALL, "-o", "no", "--steps", "1", "--perceptual", "0", cwd=self.dir)
        self.assertEqual((result.returncode, NO_VGG in result.stderr), (0, False))

    def test_dry_run(self):
        plan = self.succeed_json("train", "tokenizer", "--data", "data", *SMALL, "--dry-run")
        self.assertEqual(plan["total"], sum(plan[k] for k in ("parameters", "gradients", "optimizer", "activations")))
        self.assertEqual(plan["optimizer"], 2 * plan["gradients"])
        twice = self.succeed_json("train", "tokenizer", "--data", "data", *SMALL, "--batch", "8", "--dry-run")
        self.assertGreater(twice["activations"], 1.7 * plan["activations"])
        alone = self.succeed_json("train", "tokenizer", "--data", "data", *SMALL, "--disc", "none", "--dry-run")
        for what in ("parameters", "gradients"):
            self.assertEqual(plan[what] - alone[what], 4 * 2765633)  # PatchGAN's
        self.assertEqual(tree(self.dir).keys(), {k for k in tree(self.dir) if k.startswith("data")})

    def test_refusals(self):
        self.refuse_train("-o", "run", "--steps", "2", says="--data")
        self.refuse_train("--data", "data", "-o", "run", says="--steps")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--codebook", "64", says="16384x8")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--multipliers", "1,x", says="multipliers")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--channels", "33", says="multiple of 32")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--norm-groups", "5", says="divide")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--size", "18", says="multiple of 4")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--preset", "VQ-f1", says="VQ-f16")
        self.refuse_train("--data", "data", "--init", GROUP, "-o", "run", "--steps", "2", "--channels", "64", says="sizes")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--l2", "0", "--perceptual", "0", says="weight")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--vgg", os.path.join(IMAGES, "photo.png"),
                          says="photo.png")
        self.refuse_train("--data", "data", *SMALL, "-o", "run", "--steps", "2", "--lpips", "nowhere.pth", says="VGG16")
        self.refuse_train("--resume", "nowhere", says="no training run")
        self.assertFalse(os.path.exists(self.path("run")))


class Stops(TokenizerCase):
    FLAGS = ["--steps", "24", "--save-every", "6", "--eval-every", "8", "--ema", "0.99", "--disc-start", "4", "--revive", "5",
             "--codebook-start", "sampled"]

    def test_kill(self):
        """kill -9: what resumes equals the run that nobody stopped, line by line and byte by byte."""
        self.train("whole", *self.FLAGS)
        process = subprocess.Popen([PROGRAM, "train", "tokenizer", "--data", "data", *SMALL, "-o", "killed", *self.FLAGS,
                                    "--threads", "1"], cwd=self.dir, env=environment(), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        log = self.path("killed", "log.jsonl")
        for _ in range(30000):
            if os.path.exists(log) and any(r["step"] >= 9 for r in self.log("killed", whole=False)):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        self.assertEqual(process.wait(timeout=60), -signal.SIGKILL)
        self.assertEqual(self.succeed("train", "tokenizer", "--resume", "killed"), "killed/model\n")
        self.assertEqual(self.lines("killed"), self.lines("whole"))
        self.assertEqual(self.model("killed"), self.model("whole"))

    def test_resume_before_the_first_checkpoint(self):
        self.train("whole", "--steps", "3", "--codebook-start", "spread")
        self.train("early", "--steps", "3", "--codebook-start", "spread")
        shutil.rmtree(self.path("early", "checkpoints"))
        shutil.rmtree(self.path("early", "model"))
        self.succeed("train", "tokenizer", "--resume", "early")
        self.assertEqual(self.lines("early"), self.lines("whole"))

    def test_resume_needs_no_origin(self):
        """A run goes on without the model that it started from."""
        shutil.copytree(GROUP, self.path("base"))
        flags = ["--init", "base", "--size", "64", "--batch", "2"]
        self.train("whole", "--steps", "4", size=flags)
        self.train("half", "--steps", "4", "--save-every", "2", size=flags)
        os.remove(self.path("half", "checkpoints", "step-0000004.safetensors"))
        shutil.rmtree(self.path("base"))
        self.succeed("train", "tokenizer", "--resume", "half")
        self.assertEqual(self.lines("half"), self.lines("whole"))
        self.assertEqual(self.model("half"), self.model("whole"))


if __name__ == "__main__":
    main()
