"""The host without a WebUI: a checkpoint from disk, loaded and drawn with through diffusers' public
interfaces.

The model is loaded when it is first needed and then stays; a lock sees that training and drawing
never use it at the same time. diffusers also judges our files here: a finished LoRA is read by its
own `load_lora_weights`.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...base.contracts import BaseModel, Host, ModelStatus
from ...base.errors import Refused
from ...base.fingerprint import fingerprint_of_file
from ..checkpoint_file import CheckpointFacts, inspect_checkpoint
from ..prompts import split_loras
from .drawing import Lora, check_drawing, draw, with_loras
from .loading import load_pipeline, modules_of, text_encoders_of, what_it_predicts
from .model import FAMILIES, StableDiffusion

logger = logging.getLogger(__name__)
PIXELS_AT_ONCE = 2 * 512 * 512  # drawn in one batch


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
        self.checkpoint, self.lora_dir, self.data_dir = (
            Path(checkpoint),
            Path(lora_dir),
            Path(data_dir),
        )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self._pipeline: Any = None
        self._facts: CheckpointFacts | None = None
        self._model: StableDiffusion | None = None  # as the checkpoint says it is to be read
        self._lent_model: StableDiffusion | None = None  # as who trains with it reads it
        self._sha256: str | None = None
        self._registered: dict[str, Path] = {}
        self._in_use = threading.RLock()
        self._borrower: int | None = None  # the thread that trains; it may have given way
        self._loan, self._line, self._drawing = contextlib.ExitStack(), threading.Lock(), 0

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
        with self._line:
            if self._borrower is not None:
                raise Refused(
                    "A LoRA is already training with this model. Wait until it has finished, or"
                    " stop it.",
                    code="busy",
                )
            self._borrower = threading.get_ident()
        try:
            self._take()
            self._lent_model = self._make_model(self._hash())
            yield self._lent_model
        finally:
            self._loan.close()
            self._borrower, self._lent_model = None, None

    def others_are_waiting(self) -> bool:
        """Tell whether somebody waits to draw."""
        return self._drawing > 0

    def give_way(
        self,
        *,
        until: Callable[[], bool] = lambda: True,
        on_wait: Callable[[str, str], None] = lambda waiting_for, sentence: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As the contract says; nothing but a picture can want this model, and nobody changes
        it.
        """
        self._loan.close()
        while not should_stop() and (self.others_are_waiting() or not until()):
            time.sleep(0.01)
        if should_stop():
            return False
        self._take()
        return True

    def _take(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._in_use)
            pipeline = self._load()
            stack.enter_context(_lent(*modules_of(pipeline)))
            stack.enter_context(_brought_back(self.device, *modules_of(pipeline)))
            self._loan = stack.pop_all()

    def peek_parts(self) -> torch.nn.ModuleDict | None:
        if self._pipeline is None:
            return None
        encoders = {
            f"te{number}": encoder
            for number, encoder in enumerate(text_encoders_of(self._pipeline), start=1)
        }
        return torch.nn.ModuleDict({"unet": self._pipeline.unet, **encoders})

    def register(self, path: Path) -> None:
        """Remember where the LoRA of this name is; files are read anew for every picture, so a
        replaced one is replaced.
        """
        self._registered[Path(path).stem] = Path(path)

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
    ) -> Any:
        """Draw one picture; `<lora:name>` and `<lora:name:weight>` in the prompt are understood,
        and `(word:1.2)` and `BREAK`, as in the WebUI.

        Raises `Refused` for a LoRA that is not there or does not fit. While a LoRA trains, the
        picture is drawn between two steps of it.
        """
        text, tags = split_loras(prompt)
        with self._alone():
            self._bring_up_to_date({name for name, _ in tags})
            loras = [(self.find_lora(name), weight) for name, weight in tags]
            return self._draw(
                [text],
                loras,
                seeds=[seed],
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                width=width,
                height=height,
                should_stop=should_stop,
            )[0]

    def _bring_up_to_date(self, names: set[str]) -> None:
        """Have the LoRA that is being trained written, if a picture is about to use it; the picture
        is more important than the newest weights.
        """
        name, write = self.live_lora or (None, None)
        if name in names:
            try:
                if path := write():
                    self.register(path)
            except Refused as error:
                logger.warning(
                    "the LoRA %s could not be brought up to date for this picture: %s",
                    name,
                    error.message,
                )

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
    ) -> list[Any]:
        """Draw a picture for each prompt and seed, many at a time, all with the same LoRA file and
        weight; returns PIL images.
        """
        return self._draw(
            prompts,
            [lora] if lora else [],
            seeds=seeds,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
        )

    def find_lora(self, name: str) -> Path:
        """Return the file of a LoRA by its name: one that was registered, else one in the LoRA
        folder; raises `Refused`.
        """
        registered = self._registered.get(name)
        if registered and registered.is_file():
            return registered
        files = sorted(self.lora_dir.rglob("*.safetensors")) if self.lora_dir.is_dir() else []
        found = next((file for file in files if file.stem == name), None)
        if found is None:
            there = ", ".join(sorted({file.stem for file in files})[:8]) or "none yet"
            raise Refused(
                f"There is no LoRA named {name!r} in {self.lora_dir} (there: {there}).",
                field="prompt",
                code="no_lora",
            )
        return found

    # --- The pipeline -----------------------------------------------------------------------------

    def _inspect(self) -> CheckpointFacts:
        if self._facts is None:
            self._facts = inspect_checkpoint(self.checkpoint)
        return self._facts

    def _load(self) -> Any:
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
    def _alone(self) -> Iterator[None]:
        """Hold the model to draw; who trains with it gives way after the step."""
        with self._line:
            self._drawing += 1
        try:
            with self._in_use:
                yield
        finally:
            with self._line:
                self._drawing -= 1

    def _draw(  # noqa: PLR0913
        self,
        prompts: Sequence[str],
        loras: list[Lora],
        *,
        seeds: Sequence[int],
        negative_prompt: str,
        steps: int,
        guidance: float,
        width: int | None,
        height: int | None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Any]:
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds: each picture needs one of both"
            )
        with self._alone():
            pipeline = self._load()
            width, height = (
                self.default_size_px if side is None else side for side in (width, height)
            )
            check_drawing(width=width, height=height, steps=steps, guidance=guidance)
            batch, pictures = max(1, PIXELS_AT_ONCE // (width * height)), []
            with _lent(*modules_of(pipeline)), with_loras(pipeline, loras):
                for start in range(0, len(prompts), batch):
                    part = slice(start, start + batch)
                    pictures += draw(
                        pipeline,
                        self._lent_model or self._model,
                        prompts[part],
                        seeds=seeds[part],
                        negative_prompt=negative_prompt,
                        steps=steps,
                        guidance=guidance,
                        width=width,
                        height=height,
                        should_stop=should_stop,
                    )
        return pictures


@contextlib.contextmanager
def _lent(*modules: torch.nn.Module) -> Iterator[None]:
    """Freeze the modules in evaluation mode, and give back every flag as it was."""
    gradients = [
        (parameter, parameter.requires_grad)
        for module in modules
        for parameter in module.parameters()
    ]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.requires_grad_(False).eval()
        yield
    finally:
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _brought_back(device: torch.device, *modules: torch.nn.Module) -> Iterator[None]:
    """What was set aside meanwhile is on the device again."""
    try:
        yield
    finally:
        for module in modules:
            module.to(device)
