"""Damage image headers, model files and JSON at random, with a seed, and see whether the library survives it.

``test_fuzz.py`` runs a few hundred of these with fixed seeds. A longer run, which prints each file that was not handled
and keeps it::

    python Testing/core/fuzzers.py --minutes 10 --seed 7

Reading runs in processes of its own: a crash of a reader ends only one of them, and is found by its exit status.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from command_helpers import environment

# Values that break assumptions: of sizes, counts, types and offsets.
_INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**62)
_WORDS = ("", "0", "-1", "1", "nan", "inf", "-inf", "1e400", "99999999999", "-99999999999", "x", "%s%n", "0 0 0", "\0")
_WORDS += ("1 1", "2 2 2 2", "99999 99999 99999", "LIST", "LOCAL", "None", "../../etc/passwd", "\xff\xfe", "A" * 5000)
_TEXT = (".mha", ".mhd", ".nrrd", ".nhdr", ".vtk", ".spr")


def damaged_bytes(data: bytes, chance: random.Random, header: int = 512) -> bytes:
    """Change a few bytes of the beginning of a file, or cut it off."""
    result = bytearray(data)
    end = min(len(result), header)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        at = chance.randrange(end)
        how = chance.randrange(4)
        if how == 0:
            result[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            result[at] = chance.randrange(256)
        else:
            width = chance.choice((2, 4, 8))
            at -= at % width if how == 2 else 0
            value = chance.choice(_INTEGERS) % 2 ** (8 * width)
            result[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))
    if chance.random() < 0.15:
        del result[chance.randrange(len(result)) :]
    return bytes(result)


def damaged_text(data: bytes, chance: random.Random, lines: int = 24) -> bytes:
    """Change a few of the first lines of a header of text: delete one, repeat one, or change its value."""
    parts = data.split(b"\n", lines)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(max(1, len(parts) - 1))
        how = chance.randrange(5)
        if how == 0:
            del parts[at]
        elif how == 1:
            parts.insert(at, chance.choice(parts[:-1] or parts))
        elif how == 2:
            parts[at] = damaged_bytes(parts[at] or b"x", chance)
        else:
            mark = b"=" if b"=" in parts[at] else b":" if b":" in parts[at] else b" "
            key, mark, value = parts[at].partition(mark)
            words = value.split() or [b""]
            words[chance.randrange(len(words))] = chance.choice(_WORDS).encode("latin-1")
            parts[at] = key + mark + b" " + b" ".join(words)
        if not parts:
            return b""
    result = b"\n".join(parts)
    return result[: chance.randrange(1, len(result) + 1)] if chance.random() < 0.1 and result else result


def damaged_images(folder: Path, samples: list[Path], seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged copies of image files, one folder each for those with voxels in another file."""
    chance = random.Random(seed)
    for number in range(count):
        path = chance.choice(samples)
        place = folder / f"{seed}-{number:06d}"
        shutil.copytree(path.parent, place)
        data = path.read_bytes()
        text = path.suffix in _TEXT and chance.random() < 0.8
        (place / path.name).write_bytes(damaged_text(data, chance) if text else damaged_bytes(data, chance))
        yield place / path.name


READER = """
import sys
from pathlib import Path
from DRDMLib.errors import DRDMError
from DRDMLib.io.images import read_image, image_files
for line in sys.stdin.buffer:
    path = Path(line.decode().rstrip("\\n"))
    try:
        read_image(path)
        image_files(path)
        outcome = "read"
    except DRDMError as error:
        outcome = "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
    except BaseException as error:
        import traceback
        outcome = f"{type(error).__name__} " + " < ".join(
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[::-1][:4])
    # Readers print lines of their own.
    sys.stdout.write("\\n@" + outcome + "\\n"); sys.stdout.flush()
"""


def outcomes(paths: list[Path], code: str = READER, timeout: float = 120) -> list[str]:
    """Pass files to ``code`` in a process, which prints a line for each; a crash is an outcome of its own."""
    found: list[str] = []
    while len(found) < len(paths):
        left = paths[len(found) :]
        given = "".join(f"{path}\n" for path in left).encode()
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], input=given, capture_output=True, env=environment(), timeout=timeout
            )
            output, status = done.stdout, f"crash (status {done.returncode})"
        except subprocess.TimeoutExpired as error:
            output, status = error.stdout or b"", "no answer in time"
        lines = [line[1:] for line in output.decode("utf-8", "replace").splitlines() if line.startswith("@")]
        found += lines
        if len(lines) < len(left):
            found.append(status)
    return found
