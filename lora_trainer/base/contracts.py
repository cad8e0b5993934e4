"""What training needs of its surroundings: a `Host` lends a `BaseModel`, and `Conditioning` goes
into it.

Hosts implement these; everything else only uses them. Differences between model families live
behind `BaseModel`.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Size:
    """SDXL's size conditioning of a picture, in pixels: its own size, where the crop begins, and
    the bucket's size.
    """

    original_width_px: int
    original_height_px: int
    crop_left_px: int
    crop_top_px: int
    target_width_px: int
    target_height_px: int

    def numbers(self) -> list[int]:
        """Return the numbers in SDXL's order (arXiv 2307.01952, section 2.2): original height,
        width, crop top, left, target height, width.
        """
        return [
            self.original_height_px,
            self.original_width_px,
            self.crop_top_px,
            self.crop_left_px,
            self.target_height_px,
            self.target_width_px,
        ]


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the UNet is conditioned on: `hidden_states` `(batch, 77 * chunks, width)`, and for SDXL,
    else None, `pooled` `(batch, width)` and `sizes` `(batch, 6)`, float32, in the order of
    `Size.numbers`.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden_states)

    def to(self, *args: Any, **kwargs: Any) -> "Conditioning":
        """Return this with each tensor moved or cast, as `torch.Tensor.to`."""
        return self._each(lambda tensor: tensor.to(*args, **kwargs))

    def __getitem__(self, index: Any) -> "Conditioning":
        return self._each(lambda tensor: tensor[index])

    def of_sizes(self, sizes: "list[Size]") -> "Conditioning":
        """Return this with one `Size` for each picture."""
        numbers = torch.tensor([size.numbers() for size in sizes], dtype=torch.float32)
        return dataclasses.replace(self, sizes=numbers.to(self.hidden_states.device))

    def filled(self, empty: "Conditioning", tokens: int) -> "Conditioning":
        """Return this with hidden states of so many `tokens`, filled up with those of an empty
        caption `(1, 77, width)`.
        """
        hidden_states = _filled(self.hidden_states, empty.hidden_states, tokens)
        return dataclasses.replace(self, hidden_states=hidden_states)

    @staticmethod
    def cat(parts: "list[Conditioning]", empty: "Conditioning | None" = None) -> "Conditioning":
        """Join along the batch. Shorter captions are filled up with `empty`, what an empty caption
        is encoded to `(1, 77, width)`, as the WebUI fills a batch of prompts; without it captions
        of different lengths raise RuntimeError.
        """
        if empty is not None:
            longest = max(part.hidden_states.shape[1] for part in parts)
            parts = [part.filled(empty, longest) for part in parts]
        return Conditioning(
            torch.cat([part.hidden_states for part in parts]),
            _cat_if_given([part.pooled for part in parts]),
            _cat_if_given([part.sizes for part in parts]),
        )

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Conditioning":
        return Conditioning(
            change(self.hidden_states),
            None if self.pooled is None else change(self.pooled),
            None if self.sizes is None else change(self.sizes),
        )


def _filled(states: torch.Tensor, empty: torch.Tensor, tokens: int) -> torch.Tensor:
    missing = (tokens - states.shape[1]) // empty.shape[1]
    if not missing:
        return states
    filling = empty.to(states).expand(len(states), -1, -1).repeat(1, missing, 1)
    return torch.cat([states, filling], dim=1)


def _cat_if_given(tensors: "list[torch.Tensor | None]") -> torch.Tensor | None:
    """Join tensors along the batch; either all are given or none."""
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(given) if given else None


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How a model is to be used, where the user knows better than the checkpoint. `clip_skip` 0,
    `prediction_type` "" and `zero_terminal_snr` None mean: as the host and the checkpoint say.
    """

    clip_skip: int = 0
    prediction_type: str = ""
    zero_terminal_snr: bool | None = None
    max_token_length: int = 225  # in tokens, counted without start and end; captions are cut there
    weighted_captions: bool = False


class CheckpointId(NamedTuple):
    """Which checkpoint a run trains: its name, without folder and ending, and the SHA-256 of its
    file, lower-case hex, if known.
    """

    name: str
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What a LoRA's metadata and card say of the base model; fields as in `BaseModel`."""

    name: str
    family: str
    prediction_type: str
    zero_terminal_snr: bool
    clip_skip: int
    sha256: str | None


class BaseModel(abc.ABC):
    """A base model lent by a host. Nothing here may change a weight, a module's type or a flag that
    outlives `borrow_model()`.
    """

    family: str  # "sd1", "sd2" or "sdxl"
    variant: str = ""  # "", "inpainting" or "ssd-1b"
    prediction_type: str  # "epsilon" or "v_prediction"
    # The noise schedule's cumulative product of 1 - beta: float32, (1000,), on the CPU.
    alphas_cumprod: torch.Tensor
    unet: torch.nn.Module
    # What holds each text encoder's layers; adapters are attached here and in the UNet.
    text_encoders: list[torch.nn.Module]
    device: torch.device  # where the UNet computes
    dtype: torch.dtype  # of the UNet's weights
    name: str  # the checkpoint's name, without folder and ending
    sha256: str | None  # of the checkpoint's file, lower-case hex, if known
    clip_skip: int = 1  # in use: 1 is the text encoder's last layer
    zero_terminal_snr: bool = False  # whether `alphas_cumprod` ends in pure noise
    # False where the text encoders are not on the device beside the UNet (--medvram).
    encodes_between_steps: bool = True
    fingerprint: str = ""  # of the UNet's weights, as `fingerprint_of_weights` takes it

    def parts(self) -> torch.nn.ModuleDict:
        """Return everything that can be trained under the names `unet`, `te1`, `te2`; a layer's
        path begins with one of them.
        """
        encoders = {
            f"te{number}": module for number, module in enumerate(self.text_encoders, start=1)
        }
        return torch.nn.ModuleDict({"unet": self.unet, **encoders})

    @abc.abstractmethod
    def configure(self, options: ModelOptions) -> None:
        """Use the model so from now on: sets `clip_skip`, `prediction_type`, `alphas_cumprod`,
        `zero_terminal_snr`. Called once, right after borrowing; raises `Refused` for what this
        model cannot do.
        """

    def facts(self) -> ModelFacts:
        """Return what is to be known of the model when it is given back."""
        return ModelFacts(
            name=self.name,
            family=self.family,
            prediction_type=self.prediction_type,
            zero_terminal_snr=self.zero_terminal_snr,
            clip_skip=self.clip_skip,
            sha256=self.sha256,
        )

    def encoding_key(self) -> str:
        """Return a key of everything besides pictures and captions that their encoding depends on
        (VAE, clip skip).
        """
        return f"clip skip {self.clip_skip}"

    def offload_encoders(self) -> None:
        """Move the VAE and the text encoders off the device until the model is given back, where
        the host can; for when memory is short.
        """
        return None

    @abc.abstractmethod
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode float32 pixels `(batch, 3, height, width)` in [-1, 1] to latents `(batch, 4,
        height/8, width/8)`.

        Deterministic (the posterior's mean), scaled as the UNet expects, float32, without gradient.
        """

    @abc.abstractmethod
    def encode_captions(self, captions: list[str]) -> Conditioning:
        """Encode captions as the host encodes prompts, in chunks of 75 tokens, all filled up to the
        longest of them; float32, without `sizes`.

        Differentiable; runs under the caller's autocast and gradient mode.
        """

    @abc.abstractmethod
    def predict(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Run the UNet: latents `(batch, 4, h, w)`, int64 timesteps `(batch,)` in [0, 999] to a
        prediction of the latents' shape.

        What it predicts is `prediction_type`. Differentiable; runs under the caller's autocast and
        gradient mode. An inpainting UNet gets a mask of the whole picture.
        """

    @abc.abstractmethod
    def export_name(self, path: str) -> str:
        """Turn a layer's path in `parts()` into its name in kohya's layout:
        `lora_unet_mid_block_attentions_0_proj_in`,
        `lora_te1_text_model_encoder_layers_0_self_attn_q_proj`. The projections of a
        `nn.MultiheadAttention` at `p` are called `p.q_proj`, `p.k_proj`, `p.v_proj` and
        `p.out_proj`.
        """


@dataclasses.dataclass(frozen=True)
class ModelStatus:
    """What is loaded and whether it can train; `reason` says why not, in a sentence for the
    user.
    """

    trainable: bool
    reason: str = ""
    checkpoint: str = ""
    family: str = ""
    variant: str = ""
    prediction_type: str = ""
    zero_terminal_snr: bool = False
    size_px: int = 0  # the side of the pictures that it was made for
    sha256: str | None = None
    device: str = ""
    dtype: str = ""


class LiveLora(NamedTuple):
    """A LoRA that is being trained: its name, and what writes it as it is now and returns where;
    None when nothing is newer than what is there.
    """

    name: str
    write: Callable[[], Path | None]


class Host(abc.ABC):
    """Lends the model and knows the surroundings. `hosts/webui/host.py` and
    `hosts/standalone/host.py` are the two.
    """

    kind: str  # "webui" or "standalone"
    version: str
    lora_dir: Path  # where finished LoRAs go
    data_dir: Path  # data sets, jobs, the jobs' database
    device: torch.device = torch.device("cpu")  # where captioners compute
    live_lora: LiveLora | None = None  # of the run that is in progress
    # Whether another checkpoint may be loaded than the one that a run was begun with.
    changes_checkpoints: bool = False

    @abc.abstractmethod
    def model_status(self) -> ModelStatus:
        """Say what is loaded, at once and without loading anything."""

    @abc.abstractmethod
    def borrow_model(self) -> contextlib.AbstractContextManager[BaseModel]:
        """Lend the loaded model for training, in the clean state; on exit everything is as it was,
        whatever happened.

        Raises `Refused`, before anything is touched, when the model cannot train.
        """

    def loaded_parts(self) -> torch.nn.ModuleDict | None:
        """Return the loaded model's `BaseModel.parts` to count its layers, not to use or change
        them; None when nothing is loaded.
        """
        return None

    def give_way(
        self,
        *,
        until: Callable[[], bool] = lambda: True,
        on_wait: Callable[[str, str], None] = lambda waiting_for, sentence: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Give the borrowed model back for a while, and come back with it: let waiting generations
        run, and wait as long as `until` says no.

        Called by the borrower between optimizer steps, when nothing of ours is on the model and no
        autograd graph is alive. Afterwards the `BaseModel` may hold other modules, of the same
        weights. While the model cannot be had, `on_wait(waiting_for, sentence)` gets what is waited
        for and a sentence for the user. Returns False, and the model stays given back, when
        `should_stop` came first.
        """
        return not should_stop()

    @contextlib.contextmanager
    def offer_live_lora(self, name: str, write: Callable[[], Path | None]) -> Iterator[None]:
        """While this lasts, a generation whose prompt names the LoRA `name` first calls `write`, in
        its own thread, and uses what that wrote.

        Hosts look at `live_lora` before they generate.
        """
        self.live_lora = LiveLora(name, write)
        try:
            yield
        finally:
            self.live_lora = None

    def load_checkpoint(self, name: str) -> None:
        """Load the checkpoint of this name, where the host has several and another is loaded;
        raises `Refused` when it cannot be found.
        """
        return None

    def exclusive_use(self) -> contextlib.AbstractContextManager[None]:
        """Have the device to oneself, while generations wait; to be ended soon after
        `others_are_waiting()`.
        """
        return contextlib.nullcontext()

    def others_are_waiting(self) -> bool:
        """Tell whether somebody waits for the device."""
        return False

    def captioners(self) -> list[Any]:
        """Return the captioners (`captioning.contracts.Captioner`) that only this host has."""
        return []

    @abc.abstractmethod
    def register(self, path: Path) -> None:
        """Make a LoRA file usable by its stem now; one of the same name that was used before is
        really replaced.
        """

    @property
    def default_size_px(self) -> int:
        """The side of the pictures that the loaded checkpoint was made for."""
        return 512

    @abc.abstractmethod
    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int = 20,
        guidance: float = 7.0,
        width: int | None = None,
        height: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Image.Image:
        """Draw one picture with the host's own sampler, `<lora:name:weight>` understood.

        Width and height in pixels; `default_size_px` when left out. A host that can end in the
        middle raises `Stopped` when `should_stop` says so.
        """
