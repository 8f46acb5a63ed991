"""``python -m redline.cli``: the command line without its console script."""

from redline.cli import main

if __name__ == "__main__":
    main()
