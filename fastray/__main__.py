"""`python -m fastray`: the same as the `fastray` command."""

import sys

from fastray.cli import main

sys.exit(main())
