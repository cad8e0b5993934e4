"""Time and memory of our step, as ratios: against the bare UNet's forward and backward pass, interleaved in one process, medians. And what
it costs to look, between two steps, whether somebody waits.

The UNet is SD1.5's, of 860 M random parameters. "Bare" is forward and backward for activations only, with nothing attached, in the
same precision. Memory is what is above the loaded model.
"""
import contextlib
import statistics
import threading
import time
import timeit
from collections.abc import Iterator

import torch

from .core import cache, precision, trainer
from .core.adapters import Adapters, plan_shapes
from .core.attendant import Attendant, Teller
from .core.config import TrainConfig
from .core.contracts import BaseModel, Conditioning, Host
from .core.control import Control
from .core.dataset import Bucket
from .core.effort import Effort
from .core.learner import Learner
from .core.optimization import LearningRates, make_optimizer
from .core.session import Session
from .core.sharing import Sharing

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


def report(*, size_px: int = 256, batch_size: int = 1, steps: int = 7, dtype: str = "fp32", rank: int = 16, targets: str = "attention+feed-forward",
           checkpointing: bool = False) -> str:
    """Measure and say, line by line; `ratio` is our step's median over the bare pass's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = RandomModel(DTYPES[dtype], device)
    ours, bare, between_seconds, memory = _measure(model, size_px, batch_size, steps, rank, targets, checkpointing)
    lines = [f"UNet {sum(p.numel() for p in model.unet.parameters()) / 1e6:.0f} M parameters in {dtype} on {device}, {size_px}x{size_px}, batch {batch_size}, "
             f"rank {rank}, {targets}{', gradient checkpointing' if checkpointing else ''}, torch {torch.__version__}, {torch.get_num_threads()} threads",
             f"bare    {statistics.median(bare):.3f} s  (of {len(bare)}: {min(bare):.3f} to {max(bare):.3f})",
             f"step    {statistics.median(ours):.3f} s  (of {len(ours)}: {min(ours):.3f} to {max(ours):.3f})",
             f"ratio   {statistics.median(ours) / statistics.median(bare):.3f}",
             f"between {1e6 * between_seconds:.1f} us from step to step while nobody waits: {between_seconds / statistics.median(ours):.6%} of a step"]
    return "\n".join(lines + [f"{name:7} {value / 2**20:.0f} MiB" for name, value in memory.items()])


def _measure(model: RandomModel, size_px: int, batch_size: int, steps: int, rank: int, targets: str, checkpointing: bool):
    """Run `steps` rounds of one step of ours and one bare pass, after one round to warm up."""
    latents = torch.randn(batch_size, 1, 4, size_px // 8, size_px // 8)
    encoded = [cache.Encoded(item, Conditioning(torch.randn(1, 77, 768)), Bucket(size_px, size_px)) for item in latents]
    adapters = Adapters.create(model.unet, plan_shapes(model.unet, targets=targets, rank=rank, alpha=rank))
    optimizer = make_optimizer("adamw", adapters.parameters(), learning_rate=1e-4, weight_decay=0.01)
    rates = LearningRates("constant", optimizer, warmup_steps=0, total_steps=steps + 1)
    dtype = precision.resolve("auto", device=model.device, weights=model.dtype)
    learner = Learner(adapters, optimizer, rates, device=model.device, dtype=dtype)
    session = Session(model, adapters, Effort(dtype, gradient_checkpointing=checkpointing))
    ours, bare = [], []

    def bare_pass(done: trainer.StepDone) -> None:
        _synchronize(model.device)
        ours.append(done.seconds)
        session.close()
        began = time.perf_counter()
        _bare(model, encoded, dtype)
        bare.append(time.perf_counter() - began)
        session.open()

    schedule = trainer.Schedule(steps + 1, 1, batch_size, 1, (1,) * batch_size, 0)
    with _peak_memory(model.device) as memory, session.opened():
        trainer.run(session, learner, encoded, schedule, on_step=bare_pass)
    parts = {"lora": 4 * sum(p.numel() for p in adapters.parameters())}
    parts["adamw"], parts["grads"] = 2 * parts["lora"], parts["lora"]
    attendant = Attendant(TrainConfig(), schedule, Nobody(), Control(), session=session, learner=learner, output=None, write=None, facts={}, states=None,
                          sharing=Sharing(Nobody(), Control(), share=True, tell=None), teller=Teller(lambda progress: None), chosen=session.effort)
    between_seconds = min(timeit.repeat(attendant.between, number=1000, repeat=5)) / 1000
    return ours[1:], bare[1:], between_seconds, {"peak": memory["peak"], **parts, "rest": max(0, memory["peak"] - sum(parts.values()))}


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
