"""What the modules of all softmax losses share: their settings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyssl_fast.functional.checks import check_number, check_reduction, check_scalar, check_temperature, check_within


class SoftmaxLoss(nn.Module):
    """The settings of a softmax loss; what they mean is said by its function in `pyssl_fast.functional`.

    Args:
        temperature: τ ≠ 0. An `nn.Parameter` is learned. None: the loss has none of its own.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε of 0 to 1.
        debias: τ⁺ of 0 to 1 (excluded).
        return_metrics: return (loss, `functional.Metrics`).
    """

    temperature: float | Tensor

    def __init__(
        self,
        temperature: float | Tensor | None,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        debias: float | Tensor = 0.0,
        return_metrics: bool = False,
    ) -> None:
        super().__init__()
        if temperature is not None:
            check_temperature(temperature)
            self.temperature = temperature
        check_reduction(reduction)
        check_number("label_smoothing", label_smoothing, 0, 1)
        check_within("debias", debias, 0, 1, open_end=True)
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.debias = debias
        self.return_metrics = return_metrics

    def options(self, debias: Tensor | None = None) -> dict[str, Any]:
        """The settings that every function of the family takes; debias [N] of a call goes before the module's own."""
        return {
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
            "debias": self.debias if debias is None else debias,
            "return_metrics": self.return_metrics,
        }

    def extra_repr(self) -> str:
        shown = [f"temperature={number(self.temperature)}"] if hasattr(self, "temperature") else []
        shown.append(f"reduction={self.reduction!r}")
        for name in ("label_smoothing", "debias"):
            value = getattr(self, name)
            if isinstance(value, Tensor) or value:
                shown.append(f"{name}={number(value)}")
        return ", ".join(shown)


def number(value: float | Tensor) -> str:
    """For a module's repr."""
    check_scalar("value", value)
    if isinstance(value, Tensor):
        return f"{float(value.detach()):g}{' (learned)' if value.requires_grad else ''}"
    return f"{float(value):g}"
