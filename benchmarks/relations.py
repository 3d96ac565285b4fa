"""How do MEC and its terms relate to other losses? Cosines of the gradients with respect to the codes, in float64.

    python benchmarks/relations.py

Codes are random with a spectrum that falls as 1/k, in a random basis; the two views differ by noise. All losses get the
same codes: rows of norm sqrt(d), so that a feature has a variance of about 1. Two losses have the same effect on the
codes if the cosine of their gradients is 1. The weights of the other losses are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from torch.nn.functional import normalize

from machine import write
from mec import MECLoss, sweep_distortion

Loss = Callable[[Tensor, Tensor], Tensor]
M, D, SEEDS = 256, 64, range(5)
ORDERS_DISTORTION = 1 / 32
"""Distortion of the terms of the series; its value scales them and does not change the cosines."""
EARLY, LATE = 0.3, 0.1
"""Noise of the views relative to the signal, early and late in training: mean cosines of about 0.91 and 0.99."""
DISTORTION_LIMITS = 1e-4, 1e2
DISTORTIONS = [10 ** (k / 8) for k in range(-32, 17)]
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "relations.svg"


def codes(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Return the codes (M, D) of two views."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    spread = torch.arange(1, D + 1.0).rsqrt()
    x, n1, n2 = torch.randn(3, M, D, generator=generator) * spread
    return (x + noise * n1) @ basis, (x + noise * n2) @ basis


def balanced(z: Tensor) -> Tensor:
    """Normalize to features of mean 0 and variance 1 and rows of equal norm, by alternating both until they hold."""
    for _ in range(2000):
        z = scale_rows((z - z.mean(0)) / z.std(0, correction=0))
    return z


def scale_rows(z: Tensor) -> Tensor:
    return normalize(z) * math.sqrt(z.shape[1])


def simsiam(a: Tensor, b: Tensor) -> Tensor:
    return -(normalize(a) * normalize(b)).sum(1).mean()


def byol(a: Tensor, b: Tensor) -> Tensor:
    return (normalize(a) - normalize(b)).square().sum(1).mean()


def vicreg_invariance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


def barlow_diagonal(a: Tensor, b: Tensor) -> Tensor:
    return (1 - correlation(a, b).diagonal()).square().sum()


def spectral_negatives(a: Tensor, b: Tensor) -> Tensor:
    """Negative term of the spectral contrastive loss (HaoChen et al. 2021)."""
    return off_diagonal(normalize(a) @ normalize(b).T) / (len(a) * (len(a) - 1))


def simclr_negatives(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    u = torch.cat([normalize(a), normalize(b)])
    return (u @ u.T / temperature).fill_diagonal_(-math.inf).logsumexp(1).mean()


def barlow_redundancy(a: Tensor, b: Tensor) -> Tensor:
    return off_diagonal(correlation(a, b))


def vicreg_spread(a: Tensor, b: Tensor) -> Tensor:
    """25 times the variance term plus the covariance term."""
    hinge = torch.stack([torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b)]).mean()
    covariance = torch.stack([off_diagonal(torch.cov(z.T)) for z in (a, b)]).sum() / a.shape[1]
    return 25 * hinge + covariance


def correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (a, b))
    return a.T @ b / len(a)


def off_diagonal(x: Tensor) -> Tensor:
    return x.square().sum() - x.diagonal().square().sum()


LOSSES: dict[str, Loss] = {
    "SimSiam, BYOL": simsiam,
    "spectral contrastive": lambda a, b: 2 * simsiam(a, b) + spectral_negatives(a, b),
    "SimCLR": lambda a, b: 2 * simsiam(a, b) + simclr_negatives(a, b),  # 1 / temperature
    "VICReg": lambda a, b: 25 * vicreg_invariance(a, b) + vicreg_spread(a, b),
    "Barlow Twins": lambda a, b: barlow_diagonal(a, b) + 5e-3 * barlow_redundancy(a, b),
}
TERMS: dict[int, dict[str, Loss]] = {
    1: {"SimSiam": simsiam, "BYOL": byol, "VICReg, invariance": vicreg_invariance,
        "Barlow Twins, diagonal": barlow_diagonal},
    2: {"spectral contrastive, negatives": spectral_negatives,
        "SimCLR, negatives (temperature 50)": lambda a, b: simclr_negatives(a, b, 50),
        "SimCLR, negatives (temperature 0.5)": simclr_negatives,
        "VICReg, variance and covariance": vicreg_spread,
        "Barlow Twins, off-diagonal": barlow_redundancy},
}  # fmt: skip


def mec_term(order: int) -> Loss:
    """Return the term of an order in the Taylor series of the paper's objective."""
    partial_sum, previous_sum = (MECLoss(ORDERS_DISTORTION, k, "cross") for k in (order, max(order - 1, 1)))
    return lambda a, b: partial_sum((a, b)) - (previous_sum((a, b)) if order > 1 else 0.0)


def mec_default(distortion: float) -> Loss:
    loss = MECLoss(distortion)
    return lambda a, b: loss((a, b))


def gradient(loss: Loss, views: Iterable[Tensor]) -> Tensor:
    """Return the gradient with respect to the codes of both views, as one vector."""
    leaves = [z.clone().requires_grad_() for z in views]
    loss(*(scale_rows(z) for z in leaves)).backward()
    return torch.cat([z.grad.flatten() for z in leaves if z.grad is not None])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def compare_terms() -> list[dict[str, Any]]:
    """Compare each term of another loss with MEC's term of the same order, on raw and on balanced codes.

    Balanced codes of order 2 are of identical views. Terms of order 1 have no gradient where the views agree: their
    balanced codes are of different views.
    """
    rows = []
    kinds: dict[str, Any] = {"raw": [codes(seed, EARLY) for seed in SEEDS]}
    for order, terms in TERMS.items():
        balanced_views = [tuple(balanced(z) for z in views) for views in kinds["raw"]]
        kinds["balanced"] = balanced_views if order == 1 else [(z, z) for z, _ in balanced_views]
        for name, term in terms.items():
            row: dict[str, Any] = {"order": order, "term": name}
            for kind, samples in kinds.items():
                cosines = [cosine(gradient(mec_term(order), views), gradient(term, views)) for views in samples]
                row[kind] = round(fmean(cosines), 6)
            rows.append(row)
    return rows


def compare_losses() -> dict[str, list[float]]:
    """Compare each complete loss with the default form at every distortion."""
    samples = [codes(seed, LATE) for seed in SEEDS]
    gradients = {name: [gradient(loss, views) for views in samples] for name, loss in LOSSES.items()}
    curves: dict[str, list[float]] = {name: [] for name in LOSSES}
    for distortion in DISTORTIONS:
        mec_gradients = [gradient(mec_default(distortion), views) for views in samples]
        for name, curve in curves.items():
            curve.append(round(fmean(cosine(a, b) for a, b in zip(mec_gradients, gradients[name], strict=True)), 6))
    return curves


def peak(curve: list[float]) -> int:
    return max(range(len(curve)), key=curve.__getitem__)


def slope(x: Tensor, order: int | None) -> Tensor:
    """Return the derivative of log(1 + x), or of its series up to ``order``."""
    if order is None:
        return 1 / (1 + x)
    return torch.stack([(-x) ** k for k in range(order)]).sum(0)


# Colors that a style sheet in the SVG replaces in a dark color scheme
INK, MUTED, LINE, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#fffffe"
DARK = {INK: "#e6edf3", MUTED: "#9198a1", LINE: "#3d444d", PAPER: "#0d1117"}
BLUE, GREEN, ORANGE, PURPLE, RED = "#2f7de1", "#2a9d5c", "#d9730d", "#a35bd6", "#e0457b"
SLOPES = (
    (1, BLUE, "1: SimSiam, BYOL", (1.36, 1.04)), (2, GREEN, "2: contrast,\nredundancy", (1.58, -0.5)),
    (3, MUTED, "3", (1.13, 1.3)), (4, RED, "4: the paper's code", (0.22, -0.78)),
    (None, INK, "exact", (1.3, 0.5)),
)  # fmt: skip
"""Order, color, label and position of the label."""
COLORS = dict(zip(LOSSES, (BLUE, GREEN, ORANGE, PURPLE, RED), strict=True))


def draw(rows: list[dict[str, Any]], curves: dict[str, list[float]], path: Path) -> None:
    style = {
        "font.size": 8.5, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE, "axes.titlesize": 9.5,
        "axes.titleweight": "bold", "axes.titlelocation": "left", "xtick.color": MUTED, "ytick.color": MUTED,
        "axes.facecolor": PAPER, "figure.facecolor": PAPER, "grid.color": LINE, "grid.linewidth": 0.5,
        "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "relations",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 7.4), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
        grid = figure.add_gridspec(2, 2, height_ratios=[1, 1.05])
        draw_slopes(figure.add_subplot(grid[0, 0]))
        draw_terms(figure.add_subplot(grid[0, 1]), rows)
        draw_losses(figure.add_subplot(grid[1, :]), curves)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    names = {color: f"--c{n}" for n, color in enumerate(DARK)}
    for color, name in names.items():
        svg = svg.replace(f": {color}", f": var({name})")
    light, dark = ("".join(f"{names[c]}:{to[c]};" for c in DARK) for to in (dict(zip(DARK, DARK, strict=True)), DARK))
    style_sheet = f"<style>:root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    path.write_text(svg.replace("<defs>", f"{style_sheet}\n <defs>", 1))


def draw_slopes(axes: Axes) -> None:
    x = torch.linspace(0, 2.2, 200)
    for order, color, label, position in SLOPES:
        axes.plot(x, slope(x, order), color=color, linewidth=2.2 if order is None else 1.5)
        axes.annotate(label, position, color=color, fontsize=8)
    axes.axvspan(1, 2.2, color=LINE, alpha=0.35, linewidth=0)
    axes.annotate("the series\ndiverges", (2.16, 1.45), color=MUTED, fontsize=7.5, ha="right", va="top")
    axes.set(xlim=(0, 2.2), ylim=(-1.15, 1.5), title="Effect of the order on one direction")
    axes.set(xlabel="eigenvalue of C", ylabel="derivative of the rate")


def draw_terms(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for n, row in enumerate(rows):
        color = next(color for name, color in COLORS.items() if row["term"].split(",")[0] in name)
        y = -n - (row["order"] - 1) * 1.1
        raw, even = row["raw"], row["balanced"]
        axes.plot([raw, even], [y, y], color=color, linewidth=1.5, alpha=0.6)
        axes.plot(raw, y, "o", markersize=6, markeredgecolor=color, markerfacecolor=PAPER, clip_on=False)
        axes.plot(even, y, "o", markersize=6, color=color, clip_on=False)
        axes.annotate(row["term"], (-0.04, y), ha="right", va="center", fontsize=7.5, annotation_clip=False)
    for order, y in ((1, 0.95), (2, -4.15)):
        heading = f"with order {order} of MEC"
        axes.annotate(heading, (-0.04, y), ha="right", va="center", color=MUTED, style="italic", annotation_clip=False)
    axes.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, label="raw codes")
    axes.plot([], [], "o", color=MUTED, label="balanced codes (order 2: identical views)")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.0, -0.16), ncols=2, frameon=False, fontsize=7.5, handletextpad=0.2
    )
    axes.set(xlim=(0, 1.0), ylim=(-9.9, 1.5), yticks=[], title="Terms of other losses")
    axes.set_xlabel("cosine of gradients; 1: the same effect")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def draw_losses(axes: Axes, curves: dict[str, list[float]]) -> None:
    axes.hlines([0.2, 0.4, 0.6, 0.8, 1.0], *DISTORTION_LIMITS, color=LINE, linewidth=0.5)
    first, last = sweep_distortion(0.0), sweep_distortion(1.0)
    axes.axvspan(first, last, color=LINE, alpha=0.35, linewidth=0)
    axes.annotate("a training starts here", (first * 1.05, 0.03), color=MUTED, fontsize=8)
    axes.annotate("and ends here", (last / 1.05, 0.03), color=MUTED, fontsize=8, ha="right")
    for name, curve in curves.items():
        top = peak(curve)
        axes.plot(DISTORTIONS, curve, color=COLORS[name], linewidth=1.8)
        axes.plot(DISTORTIONS[top], curve[top], "o", markersize=5, color=COLORS[name])
        axes.annotate(name, (130, curve[-1]), color=COLORS[name], va="center")
    axes.set(xscale="log", xlim=(DISTORTION_LIMITS[0], 1000), ylim=(0, 1.1), xticks=[10.0**k for k in range(-4, 3)])
    axes.set(title="Complete losses compared with exact MEC, by its distortion", ylabel="cosine of gradients")
    axes.set_xlabel("distortion", x=0.42)
    axes.tick_params(which="minor", bottom=False)
    axes.spines["bottom"].set_bounds(*DISTORTION_LIMITS)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    rows, curves = compare_terms(), compare_losses()
    terms = Table("order", "term of another loss", *(Column(k, justify="right") for k in ("raw", "balanced")))
    for row in rows:
        terms.add_row(str(row["order"]), row["term"], f"{row['raw']:.3f}", f"{row['balanced']:.3f}")
    losses = Table("loss", "distortion where exact MEC is most similar", Column("cosine", justify="right"))
    most_similar = {}
    for name, curve in curves.items():
        top = peak(curve)
        most_similar[name] = {"distortion": round(DISTORTIONS[top], 4), "cosine": curve[top]}
        losses.add_row(name, f"{DISTORTIONS[top]:.3g}", f"{curve[top]:.3f}")
    cosines = {n: round(fmean(float(-simsiam(*codes(s, n))) for s in SEEDS), 4) for n in (EARLY, LATE)}
    settings = {"m": M, "d": D, "trials": len(SEEDS), "dtype": "float64", "mean_cosine_of_views": cosines}
    by_distortion = {"distortions": [round(x, 6) for x in DISTORTIONS], "most_similar": most_similar, "cosines": curves}
    write("relations", "MEC's orders and terms of other losses", **settings, terms=rows, losses=by_distortion)
    draw(rows, curves, IMAGE)
    Console(width=120).print(terms, losses)


if __name__ == "__main__":
    main()
