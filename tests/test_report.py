"""The report: what it says, that nothing in it can act, and how a real browser shows it."""

import base64
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from promptbench.analysis import confusions as mistakes
from promptbench.analysis.comparison import Material
from promptbench.analysis.statistics import all_pairs
from promptbench.analysis.summary import measured
from promptbench.data import dataset as data
from promptbench.errors import UserError
from promptbench.reporting import sentences as wording
from promptbench.reporting.html import figures as report_figures
from promptbench.reporting.html import report
from promptbench.training.counts import Confused, Counts
from promptbench.trials.record import Record, Seconds
from promptbench.trials.trial import Trial
from tests.test_cli import call

SCRIPT = "<script>window.hit = 1</script>"
HANDLER = '"><img src=x onerror="window.hit = 1">'
PICTURES = [f"images/0/test{i}.png" for i in range(3)]


def make(method: str, seed: int, base: int, novel: int, dataset: str = "colours", **trial: Any) -> Record:
    """A record with ``base`` and ``novel`` right out of 200; two classes each, one confusion."""
    environment = {"device": "cpu", "commit": "", "packages": {"torch": "2"}}
    notes = trial.pop("notes", [])
    labels = trial.pop("labels", [])
    value = Trial(
        **{
            "benchmark": "base2novel",
            "method": method,
            "settings": {"lr": 0.1, "batch_size": 4, "name": method},
            "dataset": dataset,
            "data": f"data of {dataset}",
            "train_classes": "base",
            "shots": 16 if method != "zeroshot" else 0,
            "seed": seed if method != "zeroshot" else 0,
            "evaluations": (),
            "weights": "w" * 64,
            **trial,
        }
    )
    halves: Any = {"base": ("red square", SCRIPT), "novel": ("night", HANDLER)}
    evaluations = [
        Counts(
            dataset=dataset,
            classes=half,
            split=value.split,
            correct=right,
            total=200,
            per_class={halves[half][0]: (right - right // 2, 100), halves[half][1]: (right // 2, 100)},
            confused=[Confused(true=halves[half][0], predicted=halves[half][1], count=7, pictures=PICTURES)],
        )
        for half, right in (("base", base), ("novel", novel))
    ]
    return Record(
        hash=value.hash,
        trial=value,
        evaluations=evaluations,
        trainable_parameters=0 if method == "zeroshot" else 1000 * len(method),
        steps=10,
        final_loss=1.0,
        hashes={"weights": "w" * 64, "data": value.data, "code": "c" * 64},
        seconds=Seconds(train=2.0),
        peak_memory_bytes=1 << 20,
        environment=environment,
        notes=notes,
        labels=labels,
    )


#: "deep" is 20 points above "small" in every seed, "other" now above and now below "deep"
RECORDS = [
    make("zeroshot", 0, 90, 100),
    *(make("deep", seed, 160 + seed, 140 + seed) for seed in (1, 2, 3)),
    *(make("other", seed, 160 + extra, 140 + extra) for seed, extra in ((1, 4), (2, 1), (3, 2))),
    *(make("small", seed, 120 + seed, 100 + 2 * seed, notes=[f"small: {HANDLER}"]) for seed in (1, 2, 3)),
]


DRAW = report.figures


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; two tests put it back."""
    monkeypatch.setattr(report, "figures", lambda material: [])


def write(records: list[Record], out: Path) -> Path:
    for record in records:
        record.write(record.trial.folder(out))
    return out


def nowhere(name: str) -> data.Dataset:
    raise UserError(f"{name} is not here.")


def text_of(out: Path, find: Callable[[str], data.Dataset] = nowhere, **given: Any) -> str:
    report.write_report(out, out / "report.html", find=find, **given)
    return (out / "report.html").read_text("utf-8")


class Page(HTMLParser):
    """Elements with their attributes, and the text of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside].append(data)
        else:
            self.words.append(data)


def test_nothing_in_a_record_can_act(tmp_path: Path) -> None:
    changed = make("deep", 9, 1, 1, HANDLER, variant=SCRIPT, settings={"x": SCRIPT}, labels=[SCRIPT])
    page = Page(text_of(write([*RECORDS, changed], tmp_path)))
    assert len(page.raw["script"]) == len(page.raw["style"]) == 1
    assert [tag for tag, _ in page.elements].count("script") == 1
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), attributes
    for name in (SCRIPT, HANDLER, f"deep ({SCRIPT})", f"small: {HANDLER}"):
        assert any(name in words for words in page.words), name  # shown as it is, as text


def test_only_its_own_script_and_style_are_allowed(tmp_path: Path) -> None:
    page = Page(text_of(write(RECORDS, tmp_path)))
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind][0].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_words_say_what_is_within_noise(tmp_path: Path) -> None:
    text = text_of(write(RECORDS, tmp_path))
    flat = " ".join(re.sub(r"<[^>]+>", "", text).split())
    assert "4 methods (zeroshot, deep, other, small); 1 dataset (colours); 16 shots; seeds 1-3; " in flat
    assert (
        "Base classes: highest is other, 81.17 ± 0.76. Within noise of it: deep 81.00. "
        "Lower, beyond noise: small 61.00, zeroshot 45.00. "
        "Against zeroshot (45.00): above: other, deep, small." in flat
    )
    assert "3 seeds show large differences only." in flat
    alone = text_of(write([r for r in RECORDS if r.trial.seed < 2], tmp_path / "one"))
    assert "No two methods have two seeds in common" in alone
    assert "Below it, not tested: deep" in alone
    assert "beyond noise" not in alone


def test_a_method_without_all_datasets_is_not_ranked() -> None:
    records = [
        *RECORDS,
        *(make("deep", seed, 150, 150, "b") for seed in (1, 2)),
        make("zeroshot", 0, 1, 1, "b"),
    ]
    material = Material(records, Path())
    found = wording.verdicts(material, all_pairs(measured(material.table)))[0]
    assert found.metric == "hm"
    assert found.missing == ["other", "small"]
    assert set(found.values) == {"deep", "zeroshot"}
    assert "Not ranked: other, small: a dataset, or a seed common to all, is missing." in wording.sentence(
        found
    )


def test_verdicts_are_those_of_compare() -> None:
    """Holm over all pairs of a metric: what `compare` does not list is within noise here."""
    material = Material(RECORDS, Path())
    pairs = all_pairs(measured(material.table))
    for verdict in wording.verdicts(material, pairs):
        mine = pairs[(pairs["metric"] == verdict.metric) & (pairs["method"] == verdict.best)]
        lower = set(mine[mine["p_seeds"] < 0.05]["other"])
        assert set(verdict.others.get("lower", [])) == lower
    assert "lower" in verdict.others


def test_figures_are_all_that_the_records_give_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_figures.figures(Material(RECORDS, Path()))
    assert [one.caption.split()[0] for one in found] == ["Accuracy", "Base", "Points"]
    assert found[0].caption.endswith("Nothing is dominated.") or "dominates" in found[0].caption
    monkeypatch.setattr(report_figures, "MAX_BYTES", len(found[0].uri) + len(found[2].uri))
    fewer = report_figures.figures(Material(RECORDS, Path()))
    assert [bool(one.uri) for one in fewer].count(False) == 1
    assert "Left out" in next(one.caption for one in fewer if not one.uri)


def test_ranges() -> None:
    assert wording.ranges([5, 1, 2, 3]) == "1-3, 5"
    assert wording.ranges([1, 2]) == "1, 2"


def test_broken_records_are_reported_and_not_averaged(tmp_path: Path) -> None:
    whole = text_of(write(RECORDS, tmp_path))
    extra = make("deep", 7, 0, 0)
    folder = extra.trial.folder(tmp_path)
    extra.write(folder)
    (folder / "record.json").write_text("{")
    write([make("deep", 8, 0, 0, limit=1)], tmp_path)
    text = text_of(tmp_path)
    assert f"Cannot be read: <code>{(folder / 'record.json').relative_to(tmp_path)}</code>" in text
    assert "1 record cannot be read" in " ".join(text.split())
    assert "1 record of a smoke run" in " ".join(text.split())
    averages = re.compile(r"<h3>Averages</h3>.*?</table>", re.DOTALL)
    assert averages.findall(text) == averages.findall(whole) != []


def test_mixed_backbones(tmp_path: Path) -> None:
    write([*RECORDS, make("deep", 1, 1, 1, backbone="ViT-B-16")], tmp_path)
    with pytest.raises(UserError, match="mixes backbones"):
        text_of(tmp_path)
    assert "backbone ViT-B-16" not in text_of(tmp_path, backbone="pocket")
    assert "highest is deep, 0.50" in text_of(tmp_path, backbone="ViT-B-16")
    with pytest.raises(UserError, match="Did you mean 'pocket'"):
        text_of(tmp_path, backbone="poket")
    with pytest.raises(UserError, match="No records of base2novel"):
        text_of(tmp_path / "empty")


def test_classes_and_confusions_are_sums_over_seeds(tmp_path: Path) -> None:
    write(RECORDS, tmp_path)
    found = report.collect(tmp_path)
    assert not any(counts.per_class or counts.confused for r in found.records for counts in r.evaluations)
    where = mistakes.Where("colours", "base", "test")
    who = next(who for who in found.first if who.method == "deep")
    sums = found.mistakes.sums[where][who]
    assert sums.trainings == 3
    assert sums.classes["red square"] == [81 + 81 + 82, 300]  # 161, 162, 163 less their halves
    pair = mistakes.Pair("red square", SCRIPT)
    assert sums.rate(pair) == pytest.approx(7)
    assert sums.rate(mistakes.Pair("red square", "sea")) is None
    assert found.mistakes.examples(where, pair) == PICTURES


def test_classes_of_many_seeds_are_those_of_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_SEEDS", 2)
    found = report.collect(write(RECORDS, tmp_path))
    sums = found.mistakes.sums[mistakes.Where("colours", "base", "test")]
    assert {who.method: one.trainings for who, one in sums.items()} == {
        **{"zeroshot": 1, "deep": 2, "other": 2, "small": 2}
    }
    assert len(found.records) == len(RECORDS)  # what is averaged is all


def test_example_pictures(tmp_path: Path, colours: data.Dataset) -> None:
    out = write(RECORDS, tmp_path / "out")
    text = text_of(out, lambda name: colours)
    assert text.count("<symbol ") == 3  # base and novel show the same pictures: they are there once
    assert text.count("<use ") == 6
    assert "not available when" not in text
    text = text_of(out)
    assert "<symbol " not in text
    assert "The images of this dataset were not available when the report was made." in text
    assert report.write_report(out, out / "r.html", find=nowhere) == {"colours": "colours is not here."}


def test_only_pictures_of_the_split_are_read(colours: data.Dataset, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(tmp_path / "colours" / PICTURES[0], secret)
    where = mistakes.Where("colours", "base", "test")
    album = mistakes.Album(lambda name: colours)
    album.fill([(where, [PICTURES[0], "../secret.png", "images/0/train0.png"])])
    assert [album.number("colours", path) for path in (PICTURES[0], "../secret.png")] == [0, None]
    assert len(album.thumbnails) == 1


def test_pictures_are_bounded(colours: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    where = mistakes.Where("colours", "base", "test")
    monkeypatch.setattr(mistakes, "MAX_IMAGES", 3)
    album = mistakes.Album(lambda name: colours)
    album.fill([(where, [f"images/{label}/test{i}.png" for i in range(3)]) for label in (0, 1)])
    assert len(album.thumbnails) == 3
    assert album.left_out == 3
    firsts = [album.number("colours", f"images/{label}/test0.png") for label in (0, 1)]
    assert firsts == [0, 1]  # every confusion has one before any has two


def test_same_records_same_file(tmp_path: Path, colours: data.Dataset) -> None:
    out = write(RECORDS, tmp_path / "out")
    assert text_of(out, lambda name: colours) == text_of(out, lambda name: colours)


def test_command(
    tmp_path: Path, make_dataset: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "figures", DRAW)
    card, out = make_dataset(), tmp_path / "out"
    trials = ["--dataset", str(card), "--shots", "2", "--epochs", "1", "--out", str(out)]
    assert call("run", "zeroshot", "coop", *trials) == 0
    assert call("run", "zeroshot", "coop", "--benchmark", "fewshot", *trials) == 0
    assert call("report", "--out", str(out), "--dataset", str(card)) == 0
    assert re.search(r"wrote .*report\.html \(\d\.\d MB\)", capsys.readouterr().err)
    text = (out / "report.html").read_text("utf-8")
    assert re.findall(r'<section id="(\w+)">', text) == [
        *("summary", "base2novel", "fewshot", "environment", "remarks")
    ]
    assert str(tmp_path) not in text  # no paths of this machine
    one = tmp_path / "one.html"
    assert call("report", "--out", str(out), "--benchmark", "fewshot", "--file", str(one)) == 0
    assert "no images of colours: Unknown dataset 'colours'" in capsys.readouterr().err
    assert "base2novel" not in one.read_text("utf-8")
    assert call("report", "--out", str(out), "--benchmark", "fewshots") == 2
    assert "Did you mean 'fewshot'?" in capsys.readouterr().err


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium of its own; skips where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        *("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"),
        *("disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"),
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def resize(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def column(browser: Any, number: int) -> list[str]:
    """Texts of a column of the first table."""
    rows = "[...document.querySelector('table').tBodies[0].rows]"
    script = f"return {rows}.map(row => row.cells[arguments[0]].textContent)"
    return [text.strip() for text in browser.execute_script(script, number)]


def test_in_a_browser(
    browser: Any, tmp_path: Path, colours: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "figures", DRAW)
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    lacking = [make("lacking", 1, 9, 9, "b"), make("zeroshot", 0, 8, 190, "b")]
    more = [make(m, s, 16 + s, 19, "b") for m in ("deep", "other", "small") for s in (1, 2, 3)]
    out = write([*RECORDS, *lacking, *more], tmp_path / "out")
    text_of(out, lambda name: colours)
    browser.get((out / "report.html").as_uri())

    assert browser.get_log("browser") == []  # no error, and nothing the policy had to refuse
    assert browser.execute_script("return window.hit") is None
    pictures = browser.execute_async_script(
        """const done = arguments[arguments.length - 1];
        const uris = [...document.images].map(one => one.src)
          .concat([...document.querySelectorAll('image')].map(one => one.getAttribute('href')));
        Promise.all(uris.map(uri => new Promise(answer => {
          const one = new Image();
          one.onload = one.onerror = () => answer(one.naturalWidth);
          one.src = uri;
        }))).then(done)"""
    )
    assert len(pictures) == 6  # three figures and three thumbnails
    assert all(width > 0 for width in pictures)

    head = [
        th.text for th in browser.find_elements(By.CSS_SELECTOR, "#base2novel table:first-of-type th button")
    ]
    assert head[:5] == ["method", "base", "novel", "HM", "parameters"]
    buttons = browser.find_elements(By.CSS_SELECTOR, "#base2novel table th button")
    before = column(browser, 2)
    assert "-" in before
    buttons[2].send_keys(Keys.ENTER)  # from the keyboard
    shown = column(browser, 2)
    numbers = [float(text.split()[0]) for text in shown[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    assert shown[-1] == "-"
    heading = browser.find_elements(By.CSS_SELECTOR, "#base2novel table th")[2]
    assert heading.get_attribute("aria-sort") == "descending"
    buttons[2].send_keys(Keys.SPACE)
    assert column(browser, 2) == [*shown[-2::-1], "-"]  # what is missing stays last
    assert heading.get_attribute("aria-sort") == "ascending"
    buttons[4].click()
    assert column(browser, 4) == ["7,000", "5,000", "5,000", "4,000", "0"]  # as numbers, not as text
    assert heading.get_attribute("aria-sort") == "none"
    buttons[0].click()
    assert column(browser, 0) == ["deep", "lacking", "other", "small", "zeroshot"]

    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for width in (375, 1200):
        resize(browser, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def requests(browser: Any) -> set[str]:
    """Schemes of all that was requested since the last call."""
    asked = [
        url
        for entry in browser.get_log("performance")
        if "requestWillBeSent" in entry["message"]
        for url in re.findall(r'"url":"([^"]+)"', entry["message"])
    ]
    return {url.partition(":")[0] for url in asked}


def test_a_browser_asks_nobody_and_refuses_foreign_script(browser: Any, tmp_path: Path) -> None:
    out = write(RECORDS, tmp_path / "out")
    text_of(out)
    browser.get("about:blank")
    requests(browser)
    browser.get((out / "report.html").as_uri())
    assert requests(browser) <= {"file", "data"}
    # Even what got past the escaping would not act.
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", HANDLER)
    answer = browser.execute_async_script(
        "const [done] = arguments; "
        "fetch('http://127.0.0.1:9/').then(() => done('went'), () => done('refused'))"
    )
    assert answer == "refused"
    assert browser.execute_script("return window.hit") is None
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert sum("Content Security Policy" in message for message in said) >= 2, said
