"""The host without a WebUI: a checkpoint from disk, loaded and drawn with through diffusers' public interfaces.

The model is loaded when it is first needed and then stays; a lock sees that training and drawing never use it at the same time.
diffusers also judges our files here: a finished LoRA is read by its own `load_lora_weights`.
"""
import contextlib
import functools
import logging
import math
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from ..core.contracts import BaseModel, Conditioning, Host, ModelStatus, Size
from ..core.errors import Refused
from ..core.fingerprint import fingerprint_of_file, fingerprint_of_weights
from ..core.precision import free_memory, no_autocast
from .checkpoint_file import BETA_END, BETA_START, TOKENS, TRAINING_TIMESTEPS, CheckpointFacts, inspect_checkpoint, write_configs

logger = logging.getLogger(__name__)
PIXELS_AT_ONCE = 2 * 512 * 512     # drawn in one batch
Lora = tuple[Path, float]


class StandaloneHost(Host):
    """Trains and draws with one checkpoint file.

    `device` defaults to the GPU if there is one; `dtype` to float16 there, else float32. `default_size_px` is the picture size that
    the checkpoint was made for.
    """
    kind = "standalone"

    def __init__(self, checkpoint: Path, lora_dir: Path, data_dir: Path, device: str | torch.device | None = None,
                 dtype: torch.dtype | None = None) -> None:
        self.checkpoint, self.lora_dir, self.data_dir = Path(checkpoint), Path(lora_dir), Path(data_dir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self._pipeline: Any = None
        self._facts: CheckpointFacts | None = None
        self._sha256: str | None = None
        self._registered: dict[str, Path] = {}
        self._in_use = threading.RLock()
        self._borrower: int | None = None              # the thread that trains; it may have given way
        self._loan, self._line, self._drawing = contextlib.ExitStack(), threading.Lock(), 0

    @functools.cached_property
    def version(self) -> str:
        import diffusers
        return f"diffusers {diffusers.__version__}, torch {torch.__version__}"

    @property
    def default_size_px(self) -> int:
        """The side of the pictures that the checkpoint draws best; raises `Refused` when there is no usable checkpoint."""
        return self._inspect().size_px

    def model_status(self) -> ModelStatus:
        try:
            facts = self._inspect()
        except Refused as refusal:
            return ModelStatus(trainable=False, reason=refusal.message, checkpoint=self.checkpoint.stem)
        return ModelStatus(trainable=True, checkpoint=self.checkpoint.stem, family=facts.family, prediction_type=facts.prediction_type,
                           sha256=self._sha256, device=str(self.device), dtype=str(self.dtype).removeprefix("torch."))

    @contextlib.contextmanager
    def borrow_model(self) -> Iterator[BaseModel]:
        self._inspect()
        with self._line:
            if self._borrower is not None:
                raise Refused("A LoRA is already training with this model. Wait until it has finished, or stop it.", code="busy")
            self._borrower = threading.get_ident()
        try:
            self._take()
            pipeline = self._load()
            model = StableDiffusion1(pipeline, self._inspect(), name=self.checkpoint.stem, sha256=self._hash(), device=self.device, dtype=self.dtype)
            yield model
        finally:
            self._loan.close()
            self._borrower = None

    def wanted(self) -> bool:
        """Tell whether somebody waits to draw."""
        return self._drawing > 0

    def give_way(self, *, until: Callable[[], bool] = lambda: True, say: Callable[[str, str], None] = lambda waiting_for, sentence: None,
                 should_stop: Callable[[], bool] = lambda: False) -> bool:
        """As the contract says; nothing but a picture can want this model, and nobody changes it."""
        self._loan.close()
        while not should_stop() and (self.wanted() or not until()):
            time.sleep(0.01)
        if should_stop():
            return False
        self._take()
        return True

    def _take(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._in_use)
            pipeline = self._load()
            stack.enter_context(_lent(pipeline.unet, pipeline.vae, pipeline.text_encoder))
            stack.enter_context(_brought_back(self.device, pipeline.vae, pipeline.text_encoder))
            self._loan = stack.pop_all()

    def peek_unet(self) -> torch.nn.Module | None:
        return None if self._pipeline is None else self._pipeline.unet

    def register(self, path: Path) -> None:
        """Remember where the LoRA of this name is; files are read anew for every picture, so a replaced one is replaced."""
        self._registered[Path(path).stem] = Path(path)

    def generate(self, prompt: str, *, negative_prompt: str = "", seed: int = 0, steps: int = 20, guidance: float = 7.0,
                 width: int | None = None, height: int | None = None) -> Any:
        """Draw one picture; `<lora:name>` and `<lora:name:weight>` in the prompt are understood, the rest of it is plain words.

        Raises `Refused` for a LoRA that is not there or does not fit. While a LoRA trains, the picture is drawn between two steps of it.
        """
        text, tags = split_prompt(prompt)
        with self._alone():
            self._bring_up_to_date({name for name, _ in tags})
            loras = [(self.find_lora(name), weight) for name, weight in tags]
            return self._draw([text], loras, seeds=[seed], negative_prompt=negative_prompt, steps=steps, guidance=guidance, width=width, height=height)[0]

    def _bring_up_to_date(self, names: set[str]) -> None:
        """Have the LoRA that is being trained written, if a picture is about to use it; the picture is more important than the newest weights."""
        name, write = self.offered or (None, None)
        if name in names:
            try:
                if path := write():
                    self.register(path)
            except Refused as error:
                logger.warning("the LoRA %s could not be brought up to date for this picture: %s", name, error.message)

    def draw(self, prompts: Sequence[str], *, lora: Lora | None = None, seeds: Sequence[int], negative_prompt: str = "", steps: int = 20,
             guidance: float = 7.0, width: int | None = None, height: int | None = None) -> list[Any]:
        """Draw a picture for each prompt and seed, many at a time, all with the same LoRA file and weight; returns PIL images."""
        return self._draw(prompts, [lora] if lora else [], seeds=seeds, negative_prompt=negative_prompt, steps=steps, guidance=guidance,
                          width=width, height=height)

    def find_lora(self, name: str) -> Path:
        """Return the file of a LoRA by its name: one that was registered, else one in the LoRA folder; raises `Refused`."""
        registered = self._registered.get(name)
        if registered and registered.is_file():
            return registered
        files = sorted(self.lora_dir.rglob("*.safetensors")) if self.lora_dir.is_dir() else []
        found = next((file for file in files if file.stem == name), None)
        if found is None:
            there = ", ".join(sorted({file.stem for file in files})[:8]) or "none yet"
            raise Refused(f"There is no LoRA named {name!r} in {self.lora_dir} (there: {there}).", field="prompt", code="no_lora")
        return found

    # --- The pipeline -----------------------------------------------------------------------------------------------------

    def _inspect(self) -> CheckpointFacts:
        if self._facts is None:
            self._facts = inspect_checkpoint(self.checkpoint)
        return self._facts

    def _load(self) -> Any:
        if self._pipeline is None:
            self._pipeline = load_pipeline(self.checkpoint, self._inspect(), self.device, self.dtype)
        return self._pipeline

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

    def _draw(self, prompts: Sequence[str], loras: list[Lora], *, seeds: Sequence[int], negative_prompt: str, steps: int, guidance: float,
              width: int | None, height: int | None) -> list[Any]:
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: each picture needs one of both")
        width, height = (self.default_size_px if side is None else side for side in (width, height))
        _check_drawing(width=width, height=height, steps=steps, guidance=guidance)
        batch = max(1, PIXELS_AT_ONCE // (width * height))
        pictures: list[Any] = []
        with self._alone():
            pipeline = self._load()
            with _lent(pipeline.unet, pipeline.vae, pipeline.text_encoder), _with_loras(pipeline, loras):
                for start in range(0, len(prompts), batch):
                    part = list(prompts[start:start + batch])
                    generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[start:start + batch]]
                    pictures += pipeline(part, negative_prompt=[negative_prompt] * len(part), generator=generators, num_inference_steps=steps,
                                         guidance_scale=guidance, width=width, height=height).images
        return pictures


class StableDiffusion1(BaseModel):
    """SD1 in diffusers' modules, whose paths already are the names in kohya's files."""
    family = "sd1"

    def __init__(self, pipeline: Any, facts: CheckpointFacts, *, name: str, sha256: str, device: torch.device, dtype: torch.dtype) -> None:
        self.unet, self.text_encoders = pipeline.unet, [pipeline.text_encoder]
        self._vae, self._tokenizer = pipeline.vae, pipeline.tokenizer
        self.prediction_type, self.name, self.sha256, self.device, self.dtype = facts.prediction_type, name, sha256, device, dtype
        self.alphas_cumprod, self.fingerprint = scaled_linear_alphas_cumprod(), fingerprint_of_weights(self.unet)

    def set_encoders_aside(self) -> None:
        for module in (self._vae, *self.text_encoders):
            module.to("cpu")
        free_memory(self.device)

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        with no_autocast(self.device):
            posterior = self._vae.encode(pixels.to(self.device, self.dtype)).latent_dist
        return posterior.mean.float() * self._vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: list[str], sizes: list[Size]) -> Conditioning:
        """Encode to hidden states `(batch, 77, width)`, float32; words beyond 75 tokens are cut off. SD1 does not look at `sizes`."""
        tokens = self._tokenizer(list(captions), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        with no_autocast(self.device):
            return Conditioning(self.text_encoders[0](tokens.input_ids.to(self.device))[0].float())

    def predict(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self.unet(noisy_latents.to(self.device, self.dtype), timesteps.to(self.device),
                         encoder_hidden_states=conditioning.hidden_states.to(self.device, self.dtype), return_dict=False)[0]

    def export_name(self, module_path: str) -> str:
        return "lora_unet_" + module_path.replace(".", "_")


def load_pipeline(checkpoint: Path, facts: CheckpointFacts, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a checkpoint as a diffusers pipeline in evaluation mode, from this disk alone; raises `Refused` for an incomplete one."""
    from diffusers import StableDiffusionPipeline

    from ..demo.checkpoint import write_tokenizer
    logger.info("Loading %s on %s in %s", checkpoint.name, device, dtype)
    with tempfile.TemporaryDirectory(prefix="train-lora-") as folder, _quiet_diffusers():
        write_configs(facts, Path(folder))
        try:
            write_tokenizer(Path(folder) / "tokenizer")
        except FileNotFoundError as error:
            raise Refused(f"{error}.", code="missing_package") from error
        try:
            pipeline = StableDiffusionPipeline.from_single_file(str(checkpoint), config=folder, local_files_only=True, torch_dtype=dtype,
                                                                safety_checker=None, feature_extractor=None, requires_safety_checker=False)
            pipeline = pipeline.to(device)             # fails for tensors that the file lacks
        except (ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
            raise Refused(f"The checkpoint {checkpoint.name} cannot be loaded: {_first_line(error)}. It may be incomplete or of another kind; "
                          "choose a full Stable Diffusion 1 checkpoint.", field="base_model", code="wrong_model") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scaled_linear_alphas_cumprod() -> torch.Tensor:
    """SD1's noise schedule: the square root of beta rises linearly; float32, (1000,)."""
    betas = torch.linspace(BETA_START ** 0.5, BETA_END ** 0.5, TRAINING_TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def split_prompt(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Take `<lora:name>` and `<lora:name:weight>` out of a prompt; raises `Refused` for a weight that is no number."""
    tags: list[tuple[str, float]] = []

    def take(tag: re.Match) -> str:
        name, _, weight = tag[1].partition(":")
        try:
            number = float(weight or 1.0)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise Refused(f"{tag[0]}: {weight!r} is no number. Write the LoRA's name and a weight, as in <lora:name:0.8>.", field="prompt", code="bad_value")
        tags.append((name, number))
        return ""
    return " ".join(re.sub(r"<lora:([^<>]*)>", take, prompt).split()), tags


def _check_drawing(*, width: int, height: int, steps: int, guidance: float) -> None:
    for name, value, low, high in (("width", width, 64, 2048), ("height", height, 64, 2048), ("steps", steps, 1, 150), ("guidance", guidance, 0, 100)):
        if not low <= value <= high or (high == 2048 and value % 8):
            raise Refused(f"{name.capitalize()}: {value} is not possible. Use {low} to {high}{', a multiple of 8' if high == 2048 else ''}.",
                          field=name, code="bad_value")


@contextlib.contextmanager
def _lent(*modules: torch.nn.Module) -> Iterator[None]:
    """Freeze the modules in evaluation mode, and give back every flag as it was."""
    gradients = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
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


@contextlib.contextmanager
def _with_loras(pipeline: Any, loras: list[Lora]) -> Iterator[None]:
    """Put LoRA files on the pipeline by diffusers' own loader, and take every trace of them off again."""
    if not loras:
        yield
        return
    names = [f"lora_{number}" for number in range(len(loras))]
    try:
        with _quiet_diffusers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")     # two LoRAs are what was asked for
            for name, (path, _) in zip(names, loras):
                _load_lora(pipeline, path, name)
            pipeline.set_adapters(names, adapter_weights=[weight for _, weight in loras])
        yield
    finally:
        pipeline.unload_lora_weights()


def _load_lora(pipeline: Any, path: Path, name: str) -> None:
    try:
        pipeline.load_lora_weights(load_safetensors(Path(path).read_bytes()), adapter_name=name)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise Refused(f"The LoRA {Path(path).name} cannot be used with this checkpoint: {_first_line(error)}. "
                      "It may be damaged, or made for another kind of model.", field="prompt", code="bad_lora") from error


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Keep diffusers' own bars and remarks off the screen: what matters of them is said by us."""
    from diffusers.utils import logging as theirs
    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".:")
