"""Register the compute core as ``torch.ops.clusterucb``, for graphs that ``torch.compile`` traces.

Importing this module registers the operators; nothing else in the package needs them. They are defined with
`torch.library.Library`, whose calls cost a third of those of ``custom_op``. They have fake kernels, so that tracing
and `torch.library.opcheck` work without running them.

    accumulate(gradient, offset, kind, beta1, beta2, eps, step, m, v, directions, sketch, dimension, nonzeros,
               seed, norm2, products, sketched) -> ()
        Runs `clusterucb.kernels.ops.accumulate`, and so adds to norm2, products and sketched. ``kind`` to ``step``
        are the fields of a `Preconditioner`. ``sketch`` to ``seed`` are those of a `Sketch`; ``sketch`` is its kind,
        or None for no sketch.
    scores(norm2, products) -> Tensor
        Returns f64[B, S], the products divided by the norms; NaN where a norm is zero or not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch

# Kept in a global: torch removes the operators when the library is deleted.
_LIBRARY = torch.library.Library("clusterucb", "DEF")
_LIBRARY.define(
    "accumulate(Tensor gradient, int offset, str kind, float beta1, float beta2, float eps, int step, "
    "Tensor? m, Tensor? v, Tensor? directions, str? sketch, int dimension, int nonzeros, int seed, "
    "Tensor(a!) norm2, Tensor(b!)? products, Tensor(c!)? sketched) -> ()"
)
_LIBRARY.define("scores(Tensor norm2, Tensor products) -> Tensor")


def _accumulate(
    gradient: Tensor,
    offset: int,
    kind: str,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    m: Tensor | None,
    v: Tensor | None,
    directions: Tensor | None,
    sketch: str | None,
    dimension: int,
    nonzeros: int,
    seed: int,
    norm2: Tensor,
    products: Tensor | None,
    sketched: Tensor | None,
) -> None:
    ops.accumulate(
        gradient,
        offset,
        preconditioner=Preconditioner(kind, beta1, beta2, eps, step),
        norm2=norm2,
        moments=(m, v) if m is not None and v is not None else None,
        directions=directions,
        products=products,
        sketch=Sketch(dimension, nonzeros, seed, sketch) if sketch else None,
        sketched=sketched,
    )


def _scores(norm2: Tensor, products: Tensor) -> Tensor:
    good = norm2.isfinite() & (norm2 > 0)
    return products * torch.where(good, norm2.rsqrt(), torch.nan)[:, None]


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("accumulate", _accumulate, _device)
    _LIBRARY.impl("scores", _scores, _device)
torch.library.register_fake("clusterucb::accumulate", lambda *_: None, lib=_LIBRARY)
torch.library.register_fake(
    "clusterucb::scores", lambda _, products: torch.empty_like(products), lib=_LIBRARY
)
