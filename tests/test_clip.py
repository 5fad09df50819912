"""The fast towers equal open_clip's own forward over the full context: features and prompt gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from promptbench.clip import backbones, tokens
from promptbench.clip.frozen_clip import FrozenCLIP
from promptbench.clip.prompts import Prompts
from promptbench.clip.reference import ReferenceCLIP
from promptbench.clip.tokens import Position, template_rows
from promptbench.data.classnames import Classes
from tests import plain
from tests.conftest import close

NAMES = Classes(("ox", "golden retriever", "Boeing 737-800", "black_and_white photograph", "St. Bernard"))


@pytest.fixture(autouse=True, params=[tokens.DENSE, 0], ids=["one attention", "one per length"])
def dense(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds for both ways in which the packed text attends."""
    monkeypatch.setattr(tokens, "DENSE", request.param)


def random_prompts(
    clip: FrozenCLIP, n_text: int, n_vision: int, depth_text: int, depth_vision: int
) -> Prompts:
    g = torch.Generator().manual_seed(1)
    shape = clip.shape

    def drawn(n: int, width: int, depth: int) -> list[Tensor]:
        if not n:
            return []
        return [(torch.randn(n, width, generator=g) * 0.1).requires_grad_() for _ in range(depth)]

    return Prompts(
        drawn(n_text, shape.text_width, depth_text), drawn(n_vision, shape.vision_width, depth_vision)
    )


def both_paths(
    clip: FrozenCLIP,
    prompts: Prompts,
    n: int,
    position: Position = "end",
    shared: bool = True,
    sentence: str = "{}.",
) -> None:
    """Assert that fast and reference path agree for these prompts."""
    words = "a photo of a" if n <= 4 else ""
    layout = clip.prompt_layout(NAMES, words, n, position, shared, sentence)
    images = torch.randn(3, 3, clip.shape.image_size, clip.shape.image_size)
    learned: list[Tensor] = [p for p in (*prompts.text, *prompts.vision) if p is not None]
    results = []
    for one in (clip, ReferenceCLIP(clip)):
        text = one.text_features(layout, prompts)
        image = one.image_features(images, prompts)
        weights_ = torch.arange(text.numel()).view_as(text).sin()
        total = (text * weights_).sum() + (image[:, ::2].sum() if prompts.vision else 0)
        results.append((text, image, torch.autograd.grad(total, learned) if learned else []))
    fast, plain_ = results
    assert close(fast[0], plain_[0])
    assert close(fast[1], plain_[1])
    for a, b in zip(fast[2], plain_[2], strict=True):
        assert b.abs().max() > 0
        assert close(a / b.abs().max(), b / b.abs().max())


class Adapter:
    """A hook with random weights for one tower: 0.1 tanh(h W) inside the attention, 0.1 h V beside it."""

    def __init__(self, width: int) -> None:
        g = torch.Generator().manual_seed(4)
        self.w = torch.randn(width, 3 * width, generator=g).div(width**0.5).requires_grad_()
        self.v = torch.randn(width, width, generator=g).div(width**0.5).requires_grad_()

    def __call__(self, layer: int, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        inside, beside = 0.1 * (h @ self.w).tanh(), 0.1 * h @ self.v
        return (inside if layer % 2 else None), (beside if layer > 0 else None)


def shapes_of_prompts(clip: FrozenCLIP) -> dict[str, tuple[Prompts, int]]:
    """Everything a method may do besides plain deep prompts, and its number of context tokens."""
    plain_ = random_prompts(clip, 2, 3, 4, 4)
    own = (torch.randn(len(NAMES), 2, clip.shape.text_width) * 0.1).requires_grad_()
    longer = (torch.randn(len(NAMES), 4, clip.shape.text_width) * 0.1).requires_grad_()
    text, vision = plain_.text, plain_.vision
    widths = {"text_hook": clip.shape.text_width, "vision_hook": clip.shape.vision_width}
    hooks: dict[str, Any] = {name: Adapter(width) for name, width in widths.items()}
    outs: dict[str, Any] = {
        "text_out_hook": lambda i, h: i * h.tanh(),
        "vision_out_hook": lambda i, h: h.sin(),
    }
    return {
        "a layer left alone": (Prompts([text[0], None, text[2]], [vision[0], None, vision[2]]), 2),
        "from the middle, inserted": (Prompts([None, text[1], text[2]], [None, vision[1], vision[2]]), 0),
        "inserted at the last layer": (
            Prompts([None, None, None, text[3]], [None, None, None, vision[3]]),
            0,
        ),
        "mixed with what was there": (Prompts(text, vision, mix=0.3), 2),
        "inserted and mixed": (Prompts([None, *text[1:]], [None, *vision[1:]], mix=0.3), 0),
        "of single classes in the middle": (Prompts([text[0], None, own], ()), 2),
        "of single classes, then shared": (Prompts([text[0], own, text[2]], ()), 2),
        "of single classes at the last layer": (Prompts([text[0], None, None, own], ()), 2),
        "of single classes, more than there are places": (Prompts([text[0], None, longer], ()), 2),
        "inserted at the input": (Prompts(text, vision, ln_pre=False), 0),
        "added to the output projection": (Prompts(**outs), 0),
        "without ln_pre": (Prompts(text, vision, ln_pre=False), 2),
        "hooks": (Prompts(text, vision, **hooks), 2),
        "hooks alone": (Prompts(**hooks), 0),
    }


@pytest.mark.parametrize("shared_words", [True, False])
def test_other_prompts_equal_the_reference(clip: FrozenCLIP, shared_words: bool) -> None:
    for prompts, n in shapes_of_prompts(clip).values():
        sentence = "{}, a kind of thing." if shared_words else "{}."
        both_paths(clip, prompts, n, sentence=sentence)


def test_gradients_reach_the_hooks(clip: FrozenCLIP) -> None:
    prompts, _ = shapes_of_prompts(clip)["hooks alone"]
    layout = clip.layout(template_rows(NAMES.names, NAMES.template))
    found = []
    for one in (clip, ReferenceCLIP(clip)):
        text, image = (
            one.text_features(layout, prompts),
            one.image_features(torch.ones(2, 3, 32, 32), prompts),
        )
        learned = [getattr(hook, name) for hook in (prompts.text_hook, prompts.vision_hook) for name in "wv"]
        found.append(torch.autograd.grad(text.square().sum() + image.square().sum(), learned))
    for a, b in zip(*found, strict=True):
        assert b.abs().max() > 0
        assert close(a / b.abs().max(), b / b.abs().max())


def test_states_of_vision_prompts(clip: FrozenCLIP) -> None:
    """The class token's state gives the image feature; those of the prompts come with it on both paths."""
    images, prompts = (
        torch.randn(2, 3, 32, 32),
        Prompts(vision=[None, torch.randn(3, clip.shape.vision_width)]),
    )
    states = clip.image_states(images, prompts, n_read=3)
    assert states.shape == (2, 4, clip.shape.vision_width)
    assert close(states[:, 0] @ clip.image_projection, clip.image_features(images, prompts))
    assert close(ReferenceCLIP(clip).image_states(images, prompts, n_read=3), states)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_fast_path_equals_reference(clip: FrozenCLIP, n: int, depth: int) -> None:
    both_paths(clip, random_prompts(clip, n, n, depth, depth), n)


@pytest.mark.parametrize(
    ("n_text", "n_vision", "depth_text", "depth_vision"), [(0, 3, 1, 4), (4, 0, 4, 1), (2, 7, 3, 1)]
)
def test_towers_are_independent(
    clip: FrozenCLIP, n_text: int, n_vision: int, depth_text: int, depth_vision: int
) -> None:
    both_paths(clip, random_prompts(clip, n_text, n_vision, depth_text, depth_vision), n_text)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n", [4, 16])
def test_class_name_positions(clip: FrozenCLIP, position: Position, n: int) -> None:
    both_paths(clip, random_prompts(clip, n, 0, 1, 1), n, position)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_class_specific_contexts(clip: FrozenCLIP, position: Position) -> None:
    context = torch.randn(len(NAMES), 4, clip.shape.text_width).mul_(0.1).requires_grad_()
    both_paths(clip, Prompts(text=[context]), 4, position, shared=False)


def test_one_class_and_equal_classes(clip: FrozenCLIP) -> None:
    """The shared prefix must leave the end token to the suffix even if all of a prompt is shared."""
    prompts = random_prompts(clip, 4, 0, 2, 1)
    for names in (("cat",), ("cat", "cat")):
        layout = clip.prompt_layout(Classes(names), "a photo of a", 4)
        fast = clip.text_features(layout, prompts)
        assert close(fast, ReferenceCLIP(clip).text_features(layout, prompts))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_unprompted_equals_open_clip(quick_gelu: bool) -> None:
    model = plain.tiny_model(quick_gelu=quick_gelu)
    clip = FrozenCLIP(model, backbones.shape_of(plain.CONFIG))
    rows = template_rows(NAMES.names, "a photo of a {}.")
    tokens = torch.zeros(len(rows), 77, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    images = torch.randn(3, 3, 32, 32)
    assert close(clip.text_features(clip.layout(rows)), model.encode_text(tokens))
    assert close(clip.image_features(images), model.encode_image(images))


def test_layer_scale_blocks() -> None:
    """Blocks with LayerScale (ViT-M-16-alt) run through the same code."""
    vision = {**plain.CONFIG["vision_cfg"], "ls_init_value": 0.3}
    model = plain.tiny_model(vision_cfg=vision)
    clip = FrozenCLIP(model, backbones.shape_of(plain.CONFIG))
    images = torch.randn(2, 3, 32, 32)
    assert close(clip.image_features(images), model.encode_image(images))


def test_embedded_backbone_equals_open_clip() -> None:
    clip = FrozenCLIP.load()
    images = torch.randn(2, 3, 48, 48)
    assert close(clip.image_features(images), clip.model.encode_image(images))
    both_paths(clip, random_prompts(clip, 4, 4, 9, 9), 4)


def test_frozen_text_is_the_normalised_mean(clip: FrozenCLIP) -> None:
    templates = ("a photo of a {}.", "art of the {}.")
    raw = [clip.text_features(clip.layout(template_rows(NAMES.names, t))) for t in templates]
    unit = [r / r.norm(dim=-1, keepdim=True) for r in raw]
    for each, parts in ((True, unit), (False, raw)):
        mean = (parts[0] + parts[1]) / 2
        assert close(clip.frozen_text(NAMES, templates, each), mean / mean.norm(dim=-1, keepdim=True))


def test_deep_prompts_need_a_shared_prefix(clip: FrozenCLIP) -> None:
    prompts = random_prompts(clip, 4, 0, 2, 1)
    layout = clip.prompt_layout(NAMES, "a photo of a", 4, "middle")
    with pytest.raises(ValueError, match="right after the start token"):
        clip.text_features(layout, prompts)
    with pytest.raises(ValueError, match="4 context tokens"):
        clip.text_features(layout, random_prompts(clip, 2, 0, 1, 1))


def test_frozen_text_remembers_how_it_was_computed(clip: FrozenCLIP) -> None:
    exact = clip.frozen_text(NAMES, ("a {}.",))
    assert clip.frozen_text(NAMES, ("a {}.",)) is exact
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = clip.frozen_text(NAMES, ("a {}.",))
    assert not torch.equal(exact, rough)
    assert clip.frozen_text(NAMES, ("a {}.",)) is exact


@pytest.mark.parametrize("depth", [1, 4])
def test_recomputed_activations_change_nothing(clip: FrozenCLIP, depth: int) -> None:
    """Where a thousand classes do not fit, blocks run again in the backward pass: the same bits."""
    prompts = random_prompts(clip, 4, 4, depth, depth)
    layout = clip.prompt_layout(NAMES, "a photo of a", 4)
    results = []
    for budget in (1 << 40, 0):
        clip.memory.bytes = budget
        x = clip.text_features(layout, prompts)
        learned = [p for p in prompts.text if p is not None]
        results.append((x, *torch.autograd.grad(x.sin().sum(), learned)))
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_processes_on_one_device_share_its_memory(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptbench.clip.memory.free_memory", lambda device: 1000)
    clip.memory.share = 4
    clip.text_features(clip.prompt_layout(NAMES, "a photo of a", 4), random_prompts(clip, 4, 0, 1, 0))
    assert clip.memory.bytes == 125


def held_for_backward(run: Any) -> int:
    """Numbers that autograd keeps during ``run``."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def test_recomputing_keeps_less(clip: FrozenCLIP) -> None:
    """What autograd holds between forward and backward shrinks to a block's inputs."""
    prompts = random_prompts(clip, 4, 4, 1, 1)
    many = Classes(tuple(f"thing number {i}" for i in range(60)))
    layout = clip.prompt_layout(many, "a photo of a", 4)
    held = []
    for budget in (1 << 40, 0):
        clip.memory.bytes = budget
        held.append(held_for_backward(lambda: clip.text_features(layout, prompts)))
    assert held[1] < held[0] / 2


def test_no_gradient_work_below_the_first_prompt(clip: FrozenCLIP) -> None:
    """With prompts from the last of four layers on, three layers keep nothing for a backward pass."""
    images = torch.randn(3, 3, clip.shape.image_size, clip.shape.image_size)
    weights_ = sum(p.numel() for p in clip.model.visual.transformer.resblocks[-1].parameters())
    tokens_ = random_prompts(clip, 0, 4, 1, 4).vision
    late, early = (
        held_for_backward(lambda where=where: clip.image_features(images, Prompts((), where)))
        for where in ([None, None, None, tokens_[3]], tokens_)
    )
    assert late - weights_ < (early - 4 * weights_) / 3


def test_compiled_towers_give_the_same(clip: FrozenCLIP) -> None:
    """Features and gradients of deep prompts in both towers, as torch.compile traces them; the code it makes
    of that is tested in tests/test_profiling.py."""
    torch.compiler.reset()
    prompts = random_prompts(clip, 4, 4, 3, 3)
    layout = clip.prompt_layout(NAMES, "a photo of a", 4)
    images = torch.randn(3, 3, clip.shape.image_size, clip.shape.image_size)
    learned: list[Tensor] = [p for p in (*prompts.text, *prompts.vision) if p is not None]
    results = []
    for one in (clip, FrozenCLIP(clip.model, clip.shape).compile("aot_eager")):
        text, image = one.text_features(layout, prompts), one.image_features(images, prompts)
        total = text.sin().sum() + image.sin().sum()
        results.append((text, image, *torch.autograd.grad(total, learned)))
    for eager, compiled in zip(*results, strict=True):
        assert close(compiled, eager)


def test_every_hooked_block_is_compiled(clip: FrozenCLIP) -> None:
    """Each layer's hook makes a variant of the block; torch's usual limit leaves the ninth uncompiled."""
    torch.compiler.reset()
    runs = 0

    def counted(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            nonlocal runs
            runs += 1
            return graph.forward(*arguments)

        return run

    compiled = FrozenCLIP(clip.model, clip.shape).compile(counted)
    layers = clip.shape.text_layers
    factors = [torch.full((), 0.1 * layer) for layer in range(layers)]

    def hook(layer: int, h: Tensor) -> tuple[None, Tensor]:
        return None, factors[layer] * h

    for n in (2, 3, 4, 5):  # class sets, each with a mask of its own
        names = Classes(NAMES.names[:n])
        layout = compiled.layout(template_rows(names.names, "a photo of a {}."))
        before = runs
        compiled.text_features(layout, Prompts(text_hook=hook))
        assert runs - before >= layers


def test_residual_streams_are_fp32_under_autocast(clip: FrozenCLIP) -> None:
    images = torch.randn(2, 3, clip.shape.image_size, clip.shape.image_size)
    seen = []

    def look(layer: int, h: Tensor) -> tuple[None, None]:
        seen.append(h.dtype)  # the norm keeps its input's type
        return None, None

    with torch.autocast("cpu", dtype=torch.bfloat16):
        clip.image_features(images, Prompts(vision_hook=look))
        clip.text_features(clip.layout(template_rows(NAMES.names, "a {}.")), Prompts(text_hook=look))
    assert seen == [torch.float32] * (clip.shape.vision_layers + clip.shape.text_layers)
