"""Matrix products with a layer's weights, and the operation that follows each."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class PlainLinear:
    """Products with one weight [out, in], on any device."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T."""
        return F.linear(x, self._weight)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T after SiLU."""
        return F.silu(F.linear(x, self._weight), inplace=True)

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return (x @ weight.T) * other."""
        return F.linear(x, self._weight).mul_(other)

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T + other."""
        return F.linear(x, self._weight).add_(other)


class PackedLinear:
    """The same by oneDNN with weights in its own layout, as torch.compile calls it.

    On CPUs these products are faster than torch's default, several times for short inputs, and
    the operation after them costs nothing.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._run_with = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T."""
        y: torch.Tensor = self._run(x, self._weight, None, "none", [], "")
        return y

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T after SiLU."""
        y: torch.Tensor = self._run(x, self._weight, None, "swish", [], "")
        return y

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return (x @ weight.T) * other."""
        y: torch.Tensor = self._run_with(x, other, self._weight, None, "mul")
        return y

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return x @ weight.T + other."""
        y: torch.Tensor = self._run_with(x, other, self._weight, None, "add")
        return y


def packs(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies such weights here, and rightly."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    try:
        x = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device="cpu").repeat(3, 1)
        one, packed = PlainLinear(weight[:8]), PackedLinear(weight[:8])
        y = one(x)
        return all(
            torch.allclose(a.float(), b.float(), rtol=0.03, atol=0.03)
            for a, b in (
                (y, packed(x)),
                (one.silu(x), packed.silu(x)),
                (one.times(x, y), packed.times(x, y)),
                (one.plus(x, y), packed.plus(x, y)),
            )
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
