"""`python -m nextgpt`: the command line, which lives in `nextgpt.cli`."""

import sys

from nextgpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
