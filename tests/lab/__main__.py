"""`python tests/lab VERB`: the lab for people.

Owns only the way to the package from a directory on the command line; the verbs
are in cli.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Run as a directory: Python put tests/lab on the path where tests/ belongs.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from lab.cli import main

sys.exit(main())
