"""Runs ``mailroom`` in this process: a tenth of what a new interpreter costs.

For tests of what a command prints and returns; how a process lives and dies needs a process.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from unittest import mock

from mailroom.cli.main import main


def run(*arguments: str, env: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What ``mailroom arguments…`` prints and its exit code, in an environment of these variables alone."""
    done = run_bytes(*arguments, env=env, stdin=stdin.encode())
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode(errors="backslashreplace")
    )


def run_bytes(
    *arguments: str, env: Mapping[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """As ``run``, in bytes. The streams are files, because some commands read and write descriptors."""
    root, ours = logging.getLogger(), logging.getLogger("mailroom")
    handlers, levels = [*root.handlers], (root.level, ours.level)
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        open(os.dup(given.fileno()), encoding="utf-8") as text_in,
        open(os.dup(out.fileno()), "w", encoding="utf-8") as text_out,
        open(os.dup(err.fileno()), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as text_err,
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch.multiple(sys, stdin=text_in, stdout=text_out, stderr=text_err),
    ):
        given.write(stdin)
        given.seek(0)
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.captureWarnings(capture=False)
            root.handlers[:] = handlers
            for logger, level in zip((root, ours), levels, strict=True):
                logger.setLevel(level)
        text_out.flush()
        text_err.flush()
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(arguments, code, out.read(), err.read())
    heard(arguments, env, done.stderr)
    return done


def heard(arguments: tuple[str, ...], env: Mapping[str, str], stderr: bytes) -> None:
    """Called with the log of each command: ``support.secrets`` puts its watch here."""
