"""What a release needs: one version everywhere, and a part of CHANGELOG.md for it.

python deploy/release.py check [vX.Y.Z]     # status 1 and a sentence if something differs
python deploy/release.py notes              # what CHANGELOG.md says of the version
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    """The version of the package.

    Raises:
        SystemExit: the package names none.
    """
    text = (ROOT / "app/matryo/__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    return found[1] if found else sys.exit("app/matryo/__init__.py has no __version__.")


def versions() -> dict[str, str]:
    """The version that each file names, by the file's path."""
    native = tomllib.loads((ROOT / "native/pyproject.toml").read_text("utf-8"))
    own = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (extra,) = own["project"]["optional-dependencies"]["native"]
    found = {
        "app/matryo/__init__.py": version(),
        "native/pyproject.toml": native["project"]["version"],
        "pyproject.toml (the extra native)": extra.partition("==")[2],
    }
    chart = ROOT / "deploy/helm/matryo/Chart.yaml"
    for key in ("version", "appVersion"):
        named = re.search(rf'^{key}: "?([^"\n]+)"?$', chart.read_text("utf-8"), re.MULTILINE)
        found[f"deploy/helm/matryo/Chart.yaml ({key})"] = named[1] if named else "none"
    return found


def notes(of: str) -> str:
    """What CHANGELOG.md says of a version; empty if it says nothing."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = re.search(
        rf"^## \[?{re.escape(of)}\]?[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    return found[1].strip() if found else ""


def check(tag: str | None) -> str | None:
    """What keeps a release from being made, as a sentence; None if nothing does.

    Args:
        tag: that the release is made for, `vX.Y.Z`; None to hold the files against one another.
    """
    expected = version()
    for path, found in versions().items():
        if found != expected:
            return f"{path} names version {found}, and app/matryo/__init__.py {expected}."
    if tag is None:
        return None
    if tag != f"v{expected}":
        return f"The tag is {tag}, and the version {expected}. Tag it v{expected}."
    if not notes(expected):
        return f"CHANGELOG.md has no part ## {expected}. Rename ## Unreleased, and begin a new one."
    return None


def main() -> None:
    """Run a command of this file."""
    match sys.argv[1:]:
        case ["check", *tags] if len(tags) <= 1:
            if fault := check(tags[0] if tags else None):
                sys.exit(fault)
        case ["notes"]:
            sys.stdout.write(notes(version()) + "\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
