"""The host without a WebUI: trains and draws with a checkpoint file, loaded by diffusers.

The model is loaded when it is first needed, and stays; a lock keeps training and drawing from using
it at the same time. Pictures use LoRA files through diffusers' own `load_lora_weights`, so that a
LoRA of ours that diffusers cannot read is noticed.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ...base.contracts import BaseModel, Host, ModelStatus
from ...base.errors import ErrorCode, Refused
from ...base.fingerprint import fingerprint_of_file
from ...base.patching import outline_of
from ..checkpoint_file import CheckpointFacts, inspect_checkpoint
from ..prompts import split_loras
from .drawing import DrawingOptions, Lora, check_drawing, draw, with_loras
from .loading import load_pipeline, modules_of, text_encoders_of, what_it_predicts
from .lora_files import LoraFiles
from .model import FAMILIES, StableDiffusion
from .module_state import frozen, moved_back

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)
PIXELS_AT_ONCE = 2 * 512 * 512  # drawn in one batch
PAUSE_SECONDS = 0.01


class StandaloneHost(Host):
    """Trains and draws with one checkpoint file.

    `device` defaults to the GPU if there is one; `dtype` to float16 there, else float32.
    `default_size_px` is the picture size that the checkpoint was made for.
    """

    kind = "standalone"

    def __init__(
        self,
        checkpoint: Path,
        lora_dir: Path,
        data_dir: Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.checkpoint = Path(checkpoint)
        self.lora_dir = Path(lora_dir)
        self.data_dir = Path(data_dir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self._lora_files = LoraFiles(self.lora_dir)
        self._facts: CheckpointFacts | None = None
        self._sha256: str | None = None
        self._pipeline: DiffusionPipeline | None = None
        self._model: StableDiffusion | None = None  # with the settings of the checkpoint
        self._lent_model: StableDiffusion | None = None  # with those of the training run
        self._lent_parts: torch.nn.ModuleDict | None = None  # as they were when they were lent
        self._in_use = threading.RLock()  # held while training or drawing uses the modules
        self._loan = contextlib.ExitStack()  # what is undone when the model is given back
        self._counters = threading.Lock()  # held to change the next two
        self._is_lent = False  # to a training run, also while that gives way
        self._waiting_to_draw = 0

    @functools.cached_property
    def version(self) -> str:
        import diffusers

        return f"diffusers {diffusers.__version__}, torch {torch.__version__}"

    @property
    def default_size_px(self) -> int:
        """The side of the pictures that the checkpoint draws best; raises `Refused` when there is
        no usable checkpoint.
        """
        return self._inspect().size_px

    def model_status(self) -> ModelStatus:
        try:
            facts = self._inspect()
        except Refused as refusal:
            return ModelStatus(
                trainable=False, reason=refusal.message, checkpoint=self.checkpoint.stem
            )
        return ModelStatus(
            trainable=True,
            checkpoint=self.checkpoint.stem,
            family=facts.family,
            variant=facts.variant,
            prediction_type=facts.prediction_type,
            zero_terminal_snr=facts.zero_terminal_snr,
            size_px=facts.size_px,
            sha256=self._sha256,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
        )

    @contextlib.contextmanager
    def borrow_model(self) -> Iterator[BaseModel]:
        self._inspect()
        with self._counters:
            if self._is_lent:
                raise Refused(
                    "A LoRA is already training with this model. Wait until it has finished, or"
                    " stop it.",
                    code=ErrorCode.BUSY,
                )
            self._is_lent = True
        try:
            self._take()
            self._lent_model = self._make_model(self._hash())
            self._lent_parts = outline_of(_parts_of(self._load()))
            yield self._lent_model
        finally:
            self._loan.close()
            self._is_lent = False
            self._lent_model = None
            self._lent_parts = None

    def others_are_waiting(self) -> bool:
        """Tell whether a picture waits to be drawn."""
        return self._waiting_to_draw > 0

    def give_way(
        self,
        *,
        until: Callable[[], bool] = lambda: True,
        on_wait: Callable[[str, str], None] = lambda waiting_for, sentence: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As `Host.give_way`; only drawing waits for this model, and nobody changes its weights."""
        self._loan.close()
        while not should_stop() and (self.others_are_waiting() or not until()):
            time.sleep(PAUSE_SECONDS)
        if should_stop():
            return False
        self._take()
        return True

    def _take(self) -> None:
        """Take the modules for training, until `_loan` is closed."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._in_use)
            pipeline = self._load()
            stack.enter_context(frozen(*modules_of(pipeline)))
            stack.enter_context(moved_back(self.device, *modules_of(pipeline)))
            self._loan = stack.pop_all()

    def loaded_parts(self) -> torch.nn.ModuleDict | None:
        """As `Host.loaded_parts`; while the model is lent, without the adapters on it."""
        lent = self._lent_parts
        if lent is not None or self._pipeline is None:
            return lent
        return _parts_of(self._pipeline)

    def register(self, path: Path) -> None:
        """As `Host.register`; LoRA files are read anew for every picture."""
        self._lora_files.register(Path(path))

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
        """Draw one picture; `<lora:name>`, `<lora:name:weight>`, `(word:1.2)` and `BREAK` in the
        prompt are understood as in the WebUI.

        Raises `Refused` for a LoRA that is not there or does not fit. While a LoRA trains, the
        picture is drawn between two of its steps.
        """
        text, tags = split_loras(prompt)
        options = DrawingOptions(negative_prompt, steps, guidance, width, height, should_stop)
        with self._held_for_drawing():
            self._write_offered({tag.name for tag in tags})
            loras = [(self.find_lora(tag.name), tag.weight) for tag in tags]
            return self._draw([text], loras, [seed], options)[0]

    def draw(
        self,
        prompts: Sequence[str],
        *,
        lora: Lora | None = None,
        seeds: Sequence[int],
        negative_prompt: str = "",
        steps: int = 20,
        guidance: float = 7.0,
        width: int | None = None,
        height: int | None = None,
    ) -> list[Image.Image]:
        """Draw a picture for each prompt and seed, many at a time, all with the same LoRA file and
        weight; returns PIL images.
        """
        options = DrawingOptions(negative_prompt, steps, guidance, width, height)
        return self._draw(prompts, [lora] if lora else [], seeds, options)

    def find_lora(self, name: str) -> Path:
        """Return the file of a LoRA by its name: one that was registered, else one in the LoRA
        folder; raises `Refused`.
        """
        return self._lora_files.find(name)

    def _write_offered(self, names: set[str]) -> None:
        """Write the LoRA that is being trained, if a picture is about to use it.

        A LoRA that cannot be written is used as it was written before.
        """
        if self.live_lora is None:
            return
        name, write = self.live_lora
        if name not in names:
            return
        try:
            if path := write():
                self.register(path)
        except Refused as error:
            logger.warning(
                "the LoRA %s could not be brought up to date for this picture: %s",
                name,
                error.message,
            )

    # --- The pipeline -----------------------------------------------------------------------------

    def _inspect(self) -> CheckpointFacts:
        if self._facts is None:
            self._facts = inspect_checkpoint(self.checkpoint)
        return self._facts

    def _load(self) -> "DiffusionPipeline":
        if self._pipeline is None:
            facts = self._inspect()
            self._pipeline = load_pipeline(self.checkpoint, facts, self.device, self.dtype)
            if not facts.prediction_type:
                self._facts = facts.that_predicts(what_it_predicts(self._pipeline.unet))
            self._model = self._make_model()
        return self._pipeline

    def _make_model(self, sha256: str | None = None) -> StableDiffusion:
        facts = self._inspect()
        return FAMILIES[facts.family](
            self._pipeline,
            facts,
            name=self.checkpoint.stem,
            sha256=sha256,
            device=self.device,
            dtype=self.dtype,
        )

    def _hash(self) -> str:
        if self._sha256 is None:
            self._sha256 = fingerprint_of_file(self.checkpoint)
        return self._sha256

    @contextlib.contextmanager
    def _held_for_drawing(self) -> Iterator[None]:
        """Hold the model for drawing; a training run gives way after its step."""
        with self._counters:
            self._waiting_to_draw += 1
        try:
            with self._in_use:
                yield
        finally:
            with self._counters:
                self._waiting_to_draw -= 1

    def _draw(
        self,
        prompts: Sequence[str],
        loras: list[Lora],
        seeds: Sequence[int],
        options: DrawingOptions,
    ) -> list[Image.Image]:
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds: each picture needs one of both"
            )
        with self._held_for_drawing():
            pipeline = self._load()
            size = options.size(self.default_size_px)
            check_drawing(size, options)
            batch_size = max(1, PIXELS_AT_ONCE // (size.width_px * size.height_px))
            pictures = []
            with frozen(*modules_of(pipeline)), with_loras(pipeline, loras):
                model = self._lent_model or self._model
                for start in range(0, len(prompts), batch_size):
                    batch = slice(start, start + batch_size)
                    pictures += draw(pipeline, model, prompts[batch], seeds[batch], size, options)
        return pictures


def _parts_of(pipeline: "DiffusionPipeline") -> torch.nn.ModuleDict:
    encoders = {
        f"te{number}": encoder for number, encoder in enumerate(text_encoders_of(pipeline), start=1)
    }
    return torch.nn.ModuleDict({"unet": pipeline.unet, **encoders})
