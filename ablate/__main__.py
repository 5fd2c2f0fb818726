"""`python -m ablate`: what `ablate` is, where it is not on the PATH."""

import sys

from ablate.cli import main

if __name__ == "__main__":
    sys.exit(main())
