"""``python -m promptbench.parity FOLDER``: see `promptbench.checks.parity`."""

import sys

from promptbench.checks.parity import main

if __name__ == "__main__":
    sys.exit(main())
