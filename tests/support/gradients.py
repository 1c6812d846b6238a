"""Look at the gradients that an arm's optimizer is given, beside those of dense autograd."""

from typing import Any

from torch import Tensor


def seen_by_optimizer(run: Any, monkeypatch: Any) -> dict[str, Tensor]:
    """By name of weight, copies of the newest step's whole gradients; filled at every step of the arm."""
    seen: dict[str, Tensor] = {}
    real = run.optimizer.update

    def update(gradient: Any, rows: Tensor | None, step: int, lr: float) -> None:
        assert rows is None
        seen.update({name: getattr(gradient, name).clone() for name in run.named})
        real(gradient, rows, step, lr)

    monkeypatch.setattr(run.optimizer, "update", update)
    return seen


def drop_radial(gradients: dict[str, Tensor], W_dec: Tensor) -> None:
    """The part along a decoder row changes its norm, which the optimizer keeps."""
    gradient = gradients["W_dec"]
    gradients["W_dec"] = gradient - (gradient * W_dec).sum(1, keepdim=True) * W_dec
