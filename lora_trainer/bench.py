"""Time and memory of our step, as ratios: against the bare UNet's forward and backward pass,
interleaved in one process, medians. And what it costs to look, between two steps, whether somebody
waits.

The UNet is of a family's true size, with random weights. "Bare" is forward and backward for
activations only, with nothing attached, in the same precision. Memory is what is above the loaded
model.
"""

import contextlib
import statistics
import threading
import time
import timeit
from collections.abc import Iterator

import torch

from .base.contracts import BaseModel, Conditioning, Host, Size
from .base.control import Control
from .dataset.buckets import Bucket
from .dataset.caption_augmentation import CaptionAugmentation
from .hosts.checkpoint_file import (
    CLIP,
    OPEN_CLIP,
    SSD_1B,
    SSD_1B_DEPTHS,
    CheckpointFacts,
    TextEncoderFacts,
)
from .hosts.standalone.loading import unet_config
from .lora.adapters import Adapters
from .lora.target_layers import LayerSettings, assign_ranks
from .runs.callbacks import ProgressReporter, RunCallbacks
from .runs.give_way import Sharing
from .settings.config import TrainConfig
from .training import encoded_dataset, loop, precision
from .training.compute_mode import ComputeMode
from .training.conditioning import Texts
from .training.model_patches import ModelPatches
from .training.objective import Objective
from .training.optimizers import LearningRates, make_optimizer
from .training.train_state import TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CLIP_L, _CLIP_H, _CLIP_G = (
    TextEncoderFacts(CLIP, 768, 12, 3072),
    TextEncoderFacts(OPEN_CLIP, 1024, 24, 4096),
    TextEncoderFacts(OPEN_CLIP, 1280, 32, 5120),
)
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

    prediction_type, name, sha256, text_encoders = "epsilon", "random", None, []

    def __init__(self, family: str, dtype: torch.dtype, device: torch.device) -> None:
        self.family, self.variant, self._texts = (
            FAMILIES[family].family,
            FAMILIES[family].variant,
            FAMILIES[family].texts,
        )
        self.device, self.dtype, self.unet = device, dtype, _made_in(family, dtype, device)
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)

    def read_as(self, reading):
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
        told = (
            None
            if conditioning.pooled is None
            else {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": conditioning.sizes}
        )
        return self.unet(
            noisy_latents.to(self.dtype),
            timesteps,
            conditioning.hidden_states.to(self.dtype),
            added_cond_kwargs=told,
        ).sample


def _made_in(family: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Make it in its own type: nothing is freed that would hide growth."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make_unet(family).to(device).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(usual)


class Nobody(Host):
    """A host that nobody else uses."""

    kind, version = "standalone", "bench"

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
    """Measure and say, line by line; `family` is one of `FAMILIES`, `ratio` our step's median over
    the bare pass's.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = RandomModel(family, DTYPES[dtype], device)
    ours, bare, between_seconds, memory = _measure(
        model, size_px, batch_size, steps, rank, targets, checkpointing
    )
    lines = [
        (
            f"UNet of {family}, {count_parameters(model.unet) / 1e6:.0f} M parameters in {dtype} on"
            f" {device}, {size_px}x{size_px}, batch {batch_size}, rank {rank},"
            f" {targets}{', gradient checkpointing' if checkpointing else ''}, torch"
            f" {torch.__version__}, {torch.get_num_threads()} threads"
        ),
        (
            f"bare    {statistics.median(bare):.3f} s  (of {len(bare)}: {min(bare):.3f} to"
            f" {max(bare):.3f})"
        ),
        (
            f"step    {statistics.median(ours):.3f} s  (of {len(ours)}: {min(ours):.3f} to"
            f" {max(ours):.3f})"
        ),
        f"ratio   {statistics.median(ours) / statistics.median(bare):.3f}",
        (
            f"between {1e6 * between_seconds:.1f} us from step to step while nobody waits:"
            f" {between_seconds / statistics.median(ours):.6%} of a step"
        ),
    ]
    return "\n".join(
        lines + [f"{name:7} {value / 2**20:.0f} MiB" for name, value in memory.items()]
    )


def _measure(
    model: RandomModel,
    size_px: int,
    batch_size: int,
    steps: int,
    rank: int,
    targets: str,
    checkpointing: bool,
):
    """Run `steps` rounds of one step of ours and one bare pass, after one round to warm up."""
    latents, size = (
        torch.randn(batch_size, 1, 4, size_px // 8, size_px // 8),
        Size(size_px, size_px, 0, 0, size_px, size_px),
    )
    encoded = [
        encoded_dataset.Encoded(
            item,
            None,
            (size,),
            "",
            1.0,
            False,
            model.random_conditioning(),
            Bucket(size_px, size_px),
        )
        for item in latents
    ]
    adapters = Adapters.create(
        model.parts(),
        assign_ranks(model.parts(), LayerSettings(targets=targets, rank=rank, alpha=rank)),
    )
    optimizer = make_optimizer(
        "adamw", {"unet": adapters.parameters()}, learning_rates={"unet": 1e-4}, weight_decay=0.01
    )
    rates = LearningRates("constant", optimizer, warmup_steps=0, total_steps=steps + 1)
    dtype = precision.resolve("auto", device=model.device, weights=model.dtype)
    train_state = TrainState(adapters, optimizer, rates, device=model.device, dtype=dtype)
    patches = ModelPatches(
        model, adapters, ComputeMode(dtype, gradient_checkpointing=checkpointing)
    )
    ours, bare = [], []

    def bare_pass(done: loop.FinishedStep) -> None:
        _synchronize(model.device)
        ours.append(done.seconds)
        patches.close()
        began = time.perf_counter()
        _bare(model, encoded, dtype)
        bare.append(time.perf_counter() - began)
        patches.open()

    schedule = loop.Schedule(steps + 1, 1, batch_size, 1, (1,) * batch_size, 0)
    with _peak_memory(model.device) as memory, patches.opened():
        loop.run(
            patches,
            train_state,
            loop.TrainingData(encoded, schedule, Objective(), Texts(CaptionAugmentation())),
            on_step=bare_pass,
        )
    parts = {"lora": 4 * sum(parameter.numel() for parameter in adapters.parameters())}
    parts["adamw"], parts["grads"] = 2 * parts["lora"], parts["lora"]
    callbacks = RunCallbacks(
        TrainConfig(),
        schedule,
        Nobody(),
        Control(),
        patches=patches,
        train_state=train_state,
        output=None,
        write=None,
        facts={},
        states=None,
        sharing=Sharing(Nobody(), Control(), share=True, tell=None),
        reporter=ProgressReporter(lambda progress: None),
        chosen=patches.compute_mode,
    )
    between_seconds = min(timeit.repeat(callbacks.between, number=1000, repeat=5)) / 1000
    return (
        ours[1:],
        bare[1:],
        between_seconds,
        {"peak": memory["peak"], **parts, "rest": max(0, memory["peak"] - sum(parts.values()))},
    )


def _bare(model: RandomModel, encoded: list[encoded_dataset.Encoded], dtype: torch.dtype) -> None:
    latents = torch.cat([item.latents for item in encoded]).to(model.device).requires_grad_()
    conditioning = (
        Conditioning.cat([item.conditioning for item in encoded])
        .of_sizes([item.sizes[0] for item in encoded])
        .to(model.device)
    )
    timesteps = torch.full((len(latents),), 500, device=model.device)
    with precision.autocast(model.device, dtype):
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
