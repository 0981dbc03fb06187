"""The blocks of docs/encoderfile.md that need no file; `make integration` runs the others."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest

from matryo.cli import main
from tests.contract.conftest import live_server
from tests.encoderfile_page import Block, read_page
from tests.fakes import FakeEngine

BLOCKS = list(read_page())
ASKING = [block for block in BLOCKS if block.needs_server]
SHOWN = ['"object":"list"', "[512, 512]\n", "[512, 512] 7\n", "[512, 512]\n"]


@pytest.mark.parametrize(("block", "shown"), list(zip(ASKING, SHOWN, strict=True)))
def test_clients(engine: FakeEngine, block: Block, shown: str, tmp_path: Path) -> None:
    """Each client gets vectors of the page's size from a server with the page's settings."""
    with live_server(engine, grpc_port=0, dimensions=512) as live:
        grpc_port = live.application.state.grpc_server.port
        printed = block.at(live.port, grpc_port, 512).run(tmp_path)
    assert shown in printed
    if printed.startswith("{"):
        assert [len(item["embedding"]) for item in json.loads(printed)["data"]] == [512, 512]


def test_commands_of_the_file() -> None:
    """Each command of the file is one that a bundle has, options included."""
    lines = [line for block in BLOCKS for line in block.text.splitlines() if "./nomic" in line]
    assert len(lines) == 6
    for line in lines:
        name, *arguments = shlex.split(line.split("./nomic ")[1].split(" > ")[0])
        context = click.Context(main)
        command = main.get_command(context, name)
        assert command, name
        given = ["model", *arguments] if name in ("embed", "verify") else arguments
        command.make_context(name, given, parent=context)
