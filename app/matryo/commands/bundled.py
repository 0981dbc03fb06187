"""The start of a program that runs from a bundle, before its command line is read."""

from __future__ import annotations

import multiprocessing
import os
import sys

from matryo.core import logging as logs
from matryo.core.errors import MatryoError, SettingsInvalid
from matryo.core.fixed import REFUSED, Fixed, fix
from matryo.store.bundle import Bundle, running, running_check

_NEEDS_MODEL = ("embed", "verify")
# Commands that check the whole file, and a process of `serve --processes`.
_LOADS = ("embed", "info", "serve", "verify", "--multiprocessing-fork")


def enter() -> None:
    """Fix the bundle's settings, and complete the command line.

    A process that was started by a server, which is a worker or prepares a model, ends here.
    """
    try:
        bundle = running()
        if bundle is None:
            raise SettingsInvalid(
                f"{sys.executable} is a part of a bundle. Run the bundle, which is one file, itself"
            )
        _fix(bundle)
        if sys.argv[1:2] and sys.argv[1] in _LOADS:
            running_check()  # goes on while modules are imported
        multiprocessing.freeze_support()
        if sys.argv[1:] == ["-m", "matryo.commands.prepare"]:
            from matryo.commands import prepare

            sys.exit(prepare.main())
        sys.argv[1:] = complete(sys.argv[1:], bundle)
    except MatryoError as exc:
        logs.fatal(exc.message)
        sys.exit(1)


def _fix(bundle: Bundle) -> None:
    index = bundle.index
    os.environ["MATRYO_HOME"] = str(bundle.home)
    fix(Fixed(index.settings, frozenset(index.locked), str(bundle.file)))


def complete(arguments: list[str], bundle: Bundle) -> list[str]:
    """The arguments with the bundle's model, where a command needs a model.

    Raises:
        SettingsInvalid: the command is for a store, and a bundle has none.
    """
    if not arguments:
        return arguments
    command, *rest = arguments
    if command in REFUSED:
        raise SettingsInvalid(
            f"{bundle.file} holds {bundle.index.model_id} alone, and has no command '{command}'. "
            "Use the command matryo of an installation"
        )
    if command in _NEEDS_MODEL and bundle.index.model_id not in rest:
        return [command, bundle.index.model_id, *rest]
    return arguments
