"""The text of docs/settings.md: every setting, grouped by what it is about.

`make settings-page` writes it from the settings, the flags of `matryo serve` and the table of
docs/vectors.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

from matryo.cli.servers import serve
from matryo.core.environment import default_text, takes
from matryo.core.settings import Settings
from matryo.core.sources import PREFIX

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Group:
    """Settings that are about one thing.

    Attributes:
        text: what they are about, in Markdown, with links to the pages that say more.
        names: of the settings, in the order of the page.
    """

    text: str
    names: tuple[str, ...]


GROUPS = {
    "Models": Group(
        "What is served, and from where: [models.md](models.md), [precision.md](precision.md), "
        "[native.md](native.md).",
        ("model", "precision", "kernels", "aliases", "home", "models", "trust_manifest"),
    ),
    "What a request means": Group(
        "What a request gets that does not say, and what is refused: [inputs.md](inputs.md), "
        "[precision.md](precision.md), [fields.md](fields.md).",
        (
            *("default_input_type", "token_input", "dimensions", "strict_dimensions"),
            *("rotary_scaling_factor", "unknown_fields"),
        ),
    ),
    "Addresses": Group(
        "Where the server listens, and who stands in front: [serve.md](serve.md), "
        "[grpc.md](grpc.md).",
        (
            *("host", "port", "uds", "grpc_port", "metrics_port", "backlog"),
            *("root_path", "forwarded_allow_ips", "cors_origins", "page"),
        ),
    ),
    "TLS": Group(
        "Certificates of the server and of its clients: [tls.md](tls.md).",
        (
            *("tls_cert_file", "tls_key_file", "tls_client_ca_file"),
            *("grpc_cert_file", "grpc_key_file", "grpc_client_ca_file"),
        ),
    ),
    "Keys": Group(
        "Who may call: [keys.md](keys.md).",
        ("api_keys", "keys_file", "keys", "metrics_key"),
    ),
    "Cores and batches": Group(
        "How the model runs: [serve.md](serve.md#cores-and-memory), [scaling.md](scaling.md).",
        ("processes", "pin_processes", "workers", "threads", "batch_ms"),
    ),
    "Load": Group(
        "How much may wait: [capacity.md](capacity.md).",
        (
            *("queue_tokens", "max_wait_s", "max_waiting_requests", "memory_budget_bytes"),
            "max_connections",
        ),
    ),
    "One request": Group(
        "How large a request may be: [api.md](api.md#limits).",
        ("max_inputs", "max_request_tokens", "max_body_bytes"),
    ),
    "Slow callers": Group(
        "For how long a connection may be silent: [SECURITY.md](../SECURITY.md).",
        ("head_timeout_s", "body_timeout_s", "write_timeout_s", "min_read_rate", "keep_alive_s"),
    ),
    "Health and end": Group(
        "When the server is ready, and how it ends: [serve.md](serve.md#health), "
        "[upgrade.md](upgrade.md).",
        ("ready_interval_s", "grace_s", "drain_delay_s"),
    ),
    "Logs and traces": Group(
        "What the server tells its operator: [serve.md](serve.md), [traces.md](traces.md).",
        ("log_level", "log_format", "log_client", "tracing"),
    ),
    "Batch API": Group(
        "Files of requests that are answered when there is time: [batch.md](batch.md).",
        (
            *("batch", "batch_dir", "batch_database", "batch_store"),
            *("batch_max_file_bytes", "batch_max_lines"),
            *("batch_key_bytes", "batch_key_files", "batch_key_batches"),
            *("batch_retention_days", "batch_lease_s"),
        ),
    ),
}

_INTRODUCTION = """# Settings

`make settings-page` writes this page from the code. Each setting is a variable of the environment
or a line of the file `.env`; some are flags of `matryo serve`, too. [serve.md](serve.md#settings)
says which of them wins, and how values are read. [.env.example](../.env.example) has every setting
as a line.

*Effect on vectors* is **nothing**, **changes** or **refuses**; [vectors.md](vectors.md#settings)
says how an answer shows it.
"""


def page() -> str:
    """The text of docs/settings.md.

    Raises:
        ValueError: a setting is in no group or in two, or a group names what is no setting.
    """
    grouped = [name for group in GROUPS.values() for name in group.names]
    if sorted(grouped) != sorted(Settings.model_fields):
        odd = {name for name in grouped if grouped.count(name) > 1}
        odd |= set(grouped) ^ set(Settings.model_fields)
        raise ValueError(
            f"{', '.join(sorted(odd))}: put each setting into one group of docs_site/settings.py."
        )
    effects = _effects((ROOT / "docs" / "vectors.md").read_text("utf-8"))
    flags = {option.name: option.opts[0] for option in serve.params}
    parts = [_INTRODUCTION]
    for title, group in GROUPS.items():
        parts += [f"## {title}\n", f"{group.text}\n"]
        for name in group.names:
            parts.append(_entry(name, flags.get(name, ""), effects[PREFIX + name.upper()]))
    return "\n".join(parts)


def _entry(name: str, flag: str, effect: str) -> str:
    field = Settings.model_fields[name]
    cells = {
        "takes": _takes(field),
        "default": f"`{default}`" if (default := default_text(name)) else "none",
        "flag": f"`{flag}`" if flag else "none",
        "effect on vectors": effect,
    }
    variable = PREFIX + name.upper()
    return "\n".join(
        (
            f"### {variable}\n",
            f"{_linked(field.description or '', variable)}\n",
            f"| {' | '.join(cells)} |",
            "|---" * len(cells) + "|",
            f"| {' | '.join(cells.values())} |\n",
        )
    )


def _takes(field: FieldInfo) -> str:
    """What values a setting takes, in a few words."""
    kinds = get_args(field.annotation) or (field.annotation,)
    if Path in kinds:
        words = "a path"
    elif field.annotation == tuple[str, ...]:
        words = "words, separated by commas"
    else:
        words = re.sub(r" and at most \d{16}\b", "", takes(field))
        words = re.sub(r"\d{5,}", lambda number: f"{int(number[0]):,}", words)
    return words if field.repr else f"{words}; never shown"


def _linked(text: str, variable: str) -> str:
    """A description, whose settings and pages are links."""

    def setting(match: re.Match[str]) -> str:
        name = match[0]
        return f"`{name}`" if name == variable else f"[`{name}`](#{name.lower()})"

    text = re.sub(rf"\b{PREFIX}[A-Z_]+\b", setting, text)
    return re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", text)


def _effects(vectors: str) -> dict[str, str]:
    """The effect on vectors of each variable, from the table of docs/vectors.md."""
    section = vectors.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*?\|$", section, re.MULTILINE)
    return dict(rows)


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(page(), encoding="utf-8")
