"""`python -m app`: the same as the command `matryo`."""

from app.cli import main

if __name__ == "__main__":
    main()
