"""Run `python -m darts_bio COMMAND ...`, the same as `darts-bio COMMAND ...`."""

import sys

from darts_bio.cli import main

if __name__ == "__main__":
    sys.exit(main())
