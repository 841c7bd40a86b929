"""`python -m masp` is the same as the command `masp`."""

from masp.cli import main

if __name__ == "__main__":
    main()
