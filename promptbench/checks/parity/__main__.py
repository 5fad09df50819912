import sys

from promptbench.checks.parity.command import main

sys.exit(main())
