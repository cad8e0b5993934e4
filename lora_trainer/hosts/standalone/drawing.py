"""Pictures of the standalone host: diffusers' sampling with our encoding of prompts, and LoRA files
through diffusers' own loader.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from ...base.contracts import Conditioning
from ...base.errors import Refused, Stopped
from .loading import first_line, make_scheduler, quiet_diffusers
from .model import StableDiffusion

Lora = tuple[Path, float]


def check_drawing(*, width: int, height: int, steps: int, guidance: float) -> None:
    """Raise `Refused` for pictures that cannot be drawn."""
    for name, value, low, high in (
        ("width", width, 64, 2048),
        ("height", height, 64, 2048),
        ("steps", steps, 1, 150),
        ("guidance", guidance, 0, 100),
    ):
        if not low <= value <= high or (high == 2048 and value % 8):
            raise Refused(
                f"{name.capitalize()}: {value} is not possible. Use {low} to"
                f" {high}{', a multiple of 8' if high == 2048 else ''}.",
                field=name,
                code="bad_value",
            )


@torch.no_grad()
def draw(  # noqa: PLR0913
    pipeline: Any,
    model: StableDiffusion,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative_prompt: str,
    steps: int,
    guidance: float,
    width: int,
    height: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """Draw one batch of pictures with `model`, whose modules are the pipeline's, as it is read now;
    returns PIL images. Raises `Stopped`.
    """
    noise = torch.cat(
        [
            torch.randn(
                1,
                4,
                height // 8,
                width // 8,
                generator=torch.Generator("cpu").manual_seed(int(seed)),
            )
            for seed in seeds
        ]
    )
    pipeline.scheduler = make_scheduler(model.prediction_type, model.zero_terminal_snr)
    with _completed_inputs(model):
        latents = pipeline(
            **_embeddings(model, list(prompts), negative_prompt),
            latents=noise.to(model.dtype),
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            output_type="latent",
            callback_on_step_end=_stopping(should_stop),
        ).images
    return pipeline.image_processor.postprocess(model.decode_images(latents), output_type="pil")


def _stopping(should_stop: Callable[[], bool]) -> Callable[..., dict[str, Any]]:
    """Return what diffusers is to call after each step of drawing."""

    def after_step(
        pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        if should_stop():
            raise Stopped
        return tensors

    return after_step


@contextlib.contextmanager
def with_loras(pipeline: Any, loras: list[Lora]) -> Iterator[None]:
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


def _load_lora(pipeline: Any, path: Path, name: str) -> None:
    try:
        tensors = load_safetensors(Path(path).read_bytes())
        _refuse_other_kinds(path, tensors)
        pipeline.load_lora_weights(tensors, adapter_name=name)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise Refused(
            f"The LoRA {Path(path).name} cannot be used with this checkpoint: {first_line(error)}. "
            "It may be damaged, or made for another kind of model.",
            field="prompt",
            code="bad_lora",
        ) from error


def _refuse_other_kinds(path: Path, names: Any) -> None:
    kind = next(
        (
            kind
            for kind, mark in (("LoHa", ".hada_w1"), ("LoKr", ".lokr_w"), ("DoRA", ".dora_scale"))
            if any(mark in name for name in names)
        ),
        None,
    )
    if kind:
        raise Refused(
            f"{Path(path).name} is a {kind}, which diffusers cannot draw with. Use it in the"
            " WebUI.",
            field="prompt",
            code="bad_lora",
        )


def _embeddings(
    model: StableDiffusion, prompts: list[str], negative_prompt: str
) -> dict[str, torch.Tensor]:
    """Encode what is wanted and what is not to the same length, under the names that pipelines take
    them by.
    """
    wanted, unwanted = (
        model.encode_prompts(prompts),
        model.encode_prompts([negative_prompt] * len(prompts), unwanted=True),
    )
    both = Conditioning.cat([wanted, unwanted], empty=model.encode_prompts([""])).to(
        model.device, model.dtype
    )
    named = {
        "prompt_embeds": both[: len(prompts)].hidden_states,
        "negative_prompt_embeds": both[len(prompts) :].hidden_states,
    }
    if both.pooled is not None:
        named |= {
            "pooled_prompt_embeds": both.pooled[: len(prompts)],
            "negative_pooled_prompt_embeds": both.pooled[len(prompts) :],
        }
    return named


@contextlib.contextmanager
def _completed_inputs(model: StableDiffusion) -> Iterator[None]:
    """Give an inpainting UNet its other channels: diffusers' pipeline for text to pictures does not
    know of them.
    """
    handle = model.unet.register_forward_pre_hook(
        lambda module, inputs: (model.unet_input(inputs[0]), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()
