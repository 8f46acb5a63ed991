"""``python -m redline_cli``: the command line without its console script."""

from redline_cli import main

if __name__ == "__main__":
    main()
