"""What the demo draws of its results, without training: rows of pictures, and the loss."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_trainer.demo import run
from lora_trainer.demo.concept import backgrounds_for_judging, caption_of
from lora_trainer.settings.config import TrainConfig

SHADES = {weight: int(250 * weight) for weight in run.WEIGHTS}


class Painter:
    """Draws plain pictures, brighter with more of the LoRA, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked = []

    def draw(self, prompts, *, lora, seeds, **settings):
        self.asked.append((prompts, lora, seeds, settings))
        shade = SHADES[lora[1]] if lora else 0
        return [Image.new("RGB", (64, 64), (shade, 0, 0)) for _ in prompts]


def test_its_settings_are_valid():
    config = TrainConfig.parse({**run.SETTINGS, "train_data_dir": "pictures"})
    assert config.resolution == run.SIZE_PX and config.output_name == "zib"


def test_every_weight_draws_the_same_seeds_and_weight_0_no_lora():
    painter, lora = Painter(), Path("zib.safetensors")
    drawn = run.draw_at_weights(painter, lora)
    count = run.SEEDS_PER_BACKGROUND * len(backgrounds_for_judging())
    assert list(drawn) == list(run.WEIGHTS) and {len(row) for row in drawn.values()} == {count}
    assert [asked[1] for asked in painter.asked] == [None, (lora, 0.4), (lora, 0.8), (lora, 1.0)]
    prompts, _, seeds, _ = painter.asked[0]
    assert len(set(seeds)) == count and prompts[0] == caption_of(backgrounds_for_judging()[0])
    assert all(
        (asked[0], asked[2], asked[3]) == (prompts, seeds, painter.asked[0][3])
        for asked in painter.asked
    )


def test_the_grid_has_a_row_for_each_weight():
    drawn = run.draw_at_weights(Painter(), Path("zib.safetensors"))
    sheet = np.asarray(run.grid(drawn))
    assert sheet.shape == (30 + 4 * 102, 110 + 8 * 102, 3)
    for row, weight in enumerate(run.WEIGHTS):
        cell = sheet[30 + row * 102 + 48, 110 + 3 * 102 + 48]
        assert tuple(cell) == (SHADES[weight], 0, 0)


@pytest.mark.parametrize("losses", [[1.0] * 20, [0.0] * 20])
def test_the_curve_of_the_average_is_as_high_as_the_loss(losses):
    rows = [
        {"step": number + 1, "loss": loss, "loss_average": loss}
        for number, loss in enumerate(losses)
    ]
    sheet = np.asarray(run.loss_curve(rows))
    ys, xs = np.nonzero((sheet == run.AVERAGE_COLOUR).all(2))
    top, bottom = 30, 420 - 50
    height = bottom - (bottom - top) * (1 / 1.05 if losses[0] else 0)
    assert abs(ys.mean() - height) < 3 and xs.max() >= 900 - 30 - 2
