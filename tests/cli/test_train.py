"""aim train ar: runs, their folders, stops of every kind, and what comes out. aim convert."""

import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import time

from support import ADALN, GROUP, IMAGES, PROGRAM, Case, environment, main, read_npy, read_safetensors, relative_error, run, tree, write_npy

PICTURES, TOKENS, CLASSES, VOCABULARY = 40, 16, 4, 256
TINY = ["--preset", "tiny", "--layers", "2", "--width", "32", "--batch", "4", "--lr", "3e-3"]
DATA = ["--codes", "codes.npy", "--labels", "labels.npy"]


class TrainCase(Case):
    def setUp(self):
        super().setUp()
        labels = [i % CLASSES for i in range(PICTURES)]
        codes = [(60 * labels[i] + 3 * t + (i * 7 + t * t) % 3) % VOCABULARY for i in range(PICTURES) for t in range(TOKENS)]
        write_npy(self.path("codes.npy"), "<i8", (PICTURES, TOKENS), codes)
        write_npy(self.path("labels.npy"), "<i8", (PICTURES,), labels)

    def train(self, folder, *more, data=DATA, size=TINY):
        return self.succeed("train", "ar", *data, *size, "-o", folder, *more)

    def start(self, *args, **more):
        return subprocess.Popen([PROGRAM, *args], cwd=self.dir, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                **more)

    def log(self, folder, whole=True):
        with open(self.path(folder, "log.jsonl"), encoding="utf-8") as f:
            return [json.loads(line) for line in f if whole or line.endswith("\n")]

    def lines(self, folder):
        """The log's text without the times, which no two runs share."""
        rows = self.log(folder)
        for row in rows:
            row.pop("seconds", None)
        return [json.dumps(row) for row in rows]

    def checkpoints(self, folder):
        return sorted(os.listdir(self.path(folder, "checkpoints")))

    def same_model(self, a, b):
        for name in ("model.safetensors", "config.json"):
            with open(self.path(a, "model", name), "rb") as x, open(self.path(b, "model", name), "rb") as y:
                self.assertEqual(x.read(), y.read(), name)


class Peer(TrainCase):
    """
    The same network and recipe in PyTorch 1.13, step by step:
    tools/peer_train.py curve --init init --codes codes.npy --labels labels.npy --steps 24 --batch 4 --lr 3e-3
    """

    LOSSES = [5.540836, 5.572055, 5.597964, 5.076629, 5.097754, 5.144801, 4.729296, 4.782269, 4.835517, 4.444010, 4.343697,
              4.489614, 4.554554, 4.094624, 4.302377, 4.382813, 3.926230, 4.154886, 4.252680, 3.810176, 3.779051, 4.035979,
              4.152785, 3.718014]
    NORMS = [2.423879, 2.231537, 2.060863, 1.852920, 1.686904, 1.570524, 1.505070, 1.438063, 1.428193, 1.336579, 1.264833,
             1.424152, 1.452197, 1.255778, 1.286092, 1.285513, 1.209843, 1.232078, 1.247314, 1.176988, 1.165504, 1.206224,
             1.208090, 1.139626]
    OFFICIAL = (3.715804, 1.139889)  # the last step with --official-decay

    def follow(self, folder, *more):
        self.succeed("init", "--preset", "tiny", "--seed", "3", "-o", f"{folder}-init")
        self.train(folder, "--order", "file", "--label-drop", "0", "--steps", "24", *more,
                   size=["--init", f"{folder}-init", "--batch", "4", "--lr", "3e-3"])
        return [r for r in self.log(folder) if "loss" in r]

    def test_curve(self):
        rows = self.follow("run")
        self.assertLess(relative_error([r["loss"] for r in rows], self.LOSSES), 1e-5)
        self.assertLess(relative_error([r["grad_norm"] for r in rows], self.NORMS), 1e-4)

    def test_official_decay(self):
        last = self.follow("run", "--official-decay")[-1]
        self.assertLess(relative_error([last["loss"], last["grad_norm"]], self.OFFICIAL), 1e-4)
        self.assertGreater(abs(self.OFFICIAL[0] - self.LOSSES[-1]), 1e-3)  # decay shows


class Runs(TrainCase):
    def test_folder(self):
        out = self.train("run", "--steps", "25", "--save-every", "10", "--eval-every", "10", "--val", "0.2", "--keep", "2")
        self.assertEqual(out, "run/model\n")
        self.assertEqual(self.checkpoints("run"), ["step-0000020.safetensors", "step-0000025.safetensors"])
        rows = self.log("run")
        losses = [r["loss"] for r in rows if "loss" in r]
        self.assertEqual([r["step"] for r in rows if "loss" in r], list(range(1, 26)))
        self.assertEqual([r["step"] for r in rows if "nll" in r], [10, 20, 25])
        self.assertLess(losses[-1], losses[0] - 0.5)
        self.assertEqual(set(rows[0]), {"step", "loss", "lr", "grad_norm", "seconds"})
        for row in rows:
            if "nll" in row:
                self.assertAlmostEqual(row["nll_dropped"], 0.9 * row["nll"] + 0.1 * row["nll_null"], places=5)
        with open(self.path("run", "curves.png"), "rb") as f:
            self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")
        self.assertIn("nll", self.succeed("score", "-m", "run/model", *DATA))

    def test_evaluation(self):
        """The likelihood in the log is that of the model that comes out, here an average, on the pictures held out: the last."""
        self.train("run", "--steps", "9", "--eval-every", "4", "--ema", "0.8", "--val", "0.2")
        codes, labels = (read_npy(self.path(name)).values for name in ("codes.npy", "labels.npy"))
        write_npy(self.path("c.npy"), "<i8", (8, TOKENS), codes[-8 * TOKENS :])
        for name, classes in (("nll", labels[-8:]), ("nll_null", [CLASSES] * 8)):
            write_npy(self.path("l.npy"), "<i8", (8,), classes)
            out = self.succeed("score", "-m", "run/model", "--codes", "c.npy", "--labels", "l.npy")
            self.assertAlmostEqual(float(out.split()[1]), self.log("run")[-1][name], places=5)

    def test_help(self):
        text = self.succeed("train", "ar", "--help")
        for flag in ("data codes tokenizer init resume output steps epochs batch accum lr schedule warmup seed size preset config "
                     "eval-every save-every sample-every val bf16 ema clip decay official-decay label-drop checkpointing dry-run "
                     "no-positions adaln groups d-state layers width order labels keep threads").split():
            self.assertRegex(text, rf"(?m)^  .*--{flag}\b")
        self.assertLessEqual(max(map(len, text.splitlines())), 100)

    def test_initial_loss(self):
        """ln V and a little more: weights of the paper's start know nothing, and logits have a deviation of 0.02 sqrt(d)."""
        self.train("run", "--steps", "1", "--lr", "0.001", size=["--preset", "tiny", "--batch", "40"])
        excess = self.log("run")[0]["loss"] - math.log(VOCABULARY)
        self.assertLess(abs(excess), 0.06)

    def test_initial_loss_of_tied_layers(self):
        """
        With adaLN of each layer all gates are 0 at first: what the head reads is the embedding e + p of the code just fed,
        normalised, and its product with e, the tied head's row, is s = d 0.02^2 / (0.02 sqrt(2)). That one logit stands out of
        V with a deviation of 0.02 sqrt(d); the first position, which is fed the class, has none.
        """
        d = 256
        self.train("run", "--steps", "1", "--label-drop", "0", size=["--preset", "tiny", "--width", str(d), "--layers", "1",
                                                                     "--adaln", "layer", "--batch", "40"])
        rest = VOCABULARY * math.exp((0.02 * math.sqrt(d)) ** 2 / 2)
        later = math.log(rest + math.exp(0.02 * d / math.sqrt(2)))
        want = (math.log(rest) + (TOKENS - 1) * later) / TOKENS
        self.assertLess(abs(self.log("run")[0]["loss"] - want), 0.03)

    def test_schedule(self):
        self.train("run", "--steps", "8", "--warmup", "2", "--lr", "0.5", "--clip", "0.001", "--schedule", "linear")
        rates = [r["lr"] for r in self.log("run") if "lr" in r]
        wanted = [0.25, 0.5] + [0.5 * (6 - i) / 6 for i in range(6)]
        for rate, want in zip(rates, wanted):
            self.assertAlmostEqual(rate, want, places=7)

    def test_threads_and_parts(self):
        """Threads change nothing; parts of a batch change the order of sums alone; checkpointing changes nothing."""
        self.train("a", "--steps", "6", "--threads", "1")
        self.train("b", "--steps", "6", "--threads", "2", "--checkpointing")
        self.train("c", "--steps", "6", "--accum", "4")
        self.assertEqual(self.lines("a"), self.lines("b"))
        self.same_model("a", "b")
        for x, y in zip(self.log("a"), self.log("c")):
            self.assertAlmostEqual(x["loss"], y["loss"], places=4)

    def test_samples_and_tokenizer(self):
        self.train("run", "--tokenizer", GROUP, "--steps", "4", "--sample-every", "2")
        self.assertEqual(sorted(os.listdir(self.path("run", "samples"))), ["000002.png", "000004.png"])
        self.succeed("generate", "-m", "run/model", "-c", "1", "-o", "x.png")  # stage 2 and tokenizer in one folder

    def test_no_positions(self):
        self.train("run", "--steps", "3", "--no-positions")
        table = read_safetensors(self.path("run", "model", "model.safetensors"),
                                 "mamba.backbone.embeddings.position_embeddings.weight")
        self.assertEqual(set(table.values), {0.0})
        with open(self.path("run", "model", "config.json"), encoding="utf-8") as f:
            self.assertIs(json.load(f)["position_embedding"], False)

    def test_official_decay(self):
        """The last position is never used, so that only decay can change it: by 1 - rate * decay in each step."""
        for folder, flags in (("with", []), ("without", ["--official-decay"])):
            self.train(folder, "--steps", "2", "--lr", "0.1", *flags)
        name = "mamba.backbone.embeddings.position_embeddings.weight"
        last = [read_safetensors(self.path(f, "model", "model.safetensors"), name).values[-32:] for f in ("with", "without")]
        shrunk = [v * (1 - 0.1 * 0.05) * (1 - 0.05 * 0.05) for v in last[1]]
        self.assertLess(relative_error(shrunk, last[0]), 1e-6)

    def test_json_and_dry_run(self):
        plan = self.succeed_json("train", "ar", *DATA, *TINY, "--dry-run")
        self.assertEqual(plan["total"], plan["parameters"] + plan["gradients"] + plan["optimizer"] + plan["activations"])
        self.assertEqual(plan["optimizer"], 2 * plan["parameters"])
        self.assertEqual(tree(self.dir).keys(), {"codes.npy", "labels.npy"})
        result = self.succeed_json("train", "ar", *DATA, *TINY, "-o", "run", "--steps", "2")
        self.assertEqual((result["steps"], result["skipped"], result["pictures"]), (2, 0, PICTURES))

    def refuse_train(self, *args, says):
        before = tree(self.dir)
        result = run("train", "ar", *args, cwd=self.dir)
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertIn(says, result.stderr)
        self.assertEqual(tree(self.dir), before)

    def test_refused(self):
        self.refuse_train(*DATA, "--steps", "2", says="-o")
        self.refuse_train("-o", "run", "--steps", "2", says="--codes")
        self.refuse_train(*DATA, "-o", "run", says="--steps")
        self.refuse_train("--codes", "codes.npy", "-o", "run", "--steps", "2", says="labels")
        self.refuse_train(*DATA, "-o", "run", "--steps", "2", "--batch", "5", "--accum", "2", says="divide")
        self.refuse_train(*DATA, "-o", "run", "--steps", "2", "--width", "33", says="multiple of 32")
        self.refuse_train(*DATA, "-o", "run", "--steps", "2", "--preset", "AiM-Z", says="AiM-XL")
        self.refuse_train(*DATA, "-o", "run", "--steps", "2", "--init", GROUP, "--layers", "3", says="sizes")
        self.refuse_train("--resume", "nowhere", says="no training run")
        self.assertIn("train ar", run("train", cwd=self.dir).stderr)

    def test_folder_in_use(self):
        self.train("run", "--steps", "1")
        self.refuse_train(*DATA, *TINY, "-o", "run", "--steps", "1", says="--resume")


class Sources(TrainCase):
    """What is trained on: class folders with pictures, and caches made of them."""

    def setUp(self):
        super().setUp()
        for part in ("train", "val"):
            for name in ("dog", "ant"):
                os.makedirs(self.path("data", part, name))
        for i, name in enumerate(("photo.jpg", "grey.jpg", "rgba.png", "photo.webp", "palette.png")):
            os.symlink(os.path.join(IMAGES, name), self.path("data", "train", "dog" if i % 2 else "ant", name))
        for name in ("dog", "ant"):
            os.symlink(os.path.join(IMAGES, "photo.png"), self.path("data", "val", name, "held.png"))

    def names(self, folder):
        with open(self.path(folder, "model", "config.json"), encoding="utf-8") as f:
            return json.load(f)["id2label"]

    def test_pictures(self):
        flags = ["--data", "data", "--tokenizer", GROUP, "--size", "64"]
        self.train("whole", "--steps", "6", "--save-every", "3", "--eval-every", "3", data=flags)
        self.assertEqual(self.names("whole"), {"0": "ant", "1": "dog"})
        self.assertEqual([r["step"] for r in self.log("whole") if "nll" in r], [3, 6])
        self.train("half", "--steps", "6", "--save-every", "3", "--eval-every", "3", "--threads", "1", data=flags)
        os.remove(self.path("half", "checkpoints", "step-0000006.safetensors"))
        self.succeed("train", "ar", "--resume", "half")
        self.assertEqual(self.lines("half"), self.lines("whole"))

    def test_caches(self):
        for form, folder in (("aim", "codes"), ("llamagen", "npy")):
            self.succeed("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", folder, "--format", form)
            self.train(f"run-{form}", "--steps", "3", data=["--codes", folder])
        self.assertEqual(self.names("run-aim"), {"0": "ant", "1": "dog"})
        self.assertEqual(sum("nll" in r for r in self.log("run-aim")), 1)

    def test_fine_tuning(self):
        """Classes keep their rows by name; a larger grid works."""
        self.succeed("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "codes")
        self.train("first", "--steps", "3", data=["--codes", "codes"])
        os.rename(self.path("data", "train", "ant"), self.path("data", "train", "zebra"))
        os.rename(self.path("data", "val", "ant"), self.path("data", "val", "zebra"))
        self.succeed("extract-codes", "--data", "data", "--tokenizer", GROUP, "-o", "more", "--size", "128")
        result = run("train", "ar", "--codes", "more", "--init", "first/model", "--batch", "2", "--lr", "0", "--steps", "1", "-o",
                     "second", cwd=self.dir)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("1 of 2 classes are new", result.stderr)
        self.assertEqual(self.names("second"), {"0": "dog", "1": "zebra"})
        table = "mamba.backbone.cls_embed.embedding_table.weight"
        before, after = (read_safetensors(self.path(f, "model", "model.safetensors"), table).values for f in ("first", "second"))
        self.assertLess(relative_error(before[32:64], after[0:32]), 0.05)  # one step at a small rate later
        self.assertEqual(self.succeed_json("info", "-m", "second/model")["generator"]["num_tokens"], 64)


class Stops(TrainCase):
    def whole(self):
        flags = ["--steps", "60", "--save-every", "15", "--eval-every", "20", "--val", "0.2", "--ema", "0.99"]
        self.train("whole", *flags)
        return flags

    def stop(self, folder, number, flags):
        """Trains until a checkpoint is there and some steps more, then sends the signal."""
        process = self.start("train", "ar", *DATA, *TINY, "-o", folder, *flags, "--threads", "1")
        log = self.path(folder, "log.jsonl")
        for _ in range(3000):
            if os.path.exists(log) and self.checkpoints(folder) and len(self.log(folder, whole=False)) >= 20:
                break
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return process.returncode, err.decode()

    def test_kill(self):
        """kill -9: what resumes equals the run that nobody stopped, line by line and byte by byte."""
        flags = self.whole()
        status, _ = self.stop("killed", signal.SIGKILL, flags)
        self.assertEqual(status, -signal.SIGKILL)
        with open(self.path("killed", "log.jsonl"), "ab") as f:
            f.write(b'{"step": 59, "lo')  # a line that was cut off
        for name in ("checkpoints/step-0000099.safetensors", "model/model.safetensors", "curves.png"):
            open(self.path("killed", name + ".tmp-1-0"), "wb").close()
        self.assertEqual(self.succeed("train", "ar", "--resume", "killed"), "killed/model\n")
        self.assertEqual(self.lines("killed"), self.lines("whole"))
        self.same_model("killed", "whole")
        self.assertEqual(tree(self.path("killed")).keys(), tree(self.path("whole")).keys())

    def test_interrupt(self):
        """Ctrl-C leaves a checkpoint of the step that it came in."""
        flags = self.whole()
        status, err = self.stop("stopped", signal.SIGINT, flags)
        if status != 0:  # it may have been done already
            self.assertEqual((status, err), (130, "aim: cancelled\n"))
            self.assertEqual(self.log("stopped")[-1]["step"], int(self.checkpoints("stopped")[-1][5:12]))
        self.succeed("train", "ar", "--resume", "stopped")
        self.assertEqual(self.lines("stopped"), self.lines("whole"))

    def test_resume_before_the_first_checkpoint(self):
        self.train("whole", "--steps", "4")
        self.train("early", "--steps", "4")
        for name in self.checkpoints("early"):
            os.remove(self.path("early", "checkpoints", name))
        shutil.rmtree(self.path("early", "model"))
        self.succeed("train", "ar", "--resume", "early")
        self.assertEqual(self.lines("early"), self.lines("whole"))

    def test_resume_needs_no_origin(self):
        """A run goes on without the model and the tokenizer that it started from."""
        shutil.copytree(GROUP, self.path("base"))
        flags = ["--init", "base", "--batch", "4", "--lr", "1e-3"]
        self.train("whole", "--steps", "6", size=flags)
        self.train("half", "--steps", "6", "--save-every", "3", size=flags)
        os.remove(self.path("half", "checkpoints", "step-0000006.safetensors"))
        shutil.rmtree(self.path("base"))
        self.succeed("train", "ar", "--resume", "half")
        self.assertEqual(self.lines("half"), self.lines("whole"))
        self.same_model("half", "whole")

    def test_full_disk(self):
        """No room for a checkpoint: the old one stays, training goes on, and the end fails with a clear line."""
        flags = self.whole() + ["--keep", "9"]
        self.train("full", *flags)
        for name in self.checkpoints("full")[1:]:
            os.remove(self.path("full", "checkpoints", name))
        old = self.checkpoints("full")
        result = run("train", "ar", "--resume", "full", cwd=self.dir,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)))
        self.assertEqual(result.returncode, 1)
        warnings = result.stderr.splitlines()
        self.assertEqual(len(warnings), 3, result.stderr)  # steps 30 and 45, then the end
        self.assertTrue(all(w.startswith("aim: warning: no checkpoint at step ") for w in warnings[:2]), warnings)
        self.assertIn("cannot write full/", warnings[2])
        self.assertEqual(len(self.log("full")), 63)
        self.assertEqual(self.checkpoints("full"), old)
        self.succeed("train", "ar", "--resume", "full")
        self.assertEqual(self.lines("full"), self.lines("whole"))
        self.same_model("full", "whole")

    def test_one_process_a_folder(self):
        process = self.start("train", "ar", *DATA, *TINY, "-o", "run", "--steps", "100000")
        try:
            while not os.path.exists(self.path("run", "log.jsonl")) or not os.path.getsize(self.path("run", "log.jsonl")):
                time.sleep(0.01)
            result = run("train", "ar", "--resume", "run", cwd=self.dir)
            self.assertEqual(result.returncode, 1)
            self.assertIn("another process", result.stderr)
        finally:
            process.kill()
            process.communicate()

    def test_nan(self):
        """A network that gives no numbers: steps are skipped and counted, and training stops with an explanation."""
        shutil.copytree(GROUP, self.path("sick"))
        path = self.path("sick", "model.safetensors")
        with open(path, "rb") as f:
            data = bytearray(f.read())
        length = struct.unpack("<Q", data[:8])[0]
        begin = json.loads(data[8 : 8 + length])["mamba.backbone.norm_f.weight"]["data_offsets"][0]
        data[8 + length + begin : 8 + length + begin + 4] = struct.pack("<f", math.nan)
        with open(path, "wb") as f:
            f.write(data)
        result = run("train", "ar", *DATA, "--init", "sick", "--batch", "4", "-o", "run", "--steps", "100", cwd=self.dir)
        self.assertEqual(result.returncode, 1)
        self.assertIn("training has broken down: at step 20", result.stderr)
        self.assertEqual([(r["loss"], r["skipped"]) for r in self.log("run")], [(None, i + 1) for i in range(20)])


class Forms(TrainCase):
    """Fine-tuning from, and conversion of, models in hub format."""

    def score(self, model):
        return float(self.succeed("score", "-m", model, *DATA, "--pos-offset", "0").split()[1])

    def test_convert(self):
        before = self.score(GROUP)
        self.succeed("convert", "-m", GROUP, "-o", "layer", "--adaln", "layer")
        for model, out in ((GROUP, "a.npy"), ("layer", "b.npy")):
            self.succeed("score", "-m", model, *DATA, "--logits", out)
        self.assertLess(relative_error(read_npy(self.path("a.npy")).values, read_npy(self.path("b.npy")).values), 1e-5)
        self.assertAlmostEqual(self.score("layer"), before, places=5)
        with open(self.path("layer", "config.json"), encoding="utf-8") as f:
            self.assertIs(json.load(f)["adaln_group"], False)
        self.succeed("convert", "-m", GROUP, "-o", "small", "--weights", "bf16")
        self.assertAlmostEqual(self.score("small"), before, places=1)
        self.assertLess(os.path.getsize(self.path("small", "model.safetensors")),
                        os.path.getsize(os.path.join(GROUP, "model.safetensors")))
        self.fail_with("convert", "-m", GROUP, "-o", "single", "--adaln", "single", says="the groups of adaLN differ")
        self.fail_with("convert", "-m", ADALN, "-o", "single", "--adaln", "single", says="no single form")

    def test_average(self):
        self.train("run", "--steps", "5", "--ema", "0.5")
        state = "run/checkpoints/step-0000005.safetensors"
        self.succeed("convert", "-m", state, "--ema", "-o", "average")
        self.succeed("convert", "-m", state, "-o", "last")
        self.assertEqual(self.score("average"), self.score("run/model"))
        self.assertNotEqual(self.score("last"), self.score("run/model"))
        self.fail_with("convert", "-m", GROUP, "--ema", "-o", "none", says="no averaged weights")

    def test_single(self):
        """Groups that start alike can become one; those of a model with one group are."""
        self.train("run", "--steps", "2", "--adaln", "single")
        self.succeed("convert", "-m", "run/model", "-o", "single", "--adaln", "single")
        self.assertEqual(self.score("single"), self.score("run/model"))
        self.succeed("convert", "-m", "run/model", "-o", "layer", "--adaln", "layer")
        self.assertAlmostEqual(self.score("layer"), self.score("run/model"), places=5)

    def test_init_keeps_the_network(self):
        """The first loss of a run that starts from a model is that model's."""
        self.train("run", "--order", "file", "--label-drop", "0", "--steps", "1", size=["--init", GROUP, "--batch", "40"])
        self.assertAlmostEqual(self.log("run")[0]["loss"], self.score(GROUP), places=4)


if __name__ == "__main__":
    main()
