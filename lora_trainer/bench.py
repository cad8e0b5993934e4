"""Time and memory of our step, as ratios: against the bare UNet's forward and backward pass, interleaved in one process, medians.

The UNet is SD1.5's, of 860 M random parameters. "Bare" is forward and backward for activations only, with nothing attached, in the
same precision. Memory is what is above the loaded model.
"""
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator

import torch

from .core import cache, precision, trainer
from .core.adapters import Adapters
from .core.contracts import BaseModel, Conditioning
from .core.dataset import Bucket
from .core.optimization import make_optimizer, make_schedule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class RandomModel(BaseModel):
    """SD1.5's UNet with random weights behind the contract; it has nothing to encode with."""
    family, prediction_type, name, sha256, text_encoders = "sd1", "epsilon", "random", None, []

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        from diffusers import UNet2DConditionModel
        self.device, self.dtype = device, dtype
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)                                             # made in its own type: nothing freed that would hide growth
        try:
            self.unet = UNet2DConditionModel(cross_attention_dim=768).to(device).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(usual)
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)

    def encode_images(self, pixels):
        raise NotImplementedError

    def encode_captions(self, captions, sizes):
        raise NotImplementedError

    def export_name(self, module_path):
        raise NotImplementedError

    def predict(self, noisy_latents, timesteps, conditioning):
        return self.unet(noisy_latents.to(self.dtype), timesteps, conditioning.hidden_states.to(self.dtype)).sample


def report(*, size_px: int = 256, batch_size: int = 1, steps: int = 7, dtype: str = "fp32", rank: int = 16, targets: str = "attention+feed-forward",
           checkpointing: bool = False) -> str:
    """Measure and say, line by line; `ratio` is our step's median over the bare pass's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = RandomModel(DTYPES[dtype], device)
    ours, bare, memory = _measure(model, size_px, batch_size, steps, rank, targets, checkpointing)
    lines = [f"UNet {sum(p.numel() for p in model.unet.parameters()) / 1e6:.0f} M parameters in {dtype} on {device}, {size_px}x{size_px}, batch {batch_size}, "
             f"rank {rank}, {targets}{', gradient checkpointing' if checkpointing else ''}, torch {torch.__version__}, {torch.get_num_threads()} threads",
             f"bare    {statistics.median(bare):.3f} s  (of {len(bare)}: {min(bare):.3f} to {max(bare):.3f})",
             f"step    {statistics.median(ours):.3f} s  (of {len(ours)}: {min(ours):.3f} to {max(ours):.3f})",
             f"ratio   {statistics.median(ours) / statistics.median(bare):.3f}"]
    return "\n".join(lines + [f"{name:7} {value / 2**20:.0f} MiB" for name, value in memory.items()])


def _measure(model: RandomModel, size_px: int, batch_size: int, steps: int, rank: int, targets: str, checkpointing: bool):
    """Run `steps` rounds of one step of ours and one bare pass, after one round to warm up."""
    latents = torch.randn(batch_size, 1, 4, size_px // 8, size_px // 8)
    encoded = [cache.Encoded(item, Conditioning(torch.randn(1, 77, 768)), Bucket(size_px, size_px)) for item in latents]
    adapters = Adapters.create(model.unet, targets=targets, rank=rank, alpha=rank)
    optimizer = make_optimizer("adamw", adapters.parameters(), learning_rate=1e-4, weight_decay=0.01)
    rates = make_schedule("constant", optimizer, warmup_steps=0, total_steps=steps + 1)
    dtype = precision.resolve("auto", device=model.device, weights=model.dtype)
    ours, bare, began = [], [], time.perf_counter()

    def bare_pass() -> None:
        nonlocal began
        _synchronize(model.device)
        ours.append(time.perf_counter() - began)
        adapters.detach()
        began = time.perf_counter()
        _bare(model, encoded, dtype)
        bare.append(time.perf_counter() - began)
        adapters.attach()
        began = time.perf_counter()

    schedule = trainer.Schedule(steps + 1, 1, batch_size, 1, (1,) * batch_size, 0)
    with _peak_memory(model.device) as memory, adapters.attached(), precision.gradient_checkpointing(model.unet, checkpointing):
        trainer.run(model, adapters, encoded, schedule, optimizer=optimizer, learning_rates=rates, dtype=dtype, give_way=bare_pass)
    parts = {"lora": 4 * sum(p.numel() for p in adapters.parameters())}
    parts["adamw"], parts["grads"] = 2 * parts["lora"], parts["lora"]
    return ours[1:], bare[1:], {"peak": memory["peak"], **parts, "rest": max(0, memory["peak"] - sum(parts.values()))}


def _bare(model: RandomModel, encoded: list[cache.Encoded], dtype: torch.dtype) -> None:
    latents = torch.cat([item.latents for item in encoded]).to(model.device).requires_grad_()
    conditioning = Conditioning.cat([item.conditioning for item in encoded]).to(model.device)
    timesteps = torch.full((len(latents),), 500, device=model.device)
    with precision.autocast(model.device, dtype):
        predicted = model.predict(latents, timesteps, conditioning)
    predicted.float().pow(2).mean().backward()
    _synchronize(model.device)


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Fill in `peak`: bytes above what was in use at the start; on a CPU the process's resident memory, sampled."""
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
