"""What reaches a terminal: one place for every table, line and error.

Names, settings, notes and paths come from files and may hold anything. None of it is read as markup, acts on
a terminal, or ends a command because an encoding has no such character.
"""

import codecs
import errno
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

WIDTH = 112  # of sentences
PIPE = 200  # columns where there is no terminal, so that grep finds whole names
WORD = 16  # columns of the longest word that a narrow table does not break
NUMBER = 40  # and of the longest word with a digit
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = 141  # exit code after a closed pipe: 128 + SIGPIPE, as of any command in a pipe
ALIKE = {
    "±": "+-",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "→": "->",
    "─": "-",
    "━": "-",
    "│": "|",
}


def _alike(error: UnicodeError) -> tuple[str, int]:
    """Error handler for characters an encoding has not got: what looks like them, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(ALIKE.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost), error.end


HANDLER = "promptbench-alike"
codecs.register_error(HANDLER, _alike)


def plain(text: str, keep: str = "") -> str:
    r"""``text`` on one line without characters that act on a terminal or hide: control characters, marks of
    direction, half surrogates and line ends are shown like ``\x1b``; those in ``keep`` stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def say(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print ``text``, which may have lines, to standard output or error.

    What standard error cannot take (its disk is full) is dropped: a log must not end a run.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # closed from the start
        return
    try:
        print(plain(text, keep="\n"), file=stream, end=end, flush=True)
    except OSError as error:
        if not err or error.errno == errno.EPIPE:
            raise


@contextmanager
def steady() -> Iterator[None]:
    """Inside, standard output and error take every character. A closed pipe ends the command quietly with the
    exit code `CLOSED`, a full disk under its output with one sentence and 2."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
    try:
        try:
            yield
        finally:
            for stream in streams:
                if stream is not sys.stderr:
                    stream.flush()
    except OSError as error:
        if error.errno != errno.EPIPE and error.errno not in FULL:
            raise
        if error.errno == errno.EPIPE:
            raise SystemExit(CLOSED) from None
        say(
            f"Error: The output cannot be written ({error.strerror}); free some space and repeat it.",
            err=True,
        )
        raise SystemExit(2) from None
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):  # typer's own handling of it
            raise SystemExit(CLOSED) from None
        raise
    finally:
        for stream in streams:
            try:
                stream.flush()
            except OSError:  # what is left goes nowhere: the interpreter's own last flush would fail again
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def screen() -> int:
    """Columns of the terminal that standard output is, `PIPE` where it is none."""
    if sys.stdout is not None and sys.stdout.isatty():
        return shutil.get_terminal_size((PIPE, 24)).columns
    return PIPE


def fill(line: str, indent: str = "") -> str:
    """A sentence in lines that fit the screen; ``indent`` starts all but the first."""
    return textwrap.fill(plain(line), max(WORD, min(WIDTH, screen())), subsequent_indent=indent)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    right: Collection[str] = (),
    grouped: bool = False,
) -> str:
    """A table for the screen. Columns in ``right``, those of numbers, are never folded, the others only where
    they must, but not within a number; in a pipe the first is not either. What is still wider than the screen
    is not cut.

    ``grouped``: the first column is written once per group of equal ones, with a line between groups. Without
    any name of a column there is no head.
    """
    import rich.box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    def shown(text: str) -> str:  # as it will be printed, so that columns stay columns
        return plain(text).encode(encoding, HANDLER).decode(encoding)

    names, cells = [shown(name) for name in columns], [[shown(text) for text in row] for row in rows]
    wanted = [max(1, *map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    least = []
    for i, (name, want, *texts) in enumerate(zip(columns, wanted, *cells, strict=True)):
        folded = PIPE if i == 0 and screen() == PIPE else max(map(_longest, [name, *texts]))
        least.append(want if name in right else min(want, folded))
    between = 3 * len(columns) + 1
    widths = _widths(least, wanted, screen() - between)
    head = any(name.strip() for name in names)
    drawn = Table(
        title=shown(title) or None, box=rich.box.SIMPLE_HEAD, title_justify="left", show_header=head
    )
    for name, column, width in zip(names, columns, widths, strict=True):
        justify = "right" if column in right else "left"
        drawn.add_column(name, justify=justify, width=width, overflow="fold")  # type: ignore[arg-type]
    for i, row in enumerate(cells):
        first = not grouped or i == 0 or cells[i - 1][0] != row[0]
        end = grouped and (i + 1 == len(cells) or cells[i + 1][0] != row[0])
        drawn.add_row(row[0] if first else "", *row[1:], end_section=end)
    file = io.StringIO()
    wide = max(sum(widths) + between, 1)
    Console(file=file, width=wide, color_system=None, markup=False, emoji=False, highlight=False).print(drawn)
    return file.getvalue()


def _longest(text: str) -> int:
    """Columns of the longest word that is not to be broken; of longer words, as much as such a word."""
    from rich.cells import cell_len

    words = [(cell_len(word), NUMBER if any(map(str.isdigit, word)) else WORD) for word in text.split()]
    return max((size if size <= most else WORD for size, most in words), default=0)


def _widths(least: Sequence[int], wanted: Sequence[int], total: int) -> list[int]:
    """Widths of columns: none below ``least`` or above ``wanted``; what is free is shared evenly."""
    widths = list(least)
    while (free := total - sum(widths)) > 0:
        short = [i for i, want in enumerate(wanted) if widths[i] < want]
        if not short:
            break
        for i in short[:free]:
            widths[i] += 1
    return widths
