"""Starts ``cloister`` from the folder beside this file, and from nowhere else but the standard library."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "lib"))

from cloister.cli.main import main

sys.exit(main())
