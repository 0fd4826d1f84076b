"""Help, and everything that is refused before any work starts."""

import os
import re
import shutil
import stat
import unittest

from support import ADALN, COMMANDS, GROUP, IMAGES, Case, environment, golden_picture, main, run, write_npy


class Help(Case):
    def test_program(self):
        text = self.succeed("--help")
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command}\s+\S")
        self.assertEqual(self.succeed("-h"), text)

    def test_version(self):
        self.assertRegex(self.succeed("--version"), r"^aim \d+\.\d+\.\d+\n$")

    def test_commands(self):
        for command in COMMANDS:
            text = self.succeed(command, "--help")
            for part in (f"aim {command} - ", f"Usage: aim {command} ", "Options:", "General:", "Output:", "Examples:", "--threads"):
                self.assertIn(part, text)
            self.assertGreaterEqual(len(re.findall(rf"(?m)^  aim {command} ", text)), 2)
            self.assertLessEqual(max(map(len, text.splitlines())), 100)
            self.assertEqual(self.succeed(command, "-h"), text)

    def test_flags(self):
        wanted = {
            "generate": "-m -c -n -o --cfg --top-k --top-p --temperature --seed --batch --codes-out",
            "encode": "-m -o --size",
            "decode": "-m -o",
            "reconstruct": "-m -o --size",
            "score": "-m --codes --labels --logits",
            "extract-codes": "-m --data -o --ten-crop --crop-range --format --batch --size",
            "convert": "-m -o --adaln",
            "init": "--preset -o --seed",
            "info": "-m --tensors",
        }
        for command, flags in wanted.items():
            text = self.succeed(command, "--help")
            common = "--device --cpu --threads --quiet --json --help"
            model = "" if command == "init" else " --model --tokenizer --weights --pos-offset"
            for flag in (flags + " " + common + model).split():
                self.assertRegex(text, rf"(?m)^  .*{flag}\b")

    def test_help_needs_nothing_else(self):
        self.assertIn("Usage", self.succeed("encode", "nowhere.png", "--help"))

    def test_defaults_are_shown(self):
        text = self.succeed("generate", "--help")
        for words in ("[default: 4]", "[default: 1]", "[default: 0]"):
            self.assertIn(words, text)


class Commands(Case):
    def test_no_command(self):
        result = run(cwd=self.dir)
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"^aim: .*'aim --help'\)\n$")

    def test_unknown(self):
        for word, near in (("genrate", "generate"), ("inof", "info"), ("decod", "decode"), ("reconstuct", "reconstruct")):
            result = run(word, cwd=self.dir)
            self.assertEqual(result.returncode, 2)
            self.assertRegex(result.stderr, rf"^aim: unknown command '{word}'; did you mean '{near}'\? .*\n$")
        result = run("frobnicate")
        self.assertRegex(result.stderr, r"^aim: unknown command 'frobnicate' \(try 'aim --help'\)\n$")

    def test_option_first(self):
        result = run("-q", "info")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r"^aim: .*\n$")

    def test_odd_characters_stay_on_one_line(self):
        for word in ("a\nb", "\x1b[31mred", "x" * 5000, b"\xff\xfe"):
            result = run(word)
            self.assertEqual(result.returncode, 2)
            self.assertEqual(result.stderr.count("\n"), 1)
            self.assertNotIn("\x1b", result.stderr)


class Options(Case):
    def test_unknown(self):
        self.refuse("generate", "--cgf", "3", says="--cfg")
        self.refuse("generate", "--seeed=3", says="--seed")
        self.refuse("info", "-Z", says="-Z")
        self.refuse("info", "--seed", "1", says="--seed")  # belongs to other commands
        self.refuse("init", "-m", GROUP, says="-m")

    def test_values(self):
        self.refuse("generate", "-m", GROUP, "--seed", says="--seed")
        self.refuse("generate", "-m", says="-m")
        self.refuse("generate", "-m", "", says="--model")
        self.refuse("generate", "-m", GROUP, "--quiet=1", says="--quiet")

    def test_numbers(self):
        wrong = {
            "--cfg": ["", "x", "nan", "inf", "-inf", "-1", "1e9", "0x4", " 4", "4 ", "4,5", "1e", "--4"],
            "--top-p": ["0", "-0.5", "1.0001", "nan", "infinity", "1e-999"],
            "--temperature": ["-1", "nan", "inf", "1e400", "warm"],
            "--top-k": ["-1", "1.5", "1e3", "99999999999999999999", "+3", "all"],
            "--count": ["0", "-1", "1.0", "10000001", "9223372036854775808"],
            "--batch": ["-1", "two"],
            "--seed": ["-1", "1.5", "18446744073709551616", "abc", "0x10", " 1"],
            "--threads": ["-1", "1025", "many"],
        }
        for option, values in wrong.items():
            for value in values:
                with self.subTest(option=option, value=value):
                    self.refuse("generate", "-m", GROUP, f"{option}={value}", says=option)
        for value in ("0", "-16", "70000", "64px"):
            self.refuse("encode", "-m", GROUP, "x.png", "-o", "x.npy", "--size", value, says="--size")

    def test_choices(self):
        self.assertIn("auto, f32, bf16 or q8", self.refuse("info", "-m", GROUP, "--weights", "q4"))
        self.assertIn("auto, f32 or bf16", self.refuse("convert", "-m", GROUP, "-o", "x", "--weights", "q8"))
        self.assertIn("cpu", self.refuse("info", "-m", GROUP, "--device", "tpu"))
        self.assertIn("auto, 0 or 1", self.refuse("info", "-m", GROUP, "--pos-offset", "2"))
        self.assertIn("AiM-XL", self.refuse("init", "--preset", "AiM-XXL", "-o", "x"))
        self.refuse("info", "-m", GROUP, "--cpu", "quantum", says="quantum")

    def test_missing(self):
        self.refuse("encode", "x.png", says="-o")
        self.refuse("encode", "-o", "x.npy", says="PICTURE")
        self.refuse("decode", "-o", "x.png", says="codes.npy")
        self.refuse("decode", "x.npy", says="-o")
        self.refuse("reconstruct", "x.png", says="-o")
        self.refuse("score", "--labels", "x.npy", says="--codes")
        self.refuse("score", "--codes", "x.npy", says="--labels")
        self.refuse("init", "-o", "x", says="--preset")
        self.refuse("init", "--preset", "tiny", says="-o")

    def test_too_much(self):
        for command in ("generate", "info"):
            self.refuse(command, "-m", GROUP, "more", says="more")
        self.refuse("score", "--codes", "a", "--labels", "b", "more", says="more")
        self.refuse("init", "--preset", "tiny", "-o", "x", "more", says="more")
        self.refuse("decode", "a.npy", "b.npy", "-o", "x.png", says="b.npy")

    def test_spellings(self):
        codes = []
        for args in (
            ["--model", GROUP, "--classes", "3", "--seed", "5"],
            [f"--model={GROUP}", "--classes=3", "--seed=5"],
            [f"-m{GROUP}", "-c3", "--seed=5"],
            ["-m", GROUP, "-c", "3", "--seed", "1", "--seed", "5"],
        ):
            self.succeed("generate", *args, "--codes-out", "c.npy")
            with open(self.path("c.npy"), "rb") as f:
                codes.append(f.read())
        self.assertEqual(len(set(codes)), 1)

    def test_dashes_end_options(self):
        golden_picture(self.path("-h"))
        self.succeed("encode", "-m", GROUP, "-o", "c.npy", "--", "-h")


class Model(Case):
    def test_none(self):
        """A program with no model beside it says how to name one."""
        program = shutil.copy(os.environ["AIM_PROGRAM"], self.path("aim"))
        self.assertIn("-m", self.refuse("info", program=program, says="AIM_MODEL"))
        self.assertIn("-m", self.refuse("generate", program=program))

    def test_defaults(self):
        os.makedirs(self.path("bin"))
        program = shutil.copy(os.environ["AIM_PROGRAM"], self.path("bin", "aim"))
        os.makedirs(self.path("share", "aim", "models"))
        os.symlink(ADALN, self.path("share", "aim", "models", "demo"))
        self.assertEqual(self.succeed_json("info", program=program)["generator"]["num_classes"], 5)
        os.makedirs(self.path("models"))
        os.symlink(GROUP, self.path("models", "demo"))
        self.assertEqual(self.succeed_json("info", program=program)["generator"]["num_classes"], 10)
        env = environment(AIM_MODEL=ADALN)
        self.assertEqual(self.succeed_json("info", program=program, env=env)["generator"]["num_classes"], 5)
        self.assertEqual(self.succeed_json("info", "-m", GROUP, program=program, env=env)["generator"]["num_classes"], 10)

    def test_nowhere(self):
        for command in (["info"], ["generate"], ["score", "--codes", "a.npy", "--labels", "b.npy"]):
            self.fail_with(*command, "-m", self.path("nowhere"), says="nowhere")
        self.fail_with("info", "-m", GROUP, "--tokenizer", self.path("nowhere"), says="nowhere")
        os.makedirs(self.path("empty"))
        self.fail_with("info", "-m", self.path("empty"), says="empty")

    def test_missing_parts(self):
        self.fail_with("generate", "-m", ADALN, says="--tokenizer")
        codes = write_npy(self.path("c.npy"), "<i8", (1, 16), [0] * 16)
        self.fail_with("decode", "-m", ADALN, codes, "-o", "x.png", says="--tokenizer")
        golden_picture(self.path("p.png"))
        self.fail_with("encode", "-m", ADALN, "p.png", "-o", "x.npy", says="--tokenizer")
        self.fail_with("reconstruct", "-m", ADALN, "p.png", "-o", "x.png", says="--tokenizer")


class Classes(Case):
    def test_wrong(self):
        for text in ("10", "0-10", "5-3", "3-", "-3", "1,,2", ",", "1,", " ", "-", "1.5", "999999999999999999999", "x" * 300):
            with self.subTest(classes=text):
                self.refuse("generate", "-m", GROUP, f"--classes={text}")

    def test_names_without_names(self):
        self.refuse("generate", "-m", GROUP, "-c", "goldfish", says="0 to 9")


class Outputs(Case):
    def test_endings(self):
        self.refuse("generate", "-m", GROUP, "-o", "x.gif", says=".png")
        self.refuse("generate", "-m", GROUP, "-o", "x.npy", says=".npz")
        self.refuse("generate", "-m", GROUP, "-o", "x", says="x")
        self.refuse("generate", "-m", GROUP, "--codes-out", "x.txt", says=".npy")
        self.refuse("encode", "-m", GROUP, "p.png", "-o", "x.npz", says=".npy")
        self.refuse("decode", "-m", GROUP, "c.npy", "-o", "x.jpg", says=".npy")
        self.refuse("reconstruct", "-m", GROUP, "p.png", "-o", "x.npy", says=".png")
        self.refuse("score", "-m", GROUP, "--codes", "c", "--labels", "l", "--logits", "x", says=".npy")

    def test_missing_folder(self):
        missing = os.path.join("no", "such")
        self.fail_with("generate", "-m", GROUP, "-o", os.path.join(missing, "x.png"), says=missing)
        self.fail_with("generate", "-m", GROUP, "--codes-out", os.path.join(missing, "x.npy"), says=missing)
        self.fail_with("encode", "-m", GROUP, "p.png", "-o", os.path.join(missing, "x.npy"), says=missing)
        self.fail_with("decode", "-m", GROUP, "p.png", "-o", os.path.join(missing, "x.npz"), says=missing)
        self.fail_with("score", "-m", GROUP, "--codes", "c", "--labels", "l", "--logits", os.path.join(missing, "x.npy"), says=missing)

    def test_file_in_the_way(self):
        with open(self.path("file"), "w") as f:
            f.write("x")
        self.fail_with("generate", "-m", GROUP, "-o", "file/", says="file")
        self.fail_with("generate", "-m", GROUP, "-o", "file/below/", says="file")
        self.fail_with("generate", "-m", GROUP, "-o", "file/x.png", says="file")
        self.fail_with("init", "--preset", "tiny", "-o", "file", says="file")

    @unittest.skipIf(os.geteuid() == 0, "the superuser may write anywhere")
    def test_no_permission(self):
        os.makedirs(self.path("closed"))
        os.chmod(self.path("closed"), stat.S_IRUSR | stat.S_IXUSR)
        for out in ("closed/x.png", "closed/new/", "closed/"):
            self.fail_with("generate", "-m", GROUP, "-o", out, says="closed")

    def test_grid_limit(self):
        self.refuse("generate", "-m", GROUP, "-n", "1025", says="1024")

    def test_outputs_are_not_inputs(self):
        golden_picture(self.path("p.png"))
        codes = write_npy(self.path("c.npy"), "<i8", (1, 16), [0] * 16)
        os.makedirs(self.path("in"))
        golden_picture(self.path("in", "000000.png"))
        self.refuse("reconstruct", "-m", GROUP, "p.png", "-o", "./p.png", says="input")
        self.refuse("reconstruct", "-m", GROUP, "in", "-o", "in", says="originals")
        self.refuse("decode", "-m", GROUP, codes, "-o", "c.npy", says="input")
        self.refuse("score", "-m", GROUP, "--codes", codes, "--labels", "l.npy", "--logits", "c.npy", says="input")

    def test_model_is_not_replaced(self):
        os.makedirs(self.path("old"))
        with open(self.path("old", "config.json"), "w") as f:
            f.write("{}")
        self.fail_with("init", "--preset", "tiny", "-o", "old", says="config.json")


class Inputs(Case):
    def test_missing(self):
        golden_picture(self.path("p.png"))
        self.fail_with("encode", "-m", GROUP, "p.png", "nowhere.png", "-o", "c.npy", says="nowhere.png")
        self.fail_with("reconstruct", "-m", GROUP, "nowhere.png", "-o", "x.png", says="nowhere.png")
        self.fail_with("decode", "-m", GROUP, "nowhere.npy", "-o", "x.png", says="nowhere.npy")
        self.fail_with("score", "-m", GROUP, "--codes", "nowhere.npy", "--labels", "l.npy", says="nowhere.npy")

    def test_folder_without_pictures(self):
        os.makedirs(self.path("empty"))
        with open(self.path("empty", "notes.txt"), "w") as f:
            f.write("x")
        self.fail_with("encode", "-m", GROUP, "empty", "-o", "c.npy", says="no pictures")

    def test_size(self):
        picture = os.path.join(IMAGES, "photo.png")
        self.refuse("encode", "-m", GROUP, picture, "-o", "c.npy", "--size", "60", says="multiple of 16")
        self.refuse("reconstruct", "-m", GROUP, picture, "-o", "c.png", "--size", "1", says="multiple of 16")


if __name__ == "__main__":
    main()
