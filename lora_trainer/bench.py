"""Measures time and memory of our training step against the bare UNet's forward and backward pass,
interleaved in one process, as medians; and what a run's callbacks cost while there is nothing to
do.

The UNet has a family's true size and random weights. "Bare" is forward and backward for activations
only, with nothing attached, in the same precision. Memory is what is used above the loaded model.
"""

import contextlib
import statistics
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from .base.autocast import autocast
from .base.contracts import BaseModel, Conditioning, Host, Size
from .base.control import Control
from .dataset.buckets import Bucket
from .dataset.caption_augmentation import CaptionAugmentation
from .dataset.sample import Picture, Sample
from .hosts.checkpoint_file import (
    CLIP,
    OPEN_CLIP,
    SSD_1B_DEPTHS,
    CheckpointFacts,
    TextEncoderFacts,
)
from .hosts.model_families import SSD_1B
from .hosts.standalone.loading import unet_config
from .lora.adapters import Adapters
from .lora.target_layers import LayerSettings, assign_ranks
from .runs.callbacks import RunCallbacks
from .runs.context import RunContext
from .runs.prepare import PreparedRun
from .runs.progress import ProgressReporter
from .settings.config import TrainConfig
from .training import encoded_dataset, loop, precision
from .training.compute_mode import ComputeMode
from .training.conditioning import Conditioner
from .training.learning_rates import LearningRates
from .training.model_patches import ModelPatches
from .training.objective import Objective
from .training.optimizers import make_optimizer
from .training.train_state import TrainState
from .training.training_data import StepSchedule, TrainingData

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CLIP_L = TextEncoderFacts(CLIP, 768, 12, 3072)
_CLIP_H = TextEncoderFacts(OPEN_CLIP, 1024, 24, 4096)
_CLIP_G = TextEncoderFacts(OPEN_CLIP, 1280, 32, 5120)
_SD_DEPTHS = ((1, 1), (1, 1), (1, 1), (0, 0)), ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1))
_SDXL_DEPTHS = ((0, 0), (2, 2), (10, 10)), ((10, 10, 10), (2, 2, 2), (0, 0, 0))


def _facts(
    family: str,
    widths: tuple[int, ...],
    depths: tuple,
    texts: tuple[TextEncoderFacts, ...],
    size_px: int,
    *,
    variant: str = "",
) -> CheckpointFacts:
    return CheckpointFacts(
        family,
        variant,
        "epsilon",
        False,
        widths,
        *depths,
        has_middle_attention=variant != SSD_1B,
        has_linear_projections=family != "sd1",
        channels=4,
        label_width=2816 if family == "sdxl" else 0,
        vae_widths=(128, 256, 512, 512),
        texts=texts,
        size_px=size_px,
    )


FAMILIES = {
    "sd1": _facts("sd1", (320, 640, 1280, 1280), _SD_DEPTHS, (_CLIP_L,), 512),
    "sd2": _facts("sd2", (320, 640, 1280, 1280), _SD_DEPTHS, (_CLIP_H,), 768),
    "sdxl": _facts("sdxl", (320, 640, 1280), _SDXL_DEPTHS, (_CLIP_L, _CLIP_G), 1024),
    "ssd-1b": _facts(
        "sdxl", (320, 640, 1280), SSD_1B_DEPTHS, (_CLIP_L, _CLIP_G), 1024, variant=SSD_1B
    ),
}


def make_unet(family: str) -> torch.nn.Module:
    """Build a family's UNet in its true size with random weights, in torch's default type and on
    its default device.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            key: value
            for key, value in unet_config(FAMILIES[family]).items()
            if not key.startswith("_")
        }
    )


class RandomModel(BaseModel):
    """A UNet with random weights behind the contract; it has nothing to encode with."""

    prediction_type = "epsilon"
    name = "random"
    sha256 = None

    def __init__(self, family: str, dtype: torch.dtype, device: torch.device) -> None:
        facts = FAMILIES[family]
        self.family = facts.family
        self.variant = facts.variant
        self._texts = facts.texts
        self.device = device
        self.dtype = dtype
        self.text_encoders = []
        self.unet = _make_unet_in(family, dtype, device)
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)

    def configure(self, options):
        raise NotImplementedError

    def encode_images(self, pixels):
        raise NotImplementedError

    def encode_captions(self, captions):
        raise NotImplementedError

    def export_name(self, path):
        raise NotImplementedError

    def random_conditioning(self) -> Conditioning:
        """Return noise in the shapes of an encoded caption."""
        widths = [text.width for text in self._texts]
        return Conditioning(
            torch.randn(1, 77, sum(widths)), torch.randn(1, widths[-1]) if len(widths) > 1 else None
        )

    def predict(self, noisy_latents, timesteps, conditioning):
        added = None
        if conditioning.pooled is not None:
            pooled = conditioning.pooled.to(self.dtype)
            added = {"text_embeds": pooled, "time_ids": conditioning.sizes}
        return self.unet(
            noisy_latents.to(self.dtype),
            timesteps,
            conditioning.hidden_states.to(self.dtype),
            added_cond_kwargs=added,
        ).sample


def _make_unet_in(family: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Make a UNet in its dtype at once: casting would free memory and so hide growth."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make_unet(family).to(device).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(default)


class IdleHost(Host):
    """A host that nobody else uses."""

    kind = "standalone"
    version = "bench"

    def model_status(self):
        raise NotImplementedError

    def borrow_model(self):
        raise NotImplementedError

    def register(self, path):
        raise NotImplementedError

    def generate(self, prompt, **settings):
        raise NotImplementedError


def report(
    *,
    family: str = "sd1",
    size_px: int = 256,
    batch_size: int = 1,
    steps: int = 7,
    dtype: str = "fp32",
    rank: int = 16,
    targets: str = "attention+feed-forward",
    checkpointing: bool = False,
) -> str:
    """Measure and return lines of text; `family` is one of `FAMILIES`, `ratio` is our step's median
    over the bare pass's.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = RandomModel(family, DTYPES[dtype], device)
    encoded = _random_pictures(model, size_px, batch_size)
    layers = LayerSettings(targets=targets, rank=rank, alpha=rank)
    measured = _measure(model, encoded, layers, steps=steps, checkpointing=checkpointing)
    step_seconds = statistics.median(measured.step_seconds)
    bare_seconds = statistics.median(measured.bare_seconds)
    with_checkpointing = ", gradient checkpointing" if checkpointing else ""
    lines = [
        f"UNet of {family}, {count_parameters(model.unet) / 1e6:.0f} M parameters in {dtype} on"
        f" {device}, {size_px}x{size_px}, batch {batch_size}, rank {rank},"
        f" {targets}{with_checkpointing}, torch"
        f" {torch.__version__}, {torch.get_num_threads()} threads",
        f"bare    {_describe_seconds(measured.bare_seconds)}",
        f"step    {_describe_seconds(measured.step_seconds)}",
        f"ratio   {step_seconds / bare_seconds:.3f}",
        f"between {1e6 * measured.idle_seconds:.1f} us from step to step while nobody waits:"
        f" {measured.idle_seconds / step_seconds:.6%} of a step",
    ]
    lines += [f"{name:7} {value / 2**20:.0f} MiB" for name, value in measured.memory_bytes.items()]
    return "\n".join(lines)


def _describe_seconds(seconds: list[float]) -> str:
    median = statistics.median(seconds)
    return f"{median:.3f} s  (of {len(seconds)}: {min(seconds):.3f} to {max(seconds):.3f})"


class Measured(NamedTuple):
    """Seconds of each step, of each bare pass, and of a run's callbacks before a step; memory by
    what it is used for.
    """

    step_seconds: list[float]
    bare_seconds: list[float]
    idle_seconds: float
    memory_bytes: dict[str, int]


def _random_pictures(
    model: RandomModel, size_px: int, batch_size: int
) -> list[encoded_dataset.EncodedSample]:
    latents = torch.randn(batch_size, 1, 4, size_px // 8, size_px // 8)
    size = Size(size_px, size_px, 0, 0, size_px, size_px)
    sample = Sample(
        Picture(Path("random.png"), size_px, size_px, ""),
        "",
        Bucket(size_px, size_px),
        "train",
        repeats=1,
        loss_weight=1.0,
        mask=None,
        resolution_px=size_px,
    )
    return [
        encoded_dataset.EncodedSample(sample, item, None, (size,), model.random_conditioning())
        for item in latents
    ]


def _measure(
    model: RandomModel,
    encoded: list[encoded_dataset.EncodedSample],
    layers: LayerSettings,
    *,
    steps: int,
    checkpointing: bool,
) -> Measured:
    """Run `steps` rounds of one step of ours and one bare pass, after one round to warm up."""
    adapters = Adapters.create(model.parts(), assign_ranks(model.parts(), layers))
    optimizer = make_optimizer(
        "adamw", {"unet": adapters.parameters()}, learning_rates={"unet": 1e-4}, weight_decay=0.01
    )
    rates = LearningRates("constant", optimizer, warmup_steps=0, total_steps=steps + 1)
    dtype = precision.resolve("auto", device=model.device, weights=model.dtype)
    train_state = TrainState(adapters, optimizer, rates, device=model.device, dtype=dtype)
    patches = ModelPatches(
        model, adapters, ComputeMode(dtype, gradient_checkpointing=checkpointing)
    )
    ours: list[float] = []
    bare: list[float] = []

    def bare_pass(finished: loop.FinishedStep) -> None:
        _synchronize(model.device)
        ours.append(finished.seconds)
        patches.revert()
        began = time.perf_counter()
        _bare(model, encoded, dtype)
        bare.append(time.perf_counter() - began)
        patches.apply()

    batch_size = len(encoded)
    schedule = StepSchedule(steps + 1, 1, batch_size, 1, 0)
    training_data = TrainingData(encoded, schedule, Objective(), Conditioner(CaptionAugmentation()))
    with _peak_memory(model.device) as memory, patches.applied():
        loop.train(
            patches,
            train_state,
            training_data,
            callbacks=loop.LoopCallbacks(after_step=bare_pass),
        )
    lora_bytes = 4 * sum(parameter.numel() for parameter in adapters.parameters())
    parts = {"lora": lora_bytes, "adamw": 2 * lora_bytes, "grads": lora_bytes}
    rest = max(0, memory["peak"] - sum(parts.values()))
    idle_seconds = _idle_seconds(patches, train_state, training_data)
    memory_bytes = {"peak": memory["peak"], **parts, "rest": rest}
    return Measured(ours[1:], bare[1:], idle_seconds, memory_bytes)


def _idle_seconds(
    patches: ModelPatches, train_state: TrainState, training_data: TrainingData
) -> float:
    """Return what a run's callbacks cost before a step while there is nothing to do."""
    context = RunContext(
        config=TrainConfig(),
        plan=None,
        host=IdleHost(),
        control=Control(),
        reporter=ProgressReporter(),
        output=None,
        session_id=0.0,
    )
    run = PreparedRun(
        patches=patches,
        train_state=train_state,
        training_data=training_data,
        writer=None,
        chosen_mode=patches.compute_mode,
        facts={},
        encoding_seconds=0.0,
        elapsed_seconds=0.0,
    )
    callbacks = RunCallbacks(context, run)
    return min(timeit.repeat(callbacks.before_step, number=1000, repeat=5)) / 1000


def _bare(
    model: RandomModel, encoded: list[encoded_dataset.EncodedSample], dtype: torch.dtype
) -> None:
    latents = torch.cat([item.latents for item in encoded]).to(model.device).requires_grad_()
    conditioning = (
        Conditioning.cat([item.conditioning for item in encoded])
        .of_sizes([item.sizes[0] for item in encoded])
        .to(model.device)
    )
    timesteps = torch.full((len(latents),), 500, device=model.device)
    with autocast(model.device, dtype):
        predicted = model.predict(latents, timesteps, conditioning)
    predicted.float().pow(2).mean().backward()
    _synchronize(model.device)


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Fill in `peak`: bytes above what was in use at the start; on a CPU the process's resident
    memory, sampled.
    """
    result = {"peak": 0}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result["peak"] = torch.cuda.max_memory_allocated(device) - before
        return
    import psutil

    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while not done.wait(0.01):
            result["peak"] = max(result["peak"], process.memory_info().rss - before)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield result
    finally:
        done.set()
        sampler.join()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
