"""``python -m promptbench`` is the command ``promptbench``."""

from promptbench.cli import main

if __name__ == "__main__":
    main()
