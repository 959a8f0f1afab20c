"""Builds the workers in Go and Node from the folders beside this file, once for each content of them.

A build is in a folder of its own in the virtual environment, so that no file of it is in the source.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers.queues import Missing
from bench.tell import tell

HERE = Path(__file__).parent


def build(name: str, tool: str, *commands: list[str]) -> Path:
    """Copy the folder, run the commands in the copy, and return it.

    Raises:
        Missing: the tool is not installed, or a command failed.
    """
    files = sorted(path for path in (HERE / name).iterdir() if path.is_file())
    content = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
    built = Path(sys.prefix) / "peers" / f"{name}-{content[:16]}"
    done = built / ".done"
    if done.exists():
        return built
    if not shutil.which(tool):
        raise Missing(f"{tool} is not installed")
    for old in built.parent.glob(f"{name}-*"):
        shutil.rmtree(old)
    shutil.copytree(HERE / name, built, ignore=shutil.ignore_patterns("node_modules"))
    tell(f"{name}: {tool} builds it")
    for command in commands:
        ran = subprocess.run(command, cwd=built, capture_output=True, text=True, check=False)
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or [""])[-1]
            raise Missing(f"`{' '.join(command)}` failed: {last}")
    done.touch()
    return built
