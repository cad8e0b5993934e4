"""Draws the pictures of the standalone host: diffusers' sampling, our encoding of prompts, and LoRA
files through diffusers' own loader.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from ...base.contracts import Conditioning
from ...base.errors import ErrorCode, Refused, Stopped
from .loading import first_line, make_scheduler, quiet_diffusers
from .model import StableDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Lora = tuple[Path, float]
"""A LoRA file, and its weight."""
SIDES_PX = (64, 2048)
STEPS = (1, 150)
GUIDANCES = (0, 100)

Tensors = dict[str, torch.Tensor]


class Size(NamedTuple):
    """The size of a picture."""

    width_px: int
    height_px: int


@dataclasses.dataclass(frozen=True)
class DrawingOptions:
    """What pictures of one call have in common; a width or height of None is the checkpoint's
    own. `should_stop` is asked after each step.
    """

    negative_prompt: str = ""
    steps: int = 20
    guidance: float = 7.0
    width_px: int | None = None
    height_px: int | None = None
    should_stop: Callable[[], bool] = lambda: False

    def size(self, default_px: int) -> Size:
        return Size(
            default_px if self.width_px is None else self.width_px,
            default_px if self.height_px is None else self.height_px,
        )


def check_drawing(size: Size, options: DrawingOptions) -> None:
    """Raise `Refused` for pictures that cannot be drawn."""
    _check_range("width", size.width_px, SIDES_PX, multiple=8)
    _check_range("height", size.height_px, SIDES_PX, multiple=8)
    _check_range("steps", options.steps, STEPS)
    _check_range("guidance", options.guidance, GUIDANCES)


def _check_range(name: str, value: float, limits: tuple[int, int], *, multiple: int = 0) -> None:
    low, high = limits
    if not low <= value <= high or (multiple and value % multiple):
        rule = f", a multiple of {multiple}" if multiple else ""
        raise Refused(
            f"{name.capitalize()}: {value} is not possible. Use {low} to {high}{rule}.",
            field=name,
            code=ErrorCode.BAD_VALUE,
        )


@torch.no_grad()
def draw(
    pipeline: "DiffusionPipeline",
    model: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: Size,
    options: DrawingOptions,
) -> list[Image.Image]:
    """Draw one batch of pictures with `model`, whose modules are the pipeline's, as it is read now;
    returns PIL images. Raises `Stopped`.
    """
    pipeline.scheduler = make_scheduler(model.prediction_type, model.zero_terminal_snr)
    with _completed_inputs(model):
        latents = pipeline(
            **_embeddings(model, list(prompts), options.negative_prompt),
            latents=_noise(seeds, size).to(model.dtype),
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            width=size.width_px,
            height=size.height_px,
            output_type="latent",
            callback_on_step_end=_stopping(options.should_stop),
        ).images
    return pipeline.image_processor.postprocess(model.decode_images(latents), output_type="pil")


def _noise(seeds: Sequence[int], size: Size) -> torch.Tensor:
    """Return initial latents `(seeds, 4, height/8, width/8)`, each from a seed of its own."""
    shape = (1, 4, size.height_px // 8, size.width_px // 8)
    generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def _stopping(should_stop: Callable[[], bool]) -> Callable[..., Tensors]:
    """Return what diffusers is to call after each step of drawing."""

    def after_step(
        pipeline: "DiffusionPipeline", step: int, timestep: torch.Tensor, tensors: Tensors
    ) -> Tensors:
        if should_stop():
            raise Stopped
        return tensors

    return after_step


@contextlib.contextmanager
def with_loras(pipeline: "DiffusionPipeline", loras: list[Lora]) -> Iterator[None]:
    """Put LoRA files on the pipeline by diffusers' own loader, and take every trace of them off
    again.
    """
    if not loras:
        yield
        return
    names = [f"lora_{number}" for number in range(len(loras))]
    try:
        with quiet_diffusers(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config`"
            )  # two LoRAs are what was asked for
            for name, (path, _) in zip(names, loras, strict=True):
                _load_lora(pipeline, path, name)
            pipeline.set_adapters(names, adapter_weights=[weight for _, weight in loras])
        yield
    finally:
        pipeline.unload_lora_weights()


def _load_lora(pipeline: "DiffusionPipeline", path: Path, name: str) -> None:
    try:
        tensors = load_safetensors(Path(path).read_bytes())
        _refuse_other_algorithms(path, tensors)
        pipeline.load_lora_weights(tensors, adapter_name=name)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise Refused(
            f"The LoRA {Path(path).name} cannot be used with this checkpoint: {first_line(error)}. "
            "It may be damaged, or made for another kind of model.",
            field="prompt",
            code=ErrorCode.BAD_LORA,
        ) from error


def _refuse_other_algorithms(path: Path, names: Iterable[str]) -> None:
    """Raise `Refused` for a LoHa, LoKr or DoRA, by the names of its tensors."""
    marks = {".hada_w1": "LoHa", ".lokr_w": "LoKr", ".dora_scale": "DoRA"}
    all_names = "\n".join(names)
    for mark, algorithm in marks.items():
        if mark in all_names:
            raise Refused(
                f"{Path(path).name} is a {algorithm}, which diffusers cannot draw with. Use it in"
                " the WebUI.",
                field="prompt",
                code=ErrorCode.BAD_LORA,
            )


def _embeddings(
    model: StableDiffusion, prompts: list[str], negative_prompt: str
) -> dict[str, torch.Tensor]:
    """Encode prompts and the negative prompt to one length; returns arguments of the pipeline."""
    positive = model.encode_prompts(prompts)
    negative = model.encode_prompts([negative_prompt] * len(prompts), negative=True)
    both = Conditioning.cat([positive, negative], empty=model.encode_prompts([""]))
    both = both.to(model.device, model.dtype)
    arguments = {
        "prompt_embeds": both[: len(prompts)].hidden_states,
        "negative_prompt_embeds": both[len(prompts) :].hidden_states,
    }
    if both.pooled is not None:
        arguments |= {
            "pooled_prompt_embeds": both.pooled[: len(prompts)],
            "negative_pooled_prompt_embeds": both.pooled[len(prompts) :],
        }
    return arguments


@contextlib.contextmanager
def _completed_inputs(model: StableDiffusion) -> Iterator[None]:
    """Give an inpainting UNet its other input channels, which diffusers' text-to-image pipeline
    does not.
    """
    handle = model.unet.register_forward_pre_hook(
        lambda module, inputs: (model.unet_input(inputs[0]), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()
