"""The 15 standard datasets in miniature, against values written down by hand."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from promptbench.clip.cache import FeatureCache
from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import cards
from promptbench.data import dataset as data
from promptbench.data.check import check
from promptbench.data.splits import Item
from promptbench.data.views import Views
from promptbench.errors import UserError
from promptbench.trials.benchmarks import get_benchmark
from tests import mini

ELEVEN = [
    "caltech101", "dtd", "eurosat", "fgvc_aircraft", "food101", "imagenet", "oxford_flowers", "oxford_pets",
    "stanford_cars", "sun397", "ucf101",
]  # fmt: skip
VARIANTS = ["imagenet_a", "imagenet_r", "imagenet_sketch", "imagenetv2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.build(tmp_path_factory.mktemp("data"))


def load(name: str, root: Path) -> data.Dataset:
    return data.load(name, root, allow_nonstandard=True)


def test_the_suites() -> None:
    assert cards.suite("standard") == ELEVEN
    assert cards.suite("imagenet-variants") == VARIANTS
    source, targets = get_benchmark("crossdataset").datasets("standard")
    assert source == "imagenet"
    assert sorted(targets) == [name for name in ELEVEN if name != "imagenet"]
    assert get_benchmark("domain").datasets("standard")[0] == "imagenet"
    assert sorted(get_benchmark("domain").datasets("standard")[1]) == VARIANTS


# sizes, halves and templates as in the field's tables
@pytest.mark.parametrize(
    ("name", "classes", "sizes", "template"),
    [
        ("imagenet", 1000, (1281167, 50000, 50000), "a photo of a {}."),
        ("caltech101", 100, (4128, 1649, 2465), "a photo of a {}."),
        ("oxford_pets", 37, (2944, 736, 3669), "a photo of a {}, a type of pet."),
        ("stanford_cars", 196, (6509, 1635, 8041), "a photo of a {}."),
        ("oxford_flowers", 102, (4093, 1633, 2463), "a photo of a {}, a type of flower."),
        ("food101", 101, (50500, 20200, 30300), "a photo of {}, a type of food."),
        ("fgvc_aircraft", 100, (3334, 3333, 3333), "a photo of a {}, a type of aircraft."),
        ("sun397", 397, (15880, 3970, 19850), "a photo of a {}."),
        ("dtd", 47, (2820, 1128, 1692), "{} texture."),
        ("eurosat", 10, (13500, 5400, 8100), "a centered satellite photo of {}."),
        ("ucf101", 101, (7639, 1898, 3783), "a photo of a person doing {}."),
    ],
)
def test_cards_are_the_fields(name: str, classes: int, sizes: tuple[int, int, int], template: str) -> None:
    card, _ = cards.cards()[name]
    assert (card.classes, card.template) == (classes, template)
    assert card.sizes == dict(zip(("train", "val", "test"), sizes, strict=True))
    assert card.halves is not None
    assert sum(card.halves.values()) == sizes[2]
    assert card.licence
    assert card.url.startswith("https://")


def test_published_zero_shot_of_the_cards_averages_to_the_published_averages() -> None:
    published = [cards.cards()[name][0].published for name in ELEVEN]
    assert round(sum(p["base"] for p in published) / 11, 2) == 69.34
    assert round(sum(p["novel"] for p in published) / 11, 2) == 74.22


@pytest.mark.parametrize(
    ("name", "names", "first_train"),
    [
        ("caltech101", mini.CALTECH, "face/image_0000.jpg"),
        ("oxford_pets", mini.PETS, "abyssinian_0.jpg"),
        ("stanford_cars", mini.CARS, "cars_train/2012 smart fortwo Convertible_00000.jpg"),
        ("oxford_flowers", mini.FLOWERS, "image_hard-leaved pocket orchid_00000.jpg"),
        ("food101", mini.FOOD, "apple_pie/0.jpg"),
        ("sun397", mini.SUN, "a/abbey/sun_0.jpg"),
        ("dtd", mini.DTD, "banded/banded_0000.jpg"),
        ("eurosat", mini.EUROSAT, "Annual Crop Land/Annual Crop Land_0.jpg"),
        ("ucf101", mini.UCF, "Apply_Eye_Makeup/v_Apply_Eye_Makeup_g01_c00.jpg"),
        ("fgvc_aircraft", mini.AIRCRAFT, "1000001.jpg"),
    ],
)
def test_labels_names_order_and_pictures(name: str, names: list[str], first_train: str, root: Path) -> None:
    dataset = load(name, root)
    assert list(dataset.classnames) == names  # label order, not order of appearance
    assert dataset.splits["train"][0].path == first_train  # file order, not label order
    for split in ("train", "val", "test"):
        for item in dataset.splits[split]:
            assert dataset.image(item.path).size == (12, 10)
            assert item.classname == names[item.label]
    assert dataset.nonstandard.startswith("non-standard split")


def test_underscores_become_blanks_in_prompts_only(root: Path) -> None:
    from promptbench.clip.tokens import template_rows, text_rows

    dataset = load("sun397", root)
    assert dataset.classes("novel").names == ("outdoor apartment_building", "youth_hostel")
    assert template_rows(dataset.classes("novel").names, dataset.card.template) == text_rows(
        ["a photo of a outdoor apartment building.", "a photo of a youth hostel."]
    )


def test_aircraft_lists(root: Path) -> None:
    items = load("fgvc_aircraft", root).splits["train"]
    assert [item.label for item in items] == [3, 3, 0, 0, 2, 2, 1, 1]
    assert items[4].classname == "Cessna 525"


def test_halves_cut_the_labels_at_ceil(root: Path) -> None:
    dataset = load("oxford_pets", root)  # three classes: two base, one novel
    assert dataset.classes("base").names == ("abyssinian", "american_bulldog")
    assert dataset.classes("novel").names == ("yorkshire_terrier",)
    assert [item.label for item in dataset.items("test", "novel")] == [0, 0]


def test_draw_follows_the_order_of_appearance(root: Path) -> None:
    """Random(1) draws from three pictures of label 2 first, then 0, then 1; checked by hand with CPython."""
    import random

    dataset = load("stanford_cars", root)
    stream = random.Random(1)
    groups = {label: [i for i in dataset.splits["train"] if i.label == label] for label in (2, 0, 1)}
    wanted: list[Item] = [item for group in groups.values() for item in stream.sample(group, 2)]
    assert dataset.few_shot(2, 1, "all") == wanted
    assert [item.label for item in wanted] == [2, 2, 0, 0, 1, 1]


def test_imagenet(root: Path) -> None:
    dataset = load("imagenet", root)
    assert dataset.classnames == tuple(mini.WNIDS.values())  # "missile" twice
    assert dataset.splits["val"] == dataset.splits["test"]
    assert [Path(item.path).name for item in dataset.splits["train"][:3]] == [
        "n01440764_1.JPEG",
        "n01440764_10.JPEG",
        "n01440764_2.JPEG",
    ]
    assert dataset.image(dataset.splits["test"][5].path).size == (12, 10)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("imagenetv2", tuple(mini.WNIDS.values())),
        ("imagenet_sketch", tuple(mini.WNIDS.values())),
        ("imagenet_a", ("goldfish", "missile")),
        ("imagenet_r", ("proboscis monkey", "missile", "toilet paper")),
    ],
)
def test_variants_have_their_own_label_space(name: str, names: tuple[str, ...], root: Path) -> None:
    dataset = load(name, root)
    assert dataset.classnames == names
    assert [item.label for item in dataset.splits["test"]] == list(range(len(names)))
    assert dataset.splits["train"] == []
    assert dataset.image(dataset.splits["test"][0].path).size == (12, 10)


def test_folders_of_v2_are_numbers_not_words(tmp_path: Path) -> None:
    """Folder 10 is class 10, although it sorts before 2."""
    mini.variants(tmp_path)
    folder = tmp_path / "imagenetv2"
    (folder / "classnames.txt").write_text("".join(f"n{i:08d} name {i}\n" for i in range(12)))
    for number in range(12):
        mini.picture(folder / "imagenetv2-matched-frequency-format-val" / str(number) / "b.jpeg")
    assert load("imagenetv2", tmp_path).classnames[10] == "name 10"


def test_a_folder_missing_from_val_is_refused(tmp_path: Path) -> None:
    mini.imagenet(tmp_path / "imagenet")
    missing = tmp_path / "imagenet" / "images" / "val" / "n03773504"
    (missing / "ILSVRC2012_val_00000003.JPEG").unlink()
    missing.rmdir()
    with pytest.raises(UserError, match=r"n03773504.* would shift every later label"):
        load("imagenet", tmp_path)


def test_without_the_published_split_the_exact_path_is_named(tmp_path: Path) -> None:
    mini.build(tmp_path)
    path = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    path.unlink()
    with pytest.raises(UserError, match=str(path)):
        data.load("dtd", tmp_path)
    dataset = load("dtd", tmp_path)
    assert dataset.nonstandard == "non-standard split: made here, the published split file was missing"
    assert dataset.classnames == tuple(mini.DTD)
    # 6 pictures per class: round(3.0), round(1.2), rest
    assert {split: len(items) for split, items in dataset.splits.items()} == {
        "train": 12,
        "val": 4,
        "test": 8,
    }


def test_wrong_class_count_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"dtd has 4 classes instead of 47.*--allow-nonstandard-split"):
        data.load("dtd", root)


def test_no_root_wrong_root_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTBENCH_DATA", raising=False)
    with pytest.raises(UserError, match="--data-root or PROMPTBENCH_DATA"):
        data.load("dtd")
    with pytest.raises(UserError, match="There is no data root"):
        data.load("dtd", tmp_path / "nowhere")
    with pytest.raises(UserError, match=str(tmp_path / "dtd")):
        data.load("dtd", tmp_path)


def test_root_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTBENCH_DATA", str(root))
    assert len(data.load("eurosat", allow_nonstandard=True).classnames) == 4


def test_a_path_out_of_the_root_is_refused(tmp_path: Path) -> None:
    entries = mini.per_class(mini.DTD, "{name}/{number}.jpg")
    entries["train"][0] = ("../../secret.jpg", 0, "banded")
    folder = tmp_path / "dtd"
    folder.mkdir()
    (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="outside the image root"):
        load("dtd", tmp_path)


def test_loading_writes_nothing_into_the_data(tmp_path: Path) -> None:
    root = mini.build(tmp_path / "data")
    before = sorted(str(path) for path in root.rglob("*"))
    for name in ELEVEN + VARIANTS:
        load(name, root)
    check([], root)
    assert sorted(str(path) for path in root.rglob("*")) == before


# --- splits of one's own, from the official lists


def test_rebuilt_pets(tmp_path: Path) -> None:
    folder = tmp_path / "oxford_pets"
    (folder / "annotations").mkdir(parents=True)
    train = [f"american_bulldog_{n} 2 2 1" for n in range(5)] + [f"Abyssinian_{n} 1 1 1" for n in range(5)]
    (folder / "annotations" / "trainval.txt").write_text("\n".join(train))
    (folder / "annotations" / "test.txt").write_text("Abyssinian_9 1 1 1\namerican_bulldog_9 2 2 1\n")
    dataset = load("oxford_pets", tmp_path)
    assert dataset.classnames == ("abyssinian", "american_bulldog")
    assert {split: len(items) for split, items in dataset.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert dataset.splits["test"][0] == Item("Abyssinian_9.jpg", 0, "abyssinian")


def test_rebuilt_cars_put_the_year_first(tmp_path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = [("class", "i4"), ("fname", "O")]
    train = np.array(
        [(2, f"{n:05d}.jpg") for n in range(5)] + [(1, f"{n:05d}.jpg") for n in range(5, 10)], dtype=kind
    )
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": train})
    savemat(
        folder / "cars_test_annos_withlabels.mat",
        {"annotations": np.array([(1, "00001.jpg"), (2, "00002.jpg")], dtype=kind)},
    )
    dataset = load("stanford_cars", tmp_path)
    assert dataset.classnames == ("2000 AM General Hummer SUV", "2012 Acura RL Sedan")
    assert dataset.splits["test"][1] == Item("cars_test/00002.jpg", 1, "2012 Acura RL Sedan")


def test_rebuilt_flowers(tmp_path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    folder = tmp_path / "oxford_flowers"
    folder.mkdir()
    savemat(folder / "imagelabels.mat", {"labels": np.array([[2] * 10 + [1] * 10])})
    (folder / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose", "2": "blackberry lily"}))
    dataset = load("oxford_flowers", tmp_path)
    assert dataset.classnames == ("pink primrose", "blackberry lily")
    assert {split: len(items) for split, items in dataset.splits.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    assert all(
        item.path <= "image_00010.jpg" for items in dataset.splits.values() for item in items if item.label
    )


def test_rebuilt_sun_reverses_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "sun397"
    folder.mkdir()
    (folder / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n")
    pictures = [
        f"{where}/sun_{n}.jpg" for where in ("/a/abbey", "/a/apartment_building/outdoor") for n in range(5)
    ]
    (folder / "Training_01.txt").write_text("\n".join(pictures))
    (folder / "Testing_01.txt").write_text("/a/abbey/sun_9.jpg\n/a/apartment_building/outdoor/sun_9.jpg\n")
    dataset = load("sun397", tmp_path)
    assert dataset.classnames == ("abbey", "outdoor apartment_building")
    assert dataset.splits["test"][1].path == "a/apartment_building/outdoor/sun_9.jpg"


def test_rebuilt_ucf(tmp_path: Path) -> None:
    lists = tmp_path / "ucf101" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n")
    videos = [
        f"{a}/v_{a}_g0{n}_c01.avi {i}" for i, a in ((1, "ApplyEyeMakeup"), (2, "YoYo")) for n in range(5)
    ]
    (lists / "trainlist01.txt").write_text("\n".join(videos))
    (lists / "testlist01.txt").write_text("ApplyEyeMakeup/v_A_g09_c01.avi\nYoYo/v_Y_g09_c01.avi\n")
    dataset = load("ucf101", tmp_path)
    assert dataset.classnames == ("Apply_Eye_Makeup", "Yo_Yo")
    assert dataset.splits["test"][0].path == "Apply_Eye_Makeup/v_A_g09_c01.jpg"


def test_rebuilt_caltech_and_eurosat_rename(tmp_path: Path) -> None:
    for name in ("Faces", "Faces_easy", "BACKGROUND_Google", "accordion"):
        for number in range(6):
            mini.picture(tmp_path / "caltech-101" / "101_ObjectCategories" / name / f"image_{number}.jpg")
    assert load("caltech101", tmp_path).classnames == ("face", "accordion")
    for name in ("AnnualCrop", "Forest"):
        for number in range(6):
            mini.picture(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.jpg")
    assert load("eurosat", tmp_path).classnames == ("Annual Crop Land", "Forest")


def test_missing_lists_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ucf101").mkdir()
    with pytest.raises(UserError, match=r"cannot read the official list .*classInd.txt; restore it"):
        load("ucf101", tmp_path)


# --- own folders of pictures


def own(root: Path, splits: bool = False) -> Path:
    for split in ("train", "test") if splits else ("",):
        for label, name in enumerate(("red_panda", "Snow leopard", "yak", "zebu")):
            for number in range(10):
                mini.picture(root / split / name / f"{number}.png", 40 * label)
    return root


def test_a_folder_per_class_is_a_dataset(tmp_path: Path) -> None:
    dataset = data.load(str(own(tmp_path / "My Zoo")), template="a drawing of a {}")
    assert dataset.name == "my-zoo"
    assert dataset.classnames == ("Snow leopard", "red_panda", "yak", "zebu")  # plain sort: capitals first
    assert {split: len(items) for split, items in dataset.splits.items()} == {
        "train": 20,
        "val": 8,
        "test": 12,
    }
    assert dataset.classes().template == "a drawing of a {}"
    assert not dataset.nonstandard
    paths = [item.path for items in dataset.splits.values() for item in items]
    assert len(set(paths)) == 40


def test_own_splits_and_names_are_used(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo", splits=True)
    (folder / "classnames.txt").write_text("red_panda lesser panda\nSnow snow leopard\nyak yak\nzebu zebu\n")
    with pytest.raises(UserError, match=r"line 2: there is no folder 'Snow'; correct"):
        data.load(str(folder))
    (folder / "train" / "Snow leopard").rename(folder / "train" / "Snow")
    (folder / "test" / "Snow leopard").rename(folder / "test" / "Snow")
    dataset = data.load(str(folder))
    assert dataset.classnames == ("snow leopard", "lesser panda", "yak", "zebu")
    assert {split: len(items) for split, items in dataset.splits.items()} == {
        "train": 40,
        "val": 0,
        "test": 40,
    }


def test_train_without_test_and_empty_folders(tmp_path: Path) -> None:
    mini.picture(tmp_path / "a" / "train" / "x" / "1.png")
    with pytest.raises(UserError, match="needs train and test"):
        data.load(str(tmp_path / "a"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no sub-folder"):
        data.load(str(tmp_path / "empty"))


def test_links_in_circles_are_skipped(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo")
    (folder / "yak" / "loop.png").symlink_to("loop.png")
    (folder / "yak" / "up").symlink_to(folder)
    assert len(data.load(str(folder)).splits["train"]) == 20


def test_what_would_shift_labels_is_refused(tmp_path: Path) -> None:
    """Folders without readable pictures must not drop out of the classes without a word."""
    folder = own(tmp_path / "zoo")
    for path in (folder / "zebu").iterdir():
        path.rename(path.with_suffix(".txt"))
    (folder / "__MACOSX").mkdir()
    with pytest.raises(UserError, match=r"the folder '.*zoo/zebu' holds no images"):
        data.load(str(folder))
    (folder / "zebu" / "1.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.heic has a format that cannot be read; convert it"):
        data.load(str(folder))
    folder = own(tmp_path / "two", splits=True)
    (folder / "train").rename(folder / "Train")
    (folder / "test").rename(folder / "TEST")
    with pytest.raises(UserError, match=r"has 'TEST'; call it 'test'"):
        data.load(str(folder))


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    folder = own(tmp_path / "vehicles")
    (folder / "yak").rename(folder / "train")
    (folder / "zebu").rename(folder / "test")
    dataset = data.load(str(folder))
    assert dataset.classnames == ("Snow leopard", "red_panda", "test", "train")
    assert dataset.notes == ()
    for name in ("Snow leopard", "red_panda"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(UserError, match="has images directly in test and train; put them into one"):
        data.load(str(folder))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_other_words_for_splits(tmp_path: Path, val: str) -> None:
    folder = own(tmp_path / "zoo", splits=True)
    for name in ("red_panda", "yak"):
        mini.picture(folder / val / name / "1.png")
    splits = data.load(str(folder)).splits
    assert [item.path for item in splits["val"]] == [f"{val}/red_panda/1.png", f"{val}/yak/1.png"]
    assert (len(splits["train"]), len(splits["test"])) == (40, 40)
    mini.picture(folder / ("val" if val != "val" else "valid") / "yak" / "1.png")
    with pytest.raises(UserError, match="two of which name the same split; keep one"):
        data.load(str(folder))


def test_deeper_folders_are_of_the_class_they_lie_in(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo")
    shutil.copytree(folder / "yak", folder / "yak" / "young" / "brown")
    dataset = data.load(str(folder))
    paths = {item.path: item.classname for items in dataset.splits.values() for item in items}
    assert len(paths) == 50
    assert paths["yak/young/brown/3.png"] == "yak"
    for split in ("train", "test"):
        shutil.copytree(folder / "zebu", folder / "red_panda" / split)
    with pytest.raises(UserError, match="has folders train and test in a class; put them the other"):
        data.load(str(folder))


def test_hidden_files_are_no_images_and_others_are_told(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo")
    plain = data.load(str(folder))
    for name in ("._1.png", ".hidden.png", "Thumbs.db", ".thumbs/1.png", "@eaDir/1.png"):
        (folder / "yak" / name).parent.mkdir(exist_ok=True)
        (folder / "yak" / name).write_bytes(b"\0\5\x16\7")
    hidden = data.load(str(folder))
    assert (hidden.fingerprint, hidden.notes) == (plain.fingerprint, ())
    (folder / "yak" / "1.tga").write_bytes(b"")
    (folder / "yak" / "gone.png").symlink_to("nowhere.png")
    mini.picture(folder / "stray.png")
    assert data.load(str(folder)).notes == (
        "left out, since they are in no class folder: 1 file, such as 'stray.png'",
        "left out, since their format is not read: 2 files, such as 'yak/1.tga'",
    )


def test_folders_beside_the_splits_are_told(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo", splits=True)
    mini.picture(folder / "unlabelled" / "1.png")
    (note,) = data.load(str(folder)).notes
    assert note == "left out, since they are in no class folder: 1 file, such as 'unlabelled/1.png'"
    mini.picture(folder / "val" / "1.png")
    with pytest.raises(UserError, match=r"zoo/val holds images directly; put them into one sub-folder"):
        data.load(str(folder))


def test_check_finds_copies_and_passes_notes_on(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo", splits=True)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        mini.picture(path, number)
    shutil.copy(folder / "train" / "yak" / "1.png", folder / "test" / "yak" / "2.png")
    mini.picture(folder / "stray.png")
    (found,) = check([str(folder)], None)
    assert found.problems == []
    assert found.notes == [
        "left out, since they are in no class folder: 1 file, such as 'stray.png'",
        "1 test images are copies of train images, such as 'test/yak/2.png' of 'train/yak/1.png'",
    ]


def test_names_with_blanks_and_from_other_editors(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo")
    lines = ["red_panda\tlesser panda", "Snow leopard ounce of the hills", "yak yak", "zebu  zebu"]
    (folder / "classnames.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    dataset = data.load(str(folder))
    assert dataset.classnames == ("ounce of the hills", "lesser panda", "yak", "zebu")
    (folder / "classnames.txt").write_bytes("red_panda Bär".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text; save it as UTF-8"):
        data.load(str(folder))
    (folder / "classnames.txt").write_text("yak a\nyak b\n")
    with pytest.raises(UserError, match="line 2: 'yak' has a name already"):
        data.load(str(folder))


def test_folder_names_the_file_system_garbled(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo")
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff")).mkdir()
    with pytest.raises(UserError, match=r"the name b'bad\\xff' in .* is not UTF-8; rename it"):
        data.load(str(folder))


def test_three_pictures_of_a_class_leave_one_to_test(tmp_path: Path) -> None:
    for name in ("a cat", "a dog"):
        for number in range(3):
            mini.picture(tmp_path / "pets" / name / f"{number}.png")
    sizes = {split: len(items) for split, items in data.load(str(tmp_path / "pets")).splits.items()}
    assert sizes == {"train": 4, "val": 0, "test": 2}


def test_a_folder_with_a_split_file_keeps_its_split(tmp_path: Path) -> None:
    folder = own(tmp_path / "zoo")
    items = [[f"{name}/{n}.png", label, name] for label, name in enumerate(("yak", "zebu")) for n in range(3)]
    split = {"train": items, "val": [], "test": items[:1] + items[3:4]}
    (folder / "split.json").write_text(json.dumps(split))
    dataset = data.load(str(folder))
    assert dataset.classnames == ("yak", "zebu")
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (6, 2)
    (found,) = check([str(folder)], None)
    assert found.problems == ["2 images are in both train and test, such as 'yak/0.png'"]


def test_replaced_pictures_are_seen_by_the_caches(
    tmp_path: Path, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other pictures under the same names: other features, and for own folders another dataset."""
    clip.cache = FeatureCache(tmp_path / "cache")
    one, other = own(tmp_path / "a" / "zoo"), own(tmp_path / "b" / "zoo")
    for path in other.rglob("*.png"):
        Image.effect_noise((16, 16), 90).convert("RGB").save(path)
    first, second = data.load(str(one)), data.load(str(other))
    assert first.fingerprint != second.fingerprint
    items, views = first.items("test"), Views(**clip.preprocess)
    assert items == second.items("test")
    features = [frozen_features(clip, dataset, items, views, None) for dataset in (first, second)]
    assert not torch.allclose(features[0], features[1])
    same_print = replace(second, fingerprint=first.fingerprint)  # as of a published split
    assert torch.equal(frozen_features(clip, same_print, items, views, None), features[1])


# --- data check


def test_check_says_what_is_off(root: Path) -> None:
    (found,) = check(["oxford_pets"], root)
    assert found.row()["state"] == "off"
    assert found.classes == "3"  # what is there is counted and decoded all the same
    assert found.decoded == "18 of 18"
    assert found.problems[0].startswith("non-standard split: 3 classes and ")
    assert "says 37" in found.problems[0]
    (found,) = check(["icons"], None)
    assert found.found
    assert found.problems == []
    assert found.row()["state"] == "ok"


def test_check_finds_order_and_broken_pictures(tmp_path: Path) -> None:
    names = [f"class {i:02d}" for i in range(10)]
    entries = mini.per_class(names, "{name}/{number}.jpg")
    mini.zhou(tmp_path / "eurosat", "2750", "split_zhou_EuroSAT.json", entries)
    broken = tmp_path / "eurosat" / "2750" / "class 03" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "eurosat" / "2750" / "class 04" / "1.jpg").unlink()
    (found,) = check(["eurosat"], tmp_path, full=True)
    assert found.row()["state"] == "off"
    assert found.decoded == "58 of 60"
    text = "\n".join(found.problems)
    assert "the first class is 'class 00' instead of 'Annual Crop Land'" in text
    assert "non-standard split" in text
    assert "10 / 10 test images" in text
    assert "(and 1 more)" in text


def test_check_of_everything_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTBENCH_DATA", raising=False)
    found = {one.name: one for one in check([], None)}
    assert found["digits"].row()["state"] == "ok"
    assert found["dtd"].row()["state"] == "missing"
    assert "https://www.robots.ox.ac.uk" in found["dtd"].problems[0]


def test_a_decompression_bomb_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own(tmp_path / "zoo")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    dataset = data.load(str(folder))
    with pytest.raises(
        UserError,
        match=r"zoo/.*\.png' of zoo cannot be read .more than the limit of 80 pixels; make it smaller",
    ):
        dataset.image(dataset.splits["test"][0].path)


def test_listing_is_kept_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from promptbench.data.folders import list_folders

    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "cache"))
    folder = own(tmp_path / "zoo")
    assert len(list_folders(folder, "zoo")["yak"]) == 10
    assert len(list((tmp_path / "cache" / "listings").iterdir())) == 1
    mini.picture(folder / "yak" / "new.png")
    os.utime(folder / "yak", ns=(1, 10**18))
    assert "new.png" in list_folders(folder, "zoo")["yak"]
