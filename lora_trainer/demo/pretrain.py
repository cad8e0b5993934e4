"""Trains the embedded checkpoint: its VAE, then its UNet and text encoder, and packs both.

    python -m lora_trainer.demo.pretrain all --work work/    # 45 minutes on two CPU cores
    python -m lora_trainer.demo.pretrain vae|unet|judge|pack --work work/

Seeds are fixed.

MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment saves a fifth of the time
with glibc. Needs the standalone packages (diffusers, transformers). Nothing at run time imports
this module.
"""

import argparse
import copy
import dataclasses
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from . import world
from .checkpoint import (
    ASSET,
    SCALE_FACTOR,
    SEED,
    UNET_CONFIG,
    VAE_CONFIG,
    make_text_encoder,
    pack,
    write_tokenizer,
)
from .wide_world import random_picture

log = logging.getLogger(__name__)
VAE_STEPS, VAE_BATCH, VAE_RATE = 1200, 4, 6e-4
UNET_STEPS, UNET_BATCH, UNET_RATE = 4500, 32, 1e-3
PICTURES = 4_000
SCHEDULE = dict(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    set_alpha_to_one=False,
)
FIELDS = tuple(field.name for field in dataclasses.fields(world.Scene))


def cosine(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def trapezoid(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, constant, and linearly to zero over the last
    third.
    """
    return min(1.0, (step + 1) / warmup, 3 * (steps - step) / steps)


def train_vae(work: Path) -> None:
    """Train the VAE on `wide_world`; the decoder also sees noisy latents, as a UNet's will be."""
    torch.manual_seed(SEED)
    rng = np.random.RandomState(SEED)
    vae = AutoencoderKL(**VAE_CONFIG)
    let_colour_pass(vae)
    optimizer = torch.optim.AdamW(
        vae.parameters(), VAE_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, VAE_STEPS, 100)
    )
    started, average = time.monotonic(), None
    for step in range(VAE_STEPS):
        loss, square = vae_loss(vae, wide_pictures(rng, VAE_BATCH))
        descend(loss, list(vae.parameters()), optimizer, schedule)
        average = square if average is None else average * 0.97 + square * 0.03
        if step % 50 == 49:
            log.info(
                "vae step %d psnr %.2f %.0f s",
                step + 1,
                10 * math.log10(4 / average),
                time.monotonic() - started,
            )
    fold_scale(vae, rng)
    save_file(vae.state_dict(), work / "vae.safetensors")
    log.info("vae: %.2f dB on unseen pictures", measure_vae(vae))


def vae_loss(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the loss and the mean squared error of pictures `(n, 3, 64, 64)` in [-1, 1] restored
    from noisy latents.
    """
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.sample()
    noise = torch.randn_like(latents) * latents.detach().std()
    noisy = latents + noise * 0.15 * torch.rand(len(pixels), 1, 1, 1)
    error = vae.decode(noisy).sample - pixels
    kl = posterior.kl().mean() / latents[0].numel()
    square = error.pow(2).mean()
    return error.abs().mean() + 2 * square + 1e-4 * kl, square.item()


def descend(
    loss: torch.Tensor,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule,
) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def wide_pictures(rng: np.random.RandomState, count: int) -> torch.Tensor:
    """Paint pictures of the wide world: float32 `(count, 3, 64, 64)` in [-1, 1]."""
    pictures = np.stack([random_picture(rng) for _ in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() * 2 - 1


@torch.no_grad()
def let_colour_pass(vae: AutoencoderKL) -> None:
    """Initialise so that the mean colours of 8x8 patches survive encoding and decoding before the
    first step.

    Residual branches start near zero, down- and upsampling as averages and copies. What is left in
    the way is the last GroupNorm of encoder and decoder: it has 32 groups, here of two channels,
    and erases whatever is flat. `_pass_last_norm` leads colour through.
    """
    same = torch.eye(VAE_CONFIG["block_out_channels"][0])
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.bias.zero_()
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(0.05)
        if isinstance(module, Attention):
            module.to_out[0].weight.mul_(0.05)
    for block in vae.encoder.down_blocks[:3]:
        block.downsamplers[0].conv.weight.mul_(0.1)[:, :, :2, :2] += same[:, :, None, None] / 4
    for block in vae.decoder.up_blocks[:3]:
        block.upsamplers[0].conv.weight.mul_(0.1)[:, :, 1, 1] += same
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
    _pass_last_norm(vae.encoder, vae.encoder.mid_block.resnets[1], size_px=8, strength=3.0)
    _pass_last_norm(vae.decoder, vae.decoder.up_blocks[3].resnets[2], size_px=64, strength=5.0)
    vae.encoder.conv_out.weight[4:].mul_(0.02)
    vae.quant_conv.bias[4:] = -6  # little noise at first, not standard deviation 1


def _pass_last_norm(
    part: torch.nn.Module, last: ResnetBlock2D, *, size_px: int, strength: float
) -> None:
    """Let three colours pass `conv_norm_out` of an encoder or decoder, through the first four of
    its pairs of channels.

    The first of each pair is a frame, large at the picture's rim (where zero padding takes
    neighbours away from a constant), the second a colour, and nothing in the fourth pair. A frame's
    variance dwarfs the colour's, so the norm is nearly linear in it; it takes half the mean colour
    off both channels of the pair, and (colour - frame + frame of the fourth pair) gives it back.
    """
    constant, frames, colours = 63, [0, 2, 4, 6], [1, 3, 5]
    last.norm2.weight[constant], last.norm2.bias[constant] = 0, 1
    neighbours = F.conv2d(torch.ones(1, 1, size_px, size_px), torch.ones(1, 1, 3, 3), padding=1)
    unit = F.silu(torch.ones(())) * strength
    part.conv_in.weight[:8] = 0
    last.conv2.weight[:8] = 0
    for channel in frames:
        last.conv2.weight[channel, constant] = -strength
        last.conv2.bias[channel] = unit * neighbours.mean()
    deviation = unit * neighbours.std() / 2**0.5
    part.conv_norm_out.bias[:8] = 3.0  # where SiLU is straight
    part.conv_out.weight.mul_(0.3)[:3] = 0
    for number, channel in enumerate(colours):
        part.conv_in.weight[channel, number, 1, 1] = 1
        for source, sign in ((channel, 1), (channel - 1, -1), (frames[3], 1)):
            part.conv_out.weight[number, source, 1, 1] = sign * deviation / 1.09
        part.conv_out.bias[number] = -F.silu(torch.tensor(3.0)) * deviation / 1.09


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, rng: np.random.RandomState) -> None:
    """Rescale the 1x1 convolutions around the latents so that SD1's factor 0.18215 gives every
    channel mean 0 and variance 1.
    """
    latents = vae.encode(wide_pictures(rng, 256)).latent_dist.mean
    shift, gain = latents.mean((0, 2, 3)), 1 / (latents.std((0, 2, 3)) * SCALE_FACTOR)
    channels = len(gain)
    vae.quant_conv.weight[:channels] *= gain[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - shift) * gain
    vae.quant_conv.bias[channels:] += 2 * gain.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    vae.post_quant_conv.weight /= gain[None, :, None, None]


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, count: int = 256) -> float:
    """Return the mean PSNR in dB over pictures of the wide world never trained on."""
    rng = np.random.RandomState(SEED + 1)
    pixels = wide_pictures(rng, count)
    restored = []
    for part in pixels.split(32):
        latents = vae.encode(part).latent_dist.mean
        restored.append(vae.decode(latents).sample.clamp(-1, 1))
    squares = (torch.cat(restored) - pixels).pow(2).mean((1, 2, 3))
    return float((10 * (4 / squares).log10()).mean())


def load_vae(work: Path) -> AutoencoderKL:
    vae = AutoencoderKL(**VAE_CONFIG).eval()
    vae.load_state_dict(load_file(work / "vae.safetensors"))
    return vae


@torch.no_grad()
def encode_world(vae: AutoencoderKL, rng: np.random.RandomState) -> tuple[torch.Tensor, list[str]]:
    """Paint and encode the training pictures once: latents `(n, 4, 8, 8)` with unit variance, and
    captions.
    """
    scenes = [world.random_scene(rng) for _ in range(PICTURES)]
    latents = []
    for start in range(0, PICTURES, 64):
        pictures = np.stack([world.paint(scene, rng) for scene in scenes[start : start + 64]])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        latents.append(vae.encode(pixels / 127.5 - 1).latent_dist.mean * SCALE_FACTOR)
    return torch.cat(latents), [scene.caption for scene in scenes]


def train_unet(work: Path) -> None:
    """Train UNet and text encoder (all but its random token embeddings) with an average of their
    weights, which is what is kept.
    """
    torch.manual_seed(SEED)
    rng = np.random.RandomState(SEED)
    latents, captions = encode_world(load_vae(work), rng)
    log.info("encoded %d pictures, latents std %.3f", len(latents), latents.std())
    tokens = tokenise(captions, work)
    empty = tokenise([""], work)[0]
    models = torch.nn.ModuleDict(
        {"unet": UNet2DConditionModel(**UNET_CONFIG), "text": make_text_encoder()}
    )
    # fused attention is slow on a CPU with heads of 8 channels
    models["unet"].set_attn_processor(AttnProcessor())
    ema = copy.deepcopy(models).requires_grad_(False)
    trainable = [parameter for parameter in models.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, UNET_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: trapezoid(step, UNET_STEPS, 150)
    )
    started, average = time.monotonic(), None
    for step in range(UNET_STEPS):
        chosen = torch.from_numpy(rng.randint(0, PICTURES, UNET_BATCH))
        ids = tokens[chosen].clone()
        is_dropped = torch.from_numpy(rng.rand(UNET_BATCH) < 0.1)
        ids[is_dropped] = empty  # for classifier-free guidance (arXiv 2207.12598)
        loss, error = unet_loss(models, latents[chosen], ids, rng)
        descend(loss, trainable, optimizer, schedule)
        follow(ema, models, decay=min(0.999, (step + 1) / (step + 20)))
        average = error if average is None else average * 0.99 + error * 0.01
        if step % 50 == 49:
            log.info("unet step %d loss %.4f %.0f s", step + 1, average, time.monotonic() - started)
        if step % 500 == 499:
            save_models(ema, work)
    save_models(ema, work)


def unet_loss(
    models: torch.nn.ModuleDict, clean: torch.Tensor, ids: torch.Tensor, rng: np.random.RandomState
) -> tuple[torch.Tensor, float]:
    """Return the epsilon loss weighted by min-SNR 5 (arXiv 2303.09556), and the unweighted one.

    `clean` are latents `(n, 4, 8, 8)`, `ids` their captions' tokens `(n, 77)`.
    """
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    noise = torch.randn_like(clean)
    timesteps = torch.from_numpy(rng.randint(0, len(alphas), len(clean)))
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        context = models["text"](ids).last_hidden_state
        predicted = models["unet"](noisy, timesteps, context).sample
    errors = (predicted.float() - noise).pow(2).mean((1, 2, 3))
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    return (errors * (5 / snr).clamp(max=1)).mean(), errors.mean().item()


@torch.no_grad()
def follow(ema: torch.nn.Module, models: torch.nn.Module, *, decay: float) -> None:
    """Move averaged weights by 1 - `decay` of the way to the trained ones."""
    torch._foreach_lerp_(
        list(ema.parameters()), [parameter.data for parameter in models.parameters()], 1 - decay
    )


def tokenise(captions: list[str], work: Path) -> torch.Tensor:
    """Return CLIP's token numbers, int64 `(n, 77)`."""
    tokenizer = CLIPTokenizer.from_pretrained(str(write_tokenizer(work / "tokenizer")))
    return tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids


def save_models(models: torch.nn.ModuleDict, work: Path) -> None:
    save_file(models["unet"].state_dict(), work / "unet.safetensors")
    save_file(models["text"].state_dict(), work / "text.safetensors")


def judge_pictures(
    work: Path, count: int = 200, steps: int = 20, guidance: float = 4.0
) -> dict[str, float]:
    """Draw captions of held-out combinations, and return the shares of pictures in which
    everything ("all"), and each field of the scene, is right.

    Writes the first hundred pictures to `work`/judged.png.
    """
    rng = np.random.RandomState(SEED + 2)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(count)]
    pictures = draw(work, [scene.caption for scene in scenes], steps=steps, guidance=guidance)
    rows = [
        np.concatenate(pictures[at : at + 20], 1) for at in range(0, min(100, count // 20 * 20), 20)
    ]
    Image.fromarray(np.concatenate(rows)).save(work / "judged.png")
    seen = [world.see(picture) for picture in pictures]
    pairs = list(zip(seen, scenes, strict=True))
    shares = {"all": float(np.mean([found == asked for found, asked in pairs]))}
    for field in FIELDS:
        right = [getattr(found, field) == getattr(asked, field) for found, asked in pairs]
        shares[field] = float(np.mean(right))
    return shares


@torch.no_grad()
def draw(work: Path, captions: list[str], *, steps: int, guidance: float) -> list[np.ndarray]:
    """Draw each caption with DDIM and classifier-free guidance: uint8 `(64, 64, 3)`, with the
    weights rounded to fp16 as the asset has them.
    """
    unet, text, vae = load_unet(work), load_text(work), load_vae(work)
    for model in (unet, text, vae):
        model.half().float()
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    pictures = []
    for start in range(0, len(captions), 50):
        part = captions[start : start + 50]
        context = text(tokenise(part + [""] * len(part), work)).last_hidden_state
        latents = torch.randn(len(part), 4, 8, 8, generator=torch.Generator().manual_seed(start))
        for timestep in scheduler.timesteps:
            guided, plain = unet(torch.cat([latents] * 2), timestep, context).sample.chunk(2)
            latents = scheduler.step(
                plain + guidance * (guided - plain), timestep, latents
            ).prev_sample
        pixels = (vae.decode(latents / SCALE_FACTOR).sample.clamp(-1, 1) + 1) * 127.5
        pictures.extend(pixels.round().byte().permute(0, 2, 3, 1).numpy())
    return pictures


def load_unet(work: Path) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**UNET_CONFIG).eval()
    unet.load_state_dict(load_file(work / "unet.safetensors"))
    return unet


def load_text(work: Path) -> torch.nn.Module:
    text = make_text_encoder().eval()
    text.load_state_dict(load_file(work / "text.safetensors"))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("all", "vae", "unet", "judge", "pack"))
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for the parts; 'pack' writes the package's asset",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("all", "vae"):
        train_vae(args.work)
    if args.stage in ("all", "unet"):
        train_unet(args.work)
    if args.stage in ("all", "judge"):
        log.info("judge: %s", json.dumps(judge_pictures(args.work)))
    if args.stage in ("all", "pack"):
        log.info("packed %s: %.2f MB", ASSET, pack(args.work) / 1e6)


if __name__ == "__main__":
    main()
