"""A user's mistake is one sentence with cause and fix; the command line prints it and exits with 2."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something the user can put right. Its text names the cause and the fix; it never shows a traceback."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    Case does not count, nor "/" for "-". ``kind`` is what was named ("method"), ``hint`` an optional
    closing sentence ("See `...`.").
    """
    names = sorted(known)
    alike = {_plain(one): one for one in reversed(names)}
    close = difflib.get_close_matches(_plain(name), alike, n=1, cutoff=0.5)
    guess = f" Did you mean {alike[close[0]]!r}?" if close else ""
    listed = f" Known: {', '.join(names)}." if 0 < len(names) <= 20 else ""
    return UserError(f"Unknown {kind} {name!r}.{guess}{listed}{' ' + hint if hint else ''}")


def _plain(name: str) -> str:
    return name.lower().replace("/", "-")


def invalid(error: Any, where: str) -> UserError:
    """Turn a pydantic ``ValidationError`` into one sentence naming each wrong field under ``where``."""
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        what = what[:1].lower() + what[1:]
        if field and item["type"] not in ("missing", "extra_forbidden"):
            got = repr(item["input"])
            what += f" (got {got if len(got) <= 80 else got[:80] + ' ...'})"
        parts.append(f"{field}: {what}" if field else what)
    return UserError(f"{where} is not valid: {'; '.join(parts)}.")
