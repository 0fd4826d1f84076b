"""The world around the program: signals, terminals, full disks, closed pipes, little memory."""

import os
import pty
import resource
import signal
import subprocess
import time
import unittest

from support import (GROUP, PROGRAM, SANITIZED, Case, complaints, environment, golden_picture, main, png_chunks, run,
                     write_npy)


class Signals(Case):
    def start(self, *args, **more):
        return subprocess.Popen([PROGRAM, *args], cwd=self.dir, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **more)

    def wait_for_files(self, process):
        for _ in range(600):
            if os.listdir(self.dir) or process.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(0.3)  # into the work
        self.assertIsNone(process.poll(), "it should still be at work")

    def interrupt(self, number, status, *args):
        process = self.start(*args)
        self.wait_for_files(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, status, err)
        self.assertEqual((complaints(err.decode()), out), (["aim: cancelled"], b""))

    def test_codes(self):
        args = ["generate", "-m", GROUP, "-n", "100000", "--codes-out", "c.npy"]
        self.interrupt(signal.SIGINT, 130, *args)
        self.assertEqual(os.listdir(self.dir), [])
        self.interrupt(signal.SIGTERM, 143, *args)
        self.assertEqual(os.listdir(self.dir), [])

    def test_pictures(self):
        self.interrupt(signal.SIGINT, 130, "generate", "-m", GROUP, "-n", "100000", "-o", "x.npz", "--codes-out", "c.npy", "--batch", "4")
        self.assertEqual(os.listdir(self.dir), [])

    def test_folder(self):
        """Pictures are there as soon as their batch is; finished ones stay, and all of them are whole."""
        process = self.start("generate", "-m", GROUP, "-n", "100000", "-o", "x/", "--batch", "4")
        for _ in range(600):
            if os.path.exists(self.path("x", "000009.png")) or process.poll() is not None:
                break
            time.sleep(0.05)
        self.assertIsNone(process.poll(), "it should still be at work")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, complaints(err.decode())), (130, ["aim: cancelled"]))
        names = sorted(os.listdir(self.path("x")))
        self.assertEqual(names, ["%06d.png" % i for i in range(len(names))])
        self.assertGreaterEqual(len(names), 10)
        for name in names:
            self.assertEqual(list(png_chunks(self.path("x", name)))[-1][0], b"IEND")

    def test_tokenizer(self):
        for number, name in enumerate(("encode", "reconstruct")):
            golden_picture(self.path("p.png"))
            process = self.start(name, "-m", GROUP, *["p.png"] * 20000, "-o", "x.npy" if number == 0 else "x.npz")
            time.sleep(2)
            self.assertIsNone(process.poll(), "it should still be at work")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, complaints(err.decode())), (130, ["aim: cancelled"]))
            self.assertEqual(os.listdir(self.dir), ["p.png"])

    def test_ignored(self):
        """What the parent ignores (nohup, a job in the background) stays ignored."""
        process = self.start("generate", "-m", GROUP, "-n", "100000", "--codes-out", "c.npy",
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        self.wait_for_files(process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 143)


class Terminal(Case):
    def on_terminal(self, *args):
        """What the terminal on stderr receives."""
        master, slave = pty.openpty()
        process = subprocess.Popen([PROGRAM, *args], cwd=self.dir, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=slave)
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            seen += piece
        os.close(master)
        self.assertEqual(process.wait(60), 0, seen)
        return seen.decode()

    def test_bar(self):
        args = ["generate", "-m", GROUP, "-n", "400", "--codes-out", "c.npy"]
        seen = self.on_terminal(*args)
        self.assertRegex(seen, r"\d+%")
        self.assertRegex(seen, r"\d/s")
        self.assertTrue(seen.endswith(("\n", "\r\x1b[K")), seen[-80:])
        seen = self.on_terminal(*args, "-q")
        self.assertNotIn("%", seen)

    def test_silent_elsewhere(self):
        result = run("generate", "-m", GROUP, "-n", "400", "--codes-out", "c.npy", "-q", cwd=self.dir)
        self.assertEqual(complaints(result.stderr), [])
        self.assertNotIn("%", result.stderr)


class FullDisk(Case):
    def commands(self):
        codes = write_npy(self.path("c.npy"), "<i8", (2, 16), [1] * 32)
        labels = write_npy(self.path("l.npy"), "<i8", (2,), [1, 2])
        picture = golden_picture(self.path("p.png"))
        yield "x.png", ["generate", "-m", GROUP, "-c", "1", "-o", "x.png"]
        yield "x.npz", ["generate", "-m", GROUP, "-c", "1", "-o", "x.npz"]
        yield "x.npy", ["generate", "-m", GROUP, "-c", "1", "--codes-out", "x.npy"]
        yield "x.npy", ["encode", "-m", GROUP, picture, "-o", "x.npy"]
        yield "x.npy", ["decode", "-m", GROUP, codes, "-o", "x.npy"]
        yield "x.png", ["decode", "-m", GROUP, codes, "-o", "x.png"]
        yield "x.npz", ["reconstruct", "-m", GROUP, picture, "-o", "x.npz"]
        yield "x.npy", ["score", "-m", GROUP, "--codes", codes, "--labels", labels, "--logits", "x.npy"]

    def test_output(self):
        for name, args in self.commands():
            with self.subTest(args[0], name=name):
                os.symlink("/dev/full", self.path(name))
                self.fail_with(*args, says=name)
                os.remove(self.path(name))

    def test_file_size_limit(self):
        """A write that fails in the middle: the temporary file goes too."""
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

        for name, args in self.commands():
            with self.subTest(args[0], name=name):
                self.fail_with(*args, says=name, preexec_fn=limit)
        self.fail_with("init", "--preset", "tiny", "-o", "new", preexec_fn=limit)

    def printing(self):
        yield ["--help"]
        yield ["--version"]
        yield ["generate", "--help"]
        yield ["info", "-m", GROUP]
        yield ["info", "-m", GROUP, "--tensors", "--json"]
        yield ["score", "-m", GROUP, "--codes", self.path("c.npy"), "--labels", self.path("l.npy")]
        yield ["generate", "-m", GROUP, "-c", "1", "--codes-out", self.path("x.npy")]

    def check_stdout(self, **more):
        list(self.commands())
        for args in self.printing():
            with self.subTest(args=args):
                result = run(*args, cwd=self.dir, **more)
                self.assertEqual(result.returncode, 1)
                self.assertEqual(len(complaints(result.stderr)), 1)
                self.assertTrue(complaints(result.stderr)[0].startswith("aim: cannot write to standard output"))

    def test_stdout(self):
        with open("/dev/full", "wb") as full:
            self.check_stdout(stdout=full)

    def test_closed_pipe(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        self.check_stdout(stdout=write_end)
        os.close(write_end)

    def test_closed_stdout(self):
        self.check_stdout(preexec_fn=lambda: os.close(1))

    def test_closed_stderr(self):
        """Messages must not land in the file that takes the free number."""
        result = run("generate", "-m", GROUP, "-c", "1", "--codes-out", "x.npy", cwd=self.dir, preexec_fn=lambda: os.close(2))
        self.assertEqual(result.returncode, 0)
        with open(self.path("x.npy"), "rb") as f:
            self.assertEqual(f.read(6), b"\x93NUMPY")


class Memory(Case):
    def test_batch(self):
        """A batch that cannot fit is refused before anything is written."""
        args = ["generate", "-m", GROUP, "-n", "10000000", "--batch", "10000000"]
        self.assertIn("--batch", self.fail_with(*args, "-o", "x.npz"))
        self.assertIn("--batch", self.fail_with(*args, "--codes-out", "c.npy"))

    @unittest.skipIf(SANITIZED, "AddressSanitizer reserves address space")
    def test_address_space(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (1500 * 2**20, 1500 * 2**20))

        self.fail_with("init", "--preset", "AiM-1B", "-o", "big", "--threads", "1", says="memory", preexec_fn=limit)

    @unittest.skipIf(SANITIZED, "AddressSanitizer comments on the refused allocation")
    def test_huge_picture(self):
        """A picture that claims more pixels than memory could hold."""
        self.fail_with("encode", "-m", GROUP, golden_picture(self.path("p.png")), "-o", "c.npy", "--size", "65536")


if __name__ == "__main__":
    main()
