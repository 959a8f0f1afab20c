"""``python -m fuzz TARGET SECONDS``: with atheris, which sees the branches, or by random changes without.

The seed of the random changes is printed, and so is an input that fails; the exit code is not 0 then.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

LONGEST = 4096


def changed(content: bytes, words: tuple[bytes, ...], chance: random.Random) -> bytes:
    """An input with some of it cut out, doubled, or replaced."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(content))
        to = min(len(content), at + chance.choice((0, 0, 1, 2, 16)))
        new = chance.choice(
            (b"", chance.choice(words), chance.randbytes(chance.randint(1, 3)), content[at:to] * 2)
        )
        content = content[:at] + new + content[to:]
    return content[:LONGEST]


def without_atheris(target: ModuleType, seconds: float) -> int:
    seed = secrets.randbits(32)
    chance, until, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        content = chance.choice(target.SEEDS)
        content = (
            changed(content, target.WORDS, chance) if count >= len(target.SEEDS) else target.SEEDS[count]
        )
        try:
            target.check(content)
        except Exception:
            sys.stderr.write(f"seed={seed} input={content!r}\n")
            raise
        count += 1
    sys.stdout.write(f"driver=random reason='atheris is not installed' seed={seed} inputs={count}\n")
    return 0


def with_atheris(name: str, seconds: float) -> None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["mailroom"]):
        target = importlib.import_module(f"fuzz.{name}")
    folder = Path(tempfile.mkdtemp(prefix="mailroom-fuzz-"))
    for number, seed in enumerate(target.SEEDS):
        (folder / str(number)).write_bytes(seed)
    sys.stdout.write("driver=atheris\n")
    sys.stdout.flush()
    limits = [f"-max_total_time={seconds:.0f}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/failed-"]
    atheris.Setup([sys.argv[0], *limits, str(folder)], target.check)
    atheris.Fuzz()  # ends the process


def main() -> int:
    name, seconds = sys.argv[1], float(sys.argv[2])
    if importlib.util.find_spec("atheris"):
        with_atheris(name, seconds)
    return without_atheris(importlib.import_module(f"fuzz.{name}"), seconds)


if __name__ == "__main__":
    sys.exit(main())
