"""Alias of ``redline_cli`` for ``python -m redline.cli`` and imports of ``redline.cli``; removed in 0.2."""

from redline_cli import main as main

if __name__ == "__main__":
    main()
