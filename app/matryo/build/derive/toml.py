"""The text of a `model.toml`, with the file that each derived value is from as a comment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import tomlkit

from matryo.build.derive.facts import Facts
from matryo.build.derive.said import Said

_HEAD = (
    "Derived from the checkpoint's own files; a comment names the file and the key of a value.",
    "Edit the values as you like. A contradiction to the checkpoint's files stops a build.",
)


def model_toml(tables: Mapping[str, Any], facts: Facts) -> str:
    """The tables of a manifest as TOML.

    Args:
        tables: as `manifest_tables` gives them.
        facts: what the tables were made of.
    """
    document = tomlkit.document()
    for line in _HEAD:
        document.add(tomlkit.comment(line))
    for name, value in tables.items():
        if not isinstance(value, dict) and name != "sources":
            document.add(name, value)
    comments = _comments(facts)
    for name, value in tables.items():
        if name == "sources":
            array = tomlkit.aot()
            for source in cast("list[dict[str, Any]]", value):
                array.append(tomlkit.item(source))
            document.add(name, array)
        elif name == "files":
            table = tomlkit.table()
            for path, file in cast("dict[str, dict[str, Any]]", value).items():
                inline = tomlkit.inline_table()
                inline.update(file)
                table.add(path, inline)
            document.add(name, table)
        elif isinstance(value, dict):
            document.add(name, _table(cast("dict[str, Any]", value), comments.get(name, {})))
    return document.as_string()


def _table(values: Mapping[str, Any], comments: Mapping[str, str]) -> Any:  # noqa: ANN401
    table = tomlkit.table()
    for key, value in values.items():
        if isinstance(value, dict):
            table.add(key, _table(cast("dict[str, Any]", value), {}))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            array = tomlkit.aot()
            for item in cast("list[dict[str, Any]]", value):
                array.append(tomlkit.item(item))
            table.add(key, array)
        elif value is not None:
            item = cast("Any", tomlkit).item(value)
            if key in comments:
                item.comment(comments[key])
            table.add(key, item)
    return table


def _comments(facts: Facts) -> dict[str, dict[str, str]]:
    """For each table, the comment of each key."""

    def where(table: Mapping[str, Said]) -> dict[str, str]:
        return {key: said.where for key, said in table.items()}

    tokenizer = {"max_tokens": facts.max_tokens.where}
    if facts.lowercase:
        tokenizer["lowercase"] = facts.lowercase.where
    return {
        "architecture": where({"model_type": facts.model_type, **facts.architecture}),
        "tokenizer": tokenizer,
        "prompts": where(facts.prompts.prompts),
        "output": {"steps": facts.output.pools.where},
    }
