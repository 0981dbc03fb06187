"""Real text of any Debian machine: one-line synopses and long descriptions of packages.

`apt-get -o Acquire::Languages=en update` brings them. A synopsis is a natural query, the
description of the same package its one right answer.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

_LISTS = Path("/var/lib/apt/lists")
_ENTRY = re.compile(r"^Description-en: (?P<synopsis>.*)\n(?P<body>(?: .*\n?)+)", re.MULTILINE)


def debian_pairs(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` pairs of synopsis and description, a fixed sample for a fixed package list.

    Raises:
        SystemExit: the machine has no such lists; says how to get them.
    """
    lists = sorted(_LISTS.glob("*_main_i18n_Translation-en*"))
    if not lists:
        raise SystemExit("no package descriptions: apt-get -o Acquire::Languages=en update")
    pairs: dict[str, str] = {}
    for path in lists:
        command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]  # whatever its compression
        text = subprocess.run(command, capture_output=True, check=True).stdout.decode()  # noqa: S603
        for entry in _ENTRY.finditer(text):
            body = re.sub(r"^ \.?", "", entry["body"], flags=re.MULTILINE)
            body = re.sub(r"\s+", " ", body).strip()
            if body:
                pairs.setdefault(entry["synopsis"].strip(), body)
    if len(pairs) < n:
        raise SystemExit(f"only {len(pairs)} descriptions here, {n} asked for")
    return random.Random(seed).sample(sorted(pairs.items()), n)
