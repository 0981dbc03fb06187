"""`python -m matryo`: the same as the command `matryo`. A bundle begins here too."""

import sys

from matryo.cli import main

if __name__ == "__main__":
    if getattr(sys, "frozen", False):
        from matryo.commands.bundled import enter

        enter()
    main()
