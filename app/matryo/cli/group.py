"""The command `matryo` as a whole: what ends a command, and with which status."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any, NoReturn

import click

from matryo.core import logging as logs
from matryo.core import signals, terminal
from matryo.core.errors import MatryoError
from matryo.core.fixed import REFUSED, fixed

# Until a command runs, a process with the id 1 is deaf to signals: nothing slow is imported here.

_READER_GONE = 128 + signal.SIGPIPE  # what a shell shows for a program that SIGPIPE ended
# The module below matryo.cli that has each command, as a function of the command's name.
_MODULES = {
    **dict.fromkeys(("health", "mcp", "serve"), "servers"),
    **dict.fromkeys(("batch", "embed"), "texts"),
    **dict.fromkeys(("add", "bench", "build", "bundle", "info"), "models"),
    **dict.fromkeys(("models", "pull", "remove", "verify"), "models"),
    "guard": "guard",
    "key": "keys",
}
# What help calls the commands of a module, in the order of help.
_SECTIONS = {
    "servers": "Serve",
    "models": "Models",
    "texts": "Texts",
    "guard": "Indexes",
    "keys": "Keys",
}
_FIRST_STEPS = (
    ("models", "what is ready on this machine"),
    ("serve --model all-minilm-l6-v2", "fetch, build and serve a model"),
    ("embed all-minilm-l6-v2 texts.txt", "embed a file without a server"),
)
_FIRST_STEPS_OF_A_BUNDLE = (
    ("info", "what this file holds"),
    ("serve", "serve the model in it"),
    ("embed texts.txt", "embed a file without a server"),
)
_LOG_FORMAT = "--log-format"
_HELP = frozenset(("-h", "--help"))


class Commands(click.Group):
    """Errors on purpose, and of the operating system, become one line on standard error.

    The exit status is then 1 (2 for flags and arguments that do not fit); 130, 143 or 129 after
    SIGINT (Ctrl-C), SIGTERM or SIGHUP; 141, and no line, if the reader of standard output went
    away before everything was written, as in `matryo embed ... | head`.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; a signal ends the command from the first moment on."""
        try:
            with signals.stoppable():
                logs.open_standard_streams()
                return super().main(*args, **kwargs)
        except signals.Stopped as exc:
            _end(exc.status, exc.sentence)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` name; what `matryo serve` reports is a log from here on."""
        name, command, rest = super().resolve_command(ctx, args)
        if name == "serve" and not _HELP.intersection(rest):
            signals.outlive_others()
            _log_early(rest)
        return name, command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands that help lists; a bundle has fewer."""
        return sorted(name for name in _MODULES if not (fixed().where and name in REFUSED))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by what they are for."""
        for module, title in _SECTIONS.items():
            names = [name for name in self.list_commands(ctx) if _MODULES[name] == module]
            found = [(name, self.get_command(ctx, name)) for name in names]
            limit = formatter.width - 6 - max(map(len, _MODULES))
            rows = [(name, one.get_short_help_str(limit)) for name, one in found if one]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_spacing=2)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first steps, and where more is said."""
        steps = _FIRST_STEPS_OF_A_BUNDLE if fixed().where else _FIRST_STEPS
        with formatter.section("First steps"):
            rows = [(f"{ctx.command_path} {step}", what) for step, what in steps]
            formatter.write_dl(rows, col_max=44)
        formatter.write_paragraph()
        formatter.write_text(f"{ctx.command_path} COMMAND --help has examples of each command.")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name; its module is loaded here, and the others are not."""
        if module := _MODULES.get(cmd_name):
            return getattr(importlib.import_module(f"matryo.cli.{module}"), cmd_name)
        return None

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a command; what it raises becomes one line and an exit status."""
        try:
            return super().invoke(ctx)
        except MatryoError as exc:
            _end(1, exc.message)
        except click.ClickException as exc:
            if not logs.writes_json():
                raise
            _end(exc.exit_code, exc.format_message())
        except BrokenPipeError:
            _end(_READER_GONE)
        except OSError as exc:
            name = f"{exc.filename}: " if exc.filename else ""
            _end(1, f"{name}{exc.strerror or exc}")


def _end(status: int, sentence: str = "") -> NoReturn:
    """Say one sentence, if any, and end, whatever state standard output is in."""
    terminal.erase()  # a thread that loads a model may draw still
    if sentence:
        logs.fatal(sentence)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would write the rest once more at its end, fail again, and change the status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:  # closed from the start
        pass
    sys.exit(status)


def _log_early(args: list[str]) -> None:
    """Configure the log by flag or setting, so that a fault of either is a log line too."""
    from matryo.core.environment import peek

    flags = [*args, ""]
    given = [flags[at + 1] for at, flag in enumerate(args) if flag == _LOG_FORMAT]
    given += [flag.partition("=")[2] for flag in args if flag.startswith(f"{_LOG_FORMAT}=")]
    logs.configure("info", logs.style_of(given[-1] if given else peek("log_format")))


class Serve(click.Command):
    """`matryo serve`: its help lists the settings."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and every setting with its default."""
        from matryo.core.environment import default_text
        from matryo.core.settings import Settings

        super().format_epilog(ctx, formatter)
        with formatter.section("Settings, by flag, environment or .env (more in docs/serve.md)"):
            formatter.write_dl(
                [
                    (
                        f"MATRYO_{name.upper()}",
                        f"{field.description} [{default_text(name) or 'none'}]",
                    )
                    for name, field in Settings.model_fields.items()
                ]
            )
