"""Muon: momentum whose update is made orthogonal, for the weight matrices of layers.

Matrices of one shape are orthogonalized in one batch; processes that train together take a share each and
exchange what they made, so that all of them apply the same update.

Source:
    https://kellerjordan.github.io/posts/muon/
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

# Coefficients of the quintic iteration: steepest at zero, singular values end between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace the singular values of matrices by values near 1 (Newton-Schulz).

    Args:
        matrices: A batch of them, in the last two dimensions.
        dtype: Of the computation.
    Returns:
        The batch in that type.
    """
    flipped = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if flipped else matrices).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if flipped else x


class Muon(torch.optim.Optimizer):
    """Update matrices by their orthogonalized momentum.

    Args:
        matrices: Parameters of two dimensions.
        lr: Length of a step: the spectral norm of an update of a wide matrix.
        momentum: Share of the earlier updates that is kept (Nesterov).
        weight_decay: Share of a weight that is taken off, times `lr`.
        dtype: Of the orthogonalization.
        rank: Number of this process.
        processes: How many share the work; their gradients must be equal.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
        *,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype
        self._rank = rank
        self._processes = processes

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Apply one update of all matrices that have a gradient."""
        for group in self.param_groups:
            matrices = [one for one in group["params"] if one.grad is not None]
            for matrix, update in self._updates(matrices, group["momentum"]):
                rows, columns = matrix.shape
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update.to(matrix.dtype), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _updates(
        self, matrices: list[torch.nn.Parameter], momentum: float
    ) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        for same in shapes.values():
            wanted = torch.stack(
                [self._momentum(one, one.grad, momentum) for one in same if one.grad is not None]
            )
            yield from zip(same, self._orthogonalized(wanted), strict=True)

    def _momentum(self, matrix: torch.nn.Parameter, gradient: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)

    def _orthogonalized(self, matrices: torch.Tensor) -> torch.Tensor:
        if self._processes == 1:
            return orthogonalize(matrices, self._dtype)
        size = -(-len(matrices) // self._processes)
        share = torch.zeros(size, *matrices.shape[1:], dtype=self._dtype)
        mine = matrices[self._rank * size : (self._rank + 1) * size]
        if len(mine):
            share[: len(mine)] = orthogonalize(mine, self._dtype)
        shares = [torch.empty_like(share) for _ in range(self._processes)]
        # As bytes: gloo does not exchange every type.
        dist.all_gather([one.view(torch.uint8) for one in shares], share.view(torch.uint8))
        return torch.cat(shares)[: len(matrices)]
