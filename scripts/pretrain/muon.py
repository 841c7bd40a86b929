"""Muon in float32, and the pair of optimizers that both pre-training steps use."""

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations, in float32.

    torch's own Muon iterates in bfloat16, which is slow on a processor without bfloat16 units.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update; its root mean square is 0.2 lr, like AdamW's."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                state.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(state, group["momentum"]))
                matrix.mul_(1 - 0.02 * group["lr"]).add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest orthogonal matrix, roughly (Newton-Schulz, quintic)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def optimizers(matrices: list[nn.Parameter], rest: list[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW at half the rate for everything else."""
    return [Muon(matrices, lr=rate), torch.optim.AdamW(rest, lr=rate / 2, weight_decay=0.02, betas=(0.9, 0.98))]


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group at `factor` times its first learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor
