"""LoHa (arXiv 2108.06098) and LoKr (arXiv 2309.14859): layers whose change is built as a whole
matrix in each forward pass. Names and shapes are LyCORIS's; initial weights are drawn as peft does.
"""

import math

import torch

from ..base.autocast import no_autocast
from .adapter_layers import (
    LOHA_NAMES,
    LOKR_NAMES,
    AdapterLayer,
    AdapterSpec,
    Dropouts,
    RankAlpha,
    is_full_lokr,
)

Shapes = dict[str, tuple[int, ...]]


class _FullChangeLayer(AdapterLayer):
    """A layer that builds its change W' and computes base(x) + W' x.

    Rank dropout drops rows of the change, as in LyCORIS, but keeps the mean.
    """

    def __init__(
        self,
        base_layer: torch.nn.Linear | torch.nn.Conv2d,
        shapes: Shapes,
        *,
        scale: float,
        dropouts: Dropouts,
        use_dora: bool,
    ) -> None:
        super().__init__(base_layer, scale=scale, dropouts=dropouts, use_dora=use_dora)
        drawn = {name: torch.empty(shape) for name, shape in shapes.items()}
        self._draw(drawn)
        for name, factor in drawn.items():
            self.register_parameter(name, _as_base(factor, base_layer.weight))

    def _draw(self, factors: dict[str, torch.Tensor]) -> None:
        """Fill the factors with what they begin with; one is 0, so that the change is."""
        raise NotImplementedError

    def _product(self) -> torch.Tensor:
        """Return the scaled change in the base weight's shape."""
        raise NotImplementedError

    def change(self, *, dropouts: Dropouts | None) -> torch.Tensor:
        device = next(iter(self.factors().values())).device
        with no_autocast(device):
            change = self._product()
            if dropouts is None:
                return change
            rows = (len(change), *[1] * (change.dim() - 1))
            mask = dropouts.rank_mask(*rows, device=change.device)
            return change if mask is None else change * mask

    def forward_adapted(self, inputs: torch.Tensor) -> torch.Tensor:
        base = self.base_layer
        result = base(inputs)
        if self.dropouts.drops_module():
            return result
        change = self.change(dropouts=self.dropouts)
        inputs = self.dropouts.drop_inputs(inputs)
        if isinstance(base, torch.nn.Linear):
            return result + torch.nn.functional.linear(inputs, change).to(result.dtype)
        added = torch.nn.functional.conv2d(
            inputs, change, None, base.stride, base.padding, base.dilation, base.groups
        )
        return result + added.to(result.dtype)

    def _present(self, names: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
        present = {name: self._parameters.get(name) for name in names}
        return {name: factor for name, factor in present.items() if factor is not None}


# --- LoHa -----------------------------------------------------------------------------------------


class LohaLayer(_FullChangeLayer):
    """delta W = scale * (W1a W1b) o (W2a W2b), with o the product by elements (arXiv 2108.06098,
    section 2.2).

    `hada_w*_a` is `(out, rank)`, `hada_w*_b` is `(rank, in * k * k)`. With `tucker` (proposition 3)
    they are `(rank, out)` and `(rank, in)` beside the cores `hada_t*`, `(rank, rank, k, k)`.
    """

    def __init__(
        self,
        base_layer: torch.nn.Linear | torch.nn.Conv2d,
        rank_alpha: RankAlpha,
        spec: AdapterSpec,
        dropouts: Dropouts,
    ) -> None:
        super().__init__(
            base_layer,
            loha_shapes(base_layer.weight.shape, rank_alpha.rank, tucker=spec.tucker),
            scale=spec.scale(rank_alpha),
            dropouts=dropouts,
            use_dora=spec.use_dora,
        )

    def factors(self) -> dict[str, torch.nn.Parameter]:
        return self._present(LOHA_NAMES)

    def change_norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self.delta_weight())

    def _draw(self, factors: dict[str, torch.Tensor]) -> None:
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a"):
            _kaiming_uniform(factors[name])
        torch.nn.init.zeros_(factors["hada_w2_b"])
        for name in ("hada_t1", "hada_t2"):
            if name in factors:
                _kaiming_uniform(factors[name])

    def _product(self) -> torch.Tensor:
        w1_a, w1_b, w2_a, w2_b, *cores = self.factors().values()
        scale = torch.tensor(self.scale)
        if cores:
            change = _TuckerHadamard.apply(cores[0], w1_a, w1_b, cores[1], w2_a, w2_b, scale)
        else:
            change = _Hadamard.apply(w1_a, w1_b, w2_a, w2_b, scale)
        assert isinstance(change, torch.Tensor)
        return change.reshape(self.base_layer.weight.shape)


def loha_shapes(weight: torch.Size, rank: int, *, tucker: bool) -> Shapes:
    """Return the shapes of the factors of a LoHa on a weight `(out, in[, k, k])`."""
    out, inputs, *kernel = weight
    area = math.prod(kernel)
    if tucker and area > 1:
        a, b, core = (rank, out), (rank, inputs), (rank, rank, *kernel)
        return dict(zip(LOHA_NAMES, (a, b, a, b, core, core), strict=True))
    a, b = (out, rank), (rank, inputs * area)
    return dict(zip(LOHA_NAMES[:4], (a, b, a, b), strict=True))


class _Hadamard(torch.autograd.Function):
    """scale * (A1 B1) o (A2 B2). Only the factors are kept for the gradient; plain autograd would
    keep two matrices of the weight's size.
    """

    @staticmethod
    def forward(ctx, w1_a, w1_b, w2_a, w2_b, scale):  # type: ignore[no-untyped-def]  # torch's own
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b, scale)
        return ((w1_a @ w1_b) * (w2_a @ w2_b)) * scale

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # torch's own
        w1_a, w1_b, w2_a, w2_b, scale = ctx.saved_tensors
        grad = grad * scale
        grads_w1 = _factor_gradients(grad * (w2_a @ w2_b), w1_a, w1_b)
        grads_w2 = _factor_gradients(grad * (w1_a @ w1_b), w2_a, w2_b)
        return *grads_w1, *grads_w2, None


def _factor_gradients(
    grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of A and B in A B, whose gradient is `grad`."""
    return grad @ b.T, a.T @ grad


class _TuckerHadamard(torch.autograd.Function):
    """scale * W1 o W2, where W = core x_1 A x_2 B, `(out, in, k, k)`; keeps only the factors."""

    @staticmethod
    def forward(ctx, t1, w1_a, w1_b, t2, w2_a, w2_b, scale):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(t1, w1_a, w1_b, t2, w2_a, w2_b, scale)
        first = torch.einsum("i j k l, j r, i p -> p r k l", t1, w1_b, w1_a)
        second = torch.einsum("i j k l, j r, i p -> p r k l", t2, w2_b, w2_a)
        return first * second * scale

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # torch's own
        t1, w1_a, w1_b, t2, w2_a, w2_b, scale = ctx.saved_tensors
        grad = grad * scale
        grads_1 = _tucker_gradients(grad, (t1, w1_a, w1_b), (t2, w2_a, w2_b))
        grads_2 = _tucker_gradients(grad, (t2, w2_a, w2_b), (t1, w1_a, w1_b))
        return *grads_1, *grads_2, None


Tucker = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _tucker_gradients(grad: torch.Tensor, own: Tucker, other: Tucker) -> Tucker:
    """Return the gradients of `own`'s core, A and B in the product by elements with `other`.

    As in LyCORIS and peft, A's is computed with the other's core and B, which is not the exact
    gradient; it stays, since runs must go on bit for bit.
    """
    core, a, b = own
    other_core, other_a, other_b = other
    other_half = torch.einsum("i j k l, j r -> i r k l", other_core, other_b)
    grad_weight = torch.einsum("i j k l, i r -> r j k l", other_half, other_a) * grad
    grad_a = torch.einsum("r j k l, i j k l -> r i", other_half, grad_weight)
    grad_half = torch.einsum("i j k l, i r -> r j k l", grad_weight, a.T)
    grad_b = torch.einsum("i r k l, i j k l -> r j", core, grad_half)
    grad_core = torch.einsum("i j k l, j r -> i r k l", grad_half, b.T)
    return grad_core, grad_a, grad_b


# --- LoKr -----------------------------------------------------------------------------------------


class LokrLayer(_FullChangeLayer):
    """delta W = scale * (W1 kron W2), W2 or both of low rank where that is smaller (arXiv
    2309.14859, section 3.2).

    `lokr_w1` is `(out_1, in_1)`, `lokr_w2` is `(out_2, in_2[, k, k])`; out = out_1 * out_2 and
    in = in_1 * in_2 as `factorization` has them.
    """

    def __init__(
        self,
        base_layer: torch.nn.Linear | torch.nn.Conv2d,
        rank_alpha: RankAlpha,
        spec: AdapterSpec,
        dropouts: Dropouts,
    ) -> None:
        shapes = lokr_shapes(base_layer.weight.shape, rank_alpha.rank, spec)
        super().__init__(
            base_layer,
            shapes,
            scale=spec.scale(rank_alpha, full_lokr=is_full_lokr(shapes)),
            dropouts=dropouts,
            use_dora=spec.use_dora,
        )

    def factors(self) -> dict[str, torch.nn.Parameter]:
        return self._present(LOKR_NAMES)

    def change_norm(self) -> torch.Tensor:
        """Return the norm without building the change: |X kron Y| = |X| |Y|."""
        w1, w2 = self._matrices()
        return torch.linalg.vector_norm(w1) * torch.linalg.vector_norm(w2) * self.scale

    def _draw(self, factors: dict[str, torch.Tensor]) -> None:
        zero = "lokr_w1" if "lokr_w1" in factors else "lokr_w1_a"
        for name in LOKR_NAMES:
            if name == zero:
                torch.nn.init.zeros_(factors[name])
            elif name in factors:
                _kaiming_uniform(factors[name])

    def _product(self) -> torch.Tensor:
        w1, w2 = self._matrices()
        if w2.dim() == 4:
            w1 = w1[..., None, None]
        change = torch.kron(w1, w2.contiguous()) * self.scale
        return change.reshape(self.base_layer.weight.shape)

    def _matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return W1 and W2, multiplied out where they are of low rank."""
        factors = self.factors()
        if "lokr_w1" in factors:
            w1: torch.Tensor = factors["lokr_w1"]
        else:
            w1 = factors["lokr_w1_a"] @ factors["lokr_w1_b"]
        if "lokr_w2" in factors:
            return w1, factors["lokr_w2"]
        a, b = factors["lokr_w2_a"], factors["lokr_w2_b"]
        if "lokr_t2" in factors:
            core = factors["lokr_t2"]
            return w1, torch.einsum("i j k l, i p, j r -> p r k l", core, a, b)
        return w1, a @ b


def lokr_shapes(weight: torch.Size, rank: int, spec: AdapterSpec) -> Shapes:
    """Return the shapes of the factors of a LoKr on a weight `(out, in[, k, k])`."""
    out, inputs, *kernel = weight
    area = math.prod(kernel)
    out_1, out_2 = factorization(out, spec.lokr_factor)
    in_1, in_2 = factorization(inputs, spec.lokr_factor)
    shapes: Shapes = {}
    if spec.lokr_both and rank < max(out_1, in_1) / 2:
        shapes |= {"lokr_w1_a": (out_1, rank), "lokr_w1_b": (rank, in_1)}
    else:
        shapes |= {"lokr_w1": (out_1, in_1)}
    if rank >= max(out_2, in_2) / 2:
        shapes |= {"lokr_w2": (out_2, in_2, *kernel)}
    elif spec.tucker and area > 1:
        shapes |= {"lokr_w2_a": (rank, out_2), "lokr_w2_b": (rank, in_2)}
        shapes |= {"lokr_t2": (rank, rank, *kernel)}
    else:
        shapes |= {"lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2 * area)}
    return shapes


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Split a dimension into two divisors, the smaller one first, as LyCORIS does.

    A `factor` that divides it is the first of them, whatever its size. Else the first is the
    largest divisor up to `factor` that is at most the square root; -1 sets no limit.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    smaller = max(
        (
            divisor
            for divisor in range(1, min(limit, math.isqrt(dimension)) + 1)
            if dimension % divisor == 0
        ),
        default=1,
    )
    return smaller, dimension // smaller


def _kaiming_uniform(factor: torch.Tensor) -> None:
    """Fill a factor as torch's Linear and Conv2d begin (arXiv 1502.01852)."""
    torch.nn.init.kaiming_uniform_(factor, a=math.sqrt(5))


def _as_base(factor: torch.Tensor, weight: torch.Tensor) -> torch.nn.Parameter:
    """Return a float32 parameter on the base weight's device.

    It is rounded to the base's dtype once, as peft does: runs of earlier versions began so.
    """
    dtype = weight.dtype if weight.dtype.is_floating_point else factor.dtype
    return torch.nn.Parameter(factor.to(weight.device, dtype).float())
