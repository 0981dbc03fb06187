"""`python -m matryo`: the same as the command `matryo`."""

from matryo.cli import main

if __name__ == "__main__":
    main()
