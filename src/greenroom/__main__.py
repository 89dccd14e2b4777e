"""`python -m greenroom`: the same as the command `greenroom`."""

from __future__ import annotations

import sys

from greenroom.cli import main

sys.exit(main())
