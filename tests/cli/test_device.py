"""
Training on another device: runs are equal to the bit, and so is what goes on after a stop. The device is the one that
AIM_TEST_DEVICE names, else cuda; the tests skip where it is not there.
"""

import os
import signal
import subprocess
import time
import unittest

from support import PROGRAM, environment, main, run
from test_train import DATA, TINY, TrainCase
from test_train_tokenizer import SMALL, TokenizerCase

DEVICE = os.environ.get("AIM_TEST_DEVICE", "cuda")


def absent():
    """The reason why there is no such device, in one line; "" where there is one."""
    result = run("bench", "--preset", "none", "--device", DEVICE)  # fails in any case, for want of the device first
    return "" if "preset" in result.stderr else result.stderr.strip()


REASON = absent()


class Stopped:
    """Three runs of one command: two that nobody stops, and one that is killed and goes on."""

    def same(self, command, flags, stop_after):
        command = ["train", command, "--device", DEVICE, *flags]
        for folder in ("whole", "again"):
            self.succeed(*command, "-o", folder)
        self.assertEqual(self.lines("again"), self.lines("whole"))
        self.kill(command + ["-o", "killed"], stop_after)
        self.assertEqual(self.succeed(*command[:2], "--device", DEVICE, "--resume", "killed"), "killed/model\n")
        self.assertEqual(self.lines("killed"), self.lines("whole"))
        for folder in ("again", "killed"):
            for name in ("model.safetensors", "config.json"):
                with open(self.path(folder, "model", name), "rb") as x, open(self.path("whole", "model", name), "rb") as y:
                    self.assertEqual(x.read(), y.read(), f"{folder}/{name}")
        print(f"{command[1]} on {DEVICE}: {len(self.log('whole'))} lines of the log and the model are the same three times")

    def kill(self, command, stop_after):
        """kill -9 once this step is in the log, or soon after."""
        process = subprocess.Popen([PROGRAM, *command], cwd=self.dir, env=environment(), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        log = self.path("killed", "log.jsonl")
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if os.path.exists(log) and any(r["step"] >= stop_after for r in self.log("killed", whole=False)):
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        self.assertEqual(process.wait(timeout=60), -signal.SIGKILL)


@unittest.skipIf(REASON, REASON)
class DeviceAr(Stopped, TrainCase):
    FLAGS = [*DATA, *TINY, "--steps", "200", "--save-every", "20", "--eval-every", "50", "--val", "0.2", "--ema", "0.99"]

    def test_f32(self):
        self.same("ar", self.FLAGS, 30)

    def test_bf16(self):
        self.same("ar", [*self.FLAGS, "--bf16", "--accum", "2", "--checkpointing"], 30)


@unittest.skipIf(REASON, REASON)
class DeviceTokenizer(Stopped, TokenizerCase):
    FLAGS = ["--data", "data", *SMALL, "--steps", "60", "--save-every", "6", "--eval-every", "20", "--ema", "0.99",
             "--disc-start", "4", "--revive", "5", "--codebook-start", "sampled"]

    def test_f32(self):
        self.same("tokenizer", self.FLAGS, 9)

    def test_bf16(self):
        self.same("tokenizer", [*self.FLAGS, "--bf16", "--adaptive", "--entropy", "0.1", "--l1", "0.5"], 9)


if __name__ == "__main__":
    main()
