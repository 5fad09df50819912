"""Write the README's table of results from the reference records: ``python -m tools.readme``."""

import re
from pathlib import Path

from promptbench.analysis.comparison import load_frame
from promptbench.analysis.summary import summarise
from promptbench.analysis.vocabulary import AVERAGE
from promptbench.reporting.tables import spread

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- table: results/reference -->\n", "\n<!-- end of table -->"


def table() -> str:
    """One row per method: its parameters, and the average over datasets of base, novel and HM."""
    summary = summarise(load_frame(ROOT / "results/reference"))
    lines = ["| method | parameters | base | novel | HM |", "|:--|--:|--:|--:|--:|"]
    for row in summary[summary["dataset"] == AVERAGE].to_dict("records"):
        hm = f"{row['hm']:.2f} {spread(row, 'hm')}".strip()
        cells = [row["method"], f"{row['parameters']:,.0f}", f"{row['base']:.2f}", f"{row['novel']:.2f}", hm]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "README.md"
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    found = table()
    page.write_text(re.sub(pattern, lambda _: BEGIN + found + END, page.read_text("utf-8"), flags=re.DOTALL))
