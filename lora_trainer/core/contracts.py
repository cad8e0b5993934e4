"""What the core asks of its surroundings: `Host` lends a `BaseModel`, `Conditioning` goes into it, `Progress` comes out of a run.

Hosts implement these; steps and interfaces only use them. Differences between model families live behind `BaseModel`.
"""
import abc
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch

from .errors import Refused

__all__ = ["BaseModel", "Conditioning", "Host", "ModelStatus", "Progress", "Refused", "Size"]


@dataclasses.dataclass(frozen=True)
class Size:
    """What SDXL is told of each picture, all in pixels: its own size, where the crop began, and the bucket's size."""
    original_width_px: int
    original_height_px: int
    crop_left_px: int
    crop_top_px: int
    target_width_px: int
    target_height_px: int


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the UNet is told: `hidden_states` `(batch, tokens, width)` and, for SDXL, `vector` `(batch, width)`, else None."""
    hidden_states: torch.Tensor
    vector: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden_states)

    def to(self, *args: Any, **kwargs: Any) -> "Conditioning":
        return Conditioning(self.hidden_states.to(*args, **kwargs), None if self.vector is None else self.vector.to(*args, **kwargs))

    def __getitem__(self, index: Any) -> "Conditioning":
        return Conditioning(self.hidden_states[index], None if self.vector is None else self.vector[index])

    @staticmethod
    def cat(parts: "list[Conditioning]") -> "Conditioning":
        """Join along the batch; shorter token sequences cannot be joined with longer ones and raise RuntimeError."""
        vectors = [part.vector for part in parts]
        return Conditioning(torch.cat([part.hidden_states for part in parts]), None if vectors[0] is None else torch.cat(vectors))


class BaseModel(abc.ABC):
    """A base model lent by a host. Nothing here may change a weight, a module's type or a flag that outlives `borrow_model()`."""

    family: str                    # "sd1", "sd2" or "sdxl"
    prediction_type: str           # "epsilon" or "v_prediction"
    alphas_cumprod: torch.Tensor   # float32, (1000,), on the CPU: the noise schedule's cumulative product of 1 - beta
    unet: torch.nn.Module          # adapters go in here
    text_encoders: list[torch.nn.Module]
    device: torch.device           # where the UNet computes
    dtype: torch.dtype             # of the UNet's weights
    name: str                      # the checkpoint's name, without folder and ending
    sha256: str | None             # of the checkpoint's file, lower-case hex, if known
    clip_skip: int = 1

    @abc.abstractmethod
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode float32 pixels `(batch, 3, height, width)` in [-1, 1] to latents `(batch, 4, height/8, width/8)`.

        Deterministic (the posterior's mean), scaled as the UNet expects, float32, without gradient.
        """

    @abc.abstractmethod
    def encode_captions(self, captions: list[str], sizes: list[Size]) -> Conditioning:
        """Encode captions as the host would encode such prompts, without gradient; one `Size` for each caption."""

    @abc.abstractmethod
    def predict(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Run the UNet: latents `(batch, 4, h, w)`, int64 timesteps `(batch,)` in [0, 999] to a prediction of the latents' shape.

        What it predicts is `prediction_type`. Differentiable; runs under the caller's autocast and gradient mode.
        """

    @abc.abstractmethod
    def export_name(self, module_path: str) -> str:
        """Turn a module's path in `unet` into its name in kohya's layout, e.g. `lora_unet_mid_block_attentions_0_proj_in`."""


@dataclasses.dataclass(frozen=True)
class ModelStatus:
    """What is loaded and whether it can train; `reason` says why not, in a sentence for the user."""
    trainable: bool
    reason: str = ""
    checkpoint: str = ""
    family: str = ""
    prediction_type: str = ""
    sha256: str | None = None
    device: str = ""
    dtype: str = ""


class Host(abc.ABC):
    """Lends the model and knows the surroundings. `hosts/webui.py` and `hosts/standalone.py` are the two."""

    kind: str                      # "webui" or "standalone"
    version: str
    lora_dir: Path                 # where finished LoRAs go
    data_dir: Path                 # train_lora/ of DESIGN.md: data sets, jobs, the jobs' database
    device: torch.device = torch.device("cpu")     # where captioners compute

    @abc.abstractmethod
    def model_status(self) -> ModelStatus:
        """Say what is loaded, at once and without loading anything."""

    @abc.abstractmethod
    def borrow_model(self) -> contextlib.AbstractContextManager[BaseModel]:
        """Lend the loaded model for training, in the clean state; on exit everything is as it was, whatever happened.

        Raises `Refused`, before anything is touched, when the model cannot train.
        """

    def peek_unet(self) -> torch.nn.Module | None:
        """Return the loaded UNet to count its layers, not to use or change it; None when nothing is loaded."""
        return None

    def give_way(self) -> None:
        """Let waiting generations run. Called between optimizer steps, when no autograd graph is alive."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Have the device to oneself for a while; pictures that are drawn wait. Not longer than `wanted()` says nothing."""
        return contextlib.nullcontext()

    def wanted(self) -> bool:
        """Tell whether somebody waits for the device."""
        return False

    def captioners(self) -> list[Any]:
        """Return the captioners (`captioning.contracts.Captioner`) that only this host has."""
        return []

    @abc.abstractmethod
    def register(self, path: Path) -> None:
        """Make a LoRA file callable by its stem now; one of the same name that was used before is really replaced."""

    @property
    def default_size_px(self) -> int:
        """The side of the pictures that the loaded checkpoint draws best."""
        return 512

    @abc.abstractmethod
    def generate(self, prompt: str, *, negative_prompt: str = "", seed: int = 0, steps: int = 20, guidance: float = 7.0,
                 width: int | None = None, height: int | None = None) -> Any:
        """Draw one picture with the host's own sampler, `<lora:name:weight>` understood; returns a PIL image.

        Width and height in pixels; `default_size_px` when left out.
        """


@dataclasses.dataclass(frozen=True)
class Progress:
    """One moment of a run. `stage` is "preparing", "training" or "saving"; `message` is for the user."""
    stage: str
    message: str = ""
    fraction: float = 0.0          # of the stage, in [0, 1]
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    loss: float | None = None
    loss_average: float | None = None
    learning_rate: float | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
