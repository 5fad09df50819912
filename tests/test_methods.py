"""Contracts that hold for every method in the registry, and the papers' parameter counts."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from promptbench.clip import backbones
from promptbench.clip.arithmetic import Arithmetic
from promptbench.clip.features import chunks
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.data import dataset as data
from promptbench.data.classnames import Classes
from promptbench.data.views import Views, load_batches
from promptbench.errors import UserError
from promptbench.methods._base import Batch, Method, Shots, trainable_parameters
from promptbench.methods._registry import get_method, get_recipe, methods, recipes, resolve_settings
from promptbench.training.checkpoint import Progress
from promptbench.training.counts import Evaluation
from promptbench.training.evaluate import evaluate
from promptbench.training.loop import Training, create, fit
from promptbench.trials.benchmarks import BENCHMARKS
from promptbench.trials.plan import plan

ALL = sorted(methods())
TRAINED = [name for name in ALL if methods()[name].Settings.model_fields["epochs"].default]
PER_CLASS = [name for name in ALL if methods()[name].fallback]
NOVEL = Classes(("hot dog", "zebra", "suspension bridge"))


def small(name: str, **changes: Any) -> Any:
    """Settings that fit the tiny CLIP of 4 layers."""
    kind = methods()[name].Settings
    values: dict[str, Any] = {"epochs": 3, "lr": 0.01, "warmup_epochs": 0}
    values |= dict.fromkeys({"depth", "depth_text", "depth_vision"} & kind.model_fields.keys(), 3)
    values |= {"shots": 4, "first_layer": 2, "layer": 2, "width": 24}
    values = {key: value for key, value in values.items() if key in kind.model_fields}
    if not kind.model_fields["epochs"].default:  # fitted in closed form
        values["epochs"] = 0
    return kind(**(values | changes))


def make(name: str, clip: FrozenCLIP, classes: Classes, **changes: Any) -> Method:
    return create(methods()[name], clip, small(name, **changes), classes, seed=1)


def make_batch(clip: FrozenCLIP, n_classes: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=g)
    with torch.no_grad():
        frozen = clip.image_features(images)
    return Batch(torch.arange(6) % n_classes, images, frozen)


def shots_of(batch: Batch, classes: Classes) -> Shots:
    """A batch as the few shots of a closed-form method, every view of them alike."""
    frozen = batch.frozen
    assert frozen is not None
    return Shots(batch.labels, classes, lambda number: frozen, lambda: (frozen, batch.labels))


def test_the_registry_finds_the_files() -> None:
    here = Path(__file__).parent.parent / "methods"
    files = list(here.glob("[!_]*.py"))  # a leading underscore: shared by methods
    assert set(ALL) == {path.stem for path in files}
    assert all(len(path.read_text().splitlines()) <= 170 for path in files)


@pytest.mark.parametrize("name", ALL)
def test_card(name: str, clip: FrozenCLIP, classes: Classes) -> None:
    kind = methods()[name]
    assert "arXiv" in kind.paper or "CVPR" in kind.paper
    assert "arameters" in (kind.__doc__ or "")
    method = make(name, clip, classes)
    counted = trainable_parameters(method)
    assert counted == kind.parameter_count(method.settings, clip.shape, len(classes))
    assert (counted > 0) == bool(kind.trains)
    assert all(p.dtype == torch.float32 for p in method.parameters())


@pytest.mark.parametrize("name", ALL)
def test_features_and_logits(name: str, clip: FrozenCLIP, classes: Classes) -> None:
    """Unit norm, the right shapes, and novel class names with the same parameters."""
    method = make(name, clip, classes).eval()
    batch = make_batch(clip, len(classes))
    for space in (classes, NOVEL):
        text = method.text_features(space)
        assert text.shape == (len(space), clip.shape.embed_dim)
        assert torch.allclose(text.norm(dim=-1), torch.ones(len(space)))
        assert method.logits(batch, method.classifier(space)).shape == (6, len(space))


@pytest.mark.parametrize("name", TRAINED)
def test_loss_falls_and_the_backbone_stays(name: str, clip: FrozenCLIP, colours: data.Dataset) -> None:
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    classes, items = colours.classes(), colours.few_shot(4, 1, "all")
    (images,) = load_batches(colours, items, Views(**clip.preprocess), chunks(len(items)), None, clip.device)
    with torch.no_grad():
        frozen = clip.image_features(images)
    batch = Batch(torch.tensor([item.label for item in items]), images, frozen)
    method = make(name, clip, classes, epochs=8, lr=0.005)
    method.before_training(shots_of(batch, classes))
    start = {key: value.clone() for key, value in method.state_dict().items()}
    first = method.eval().loss(batch, classes).item()
    fit(method, Training(colours, items, classes, seed=1))
    assert method.eval().loss(batch, classes).item() < first
    assert any(not torch.equal(start[key], value) for key, value in method.state_dict().items())
    for key, value in clip.model.state_dict().items():
        assert torch.equal(before[key], value), key
    assert all(p.grad is None for p in clip.model.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(name: str, clip: FrozenCLIP, classes: Classes) -> None:
    method = make(name, clip, classes)
    with torch.no_grad():  # away from the start, where a product with a zero factor has no gradient
        g = torch.Generator().manual_seed(0)
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=g))
    method.loss(make_batch(clip, len(classes)), classes).backward()
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", TRAINED)
def test_save_and_load_are_strict(name: str, clip: FrozenCLIP, classes: Classes, tmp_path: Path) -> None:
    method, other = make(name, clip, classes), create(methods()[name], clip, small(name), classes, seed=2)
    (tmp_path / "p").write_bytes(save({k: v.contiguous() for k, v in method.state_dict().items()}))
    other.load_state_dict(load_file(tmp_path / "p"), strict=True)
    assert torch.equal(method.eval().text_features(NOVEL), other.eval().text_features(NOVEL))
    assert not any("token_embedding" in key or "resblocks" in key for key in method.state_dict())


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_cut_off_goes_on_bit_for_bit(
    name: str, clip: FrozenCLIP, colours: data.Dataset, tmp_path: Path
) -> None:
    """Same tensors as an undisturbed run, with aggregation over epochs and whatever the method draws."""
    classes, items = colours.classes("base"), colours.few_shot(4, 1, "base")
    held_out = colours.draw(4, 1, "base")[1]

    def run(folder: Path | None, stops: list[int]) -> dict[str, torch.Tensor]:
        def stop(progress: Progress, epochs: int) -> None:
            if progress.epoch in stops:
                stops.remove(progress.epoch)
                raise KeyboardInterrupt

        while True:
            method = make(name, clip, classes, gpa_mean=2.0, gpa_std=1.0)
            with suppress(KeyboardInterrupt):
                fit(
                    method,
                    Training(colours, items, classes, 1, folder=folder, report=stop, validation=held_out),
                )
                return method.state_dict()

    straight, resumed = run(None, []), run(tmp_path, [1, 2])
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


@pytest.mark.parametrize("name", PER_CLASS)
def test_classes_that_were_not_trained_on(name: str, clip: FrozenCLIP, colours: data.Dataset) -> None:
    """Zero-shot, as the method's note says; a label space in another order finds its own parameters."""
    classes, items = colours.classes("base"), colours.few_shot(4, 1, "base")
    method = make(name, clip, classes)
    fit(method, Training(colours, items, classes, seed=1, validation=colours.draw(4, 1, "base")[1]))
    method.eval()
    batch = make_batch(clip, 3)
    zero_shot = make("zeroshot", clip, classes)
    novel = method.logits(batch, method.classifier(NOVEL))
    torch.testing.assert_close(novel, zero_shot.logits(batch, zero_shot.classifier(NOVEL)))
    turned = Classes(classes.names[::-1], classes.template, "elsewhere")
    logits = method.logits(batch, method.classifier(classes))
    torch.testing.assert_close(method.logits(batch, method.classifier(turned)), logits.flip(1))
    assert (logits - zero_shot.logits(batch, zero_shot.classifier(classes))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_start(name: str, clip: FrozenCLIP, classes: Classes) -> None:
    torch.manual_seed(123)
    first = make(name, clip, classes).state_dict()
    stream = torch.get_rng_state()
    second = make(name, clip, classes).state_dict()
    assert torch.equal(stream, torch.get_rng_state())  # nobody's random numbers are used up
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", TRAINED)
def test_autocast_trains_in_fp32_parameters(name: str, clip: FrozenCLIP, classes: Classes) -> None:
    method, batch = make(name, clip, classes), make_batch(clip, len(classes))
    exact = method.loss(batch, classes)
    with Arithmetic(clip.device, "bf16").autocast():
        rough = method.loss(batch, classes)
    rough.backward()
    assert abs(rough.item() - exact.item()) < 0.05 * abs(exact.item()) + 0.05
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in method.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_settings_too_deep_for_the_backbone(name: str, clip: FrozenCLIP) -> None:
    kind = methods()[name]
    deep = [key for key in kind.Settings.model_fields if key.startswith("depth")]
    for key in deep:
        with pytest.raises(UserError, match=f"{key}=5 but this backbone has 4 layers"):
            kind.check(small(name, **{key: 5}), clip.shape)
    kind.check(small(name), clip.shape)


def test_each_tower_has_its_own_depth() -> None:
    shape = backbones.backbone_shape("ViT-L-14")  # 24 vision layers, 12 text layers
    ivlp = get_method("ivlp")
    ivlp.check(ivlp.Settings(**{"depth_vision": 20}), shape)
    with pytest.raises(UserError, match="depth_text=20 but this backbone has 12 layers"):
        ivlp.check(ivlp.Settings(**{"depth_text": 20}), shape)


# ---------------------------------------------------------------------- the papers' numbers


@pytest.fixture(scope="module")
def vit_b16(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrozenCLIP]:
    """ViT-B-16-quickgelu with random weights from a file written here, loaded like any user's file."""
    from open_clip.model import CLIP

    config = backbones.backbone_config("ViT-B-16-quickgelu")
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    torch.manual_seed(0)
    state = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=True).state_dict()
    save_file({key: value.half() for key, value in state.items()}, path)
    del state
    yield FrozenCLIP.load("ViT-B-16-quickgelu", str(path))
    path.unlink()


@pytest.mark.parametrize(
    ("name", "benchmark", "count"),
    [
        ("zeroshot", "base2novel", 0),
        ("coop", "base2novel", 2_048),
        ("coop", "fewshot", 8_192),
        ("ivlp", "base2novel", 46_080),
        ("maple", "base2novel", 3_555_072),
        ("mmlop", "base2novel", 11_556),
        ("mmlop", "crossdataset", 3_852),
        ("ivlp", "crossdataset", 15_360),
        ("maple", "crossdataset", 1_185_024),
        ("linear_probe", "fewshot", 25_650),
        ("cocoop", "base2novel", 35_360),
        ("kgcoop", "base2novel", 2_048),
        ("vpt", "base2novel", 73_728),
        ("promptsrc", "base2novel", 46_080),
        ("promptsrc", "crossdataset", 15_360),
        ("clip_adapter", "fewshot", 131_072),
        ("tip_adapter", "fewshot", 0),
        ("tip_adapter_f", "fewshot", 409_600),
        ("taskres", "fewshot", 25_600),
        ("clip_lora", "fewshot", 184_320),
        ("mma", "base2novel", 674_560),
        ("mmrl", "base2novel", 4_992_256),
        ("mmrlpp", "base2novel", 813_312),
        ("tcp", "base2novel", 331_904),
        ("m2pt", "base2novel", 455_168),
    ],
)
def test_parameter_counts_of_the_papers(name: str, benchmark: str, count: int) -> None:
    shape = backbones.backbone_shape("ViT-B-16-quickgelu")
    settings = resolve_settings(get_method(name), benchmark, 16, "caltech101")
    assert get_method(name).parameter_count(settings, shape, 50) == count


@pytest.mark.parametrize(
    ("changes", "count"),
    [({"shared": False}, 11_592), ({"rank": 2}, 23_112), ({"rank": 4}, 46_224), ({"depth": 3}, 3_852)],
)
def test_mmlop_counts(changes: dict[str, Any], count: int) -> None:
    shape = backbones.backbone_shape("ViT-B-16-quickgelu")
    kind = get_method("mmlop")
    assert kind.parameter_count(kind.Settings(**changes), shape, 50) == count


PAPER = {"zeroshot": 0, "coop": 2_048, "ivlp": 46_080, "maple": 3_555_072, "mmlop": 11_556}


# One method for every way into the towers: the real size takes its time.
WAYS = ["zeroshot", "coop", "maple", "mmlop", "tcp", "mmrlpp", "clip_lora", "linear_probe"]


@pytest.mark.parametrize("name", WAYS)
def test_two_steps_on_the_real_architecture(name: str, vit_b16: FrozenCLIP, make_dataset: Any) -> None:
    """Two classes, two steps, ViT-B/16 at 224 pixels, at the paper's own settings."""
    two = {"red square": (220, 30, 30), "sea": (20, 60, 220)}
    dataset = data.load(str(make_dataset("two", two, (2, 1, 1))))
    short = {"batch_size": 2, "epochs": 1} if name in TRAINED else {}
    settings = resolve_settings(get_method(name), "base2novel", 2, "two", overrides=short)
    classes = dataset.classes()
    method = create(get_method(name), vit_b16, settings, classes, seed=1)
    assert trainable_parameters(method) == PAPER.get(name, trainable_parameters(method))
    progress = fit(method, Training(dataset, dataset.few_shot(2, 1, "all"), classes, seed=1))
    assert progress.steps == (2 if name in TRAINED else 0)
    assert evaluate(method, dataset, Evaluation(dataset="two", classes="all")).counts.total == 2


@pytest.mark.parametrize(
    ("shots", "dataset", "epochs"),
    [
        (1, "dtd", 50),
        (2, "dtd", 100),
        (4, "dtd", 100),
        (8, "dtd", 200),
        (16, "dtd", 200),
        (16, "imagenet", 50),
    ],
)
def test_coop_trains_longer_with_more_shots(shots: int, dataset: str, epochs: int) -> None:
    settings = resolve_settings(get_method("coop"), "fewshot", shots, dataset)
    assert (settings.epochs, settings.n_ctx, settings.ctx_init) == (epochs, 16, "")
    assert resolve_settings(get_method("coop"), "base2novel", 16, "dtd").epochs == 200


def test_settings_order_and_mistakes() -> None:
    coop = get_method("coop")
    assert resolve_settings(coop, "base2novel", 16, "icons", {"lr": 0.1}).lr == 0.1
    assert resolve_settings(coop, "base2novel", 16, "icons", {"lr": 0.1}, {"lr": 0.3}).lr == 0.3
    with pytest.raises(UserError, match=r"Unknown setting of coop 'n_ctxx'\. Did you mean 'n_ctx'"):
        resolve_settings(coop, "base2novel", 16, "icons", None, {"n_ctxx": 4})
    with pytest.raises(UserError, match=r"lr: .*greater than or equal to 0 \(got -1\)"):
        resolve_settings(coop, "base2novel", 16, "icons", None, {"lr": -1})
    with pytest.raises(UserError, match=r"eps: input should be a finite number \(got inf\)"):
        resolve_settings(coop, "base2novel", 16, "icons", None, {"eps": float("inf")})
    with pytest.raises(UserError, match="position=front needs n_ctx=4"):
        resolve_settings(coop, "base2novel", 16, "icons", None, {"position": "front", "n_ctx": 2})
    with pytest.raises(UserError, match="fewer words than n_ctx"):
        resolve_settings(coop, "base2novel", 16, "icons", None, {"ctx_init": "a", "n_ctx": 3})


def test_recipes(colours: data.Dataset) -> None:
    """Variants by name: paper, recipe, tuned, user; settings tell them apart."""
    shape = backbones.backbone_shape("ViT-B-16-quickgelu")
    for name, recipe in recipes().items():
        settings = resolve_settings(recipe, "base2novel", 16, "dtd")
        recipe.method.check(settings, shape)
        assert recipe.settings.items() <= settings.model_dump().items(), name
    ivlp = get_recipe("ivlp-2-12")
    settings = resolve_settings(ivlp, "base2novel", 16, "dtd")
    assert (settings.n_ctx, settings.depth_text, settings.lr, settings.epochs) == (2, 12, 0.0035, 5)
    assert ivlp.method.parameter_count(settings, shape, 1) == 12 * 2 * (512 + 768)
    assert resolve_settings(ivlp, "base2novel", 16, "dtd", {"lr": 0.1}).lr == 0.1
    wanted = [get_recipe("mmlop"), get_recipe("mmlop-rank2")]
    overrides = {"mmlop": {"depth": 3}, "mmlop-rank2": {"depth": 2}}
    plain, variant = plan(BENCHMARKS["base2novel"], wanted, [colours], shots=[2], overrides=overrides)
    assert (plain.variant, variant.variant) == ("depth=3", "rank2 depth=2")
    assert (plain.settings["rank"], variant.settings["rank"]) == (1, 2)
    assert plain.hash != variant.hash
    with pytest.raises(UserError, match="Did you mean 'mmlop-rank"):
        get_recipe("mmlop-rank3")


def test_unknown_method() -> None:
    with pytest.raises(UserError, match=r"Unknown method 'mapl'\. Did you mean 'maple'"):
        get_method("mapl")


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(("n_ctx", "words"), [(4, "a photo of a"), (16, "")])
def test_coop_variants(
    clip: FrozenCLIP, classes: Classes, colours: data.Dataset, position: str, n_ctx: int, words: str
) -> None:
    settings = {"position": position, "n_ctx": n_ctx, "ctx_init": words}
    specific = make("coop", clip, classes, class_specific=True, **settings)
    assert trainable_parameters(specific) == len(classes) * n_ctx * 64
    shared = make("coop", clip, classes, **settings)
    nn.init.normal_(shared.ctx)  # type: ignore[arg-type]
    with torch.no_grad():
        specific.ctx.copy_(shared.ctx.expand_as(specific.ctx))  # type: ignore[operator,arg-type]
    assert torch.allclose(specific.text_features(classes), shared.text_features(classes), atol=1e-6)
