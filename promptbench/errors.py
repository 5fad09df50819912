"""A user's mistake is one sentence with cause and fix; the command line prints it and exits with 2."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

_TOLD = 10  # wrong fields that are named


class UserError(Exception):
    """Something the user can put right. Its text names the cause and the fix; it never shows a traceback."""


_short = reprlib.Repr()  # `repr` of the first few parts of a value, whatever its size
_short.maxlevel, _short.maxstring, _short.maxother = 3, 200, 200
_short.maxdict = _short.maxlist = _short.maxtuple = _short.maxset = 8


def shown(value: Any, width: int = 80) -> str:
    """``repr`` of a value in about ``width`` characters, made without that of the whole."""
    return brief(_short.repr(value), width)


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
    return UserError(f"Unknown {kind} {shown(name)}.{guess}{listed}{' ' + hint if hint else ''}")


def _plain(name: str) -> str:
    return name.lower().replace("/", "-")


def invalid(error: Any, where: str) -> UserError:
    """Turn a pydantic ``ValidationError`` into one sentence naming the wrong fields under ``where``, or the
    first of very many."""
    parts, wrong = [], error.errors(include_url=False)
    for item in wrong[:_TOLD]:
        field = ".".join(brief(str(part)) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        what = what[:1].lower() + what[1:]
        if field and item["type"] not in ("missing", "extra_forbidden"):
            what += f" (got {shown(item['input'])})"
        parts.append(f"{field}: {what}" if field else what)
    if len(wrong) > _TOLD:
        parts.append(f"and {len(wrong) - _TOLD} more")
    return UserError(f"{where} is not valid: {'; '.join(parts)}.")


def brief(text: str, width: int = 80) -> str:
    """The beginning of a text that may be of any length."""
    return text if len(text) <= width else text[:width] + " ..."
