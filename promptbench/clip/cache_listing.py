"""What the feature cache holds, as a table: `promptbench cache ls`."""

import time
from collections import defaultdict

from promptbench.clip.cache import Entry, FeatureCache


def listing(cache: FeatureCache) -> tuple[list[dict[str, str]], list[str]]:
    """One row per backbone, kind of features and dataset; and closing sentences with the total size, and with
    what killed commands left behind."""
    groups: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
    for entry in cache.entries():
        dataset = (entry.about.get("dataset") or [""])[0]
        kind = "training views" if entry.about.get("draw") else entry.about.get("what", "?")
        groups[entry.about.get("weights", "?")[:8], kind, dataset].append(entry)
    rows = []
    for (weights, kind, dataset), entries in sorted(groups.items()):
        latest = time.localtime(max(entry.used for entry in entries))
        rows.append(
            {
                "weights": weights,
                "features": kind,
                "dataset": dataset,
                "files": str(len(entries)),
                "MB": f"{sum(entry.size for entry in entries) / 1e6:.1f}",
                "last used": time.strftime("%Y-%m-%d %H:%M", latest),
            }
        )
    total = sum(entry.size for group in groups.values() for entry in group)
    lines = [f"{cache.folder}: {total / 1e6:.1f} MB of at most {cache.bound / 1e6:,.0f} MB"]
    files, size = cache.leftovers()
    if files:
        lines.append(
            f"left by killed commands: {files} files, {size / 1e6:.1f} MB; "
            "`promptbench cache clear` deletes them"
        )
    return rows, lines
