"""What the black-box tests share: running the program, and reading and writing its files with the standard library."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import unittest
import zipfile
import zlib

PROGRAM = os.path.abspath(os.environ.get("AIM_PROGRAM", "aim"))
DATA = os.path.abspath(os.environ.get("AIM_TEST_DATA", os.path.join(os.path.dirname(__file__), "..", "data")))
SANITIZED = os.environ.get("AIM_SANITIZED") == "1"  # limits on address space do not go with AddressSanitizer
GROUP = os.path.join(DATA, "tiny-group")
ADALN = os.path.join(DATA, "tiny-adaln")
TORCH = os.path.join(DATA, "torch-files")
IMAGES = os.path.join(DATA, "images")
COMMANDS = ["generate", "encode", "decode", "reconstruct", "score", "extract-codes", "convert", "init", "info"]


def environment(**changes):
    env = dict(os.environ)
    env.pop("AIM_MODEL", None)
    env.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take the cores that other tests need
    env.update(changes)
    return env


def run(*args, program=None, cwd=None, env=None, timeout=300, **more):
    """Runs the program; the result has returncode, stdout and stderr (text)."""
    command = [program or PROGRAM] + [os.fspath(a) if not isinstance(a, (str, bytes)) else a for a in args]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    streams.update(more)
    result = subprocess.run(command, cwd=cwd, env=env or environment(), timeout=timeout, **streams)
    result.stdout = (result.stdout or b"").decode("utf-8", "replace")
    result.stderr = (result.stderr or b"").decode("utf-8", "replace")
    return result


def tree(folder):
    """Every file and folder below `folder`, with the size of files."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.relpath(os.path.join(base, name), folder) + "/"] = 0
        for name in files:
            path = os.path.join(base, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


def complaints(stderr):
    """The lines of stderr that are neither warnings nor notes."""
    return [l for l in stderr.splitlines() if not l.startswith(("aim: warning: ", "aim: note: "))]


class Case(unittest.TestCase):
    """A test with an empty folder of its own, self.dir."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="aim-cli-")
        self.addCleanup(shutil.rmtree, self.dir, True)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def succeed(self, *args, **more):
        """Runs it in self.dir; status 0 and nothing on stderr but notes. Returns stdout."""
        result = run(*args, **{"cwd": self.dir, **more})
        self.assertEqual(result.returncode, 0, f"{args}: {result.stderr}")
        self.assertEqual(complaints(result.stderr), [])
        return result.stdout

    def succeed_json(self, *args, **more):
        return json.loads(self.succeed(*args, "--json", **more))

    def refuse(self, *args, says="", **more):
        """Wrong usage: status 2, one line that names the command and --help, nothing on stdout, nothing written."""
        line = self._fail(2, args, says, f"aim {args[0]}: ", more)
        self.assertTrue(line.endswith(f" (try 'aim {args[0]} --help')"), line)
        return line

    def fail_with(self, *args, says="", **more):
        """A failure: status 1, one line that begins with "aim: ", nothing on stdout, nothing written."""
        return self._fail(1, args, says, "aim: ", more)

    def _fail(self, status, args, says, prefix, more):
        before = tree(self.dir)
        result = run(*args, **{"cwd": self.dir, **more})
        what = f"{args}: status {result.returncode}, stderr: {result.stderr}"
        self.assertEqual(result.returncode, status, what)
        lines = complaints(result.stderr)
        self.assertEqual(len(lines), 1, what)
        self.assertTrue(lines[0].startswith(prefix), what)
        self.assertIn(says, lines[0], what)
        self.assertEqual(result.stdout, "", what)
        self.assertEqual(tree(self.dir), before, what)
        return lines[0]


# ------------------------------------------------------------------------------------------------ arrays

FORMATS = {"F32": "f", "F64": "d", "I64": "q", "I32": "i", "U16": "H", "U8": "B"}
NPY = {"<f4": "f", "<f8": "d", "<i8": "q", "<i4": "i", "|u1": "B"}


class Array:
    """Row-major numbers of one type with a shape."""

    def __init__(self, descr, shape, values):
        self.descr, self.shape, self.values = descr, tuple(shape), list(values)

    def __len__(self):
        return len(self.values)


def product(shape):
    n = 1
    for s in shape:
        n *= s
    return n


def read_safetensors(path, *names):
    with open(path, "rb") as f:
        data = f.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    out = []
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        raw = data[8 + length + begin : 8 + length + end]
        out.append(Array(entry["dtype"], entry["shape"], struct.unpack(f"<{product(entry['shape'])}{FORMATS[entry['dtype']]}", raw)))
    return out if len(out) > 1 else out[0]


def parse_npy(data):
    assert data[:6] == b"\x93NUMPY", data[:8]
    width, at = (2, 10) if data[6] == 1 else (4, 12)
    length = int.from_bytes(data[8 : 8 + width], "little")
    header = data[at : at + length].decode("latin-1")
    descr = re.search(r"'descr': *'([^']*)'", header).group(1)
    assert re.search(r"'fortran_order': *False", header), header
    shape = [int(s) for s in re.search(r"'shape': *\(([^)]*)\)", header).group(1).split(",") if s.strip()]
    body = data[at + length :]
    values = struct.unpack(f"<{product(shape)}{NPY[descr]}", body)  # fails unless the size is exact
    return Array(descr, shape, values)


def read_npy(path):
    with open(path, "rb") as f:
        return parse_npy(f.read())


def read_npz(path):
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        return {name: parse_npy(z.read(name)) for name in z.namelist()}


def write_npy(path, descr, shape, values):
    header = repr({"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    body = struct.pack(f"<{len(values)}{NPY[descr]}", *values)
    with open(path, "wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body)
    return path


# ---------------------------------------------------------------------------------------------- pictures


def png_chunks(path):
    with open(path, "rb") as f:
        data = f.read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        yield kind, body
        at += 12 + length


def png_text(path):
    """The tEXt, zTXt and iTXt entries."""
    texts = {}
    for kind, body in png_chunks(path):
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        key, rest = body.split(b"\0", 1)
        if kind == b"tEXt":
            value = rest.decode("latin-1")
        elif kind == b"zTXt":
            value = zlib.decompress(rest[1:]).decode("latin-1")
        else:
            packed, rest = rest[0], rest[2:].split(b"\0", 2)[2]
            value = (zlib.decompress(rest) if packed else rest).decode("utf-8")
        texts[key.decode("latin-1")] = value
    return texts


def read_png(path):
    """(width, height, RGB bytes) of an 8-bit RGB PNG without interlacing."""
    packed = b""
    for kind, body in png_chunks(path):
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            assert (depth, colour, interlaced) == (8, 2, 0)
        elif kind == b"IDAT":
            packed += body
    raw, stride = zlib.decompress(packed), width * 3
    out, above = bytearray(), bytearray(stride)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for x in range(stride):
            a, b, c = line[x - 3] if x >= 3 else 0, above[x], above[x - 3] if x >= 3 else 0
            if kind == 4:
                p = a + b - c
                pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
                guess = a if pa <= pb and pa <= pc else b if pb <= pc else c
            else:
                guess = (0, a, b, (a + b) // 2)[kind]
            line[x] = (line[x] + guess) & 255
        out += line
        above = line
    return width, height, bytes(out)


def write_png(path, width, height, rgb):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = io.BytesIO()
    for y in range(height):
        lines.write(b"\0" + rgb[y * width * 3 : (y + 1) * width * 3])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.getvalue())) + chunk(b"IEND", b""))
    return path


def golden_picture(path):
    """The picture of tiny-group/expected_vq as a PNG: its values are bytes, so nothing is lost."""
    image = read_safetensors(os.path.join(GROUP, "expected_vq.safetensors"), "image")
    _, _, height, width = image.shape
    plane = height * width
    rgb = bytes(round((image.values[c * plane + i] + 1) * 127.5) for i in range(plane) for c in range(3))
    return write_png(path, width, height, rgb)


def to_bytes(value):
    """LlamaGen's rule from [-1, 1]."""
    return int(min(max(127.5 * value + 128, 0), 255))


def relative_error(a, b):
    return max(abs(x - y) for x, y in zip(a, b)) / max(abs(y) for y in b)


def main():
    unittest.main(verbosity=2)
