"""Views of drawings for pre-training: another place, size, ground, colour and drawing style."""

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench.clip.weights import MEAN, STD


def views(pictures: Tensor, coloured: Tensor, side: int, stream: torch.Generator) -> Tensor:
    """Random views of RGBA ``pictures`` [n, 4, 64, 64] uint8, normalised for CLIP: [n, 3, side, side].

    ``coloured`` [n] tells drawings with colours of their own, which may be redrawn in another style, from
    single-colour ones, which get a random ink. Never mirrored: names say left and right.
    """
    n = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=stream)

    angle, zoom = uniform(-0.17, 0.17), torch.exp(uniform(-0.2, 0.42))
    stretch = torch.exp(uniform(-0.14, 0.14))
    shift = uniform(-0.14, 0.14, 2)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [
        torch.stack([cos * stretch, -sin, shift[:, 0]], 1),
        torch.stack([sin, cos / stretch, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 4, side, side], align_corners=False)
    drawn = pictures.float() / 255
    drawn[:, :3] *= drawn[:, 3:]  # colours of transparent pixels must not bleed in
    drawn = F.grid_sample(drawn, grid, align_corners=False)
    colour, alpha = drawn[:, :3], drawn[:, 3:]

    # Ink and ground: mostly as shown downstream (black or own colours on white), else tinted or inverted.
    plain = torch.rand(n, generator=stream) < 0.6
    ground = torch.where(plain[:, None], torch.ones(n, 3), uniform(0.6, 1.0, 3))
    ink = torch.where((torch.rand(n, generator=stream) < 0.6)[:, None], torch.zeros(n, 3), uniform(0, 0.6, 3))
    inverted = ~coloured & (torch.rand(n, generator=stream) < 0.08)
    ground, ink = torch.where(inverted[:, None], ink, ground), torch.where(inverted[:, None], ground, ink)
    own = coloured[:, None, None, None]
    colour = torch.where(own, colour, ink[:, :, None, None] * alpha)
    picture = colour + ground[:, :, None, None] * (1 - alpha)

    redrawn = coloured & (torch.rand(n, generator=stream) < 0.42)
    picture[redrawn] = _restyled(picture[redrawn], stream)
    contrast, brightness = uniform(0.75, 1.25, 1, 1, 1), uniform(-0.12, 0.12, 3, 1, 1)
    picture = ((picture - 0.5) * contrast + 0.5 + brightness * own).clamp(0, 1)
    return (picture - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _restyled(picture: Tensor, stream: torch.Generator) -> Tensor:
    """Pictures as grey, ink, inverse ink, outlines, colour with outlines, or shades with outlines."""
    n = len(picture)
    style = torch.randint(6, (n,), generator=stream)
    grey = picture.mean(1, keepdim=True)
    threshold = 0.35 + 0.4 * torch.rand(n, 1, 1, 1, generator=stream)
    ink = torch.sigmoid((grey - threshold) * 25)
    edge = F.max_pool2d(picture, 3, 1, 1) + F.max_pool2d(-picture, 3, 1, 1)
    line = 1 - (edge.amax(1, keepdim=True) * 3).clamp(0, 1)
    looks = (grey, ink, 1 - ink, line, picture * line, 0.5 * grey + 0.5 * line)
    return torch.stack([look.expand_as(picture) for look in looks])[style, torch.arange(n)]


def as_tested(pictures: Tensor, side: int) -> Tensor:
    """RGBA pictures as evaluation shows them: on white, bicubic, normalised: [n, 3, side, side]."""
    drawn = pictures.float() / 255
    drawn = drawn[:, :3] * drawn[:, 3:] + 1 - drawn[:, 3:]
    drawn = F.interpolate(drawn, size=side, mode="bicubic", antialias=True).clamp(0, 1)
    return (drawn - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
