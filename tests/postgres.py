"""A PostgreSQL of its own for tests, in a temporary folder and on a Unix socket.

Needs Debian's package postgresql.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from sqlalchemy import URL

_START_S = 60


class Cluster:
    """A PostgreSQL server.

    Args:
        folder: short, because a socket's path is; owned by the user of the server.
        user: runs the server, which refuses root; None for this user.
    """

    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder, self._user = folder, user
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", str(folder / "data"), "-U", "matryo", "-A", "trust", "--no-sync",
            "--encoding=UTF8", "--locale=C",
        )  # fmt: skip

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                _program("postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder),
                "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200",
            ],
            user=self._user, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _START_S
        ready = [_program("pg_isready"), "-q", "-h", str(self.folder), "-U", "matryo"]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline, "PostgreSQL does not answer"

    def stop(self) -> None:
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._run("pg_ctl", "stop", "-D", str(self.folder / "data"), "-m", "immediate")
            self._process.wait()
            self._process = None

    def url(self, schema: str = "public") -> URL:
        """The URL of a schema of the server's database."""
        return URL.create(
            "postgresql+psycopg",
            username="matryo",
            database="postgres",
            query={"host": str(self.folder), "options": f"-csearch_path={schema}"},
        )

    def create(self, schema: str) -> URL:
        """A new schema."""
        self._run(
            "psql", "-q", "-h", str(self.folder), "-U", "matryo", "postgres",
            "-c", f"CREATE SCHEMA {schema}",
        )  # fmt: skip
        return self.url(schema)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [_program(program), *arguments],
            user=self._user,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def cluster() -> Generator[Cluster, None, None]:
    """A running server, which is gone at the end of the block."""
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        made = Cluster(folder, user)
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder)


def _program(name: str) -> str:
    """The path of a program of PostgreSQL; Debian keeps most of them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    assert path, f"{name} is missing: apt-get install postgresql"
    return path
