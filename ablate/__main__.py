"""`python -m ablate`: what `ablate` is, where it is not on the PATH."""

import sys

from ablate.cli import program

if __name__ == "__main__":
    sys.exit(program())
