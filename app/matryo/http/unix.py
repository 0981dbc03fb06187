"""The file of a Unix socket: made under another name, given its path when the server is ready.

Whatever is at the path thus listens, or its server has died: a socket file at which nobody
listens is stale and may be replaced. A lock on the folder orders servers that start together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

_MODE = 0o660
_CONNECT_S = 2.0
_MOST_PATH_BYTES = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True)
class SocketFile:
    """The file of a bound Unix socket.

    Attributes:
        path: where clients look for the file.
        bound: where the file is before `publish`.
        inode: tells the file from another server's at the same path.
    """

    path: Path
    bound: Path
    inode: int

    def publish(self) -> None:
        """Move the file to its path; a stale file there is replaced.

        Raises:
            OSError: another process listens at the path, or the path is no socket.
        """
        with _locked(self.path.parent):
            _check_free(self.path)
            self.bound.rename(self.path)

    def remove(self) -> None:
        """Remove the file, published or not; another server's file stays."""
        self.bound.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError), _locked(self.path.parent):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


def bind_file(path: Path) -> tuple[socket.socket, SocketFile]:
    """A socket bound beside `path`, and its file; owner and group may connect.

    Raises:
        OSError: another process listens at `path`, `path` is no socket or too long, or the folder
            cannot be written.
    """
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        reason = f"a socket's path has at most {_MOST_PATH_BYTES} bytes"
        raise OSError(errno.ENAMETOOLONG, reason)
    _check_free(path)
    bound = path.parent / f".{secrets.token_hex(4)}"
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.bind(str(bound))
        bound.chmod(_MODE)
        return one, SocketFile(path, bound, bound.lstat().st_ino)
    except OSError:
        one.close()
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "this file is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(_CONNECT_S)
        try:
            caller.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except TimeoutError:
            pass  # its backlog is full: somebody listens
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
