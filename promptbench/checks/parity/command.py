"""The command: run every case of a folder and print one line per kind of array."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from promptbench.checks.parity.case import Case
from promptbench.checks.parity.compare import Comparison, Line, by_kind
from promptbench.checks.parity.folder import Folder
from promptbench.checks.parity.heads import CLIPAdapterCase, CLIPLoRACase, TaskResCase
from promptbench.checks.parity.prompts import (
    CoCoOpCase,
    CoOpCase,
    IVLPCase,
    MaPLeCase,
    PromptSRCCase,
    VPTCase,
)
from promptbench.checks.parity.tables import tables, zeroshot
from promptbench.checks.parity.tip import TipAdapterCase, TipAdapterFCase
from promptbench.checks.parity.towers import AnchoredCase, MMACase, MMRLCase, MMRLPPCase, TCPCase
from promptbench.errors import UserError

CASES: dict[str, type[Case]] = {
    "CoOp": CoOpCase,
    "CoCoOp": CoCoOpCase,
    "VPT": VPTCase,
    "IVLP": IVLPCase,
    "MaPLe": MaPLeCase,
    "PromptSRC": PromptSRCCase,
    "KgCoOp": AnchoredCase,
    "TCP": TCPCase,
    "MMA": MMACase,
    "MMRL": MMRLCase,
    "MMRL++": MMRLPPCase,
    "CLIP-LoRA": CLIPLoRACase,
    "TaskRes": TaskResCase,
    "CLIP-Adapter": CLIPAdapterCase,
    "Tip-Adapter": TipAdapterCase,
    "Tip-Adapter-F": TipAdapterFCase,
}


def run(path: Path) -> Iterator[tuple[str, str, Comparison]]:
    """Every case of a folder as (name, method, comparison). Raises UserError for one that cannot be read."""
    folder = Folder(path)
    yield from zeroshot(folder)
    yield from tables(folder)
    for name, case in folder.cases.items():
        kind = CASES.get(str(case.get("method")))
        if kind is None:
            raise UserError(f"Case {name}: there is no method called {case.get('method')!r}.")
        try:
            compared = kind(folder, name).run()
        except UserError as error:
            raise UserError(f"Case {name}: {error}") from None
        except KeyError as error:
            raise UserError(f"Case {name} lacks {error}; complete the folder.") from None
        except (ValueError, RuntimeError) as error:  # shapes or settings that do not match
            reason = " ".join(str(error).split())
            raise UserError(f"Case {name} is inconsistent ({reason}); correct the folder.") from None
        yield name, str(case["method"]), compared


def main(arguments: list[str] | None = None) -> int:
    """Print every case and kind of array; 1 if any is over its tolerance, 2 for an invalid folder."""
    parser = argparse.ArgumentParser(
        prog="python -m promptbench.checks.parity",
        description="Compare methods with outputs of their official implementations.",
    )
    parser.add_argument("folder", type=Path, help="cases.json, frozen_clip.safetensors and files of cases")
    path = parser.parse_args(arguments).folder
    cases = arrays = failed = 0
    try:
        for name, method, compare in run(path):
            cases, arrays = cases + 1, arrays + len(compare.arrays)
            worst = max(compare.lines, key=lambda line: line.share)
            print(
                f"{name} ({method}): {len(compare.arrays)} arrays, the furthest off is {worst.name} with "
                f"{worst.difference:.2g}, {100 * worst.share:.3g} % of what is accepted"
            )
            for kind, lines in by_kind(compare.lines).items():
                failed += not show(kind, lines)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{cases} cases, {arrays} arrays, {failed} kinds over their tolerance")
    if not arrays:
        print("Error: nothing was compared; give a folder with cases of known methods.", file=sys.stderr)
        return 2
    return 1 if failed else 0


def show(kind: str, lines: list[Line]) -> bool:
    """Print the worst line of a kind; whether it is within its tolerance."""
    worst = max(lines, key=lambda line: line.share)
    ok = worst.share <= 1
    end = "ok" if ok else f"{worst.name} FAILED"
    print(f"  {kind:<14} {len(lines):>4}  {worst.difference:9.2e}  accept {worst.accept:.0e}  {end}")
    return ok
