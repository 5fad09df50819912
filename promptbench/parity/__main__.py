import sys

from promptbench.parity.command import main

sys.exit(main())
