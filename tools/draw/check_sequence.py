#!/usr/bin/env python3
"""Reports expressions that draw more than one random number: C does not say which is drawn first."""
import re
import sys

DRAWS = re.compile(r"\b(between|between_int|chance|fresh_key|vary|choose|CHOOSE|point_in)\s*\(")
TYPES = re.compile(r"^\s*(?:static\s+|const\s+)*(?:double|int|bool|size_t|uint32_t|struct \w+)\s")


def blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


def pieces(text):
    """Full expressions of a statement, with their offsets: declarators, and the parts of an outermost ?:, && or ||."""
    declaration = bool(TYPES.match(text))
    depth, start = 0, 0
    for i, ch in enumerate(text):
        depth += ch in "([{"
        depth -= ch in ")]}"
        cut = ch in "?:" or (declaration and ch == ",") or text[i : i + 2] in ("&&", "||")
        if depth == 0 and cut:
            yield start, text[start:i]
            start = i + 1
    yield start, text[start:]


def statements(code):
    """Text between semicolons outside parentheses, and between braces that open or close blocks."""
    depth, start = 0, 0
    for i, ch in enumerate(code):
        depth += ch == "("
        depth -= ch == ")"
        block = ch in "{}" and depth == 0 and not re.search(r"[=,]\s*$", code[start:i]) and code[start:i].count("{") == code[start:i].count("}")
        if (ch == ";" and depth == 0) or block:
            yield start, code[start:i]
            start = i + 1
    yield start, code[start:]


def split_control(start, text):
    """`if (a) b` is two expressions, `for (a; b; c) d` four."""
    match = re.match(r"\s*(?:else\s+)?(?:if|while|for|switch)\s*\(", text)
    if not match:
        yield start, text
        return
    depth = 1
    for i in range(match.end(), len(text)):
        depth += text[i] == "("
        depth -= text[i] == ")"
        if depth == 0:
            offset = start + match.end()
            for part in text[match.end() : i].split(";"):
                yield offset, part
                offset += len(part) + 1
            yield from split_control(start + i + 1, text[i + 1 :])
            return


def main(paths):
    bad = 0
    for path in paths:
        with open(path, encoding="utf-8") as file:
            code = file.read()
        code = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"])*\"|^#[^\n]*(?:\\\n[^\n]*)*", blank, code, flags=re.S | re.M)
        for start, text in statements(code):
            for offset, part in split_control(start, text):
                for at, piece in pieces(part):
                    if len(DRAWS.findall(piece)) > 1:
                        line = code.count("\n", 0, offset + at + len(piece) - len(piece.lstrip())) + 1
                        print(f"{path}:{line}: draws more than once: {' '.join(piece.split())}")
                        bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
