"""The loop: the field's schedule, exact resumption, cached features, and a loss that is not a number."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from promptbench.clip.arithmetic import Arithmetic, resolve_precision, suitable_threads
from promptbench.clip.backbones import backbone_shape
from promptbench.clip.cache import FeatureCache
from promptbench.clip.features import frozen_features
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.precision import Precision
from promptbench.data import dataset as data
from promptbench.data.cards import Half
from promptbench.data.views import Views, epoch_order
from promptbench.errors import UserError
from promptbench.execution.execute import execute
from promptbench.execution.progress import PlainReporter
from promptbench.methods._base import Batch
from promptbench.methods._registry import get_method
from promptbench.methods._settings import Settings
from promptbench.training import loop as train
from promptbench.training.checkpoint import Progress, digest
from promptbench.training.counts import Evaluation
from promptbench.training.evaluate import evaluate
from promptbench.training.files import CHECKPOINT
from promptbench.training.loop import Training, create, fit
from promptbench.training.schedule import aggregation_weights, learning_rate
from promptbench.training.steps import make_optimizer
from tests import kill_driver, plain


def test_schedule_of_maple() -> None:
    """The example of the protocol, section 9: 5 epochs at 0.0035."""
    settings = Settings(lr=0.0035, epochs=5)
    rates = [learning_rate(settings, epoch) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 3.5e-3, 3.17e-3, 2.29e-3, 1.21e-3], rel=3e-3)
    without = Settings(lr=1.0, epochs=4, warmup_epochs=0)
    assert [learning_rate(without, e) for e in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], rel=1e-5
    )


def test_schedule_stepped_within_epochs(clip: FrozenCLIP, colours: data.Dataset) -> None:
    settings = Settings(lr=1.0, lr_min=0.2, epochs=4, warmup_epochs=0, schedule="step")
    assert [learning_rate(settings, e) for e in (0, 1.5, 2, 4)] == pytest.approx([1, 0.753073, 0.6, 0.2])
    steps = {"schedule": "step", "warmup_epochs": 0, "epochs": 2, "lr": 1e-3, "batch_size": 4}
    _, progress = trained(clip, colours, "coop", **steps)
    batches = progress.steps // 2
    last = [(2 * batches - 1) / batches / 2, (batches - 1) / batches / 2]  # of the run, of the first epoch
    expected = [1e-3 * (1 + math.cos(math.pi * part)) / 2 for part in reversed(last)]
    assert [row["lr"] for row in progress.history] == pytest.approx(expected)
    # a number of steps instead of epochs: the last epoch is cut, the cosine ends with the last step
    _, progress = trained(clip, colours, "coop", **steps | {"steps": batches + 1, "epochs": 99})
    assert (progress.epoch, progress.steps) == (2, batches + 1)
    last_rate = 1e-3 * (1 + math.cos(math.pi * batches / (batches + 1))) / 2
    assert progress.history[-1]["lr"] == pytest.approx(last_rate)


def test_gaussian_prompt_aggregation(clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path) -> None:
    """The result is the sum of the parameters after every epoch, also if the run was cut off in between."""
    # protocol of PromptSRC, section 11 of its card: 20 epochs, mean 15, width 1
    twenty = aggregation_weights(Settings(epochs=20, gpa_mean=15, gpa_std=1))
    assert [round(w, 3) for w in twenty[12:18]] == [0.054, 0.242, 0.399, 0.242, 0.054, 0.004]
    far = aggregation_weights(Settings(epochs=2, gpa_mean=400, gpa_std=0.1))
    assert far == pytest.approx([0, 1])
    assert aggregation_weights(Settings(epochs=2)) == []

    kind, classes = get_method("mmlop"), colours.classes("base")
    settings: Any = kind.Settings.model_validate(
        {"epochs": 4, "depth": 3, "lr": 0.02, "gpa_mean": 2.5, "gpa_std": 1.0}
    )
    items = colours.few_shot(4, 1, "base")
    after: list[dict[str, torch.Tensor]] = []
    straight = create(kind, clip, settings, classes, seed=1)

    def keep(progress: Progress, epochs: int) -> None:
        after.append({name: p.detach().clone() for name, p in straight.named_parameters()})

    fit(straight, Training(colours, items, classes, seed=1, report=keep))
    outer, inner = math.exp(-(1.5**2) / 2), math.exp(-(0.5**2) / 2)
    weights = [w / (2 * outer + 2 * inner) for w in (outer, inner, inner, outer)]
    for name, parameter in straight.named_parameters():
        parts = [w * state[name] for w, state in zip(weights, after, strict=True)]
        expected = torch.stack(parts).sum(dim=0)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-7, rtol=1e-6)
        assert not torch.equal(parameter, after[-1][name])

    def cut(progress: Progress, epochs: int) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    for _ in range(2):  # cut off after the second epoch, then resumed
        resumed = create(kind, clip, settings, classes, seed=1)
        try:
            fit(resumed, Training(colours, items, classes, seed=1, folder=tmp_path, report=cut))
        except KeyboardInterrupt:
            continue
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, dict(straight.named_parameters())[name])


def trained(clip: FrozenCLIP, dataset: data.Dataset, name: str, **settings: Any) -> tuple[Any, Progress]:
    kind = get_method(name)
    classes = dataset.classes("base")
    full: dict[str, Any] = {"epochs": 4, "lr": 0.02, "batch_size": 4} | settings
    full |= dict.fromkeys({"depth_text", "depth_vision"} & kind.Settings.model_fields.keys(), 3)
    method = create(kind, clip, kind.Settings(**full), classes, seed=1)
    return method, fit(method, Training(dataset, dataset.few_shot(4, 1, "base"), classes, seed=1))


@pytest.mark.parametrize("name", ["coop", "mmlop"])
def test_an_epoch_is_what_it_says(clip: FrozenCLIP, make_dataset: Any, name: str) -> None:
    """Two epochs against a loop written out here: batches, views, labels, frozen features, rate, decay."""
    dataset = data.load(str(make_dataset(card={"flip": False})))
    kind, classes = get_method(name), dataset.classes("base")
    changes: dict[str, Any] = {"epochs": 2, "lr": 0.03, "batch_size": 4, "weight_decay": 0.1, "crop_min": 0.4}
    settings = kind.Settings(**(changes | ({"depth": 2} if name == "mmlop" else {})))
    items = dataset.few_shot(4, 7, "base")
    ours = create(kind, clip, settings, classes, seed=7)
    fit(ours, Training(dataset, items, classes, seed=7))

    expected = create(kind, clip, settings, classes, seed=7)
    views = Views(**clip.preprocess, crop_min=0.4, flip=False)
    parameters = list(expected.parameters())
    speed = [torch.zeros_like(p) for p in parameters]
    for epoch, lr in enumerate((1e-5, 0.03)):
        for batch in epoch_order(len(items), 4, 7, epoch):
            chosen = [items[i] for i in batch]
            pictures = [views.train(dataset.image(c.path), 7, epoch, c.path) for c in chosen]
            images = views.normalise(torch.stack(pictures))
            labels = torch.tensor([c.label for c in chosen])
            with torch.no_grad():
                frozen = clip.image_features(images)
            loss = expected.loss(Batch(labels, images, frozen), classes)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, v, g in zip(parameters, speed, gradients, strict=True):
                    v.mul_(0.9).add_(g + 0.1 * p)
                    p.sub_(lr * v)
    start = create(kind, clip, settings, classes, seed=7)
    for a, b, s in zip(ours.parameters(), parameters, start.parameters(), strict=True):
        # The two loops batch the frozen tower differently; the steep loss magnifies that rounding.
        assert (a - b).abs().max() < 0.01 * (b - s).abs().max()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimisers(name: Any) -> None:
    settings = Settings(optimizer=name, lr=0.3, momentum=0.8, weight_decay=0.01, eps=1e-3, betas=(0.8, 0.9))
    optimizer = make_optimizer(settings, [torch.zeros(1, requires_grad=True)])
    assert type(optimizer).__name__.lower() == name
    assert optimizer.defaults.get("betas", (0.8, 0.9)) == (0.8, 0.9)
    expected = {"lr": 0.3, "weight_decay": 0.01} | ({"momentum": 0.8} if name == "sgd" else {"eps": 1e-3})
    assert expected.items() <= optimizer.param_groups[0].items()


def test_cached_features_know_what_they_depend_on(
    tiny: torch.nn.Module, clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path
) -> None:
    """Other weights, transform, precision, view or pictures are never answered with stored features."""
    cache = FeatureCache(tmp_path)

    def features(
        model: torch.nn.Module = tiny,
        weights: str = "a",
        architecture: str = "x",
        precision: Precision = "fp32",
        draw: tuple[int, int] | None = (1, 0),
        n: int = 20,
        **views: Any,
    ) -> torch.Tensor:
        frozen = FrozenCLIP(model, clip.shape, None, weights, architecture, cache=cache)
        with Arithmetic(frozen.device, precision).autocast():
            return frozen_features(
                frozen, colours, colours.items("train")[:n], Views(**clip.preprocess, **views), draw
            )

    first = features()
    assert torch.equal(first, features())
    others = [
        features(model=plain.tiny_model(seed=9), weights="b"),
        features(model=plain.tiny_model(quick_gelu=False), architecture="plain GELU"),
        features(precision="bf16"),
        features(draw=(1, 1)),
        features(draw=(2, 0)),
        features(draw=None),
        features(crop_min=0.9),
        features(flip=False),
    ]
    assert [torch.equal(first, other) for other in others] == [False] * len(others)
    assert len(features(n=4)) == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 10


def test_evaluation_is_in_testing_mode(clip: FrozenCLIP, colours: data.Dataset) -> None:
    kind = get_method("mmlop")
    settings = kind.Settings(**{"depth": 2, "drift": "test"})
    method = create(kind, clip, settings, colours.classes(), seed=1).train()
    corrected = []
    text_features = method.text_features
    method.text_features = lambda classes: corrected.append(text_features(classes)) or corrected[-1]  # type: ignore
    evaluate(method, colours, Evaluation(dataset="colours", classes="all"))
    assert torch.equal(corrected[0], method.eval().text_features(colours.classes()))
    assert not torch.allclose(corrected[0], method.train().text_features(colours.classes()), atol=1e-4)


def test_views_are_shared_by_methods(clip: FrozenCLIP, colours: data.Dataset) -> None:
    """A text-only method trains on cached features of the very views a prompted image tower sees."""
    items = colours.few_shot(4, 1, "base")
    views = Views(**clip.preprocess)
    features = frozen_features(clip, colours, items, views, (1, 2))
    for i in (0, 5, 11):
        view = views.train(colours.image(items[i].path), 1, 2, items[i].path)
        assert torch.allclose(features[i], clip.image_features(views.normalise(view[None]))[0], atol=1e-5)


def test_keys_have_views_of_their_own(
    clip: FrozenCLIP, colours: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random views behind a cache are none of those that its epochs train on."""
    draws: list[Any] = []

    def recorded(*args: Any) -> torch.Tensor:
        draws.append(args[4])
        return frozen_features(*args)

    monkeypatch.setattr(train, "frozen_features", recorded)
    kind, classes = get_method("tip_adapter_f"), colours.classes("base")
    settings = kind.Settings(**{"shots": 4, "passes": 3, "epochs": 2})
    method = create(kind, clip, settings, classes, seed=1)
    fit(method, Training(colours, colours.few_shot(4, 1, "base"), classes, seed=1))
    assert len(draws) == len(set(draws)) == 3 + 2
    assert draws[3:] == [(1, 0), (1, 1)]  # the epochs' are those of every method


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [8]), (False, [8, 4])])
def test_short_last_batch(clip: FrozenCLIP, colours: data.Dataset, drop_last: bool, sizes: list[int]) -> None:
    """It is left out, or a step of the training and of its schedule."""
    kind, classes, seen = get_method("coop"), colours.classes("base"), []
    changes: dict[str, Any] = {"schedule": "step", "warmup_epochs": 0, "drop_last": drop_last}
    settings = kind.Settings(**{"epochs": 2, "batch_size": 8, "lr": 0.1, **changes})
    method = create(kind, clip, settings, classes, seed=1)
    loss = method.loss
    method.loss = lambda batch, space: seen.append(len(batch.labels)) or loss(batch, space)  # type: ignore
    progress = fit(method, Training(colours, colours.few_shot(4, 1, "base"), classes, seed=1))
    assert seen == 2 * sizes
    assert progress.steps == len(seen)
    last = 0.1 * (1 + math.cos(math.pi * (len(seen) - 1) / len(seen))) / 2
    assert progress.history[-1]["lr"] == pytest.approx(last)


def test_cached_features_give_the_same_training(
    tiny: torch.nn.Module, clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path
) -> None:
    def cached() -> FrozenCLIP:
        return FrozenCLIP(tiny, clip.shape, fingerprint="tiny", cache=FeatureCache(tmp_path / "cache"))

    without, _ = trained(clip, colours, "coop")
    first, _ = trained(cached(), colours, "coop")
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 4  # one per epoch
    second_clip = cached()
    second_clip.image_features = None  # type: ignore[assignment,method-assign]  # nothing may be computed
    second, _ = trained(second_clip, colours, "coop")
    assert torch.equal(without.ctx, first.ctx)
    assert torch.equal(first.ctx, second.ctx)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_cache_files_are_computed_anew(tmp_path: Path, damage: str) -> None:
    cache, key = FeatureCache(tmp_path), {"what": "x"}
    stored = cache.get(key, lambda: torch.arange(12.0).view(3, 4))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    path.write_bytes({"truncate": content[:-5], "flip": flipped, "empty": b""}[damage])
    assert torch.equal(cache.get(key, lambda: stored.clone()), stored)
    calls: list[int] = []
    assert torch.equal(cache.get(key, lambda: calls.append(1) or stored), stored)  # type: ignore[func-returns-value]
    assert not calls


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "folder")
    assert torch.equal(cache.get({"a": 1}, lambda: torch.ones(2, 2)), torch.ones(2, 2))


def test_loss_that_is_not_a_number(clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path) -> None:
    message = r"loss of ivlp became (nan|inf) at epoch \d, step \d, learning rate 1e\+3\d"
    with pytest.raises(UserError, match=message):
        trained(clip, colours, "ivlp", lr=1e38, weight_decay=1e3)


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_precision(cpu, "auto") == "fp32"
    assert resolve_precision(cuda, "fp32") == "fp32"
    for capability, expected in (((8, 0), "bf16"), ((7, 5), "fp16")):
        # Emulated bf16 does not count: it is slower than fp32.
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)  # noqa: B023
        assert resolve_precision(cuda, "auto") == expected
    x = torch.ones(4, 4)
    expected_dtypes: dict[Precision, torch.dtype] = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }
    for precision, dtype in expected_dtypes.items():
        with Arithmetic(cpu, precision).autocast():
            assert (x @ x).dtype == dtype


def test_evaluation_counts(clip: FrozenCLIP, colours: data.Dataset) -> None:
    """Counts per class add up, labels compete only inside their half, and agree with plain argmax."""
    kind = get_method("zeroshot")
    method = create(kind, clip, kind.Settings(), colours.classes(), seed=1)
    halves: tuple[Half, ...] = ("base", "novel", "all")
    for half in halves:
        evaluation = Evaluation(dataset="colours", classes=half)
        counts = evaluate(method, colours, evaluation).counts
        items = colours.items("test", half)
        views = Views(**clip.preprocess)
        images = views.normalise(torch.stack([views.test(colours.image(item.path)) for item in items]))
        tokens = plain.tokenize([f"a photo of a {n.replace('_', ' ')}." for n in colours.classes(half).names])
        text = clip.model.encode_text(tokens, normalize=True)
        guess = (clip.model.encode_image(images) @ text.T).argmax(dim=-1)
        right = [bool(g == item.label) for g, item in zip(guess, items, strict=True)]
        assert (counts.correct, counts.total) == (sum(right), len(items))
        assert sum(c for c, _ in counts.per_class.values()) == counts.correct
        assert [n for _, n in counts.per_class.values()] == [3] * len(colours.classes(half))
    assert evaluate(method, colours, evaluation, limit=1).counts.total == 5


def test_damaged_checkpoint(clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"half a chec")
    classes = colours.classes("base")
    kind = get_method("coop")

    def train(epochs: int) -> Progress:
        method = create(kind, clip, kind.Settings(epochs=epochs), classes, seed=1)
        return fit(method, Training(colours, colours.few_shot(4, 1, "base"), classes, 1, folder=tmp_path))

    assert train(1).epoch == 1  # as if it were not there
    content = io.BytesIO()
    torch.save({"progress": {}, "prompts": torch.zeros(3)}, content)
    strange = content.getvalue() + digest(content.getvalue())
    (tmp_path / CHECKPOINT).write_bytes(strange)
    with pytest.raises(UserError, match="by another version of promptbench and has been removed; run"):
        train(1)
    assert train(1).epoch == 1


def test_want_of_memory_does_not_cost_the_checkpoint(
    clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, kind = colours.classes("base"), get_method("coop")

    def train(epochs: int) -> Progress:
        method = create(kind, clip, kind.Settings(epochs=epochs), classes, seed=1)
        return fit(method, Training(colours, colours.few_shot(4, 1, "base"), classes, 1, folder=tmp_path))

    train(1)
    with monkeypatch.context() as short:

        def load_state_dict(self: Any, state: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        short.setattr(torch.optim.SGD, "load_state_dict", load_state_dict)
        with pytest.raises(torch.OutOfMemoryError):
            train(2)
    assert (tmp_path / CHECKPOINT).exists()
    assert len(train(2).history) == 2


# ---------------------------------------------------------------------- killed and resumed

DRIVER = Path(__file__).parent / "kill_driver.py"


@pytest.mark.parametrize("method", ["mmlop", "coop"])
def test_killed_run_resumes_bit_for_bit(make_dataset: Any, tmp_path: Path, method: str) -> None:
    """SIGKILL while the n-th file is being written, for several n, then the same run again.

    Every resumed run ends with the same learned tensors, metrics and record as an undisturbed one,
    timings and memory apart. The files are written in the order config, (metrics, checkpoint) per epoch,
    prompts, predictions, record.
    """
    card = str(make_dataset())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROMPTBENCH_CACHE": str(tmp_path / "no-cache")}
    result = subprocess.run(
        [sys.executable, str(DRIVER), method, card, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    straight = report.pop("straight")
    assert straight["statuses"] == [0]
    assert len(report) == 8
    for name, run in report.items():
        assert run["statuses"][:-1] == [-signal.SIGKILL] * (len(run["statuses"]) - 1), name
        assert run["statuses"][-1] == 0, name
        assert len(run["statuses"]) > 1, name
        assert run["before"] == [False] * len(run["before"]), f"{name}: a killed run left a record"
        assert run["files"] == straight["files"], name
        assert run["content"] == straight["content"], name

    # And in a process that is no fork of the same one.
    trial, dataset = kill_driver.make_trial(method, card)
    execute([trial], {dataset.name: dataset}, tmp_path / "here", PlainReporter())
    assert kill_driver.content(trial.folder(tmp_path / "here")) == straight["content"]


def test_a_small_backbone_runs_on_one_thread(clip: FrozenCLIP) -> None:
    torch.set_num_threads(2)
    try:
        with suitable_threads(torch.device("cpu"), clip.shape):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with suitable_threads(torch.device("cpu"), backbone_shape("ViT-B-32")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
