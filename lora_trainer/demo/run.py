"""The main job on the embedded world: train the concept, draw it at four weights, and count how
often the judge finds it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..jobs.service import TrainingService
from .checkpoint import write_checkpoint
from .concept import TRIGGER, backgrounds_for_judging, caption_of, shows_zib, write_dataset

WEIGHTS = (0.0, 0.4, 0.8, 1.0)
SEEDS_PER_BACKGROUND, STEPS, GUIDANCE, SIZE_PX = 3, 20, 4.0, 64
SETTINGS = dict(
    output_name="zib",
    trigger_word=TRIGGER,
    resolution=SIZE_PX,
    max_train_steps=700,
    batch_size=4,
    learning_rate=2e-3,
    lora_rank=16,
    lora_alpha=16,
    scheduler="cosine",
    lr_warmup_steps=20,
    preferred_weight=1.0,
    overwrite=True,
)
INK, PAPER, FAINT, STRONG = (40, 44, 52), (255, 255, 255), (205, 214, 235), (60, 90, 200)


def run_demo(
    output: Path,
    make_host: Callable[..., Any],
    run_job: Callable[[TrainingService, dict], dict],
    *,
    seed: int = 42,
) -> TrainingService:
    """Do the whole job in `output` and print what was found; returns the service, for a page to
    show.
    """
    torch.set_num_threads(1)  # layers this small lose more to a second thread than they gain
    checkpoint = write_checkpoint(output / "checkpoint")
    pictures = write_dataset(output / "pictures")
    host = make_host(checkpoint=checkpoint, lora_dir=output, data_dir=output / "train_lora")
    service = TrainingService(host)
    job = run_job(service, {**SETTINGS, "seed": seed, "train_data_dir": str(pictures.resolve())})
    loss_curve(service.metrics(job["id"])).save(output / "loss.png")
    drawn = draw_at_weights(host, Path(job["output_file"]))
    grid(drawn).save(output / "grid.png")
    shares = {
        weight: float(np.mean([shows_zib(np.asarray(picture)) for picture in row]))
        for weight, row in drawn.items()
    }
    print(
        f"\nThe judge finds the concept in {shares[0.0]:.0%} of {len(drawn[0.0])} pictures without"
        f" the LoRA and in {shares[1.0]:.0%} with it at weight 1 (it wants the very colours: at 0.8"
        f" {shares[0.8]:.0%}, at 0.4 {shares[0.4]:.0%}; see the grid)."
    )
    for name, what in (
        ("zib.safetensors", f"the LoRA; {job['lora_tag']} in a prompt"),
        ("grid.png", "the same seeds at weights 0, 0.4, 0.8 and 1"),
        ("loss.png", "the loss curve"),
    ):
        print(f"  {output / name}  {what}")
    return service


def draw_at_weights(host: Any, lora: Path) -> dict[float, list[Image.Image]]:
    """Draw the concept on every background, three seeds each, the same ones at every weight."""
    prompts = [
        caption_of(background)
        for background in backgrounds_for_judging()
        for _ in range(SEEDS_PER_BACKGROUND)
    ]
    seeds = list(range(1000, 1000 + len(prompts)))
    return {
        weight: host.draw(
            prompts,
            lora=(lora, weight) if weight else None,
            seeds=seeds,
            steps=STEPS,
            guidance=GUIDANCE,
            width=SIZE_PX,
            height=SIZE_PX,
        )
        for weight in WEIGHTS
    }


def grid(
    drawn: dict[float, list[Image.Image]], *, columns: int = 8, cell_px: int = 96
) -> Image.Image:
    """One row of pictures for each weight, one column for each background, captions at the
    edges.
    """
    left, top = 110, 30
    sheet = Image.new(
        "RGB", (left + columns * (cell_px + 6), top + len(drawn) * (cell_px + 6)), PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for column, background in enumerate(backgrounds_for_judging()[:columns]):
        pen.text((left + column * (cell_px + 6) + 4, 10), background, INK)
    for row, (weight, pictures) in enumerate(drawn.items()):
        y = top + row * (cell_px + 6)
        pen.text((12, y + cell_px // 2 - 6), f"weight {weight:g}", INK)
        for column in range(columns):
            sheet.paste(
                pictures[column * SEEDS_PER_BACKGROUND].resize((cell_px, cell_px), Image.NEAREST),
                (left + column * (cell_px + 6), y),
            )
    return sheet


def loss_curve(rows: list[dict[str, Any]], *, width: int = 900, height: int = 420) -> Image.Image:
    """Draw the loss of every step, faint, and its running average, strong."""
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = 70, 30, width - 30, height - 50
    highest = (
        max(
            np.percentile([row["loss"] for row in rows], 98),
            max(row["loss_average"] for row in rows),
            1e-6,
        )
        * 1.05
    )
    last = max(row["step"] for row in rows)

    def point(step: float, loss: float) -> tuple[float, float]:
        return (
            left + (right - left) * step / last,
            bottom - (bottom - top) * min(loss / highest, 1.0),
        )

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        pen.line([(left, y), (right, y)], (232, 234, 240))
        pen.text((12, y - 6), f"{highest * part / 4:.3f}", INK)
        pen.text((left + (right - left) * part / 4 - 8, bottom + 10), f"{last * part // 4}", INK)
    pen.text((left, 8), "loss", INK)
    pen.text((right - 30, bottom + 26), "step", INK)
    pen.line([point(row["step"], row["loss"]) for row in rows], FAINT, 1)
    pen.line([point(row["step"], row["loss_average"]) for row in rows], STRONG, 3)
    return sheet
