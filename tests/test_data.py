"""Splits, the few-shot draw, halves, cards, pictures: exact, and refused in one sentence where wrong."""

import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptbench.clip.tokenizer import encode
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.data.draws import draw_few_shot
from promptbench.data.splits import Item
from promptbench.data.views import Views, epoch_order, load_batches
from promptbench.errors import UserError
from promptbench.methods._registry import get_method
from promptbench.trials.benchmarks import get_benchmark
from promptbench.trials.plan import plan
from tests import mini

VIEWS = Views(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def items(counts: list[int], order: list[int] | None = None) -> list[Item]:
    labels = order if order is not None else [c for c, n in enumerate(counts) for _ in range(n)]
    seen: dict[int, int] = {}
    found = []
    for label in labels:
        found.append(Item(f"{label}/{seen.setdefault(label, 0)}", label, f"class {label}"))
        seen[label] += 1
    return found


def drawn(picked: list[Item], label: int) -> list[int]:
    return [int(item.path.split("/")[1]) for item in picked if item.label == label]


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (1, [[4, 18, 27, 25], [24, 2, 8, 3], [7, 9, 8, 5]]),
        (2, [[27, 1, 2, 11], [26, 5, 23, 25], [4, 9, 3, 8]]),
        (3, [[7, 18, 17, 4], [11, 29, 19, 15], [9, 1, 0, 6]]),
    ],
)
def test_golden_draws(seed: int, expected: list[list[int]]) -> None:
    """Two train classes of 30 pictures, then one val class of 10, from one stream (protocol, section 5)."""
    train, val = draw_few_shot(items([30, 30]), items([10]), 4, seed)
    assert [drawn(train, 0), drawn(train, 1), drawn(val, 0)] == expected


def test_golden_draw_of_sixteen() -> None:
    train, _ = draw_few_shot(items([40]), [], 16, 1)
    assert drawn(train, 0) == [8, 36, 4, 16, 7, 31, 28, 30, 24, 25, 6, 3, 15, 0, 12, 13]


def test_classes_are_walked_in_order_of_first_appearance() -> None:
    order = [1] * 3 + [0] * 30 + [1] * 27
    train, _ = draw_few_shot(items([], order), [], 4, 1)
    assert drawn(train, 1) == [4, 18, 27, 25]
    assert drawn(train, 0) == [24, 2, 8, 3]


def test_a_small_class_is_taken_whole_and_draws_nothing() -> None:
    train, val = draw_few_shot(items([3, 30]), items([10]), 4, 1)
    assert drawn(train, 0) == [0, 1, 2]
    assert drawn(train, 1) == [4, 18, 27, 25]
    assert len(val) == 4


def test_the_draw_is_private() -> None:
    random.seed(5)
    before = random.getstate()
    draw_few_shot(items([30]), [], 4, 1)
    assert random.getstate() == before


def test_halves(colours: data.Dataset) -> None:
    """Five classes: three base, two novel; labels renumbered from 0; the draw is over all classes."""
    assert colours.classes("base").names == ("red square", "green_field", "sea")
    assert colours.classes("novel").names == ("bright yellow sun", "night")
    novel = colours.items("test", "novel")
    assert {(item.label, item.classname) for item in novel} == {(0, "bright yellow sun"), (1, "night")}
    assert len(novel) == 6
    assert len(colours.items("test", "novel", limit=2)) == 4
    everything = colours.few_shot(2, 1, "all")
    base = colours.few_shot(2, 1, "base")
    assert [item.path for item in base] == [item.path for item in everything if item.label < 3]
    novel_shots = colours.few_shot(2, 1, "novel")
    assert [item.path for item in novel_shots] == [item.path for item in everything if item.label >= 3]


def test_styles(make_dataset: Any) -> None:
    dataset = data.load(str(make_dataset(card={"style": r"/(train|val)\d+\.png$"})))
    assert [dataset.style(item) for item in dataset.items("val", limit=1)] == ["val"] * 5
    assert {dataset.style(item) for item in dataset.items("train", "novel")} == {"train"}
    with pytest.raises(UserError, match=r"colours finds no style in the path 'images/0/test0\.png'; correct"):
        dataset.style(dataset.items("test")[0])


@pytest.mark.parametrize("pattern", ["(style)?", "/()train"])
def test_an_empty_style_is_none(make_dataset: Any, pattern: str) -> None:
    dataset = data.load(str(make_dataset(card={"style": pattern})))
    with pytest.raises(UserError, match=r"finds no style in the path 'images/0/train0\.png'"):
        dataset.style(dataset.items("train")[0])


def test_no_style(colours: data.Dataset) -> None:
    assert colours.style(colours.items("train")[0]) == ""


@pytest.mark.parametrize(
    ("name", "classes"), [("icons", 50), ("symbols", 40), ("finegrained", 32), ("kinds", 48), ("digits", 10)]
)
def test_embedded_datasets(name: str, classes: int) -> None:
    dataset = data.load(name)
    assert len(dataset.classnames) == classes
    for split in ("train", "val", "test"):
        path = dataset.splits[split][-1].path
        assert min(dataset.image(path).size) >= 8
    paths = [item.path for split in dataset.splits.values() for item in split]
    assert len(paths) == len(set(paths))
    assert len(dataset.few_shot(16, 1, "all")) == 16 * classes


def test_digits_are_dark_on_white() -> None:
    dataset = data.load("digits")
    pixels = list(dataset.image("0000").convert("L").tobytes())
    assert max(pixels) == 255
    assert sorted(pixels)[len(pixels) // 2] > 128


def test_the_suite() -> None:
    assert cards.suite("pocket") == ["digits", "finegrained", "icons", "kinds", "symbols"]
    with pytest.raises(UserError, match=r"Unknown suite 'poket'\. Did you mean 'pocket'"):
        cards.suite("poket")
    with pytest.raises(UserError, match=r"Unknown dataset 'icon'\. Did you mean 'icons'"):
        data.load("icon")


# ---------------------------------------------------------------------- wrong input


def change(card: Path, edit: Any) -> str:
    path = card.parent / "split.json"
    splits = json.loads(path.read_text())
    edit(splits)
    path.write_text(json.dumps(splits))
    return str(card)


def drop_class(splits: Any, split: str, label: int) -> None:
    splits[split] = [item for item in splits[split] if item[1] != label]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: drop_class(s, "train", 2), "class 'sea' has no train images"),
        (lambda s: drop_class(s, "test", 2), "class 'sea' has no test images"),
        (
            lambda s: s["test"][0].__setitem__(2, "other"),
            "label 0 is called 'red square' and, in test, 'other'",
        ),
        (lambda s: s.pop("val"), r"is not a split file.*\(val: Field required\)"),
        (lambda s: s["val"].__setitem__(0, None), r"is not a split file.*val\.0"),
        (lambda s: s["train"][0].__setitem__(1, True), r"is not a split file.*train\.0\.1: .*integer"),
        (lambda s: s["train"][0].__setitem__(1, 1.7), r"is not a split file.*train\.0\.1: .*integer"),
        (lambda s: s["train"][0].__setitem__(1, float("inf")), "is not a split file"),
        (lambda s: s["train"][0].__setitem__(1, -1), r"train\.0\.1: .*greater than or equal to 0"),
        (lambda s: s["train"][0].__setitem__(2, " "), r"is not a split file.*train\.0\.2"),
        (lambda s: s["train"][0].__setitem__(0, "a\0b"), r"is not a split file.*train\.0\.0"),
        (lambda s: s["train"].append(["only a path"]), "is not a split file"),
        (lambda s: s["train"][0].__setitem__(0, "../../etc/passwd"), "lies outside"),
        (lambda s: s["train"][0].__setitem__(0, "images/0/gone.png"), "is not in"),
        (lambda s: s["train"][0].__setitem__(0, "images\\..\\..\\passwd"), "lies outside"),
        (lambda s: s["train"][0].__setitem__(0, "C:\\images\\0.png"), "lies outside"),
        (lambda s: [x.__setitem__(1, x[1] + 1) for part in s.values() for x in part], "labels start at 1; "),
    ],
)
def test_wrong_splits(make_dataset: Any, edit: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(change(make_dataset(), edit))


def test_one_image_has_one_path(make_dataset: Any) -> None:
    card = make_dataset()
    plain = data.load(str(card))
    path = card.parent / "split.json"
    parts = json.loads(path.read_text())
    for number, entry in enumerate(parts["train"]):
        entry[0] = [f"./{entry[0]}", entry[0].replace("/", "\\"), entry[0].replace("/", "//")][number % 3]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(parts).encode())  # a byte order mark
    assert data.load(str(card)).splits == plain.splits
    path.write_text(json.dumps(parts), "utf-16")
    with pytest.raises(UserError, match="is UTF-16 text; save it as UTF-8"):
        data.load(str(card))


@pytest.mark.parametrize(
    ("split", "taken_from", "message"),
    [
        ("test", "train", "20 test images are train images too, such as 'images/0/train0.png'"),
        ("val", "train", "20 val images are train images too"),
        ("test", "val", None),  # all of them: as in ImageNet
    ],
)
def test_nothing_is_run_on_training_images(
    make_dataset: Any, split: str, taken_from: str, message: str | None
) -> None:
    card = make_dataset()
    change(card, lambda parts: parts.__setitem__(split, [["./" + p, *q] for p, *q in parts[taken_from]]))
    dataset = data.load(str(card))

    def planned() -> Any:
        evaluated: Any = split
        return plan(get_benchmark("fewshot"), [get_method("coop")], [dataset], shots=(1,), split=evaluated)

    if message is None:
        assert planned()
        return
    with pytest.raises(UserError, match=message):
        planned()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("baker's dozen", "baker\u2019s dozen"),
        ("salt & pepper", "salt &amp; pepper"),
        ("salt & pepper", "salt &amp;amp; Pepper"),
        ("fish", "\ufb01sh"),
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "\uff23\uff21\uff34"),
        ('"dog"', "\u201cdog\u201d"),
        ("Boeing 737-800", "boeing 737 - 800"),
        ("ice\u00a0cream", "ice  cream"),
        ("na\u00c3\u00afve", "na\u00efve"),
    ],
)
def test_names_that_are_one_to_clip(make_dataset: Any, one: str, other: str) -> None:
    assert encode(one) == encode(other)  # by open_clip's own tokenizer
    with pytest.raises(UserError, match="CLIP cannot tell apart"):
        data.load(str(make_dataset(classes={one: (0, 0, 0), other: (9, 9, 9)})))


@pytest.mark.parametrize(
    ("one", "other"),
    [("ox", "oxen"), ("a cat", "acat"), ("cafe", "caf\u00e9"), ("\u0441at", "cat"), ("x-ray", "xray")],
)
def test_names_that_clip_tells_apart(make_dataset: Any, one: str, other: str) -> None:
    assert encode(one) != encode(other)
    assert data.load(str(make_dataset(classes={one: (0, 0, 0), other: (9, 9, 9)}))).classnames == (one, other)


@pytest.mark.parametrize("name", ["&nbsp;", "_", "an <end&lowbar;of&lowbar;text> inside"])
def test_names_that_are_no_words(make_dataset: Any, name: str) -> None:
    with pytest.raises(UserError, match="rename it"):
        data.load(str(make_dataset(classes={name: (0, 0, 0), "cat": (9, 9, 9)})))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"cat": (0, 0, 0)}, "has 1 class; classification needs at least two"),
        ({"a cat": (0, 0, 0), "A_Cat": (9, 9, 9)}, "two classes are called 'a cat' and 'A_Cat'"),
        ({"a cat": (0, 0, 0), "a  cat": (9, 9, 9)}, "two classes are called"),
    ],
)
def test_wrong_classes(make_dataset: Any, classes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(str(make_dataset(classes=classes)))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"classes": 7}, "has 5 classes .* but its card says 7"),
        ({"sizes": {"train": 1, "val": 1, "test": 1}}, "but its card says"),
        ({"loader": "nothing"}, "loader 'nothing' that is not in datasets/"),
        ({"loader": "pocket"}, "names 'pocket', which is not a loader"),
        ({"loader": "__init__"}, "loader: string should match"),
        ({"loader": "digits", "source": "gone.json"}, "there is no split file"),
        ({"colour": "red"}, "colour: extra inputs are not permitted"),
        ({"template": "no place for the name"}, "template: string should match"),
        ({"style": "(a"}, r"style: no regular expression, missing \), .*\(got '\(a'\)"),
        ({"style": "(a){99999999999}"}, "style: no regular expression"),
        ({"style": "a|b"}, "style: needs exactly one group, not 0"),
        ({"style": "(a)(b)"}, "style: needs exactly one group, not 2"),
        ({"source": "gone.zip"}, "expected a zip file or a folder with split.json"),
    ],
)
def test_wrong_cards(make_dataset: Any, card: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(str(make_dataset(card=card)))


@pytest.mark.parametrize("member", ["split.json", "images/1/test0.png"])
def test_damaged_archive(make_dataset: Any, tmp_path: Path, member: str) -> None:
    card = make_dataset(card={"source": "all.zip"})
    archive = card.parent / "all.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in card.parent.rglob("*.*"):
            if path.suffix in (".png", ".json"):
                file.write(path, path.relative_to(card.parent))
        place = file.getinfo(member).header_offset + 30 + len(member)
    whole = archive.read_bytes()
    assert len(data.load(str(card)).classnames) == 5
    archive.write_bytes(whole[: place + 5] + b"\xff" * 8 + whole[place + 13 :])
    with pytest.raises(UserError, match=r"all\.zip cannot be unpacked"):
        data.load(str(card))


def test_an_archive_that_lacks_an_image_is_told_at_once(make_dataset: Any) -> None:
    card = make_dataset(card={"source": "all.zip"})
    with zipfile.ZipFile(card.parent / "all.zip", "w") as file:
        for path in card.parent.rglob("*.*"):
            if path.suffix in (".png", ".json") and path.name != "test2.png":
                file.write(path, path.relative_to(card.parent))
    with pytest.raises(UserError, match=r"split\.json in .*all\.zip names 'images/0/test2\.png', which"):
        data.load(str(card))


def test_linked_images_are_taken_and_told(make_dataset: Any, tmp_path: Path) -> None:
    """What a link leads to may be shown in a report: never without a word."""
    card = make_dataset()
    first, second = (card.parent / "images" / "0" / f"train{number}.png" for number in (0, 1))
    first.rename(tmp_path / "elsewhere.png")
    first.symlink_to(tmp_path / "elsewhere.png")
    (note,) = data.load(str(card)).notes
    assert note == "read through links that point outside the folder: 1 file, such as 'images/0/train0.png'"
    second.unlink()
    second.symlink_to("gone.png")
    with pytest.raises(UserError, match=r"train1\.png', which is a link to .*gone\.png, which is not there"):
        data.load(str(card))


def test_a_folder_that_is_called_like_a_shipped_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        for number in range(3):
            mini.picture(tmp_path / "icons" / name / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    assert data.load("icons").notes == (
        "this is promptbench's own dataset 'icons'; for the folder of that name give './icons'",
    )
    mine = data.load("./icons")
    assert (mine.name, mine.classnames, mine.notes) == ("my-icons", ("cat", "dog"), ())
    monkeypatch.chdir("/")
    assert data.load("icons").notes == ()


@pytest.mark.parametrize(("text", "message"), [("[1, 2]", "map field names"), ("a: [", "not valid YAML")])
def test_cards_that_are_no_cards(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        data.load(str(tmp_path / "card.yaml"))


def test_too_many_shots(colours: data.Dataset) -> None:
    with pytest.raises(UserError, match=r"'red square' of colours has 4 .*than 5 shots; use --shots 4"):
        colours.few_shot(5, 1, "all")


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_picture_is_named(make_dataset: Any, workers: int) -> None:
    card = make_dataset()
    broken = card.parent / "images/1/train0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = data.load(str(card))
    listed = dataset.items("train")
    with pytest.raises(UserError, match=r"^Image '.*images/1/train0\.png' of colours cannot be read"):
        list(load_batches(dataset, listed, VIEWS, [[0, 4]], (1, 0), torch.device("cpu"), workers))


@pytest.mark.parametrize("name", ["folder", "digits"])
def test_pictures_reach_workers_that_are_not_forked(make_dataset: Any, name: str) -> None:
    dataset = data.load(str(make_dataset()) if name == "folder" else "digits")
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    path = dataset.splits["train"][0].path
    assert copy.image(path).tobytes() == dataset.image(path).tobytes()


# ---------------------------------------------------------------------- views


def test_a_view_is_a_function_of_seed_epoch_and_picture() -> None:
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    first = VIEWS.train(picture, 1, 0, "a")
    random.seed(3)
    torch.manual_seed(3)
    assert torch.equal(first, VIEWS.train(picture, 1, 0, "a"))
    for other in ((2, 0, "a"), (1, 1, "a"), (1, 0, "b")):
        assert not torch.equal(first, VIEWS.train(picture, *other))


def test_test_view_is_resize_and_centre_crop() -> None:
    from torchvision.transforms import v2

    picture = Image.effect_noise((90, 61), 80).convert("RGB")
    expected = v2.Compose(
        [
            v2.Resize(32, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(VIEWS.mean, VIEWS.std),
        ]
    )(picture)
    assert torch.allclose(VIEWS.normalise(VIEWS.test(picture)), expected, atol=1e-6)


def test_crops_follow_the_field() -> None:
    """Area 8-100 %, aspect 3/4-4/3, half of the views mirrored; long pictures fall back to the centre."""
    from promptbench.data.views import _crop

    stream = random.Random(0)
    areas, aspects = [], []
    for _ in range(2000):
        left, top, right, bottom = _crop((200, 200), 0.08, stream)
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 200
        areas.append((right - left) * (bottom - top) / 200**2)
        aspects.append((right - left) / (bottom - top))
    assert min(areas) == pytest.approx(0.08, abs=0.01)
    assert max(areas) > 0.95
    assert min(aspects) > 0.72
    assert max(aspects) < 1.39
    assert _crop((1000, 10), 0.9, stream) == (493, 0, 506, 10)
    mark = Image.new("RGB", (40, 40))
    mark.paste((255, 255, 255), (0, 0, 20, 40))  # white on the left
    full = Views(size=32, mean=(0, 0, 0), std=(1, 1, 1), crop_min=1.0)
    mirrored = [full.train(mark, 1, 0, str(i))[0, 16, -1].item() > 127 for i in range(400)]
    assert 160 < sum(mirrored) < 240
    upright = Views(size=32, mean=(0, 0, 0), std=(1, 1, 1), crop_min=1.0, flip=False)
    assert not any(upright.train(mark, 1, 0, str(i))[0, 16, -1].item() > 127 for i in range(50))


def test_epoch_order() -> None:
    first = epoch_order(10, 4, 1, 0)
    assert [len(batch) for batch in first] == [4, 4]  # the short batch is dropped
    assert len({i for batch in first for i in batch}) == 8
    assert epoch_order(10, 4, 1, 0) == first
    assert epoch_order(10, 4, 1, 1) != first != epoch_order(10, 4, 2, 0)
    assert [sorted(batch) for batch in epoch_order(3, 4, 1, 0)] == [[0, 1, 2]]  # a short one alone is kept
    assert [len(batch) for batch in epoch_order(8, 4, 1, 0)] == [4, 4]
    whole = epoch_order(10, 4, 1, 0, drop_last=False)
    assert [len(batch) for batch in whole] == [4, 4, 2]
    assert whole[:2] == first
    assert sorted(i for batch in whole for i in batch) == list(range(10))


def test_worker_processes_change_nothing(colours: data.Dataset) -> None:
    listed = colours.items("train")
    batches = epoch_order(len(listed), 4, 1, 0)
    alone, helped = (
        list(load_batches(colours, listed, VIEWS, batches, (1, 0), torch.device("cpu"), n)) for n in (0, 2)
    )
    assert len(alone) == len(helped) == 5
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_fingerprint_covers_what_results_depend_on(make_dataset: Any) -> None:
    def fingerprint(**card: Any) -> str:
        return data.load(str(make_dataset(card=card))).fingerprint

    first = fingerprint()
    assert fingerprint(description="other words") == first
    assert fingerprint(template="art of the {}.") != first
    assert fingerprint(flip=False) != first
