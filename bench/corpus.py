"""Real text that every Debian machine can download: descriptions of its packages.

`apt-get -o Acquire::Languages=en update` downloads them. A package has a synopsis of one line and
a long description. The synopsis is a natural query, and the description is its one right answer.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

_LISTS = Path("/var/lib/apt/lists")
_ENTRY = re.compile(r"^Description-en: (?P<synopsis>.*)\n(?P<body>(?: .*\n?)+)", re.MULTILINE)


def debian_pairs(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` pairs of a synopsis and a description, sampled from the package lists.

    The same lists and the same seed always give the same pairs.

    Raises:
        SystemExit: the machine has no package lists, or they have fewer than `n` descriptions.
    """
    lists = sorted(_LISTS.glob("*_main_i18n_Translation-en*"))
    if not lists:
        command = "apt-get -o Acquire::Languages=en update"
        raise SystemExit(f"{_LISTS} has no package descriptions. Download them with: {command}")
    pairs: dict[str, str] = {}
    for path in lists:
        command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]  # decompresses if need be
        text = subprocess.run(command, capture_output=True, check=True).stdout.decode()  # noqa: S603
        for entry in _ENTRY.finditer(text):
            body = re.sub(r"^ \.?", "", entry["body"], flags=re.MULTILINE)
            body = re.sub(r"\s+", " ", body).strip()
            if body:
                pairs.setdefault(entry["synopsis"].strip(), body)
    if len(pairs) < n:
        raise SystemExit(f"{_LISTS} has {len(pairs)} descriptions, but {n} were asked for")
    return random.Random(seed).sample(sorted(pairs.items()), n)
