"""What the core asks of its surroundings: `Host` lends a `BaseModel`, `Conditioning` goes into it, `Progress` comes out of a run.

Hosts implement these; steps and interfaces only use them. Differences between model families live behind `BaseModel`.
"""
import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
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

    fingerprint: str = ""          # of the UNet's weights, as `core.fingerprint` takes it

    def encoding_key(self) -> str:
        """Name everything besides the pictures and captions that decides how they are encoded (VAE, clip skip); other keys, other encodings."""
        return f"clip skip {self.clip_skip}"

    def set_encoders_aside(self) -> None:
        """Move the VAE and the text encoders off the device until the model is given back; for when memory is short."""

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
    offered: tuple[str, Callable[[], Path | None]] | None = None
    changes_checkpoints: bool = False              # whether another checkpoint may be loaded than the one a run was begun with

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

    def give_way(self, *, until: Callable[[], bool] = lambda: True, say: Callable[[str, str], None] = lambda waiting_for, sentence: None,
                 should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Give the borrowed model back for a while, and come back with it: let waiting generations run, and wait as long as `until` says no.

        Called by the borrower between optimizer steps, when nothing of ours is on the model and no autograd graph is alive. Afterwards the
        `BaseModel` may hold other modules, of the same weights. While the model is not to be had, `say` is told what is waited for and a
        sentence for the user. Returns False, and the model stays given back, when `should_stop` came first.
        """
        return not should_stop()

    @contextlib.contextmanager
    def offer(self, name: str, write: Callable[[], Path | None]) -> Iterator[None]:
        """While this lasts, a generation whose prompt names the LoRA `name` first calls `write`, in its own thread, and uses what that wrote.

        Hosts look at `offered` before they draw.
        """
        self.offered = (name, write)
        try:
            yield
        finally:
            self.offered = None

    def load_checkpoint(self, name: str) -> None:
        """Load the checkpoint of this name, if another is loaded; raises `Refused` when it cannot be found."""

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
    """One moment of a run. `stage` is "preparing", "training" or "paused"; `message` is for the user.

    `waiting_for` says why a run is paused: "user", or "checkpoint" when the one it trains, `checkpoint`, is not loaded as it was.
    `elapsed_seconds` is the time spent encoding and in steps, over all parts of a run that was interrupted.
    `state_step` is the last step that a crash would not cost; `snapshots` are the names of LoRAs saved on the way.
    """
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
    pictures: int = 0
    elapsed_seconds: float | None = None
    waiting_for: str = ""
    checkpoint: str = ""
    state_step: int = 0
    snapshots: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
