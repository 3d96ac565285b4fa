"""Which parts of which other losses is MEC, and how nearly? Told by the gradients of the codes, in float64.

    python benchmarks/relations.py

Codes are drawn with a spectrum that falls as 1/k, in a random basis; the two views differ by noise. Every loss sees
the same codes: rows of length sqrt(d), so that a feature has a variance of about 1. Two losses do the same to the
codes when the cosine of their gradients is 1. The weights of the other losses are the published ones.
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
from mec import MECLoss

Loss = Callable[[Tensor, Tensor], Tensor]
M, D, SEEDS = 256, 64, range(5)
DEFAULT = 1 / 32
EARLY, LATE = 0.3, 0.1
"""Noise between the views, as a share of the signal: mean cosines of about 0.91 and 0.99."""
ENDS = 1e-3, 1e2
DISTORTIONS = [10 ** (k / 8) for k in range(-24, 17)]
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "relations.svg"


def codes(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Two views (M, D)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    spread = torch.arange(1, D + 1.0).rsqrt()
    x, n1, n2 = torch.randn(3, M, D, generator=generator) * spread
    return (x + noise * n1) @ basis, (x + noise * n2) @ basis


def balanced(z: Tensor) -> Tensor:
    """Features of mean 0 and variance 1, rows of equal length: all of it at once, by turns."""
    for _ in range(2000):
        z = long_rows((z - z.mean(0)) / z.std(0, correction=0))
    return z


def long_rows(z: Tensor) -> Tensor:
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
    """Of the spectral contrastive loss (HaoChen et al. 2021)."""
    return off_diagonal(normalize(a) @ normalize(b).T) / (len(a) * (len(a) - 1))


def simclr_negatives(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    u = torch.cat([normalize(a), normalize(b)])
    return (u @ u.T / temperature).fill_diagonal_(-math.inf).logsumexp(1).mean()


def barlow_redundancy(a: Tensor, b: Tensor) -> Tensor:
    return off_diagonal(correlation(a, b))


def vicreg_spread(a: Tensor, b: Tensor) -> Tensor:
    """25 times variance and once covariance."""
    hinge = torch.stack([torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b)]).mean()
    covariance = torch.stack([off_diagonal(torch.cov(z.T)) for z in (a, b)]).sum() / a.shape[1]
    return 25 * hinge + covariance


def correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (a, b))
    return a.T @ b / len(a)


def off_diagonal(x: Tensor) -> Tensor:
    return x.square().sum() - x.diagonal().square().sum()


WHOLE: dict[str, Loss] = {
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
    """The term of that order in the Taylor series of the paper's objective."""
    upto, before = MECLoss(DEFAULT, order, "cross"), MECLoss(DEFAULT, max(order - 1, 1), "cross")
    return lambda a, b: upto((a, b)) - (before((a, b)) if order > 1 else 0.0)


def mec_default(distortion: float) -> Loss:
    loss = MECLoss(distortion)
    return lambda a, b: loss((a, b))


def gradient(loss: Loss, views: Iterable[Tensor]) -> Tensor:
    """In the codes of both views, one vector."""
    leaves = [z.clone().requires_grad_() for z in views]
    loss(*(long_rows(z) for z in leaves)).backward()
    return torch.cat([z.grad.flatten() for z in leaves if z.grad is not None])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def terms_compared() -> list[dict[str, Any]]:
    """Each term of another loss beside MEC's of that order: codes as they come, and balanced ones of views that agree.

    What brings views together has no gradient where they agree: it is balanced and does not agree.
    """
    rows = []
    kinds = {"as they come": [codes(seed, EARLY) for seed in SEEDS]}
    for order, terms in TERMS.items():
        even = [tuple(balanced(z) for z in views) for views in kinds["as they come"]]
        kinds["balanced"] = even if order == 1 else [(z, z) for z, _ in even]
        for name, term in terms.items():
            row: dict[str, Any] = {"order": order, "term": name}
            for kind, drawn in kinds.items():
                found = [cosine(gradient(mec_term(order), v), gradient(term, v)) for v in drawn]
                row[kind] = round(fmean(found), 6)
            rows.append(row)
    return rows


def losses_compared() -> dict[str, list[float]]:
    """Each whole loss beside the default form at every distortion."""
    drawn = [codes(seed, LATE) for seed in SEEDS]
    theirs = {name: [gradient(loss, views) for views in drawn] for name, loss in WHOLE.items()}
    curves: dict[str, list[float]] = {name: [] for name in WHOLE}
    for distortion in DISTORTIONS:
        ours = [gradient(mec_default(distortion), views) for views in drawn]
        for name, curve in curves.items():
            curve.append(round(fmean(cosine(a, b) for a, b in zip(ours, theirs[name], strict=True)), 6))
    return curves


def peak(curve: list[float]) -> int:
    return max(range(len(curve)), key=curve.__getitem__)


def slope(x: Tensor, order: int | None) -> Tensor:
    """Derivative of log(1 + x), or of its series up to ``order``."""
    if order is None:
        return 1 / (1 + x)
    return torch.stack([(-x) ** k for k in range(order)]).sum(0)


# Colors that a browser replaces by those of its dark scheme
INK, MUTED, LINE, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#fffffe"
DARK = {INK: "#e6edf3", MUTED: "#9198a1", LINE: "#3d444d", PAPER: "#0d1117"}
BLUE, GREEN, ORANGE, PURPLE, RED = "#2f7de1", "#2a9d5c", "#d9730d", "#a35bd6", "#e0457b"
SLOPES = (
    (1, BLUE, "1: SimSiam, BYOL", (1.36, 1.04)), (2, GREEN, "2: contrast,\nredundancy", (1.58, -0.5)),
    (3, MUTED, "3", (1.13, 1.3)), (4, RED, "4: the paper's code", (0.22, -0.78)),
    (None, INK, "exact: the default", (1.3, 0.5)),
)  # fmt: skip
"""Order, color, label and where it stands."""
HUES = dict(zip(WHOLE, (BLUE, GREEN, ORANGE, PURPLE, RED), strict=True))


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
    drawing = text.getvalue()
    names = {color: f"--c{n}" for n, color in enumerate(DARK)}
    for color, name in names.items():
        drawing = drawing.replace(f": {color}", f": var({name})")
    light, dark = ("".join(f"{names[c]}:{to[c]};" for c in DARK) for to in (dict(zip(DARK, DARK, strict=True)), DARK))
    sheet = f"<style>:root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    path.write_text(drawing.replace("<defs>", f"{sheet}\n <defs>", 1))


def draw_slopes(axes: Axes) -> None:
    x = torch.linspace(0, 2.2, 200)
    for order, color, label, at in SLOPES:
        axes.plot(x, slope(x, order), color=color, linewidth=2.2 if order is None else 1.5)
        axes.annotate(label, at, color=color, fontsize=8)
    axes.axvspan(1, 2.2, color=LINE, alpha=0.35, linewidth=0)
    axes.annotate("the series\ndiverges", (2.16, 1.45), color=MUTED, fontsize=7.5, ha="right", va="top")
    axes.set(xlim=(0, 2.2), ylim=(-1.15, 1.5), title="What an order does to a direction")
    axes.set(xlabel="share of the codes in it / distortion", ylabel="gain from a little more")


def draw_terms(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for n, row in enumerate(rows):
        hue = next(color for name, color in HUES.items() if row["term"].split(",")[0] in name)
        y = -n - (row["order"] - 1) * 1.1
        loose, even = row["as they come"], row["balanced"]
        axes.plot([loose, even], [y, y], color=hue, linewidth=1.5, alpha=0.6)
        axes.plot(loose, y, "o", markersize=6, markeredgecolor=hue, markerfacecolor=PAPER, clip_on=False)
        axes.plot(even, y, "o", markersize=6, color=hue, clip_on=False)
        axes.annotate(row["term"], (-0.04, y), ha="right", va="center", fontsize=7.5, annotation_clip=False)
    for order, y in ((1, 0.95), (2, -4.15)):
        words = f"beside order {order}"
        axes.annotate(words, (-0.04, y), ha="right", va="center", color=MUTED, style="italic", annotation_clip=False)
    axes.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, label="codes as they come")
    axes.plot([], [], "o", color=MUTED, label="balanced (order 2: views agree)")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.0, -0.16), ncols=2, frameon=False, fontsize=7.5, handletextpad=0.2
    )
    axes.set(xlim=(0, 1.0), ylim=(-9.9, 1.5), yticks=[], title="The same term?")
    axes.set_xlabel("cosine of gradients; 1: the same")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def draw_losses(axes: Axes, curves: dict[str, list[float]]) -> None:
    axes.hlines([0.2, 0.4, 0.6, 0.8, 1.0], *ENDS, color=LINE, linewidth=0.5)
    axes.vlines(DEFAULT, 0, 1.1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axes.annotate("default, 1/32", (DEFAULT * 1.08, 0.03), color=MUTED, fontsize=8)
    for name, curve in curves.items():
        top = peak(curve)
        axes.plot(DISTORTIONS, curve, color=HUES[name], linewidth=1.8)
        axes.plot(DISTORTIONS[top], curve[top], "o", markersize=5, color=HUES[name])
        axes.annotate(name, (130, curve[-1]), color=HUES[name], va="center")
    axes.set(xscale="log", xlim=(ENDS[0], 1000), ylim=(0, 1.1), xticks=[10.0**k for k in range(-3, 3)])
    axes.set(title="Whole losses beside MEC, exact, as its distortion grows", ylabel="cosine of gradients")
    axes.set_xlabel("distortion", x=0.42)
    axes.tick_params(which="minor", bottom=False)
    axes.spines["bottom"].set_bounds(*ENDS)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    rows, curves = terms_compared(), losses_compared()
    terms = Table("order", "term of another loss", *(Column(k, justify="right") for k in ("as they come", "balanced")))
    for row in rows:
        terms.add_row(str(row["order"]), row["term"], f"{row['as they come']:.3f}", f"{row['balanced']:.3f}")
    wholes = Table("whole loss", "most like MEC, exact, at a distortion of", Column("cosine there", justify="right"))
    most_alike = {}
    for name, curve in curves.items():
        top = peak(curve)
        most_alike[name] = {"distortion": round(DISTORTIONS[top], 4), "cosine": curve[top]}
        wholes.add_row(name, f"{DISTORTIONS[top]:.3g}", f"{curve[top]:.3f}")
    cosines = {n: round(fmean(float(-simsiam(*codes(s, n))) for s in SEEDS), 4) for n in (EARLY, LATE)}
    figures = {"m": M, "d": D, "seeds": len(SEEDS), "dtype": "float64", "mean_cosine_of_views": cosines}
    whole = {"distortions": [round(x, 6) for x in DISTORTIONS], "most_alike": most_alike, "cosines": curves}
    write("relations", "which terms of other losses MEC's orders are", **figures, terms=rows, whole_losses=whole)
    draw(rows, curves, IMAGE)
    Console(width=120).print(terms, wholes)


if __name__ == "__main__":
    main()
