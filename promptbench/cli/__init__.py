"""The command line: one file per command, each a thin layer over the package.

Commands import what they need when they run, so that ``--help`` and completion answer at once.
"""


def main() -> None:
    """Entry point: a user's mistake is one sentence on standard error and exit code 2."""
    from promptbench.console import plain, say, steady
    from promptbench.errors import UserError

    with steady():
        try:
            from promptbench.cli.app import app

            app()
        except UserError as error:
            say(f"Error: {plain(str(error))}", err=True)
            raise SystemExit(2) from None
