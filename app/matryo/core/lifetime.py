"""The end of a process when its parent ends, even if the parent is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable


def end_with_parent(wait: Callable[[], object], patience_s: float) -> None:
    """Send SIGTERM to this process once its parent is gone, and SIGKILL `patience_s` later.

    Args:
        wait: returns when the parent is gone. The usual way is to read a pipe whose other end
            the parent alone holds: the kernel closes that end, however the parent ends.
        patience_s: seconds for an orderly end.
    """

    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="matryo-parent", daemon=True).start()
