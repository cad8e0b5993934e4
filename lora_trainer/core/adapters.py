"""LoRA layers (peft) on a UNet: which layers get one, attach, detach, and what they have learned.

peft builds a layer around each target. We keep (parent, attribute, peft layer, original layer), so attaching and detaching are
attribute swaps: the original module objects stay as they are and no weight of the base is touched. LoRA: arXiv 2106.09685.
"""
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

ADAPTER = "default"
_ATTENTION = r".*transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r".*(transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)|\.(proj_in|proj_out))"
_ENDS = r"(time_embed|time_embedding|label_emb|add_embedding|conv_in|conv_out|input_blocks\.0\.0|out)(\..*)?"  # never part of a LoRA


def target_paths(unet: torch.nn.Module, targets: str) -> list[str]:
    """Return the paths of the Linear and Conv2d layers that learn; `targets` as in the config, LDM's or diffusers' names alike."""
    patterns = {"attention": _ATTENTION, "attention+feed-forward": f"({_ATTENTION})|({_FEED_FORWARD})", "all": rf"(?!{_ENDS}$).*"}
    wanted = re.compile(patterns[targets])
    return [path for path, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and wanted.fullmatch(path)]


@dataclasses.dataclass(frozen=True)
class _Place:
    path: str
    parent: torch.nn.Module
    attribute: str
    adapter: LoraLayer
    original: torch.nn.Module


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rank and alpha of one layer's LoRA; what it adds is scaled by alpha / rank."""
    rank: int
    alpha: float


class Adapters:
    """The LoRA of one run. Made detached; `attached()` puts it in for a while."""

    def __init__(self, places: list[_Place], shapes: Mapping[str, Shape]) -> None:
        self._places, self.shapes = places, dict(shapes)

    @classmethod
    def create(cls, unet: torch.nn.Module, shapes: Mapping[str, Shape], *, dropout: float = 0.0, seed: int = 0) -> "Adapters":
        """Build fp32 LoRA layers around the layers at the paths of `shapes`, with up-weights zero, so that the prediction is unchanged at first.

        The down-weights depend on `seed` alone. Raises ValueError when there is no layer, AttributeError for a path that the UNet lacks.
        """
        if not shapes:
            raise ValueError("the UNet has no layer that could learn")
        originals = {path: unet.get_submodule(path) for path in shapes}
        flags = {parameter: parameter.requires_grad for parameter in unet.parameters()}
        first = next(iter(shapes.values()))
        config = LoraConfig(r=first.rank, lora_alpha=first.alpha, lora_dropout=dropout, target_modules="|".join(map(re.escape, shapes)),
                            rank_pattern={path: shape.rank for path, shape in shapes.items() if shape.rank != first.rank},
                            alpha_pattern={path: shape.alpha for path, shape in shapes.items() if shape.alpha != first.alpha})
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                inject_adapter_in_model(config, unet, adapter_name=ADAPTER)
            places = [_Place(path, *_parent(unet, path), unet.get_submodule(path), originals[path]) for path in shapes]
        finally:
            _put_back(unet, originals, flags)
        for place in places:
            place.adapter.lora_A.float()
            place.adapter.lora_B.float()
            place.adapter.cast_input_dtype_enabled = False                         # autocast casts once; peft would go by way of fp32
            place.adapter.lora_dropout.train(dropout > 0)                          # not .train(), which would reach the original layer
        return cls(places, shapes)

    def move_to(self, unet: torch.nn.Module) -> None:
        """Go over to another UNet of the same layers: the same checkpoint, loaded anew into other objects. Only while detached."""
        self._places = [_Place(place.path, *_parent(unet, place.path), place.adapter, unet.get_submodule(place.path)) for place in self._places]
        for place in self._places:
            place.adapter.base_layer = place.original

    def attach(self) -> None:
        for place in self._places:
            setattr(place.parent, place.attribute, place.adapter)

    def detach(self) -> None:
        for place in self._places:
            setattr(place.parent, place.attribute, place.original)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach for the time of a `with`, detaching whatever happens."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    def parameters(self) -> list[torch.nn.Parameter]:
        return [weight for place in self._places for weight in (place.adapter.lora_A[ADAPTER].weight, place.adapter.lora_B[ADAPTER].weight)]

    def load(self, weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take over down- and up-weights by module path; raises ValueError unless they are those of these layers and of their shapes."""
        if weights.keys() != self.shapes.keys():
            raise ValueError(f"the layers differ: {sorted(weights.keys() ^ self.shapes.keys())[:3]}")
        with torch.no_grad():
            for place in self._places:
                for layer, values in zip((place.adapter.lora_A, place.adapter.lora_B), weights[place.path]):
                    if layer[ADAPTER].weight.shape != values.shape:
                        raise ValueError(f"{place.path} is {tuple(layer[ADAPTER].weight.shape)}, not {tuple(values.shape)}")
                    layer[ADAPTER].weight.copy_(values)

    @property
    def alphas(self) -> dict[str, float]:
        return {path: shape.alpha for path, shape in self.shapes.items()}

    def are_finite(self) -> bool:
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters())

    def weights(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return, by module path, copies on the CPU of down `(rank, in[, k, k])` and up `(out, rank[, 1, 1])`, float32."""
        return {place.path: tuple(layer[ADAPTER].weight.detach().to("cpu", torch.float32, copy=True)
                                  for layer in (place.adapter.lora_A, place.adapter.lora_B)) for place in self._places}


def plan_shapes(unet: torch.nn.Module, *, targets: str, rank: int, alpha: float) -> dict[str, Shape]:
    """Give every layer of `targets` the same rank and alpha."""
    return {path: Shape(rank, alpha) for path in target_paths(unet, targets)}


def count_parameters(unet: torch.nn.Module, *, targets: str, rank: int) -> int:
    """Say how many numbers a LoRA of this rank would learn, without building it."""
    total = 0
    for path in target_paths(unet, targets):
        out_features, in_features, *kernel = unet.get_submodule(path).weight.shape
        total += rank * (in_features * (kernel[0] * kernel[1] if kernel else 1) + out_features)
    return total


def _parent(unet: torch.nn.Module, path: str) -> tuple[torch.nn.Module, str]:
    parent, _, attribute = path.rpartition(".")
    return unet.get_submodule(parent), attribute


def _put_back(unet: torch.nn.Module, originals: dict[str, torch.nn.Module], flags: dict[torch.nn.Parameter, bool]) -> None:
    """Undo everything that injecting did to the UNet: layers, its `peft_config` mark, and requires_grad."""
    for path, module in originals.items():
        setattr(*_parent(unet, path), module)
    vars(unet).pop("peft_config", None)
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
