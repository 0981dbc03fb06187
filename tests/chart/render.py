"""Write the checked-in renders of the chart, which tests read without helm.

    make chart-render

Rules and dashboards are copied into the chart first, and the README's table is written.
"""

from __future__ import annotations

from tests.chart.files import RENDERS, VALUES, copy_files, digest
from tests.chart.helm import run, template
from tests.chart.readme import PAGE, page


def heading() -> str:
    """The first line of a render."""
    return f"# Written by `make chart-render` from files with sha256 {digest()}.\n"


def main() -> None:
    """Copy, write the README, render."""
    copy_files()
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    for name, path in VALUES.items():
        (RENDERS / f"{name}.yaml").write_text(heading() + template([path]), "utf-8")
    print(run("version", "--short").stdout.strip(), "rendered", ", ".join(VALUES))  # noqa: T201


if __name__ == "__main__":
    main()
