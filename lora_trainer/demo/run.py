"""The demo: trains the concept of the embedded data set, draws it at four weights of the LoRA, and
counts how often the judge finds it in the pictures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..jobs.job import JobView
from ..jobs.metrics import MetricsRow
from ..jobs.service import TrainingService
from ..settings.setting import WrittenSettings
from .checkpoint import write_checkpoint
from .concept import TRIGGER, backgrounds_for_judging, caption_of, shows_zib, write_dataset

WEIGHTS = (0.0, 0.4, 0.8, 1.0)
SEEDS_PER_BACKGROUND = 3
FIRST_SEED = 1000
STEPS = 20
GUIDANCE = 4.0
SIZE_PX = 64
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
INK = (40, 44, 52)
PAPER = (255, 255, 255)
GRID_LINE = (232, 234, 240)
LOSS_COLOUR = (205, 214, 235)
AVERAGE_COLOUR = (60, 90, 200)


def run_demo(
    output: Path,
    make_host: Callable[..., Any],
    run_job: Callable[[TrainingService, WrittenSettings], JobView],
    *,
    seed: int = 42,
) -> TrainingService:
    """Run the demo in the folder `output` and print its results; returns the service, for the page.

    `run_job` runs a job with these settings to its end, and returns it.
    """
    torch.set_num_threads(1)  # a second thread makes layers this small slower
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
    _print_results(output, shares, pictures=len(drawn[0.0]), lora_tag=job["lora_tag"])
    return service


def _print_results(
    output: Path, shares: dict[float, float], *, pictures: int, lora_tag: str
) -> None:
    """Print in how many pictures the concept was found, by the LoRA's weight, and the files."""
    print(
        f"\nThe judge finds the concept in {shares[0.0]:.0%} of {pictures} pictures without"
        f" the LoRA and in {shares[1.0]:.0%} with it at weight 1 (it wants the very colours: at 0.8"
        f" {shares[0.8]:.0%}, at 0.4 {shares[0.4]:.0%}; see the grid)."
    )
    for name, what in (
        ("zib.safetensors", f"the LoRA; {lora_tag} in a prompt"),
        ("grid.png", "the same seeds at weights 0, 0.4, 0.8 and 1"),
        ("loss.png", "the loss curve"),
    ):
        print(f"  {output / name}  {what}")


def draw_at_weights(host: Any, lora: Path) -> dict[float, list[Image.Image]]:
    """Draw the concept on every background, three seeds each, the same ones at every weight."""
    prompts = [
        caption_of(background)
        for background in backgrounds_for_judging()
        for _ in range(SEEDS_PER_BACKGROUND)
    ]
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(prompts)))
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
    """Draw a sheet with a row of pictures for each weight and a column for each background."""
    left, top = 110, 30
    pitch = cell_px + 6
    sheet = Image.new("RGB", (left + columns * pitch, top + len(drawn) * pitch), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, background in enumerate(backgrounds_for_judging()[:columns]):
        pen.text((left + column * pitch + 4, 10), background, INK)
    for row, (weight, pictures) in enumerate(drawn.items()):
        y = top + row * pitch
        pen.text((12, y + cell_px // 2 - 6), f"weight {weight:g}", INK)
        for column in range(columns):
            picture = pictures[column * SEEDS_PER_BACKGROUND]
            enlarged = picture.resize((cell_px, cell_px), Image.NEAREST)
            sheet.paste(enlarged, (left + column * pitch, y))
    return sheet


def loss_curve(rows: list[MetricsRow], *, width: int = 900, height: int = 420) -> Image.Image:
    """Draw the loss of every step, and its running average."""
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = 70, 30, width - 30, height - 50
    most_losses = np.percentile([row["loss"] for row in rows], 98)
    highest_average = max(row["loss_average"] for row in rows)
    highest = max(most_losses, highest_average, 1e-6) * 1.05
    last = max(row["step"] for row in rows)

    def point(step: float, loss: float) -> tuple[float, float]:
        x = left + (right - left) * step / last
        y = bottom - (bottom - top) * min(loss / highest, 1.0)
        return x, y

    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        pen.line([(left, y), (right, y)], GRID_LINE)
        pen.text((12, y - 6), f"{highest * part / 4:.3f}", INK)
        pen.text((left + (right - left) * part / 4 - 8, bottom + 10), f"{last * part // 4}", INK)
    pen.text((left, 8), "loss", INK)
    pen.text((right - 30, bottom + 26), "step", INK)
    pen.line([point(row["step"], row["loss"]) for row in rows], LOSS_COLOUR, 1)
    pen.line([point(row["step"], row["loss_average"]) for row in rows], AVERAGE_COLOUR, 3)
    return sheet
