"""One helper that registers an operator whole.

`torch.library.custom_op` would do, at 10 to 20 µs more per call; `define` puts back what it gives for nothing:
an error instead of a silent zero in double backward, and autocast that holds under torch.compile too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("pyssl_fast", "DEF")
operators: dict[str, list[str]] = {}  # by family, the module that defines them


def define(
    schema: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    autocast: int | None = None,
    mutates: bool = False,
) -> None:
    """Register one operator.

    Args:
        schema: as `torch.library.Library.define` takes it.
        kernel: the implementation for every device; chooses its backend from the `backend` argument.
        fake: shapes, dtypes and strides of the outputs, from the inputs' alone.
        setup_context, backward: as `torch.library.register_autograd` takes them. Without them a gradient is an error.
        autocast: under autocast, run with that many of the first arguments in the autocast dtype, and autocast off
            inside: 0 keeps statistics in the inputs' precision. None: autocast does what it does.
        mutates: it changes tensors in place, which must not be under autograd.
    """
    name = schema.partition("(")[0]
    qualified = f"pyssl_fast::{name}"
    operators.setdefault(kernel.__module__.rpartition(".")[2], []).append(name)
    _library.define(schema)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)

    if mutates:
        return
    if backward is None:
        # A second derivative would otherwise be a silent zero.
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            raise RuntimeError(f"pyssl_fast::{name} has no gradient: second derivatives are not supported")

    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    if autocast is not None:
        for device in ("CPU", "CUDA"):
            _library.impl(name, _autocast(name, device.lower(), autocast), f"Autocast{device}")


def _autocast(name: str, device: str, count: int) -> Callable[..., Any]:
    def cast(x: Tensor | None) -> Tensor | None:
        if x is None or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(torch.get_autocast_dtype(device))

    def call(*arguments: Any) -> Any:
        with torch.amp.autocast(device, enabled=False):
            first = (cast(x) for x in arguments[:count])
            return getattr(torch.ops.pyssl_fast, name)(*first, *arguments[count:])

    return call
