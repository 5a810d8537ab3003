"""`python -m kodo`: the same as the `kodo` command."""

from __future__ import annotations

from kodo.cli import main

if __name__ == "__main__":
    main()
