"""``python -m cloister``."""

from __future__ import annotations

import sys

from cloister.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
