"""The host that lives in AUTOMATIC1111's WebUI: trains the checkpoint that is loaded there. Only the files webui*.py import `modules`.

`WebUIHost.borrow_model()` waits for its turn, brings the model into a known state by one small context manager for each concern,
and takes every one of them back. What the WebUI does, with file and line of its version 1.10.1, decides what is a concern.
"""
import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ldm.modules.attention
import ldm.modules.diffusionmodules.model
import sgm.modules.attention
import sgm.modules.diffusionmodules.model
import torch

from modules import (call_queue, devices, extra_networks, launch_utils, lowvram, paths, processing, sd_hijack, sd_hijack_optimizations, sd_models, sd_unet, shared)

from ..core.contracts import BaseModel, Conditioning, Host, ModelStatus, Size
from ..core.errors import Refused
from ..core.layouts import unet_to_diffusers
from ..core.precision import no_autocast
from .webui_captioners import webui_captioners
from .webui_guard import allowed_roots

log = logging.getLogger(__name__)

TOKENS_PER_ROW = 75                # the WebUI encodes prompts in rows of this many, between a start and an end
PREVIEW_SAMPLER = "Euler"


# --- The model -----------------------------------------------------------------------------------------------------------

class LdmModel(BaseModel):
    """A checkpoint of ldm's LatentDiffusion, which SD1 and SD2 are; subclasses say what differs."""

    def __init__(self, sd_model: Any) -> None:
        info = sd_model.sd_checkpoint_info
        self._sd_model, self._text = sd_model, sd_model.cond_stage_model
        self.unet, self.prediction_type = sd_model.model.diffusion_model, prediction_type(sd_model)
        self.device, self.dtype = devices.device, next(self.unet.parameters()).dtype
        self.alphas_cumprod = noise_schedule(sd_model)
        self.name, self.sha256 = info.name_for_extra, info.sha256

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self._sd_model.first_stage_model
        with no_autocast(self.device):
            posterior = vae.encode(pixels.to(self.device, next(vae.parameters()).dtype))
            latents = posterior.mode().float() * float(self._sd_model.scale_factor)
        return latents

    @torch.no_grad()
    def encode_captions(self, captions: list[str], sizes: list[Size]) -> Conditioning:
        """As the WebUI encodes prompts, but literally: no weights in parentheses, no embeddings by name. Ends after 75 tokens."""
        rows = torch.tensor([self._row(tokens) for tokens in self._text.tokenize(captions)], device=self.device)
        hijack = self._text.hijack
        fixes, hijack.fixes = hijack.fixes, None
        try:
            with devices.autocast():
                return Conditioning(self._text.encode_with_transformers(rows).float())
        finally:
            hijack.fixes = fixes

    def _row(self, tokens: list[int]) -> list[int]:
        text = self._text
        row = [text.id_start, *tokens[:TOKENS_PER_ROW], text.id_end]
        return row + [text.id_pad] * (TOKENS_PER_ROW + 2 - len(row))

    def predict(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Through the wrapper around the UNet, whose hooks bring the UNet to the GPU under --medvram."""
        with self._half_precision():
            return self._sd_model.model(noisy_latents, timesteps, c_crossattn=[conditioning.hidden_states]).float()

    def _half_precision(self) -> contextlib.AbstractContextManager:
        """16-bit weights, which are only ever on a GPU, compute under autocast; without the caller's, in their own type."""
        enough = self.dtype == torch.float32 or torch.is_autocast_enabled()
        return contextlib.nullcontext() if enough else torch.autocast(self.device.type, self.dtype)

    def export_name(self, module_path: str) -> str:
        return "lora_unet_" + unet_to_diffusers(module_path).replace(".", "_")


class SD1Model(LdmModel):
    family = "sd1"

    def __init__(self, sd_model: Any) -> None:
        super().__init__(sd_model)
        self.text_encoders = [self._text.wrapped.transformer]
        self.clip_skip = shared.opts.CLIP_stop_at_last_layers


FAMILIES: dict[str, type[LdmModel]] = {"sd1": SD1Model}
TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sd3": "SD 3", "unknown": "an unknown kind"}


def family(sd_model: Any) -> str:
    return next((name for name in ("sd1", "sd2", "sdxl", "sd3") if getattr(sd_model, f"is_{name}", False)), "unknown")


def prediction_type(sd_model: Any) -> str:
    return "v_prediction" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"


def noise_schedule(sd_model: Any) -> torch.Tensor:
    """Return alphas_cumprod, float32, without the settings' overrides and, where it is Stable Diffusion's usual one, without fp16's rounding."""
    found = sd_model.alphas_cumprod_original.detach().to("cpu", torch.float64)
    usual = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.0120**0.5, len(found), dtype=torch.float64) ** 2, dim=0)
    return (usual if torch.allclose(found, usual, rtol=2e-3) else found).float()


# --- What can train ------------------------------------------------------------------------------------------------------

def status_of(sd_model: Any) -> ModelStatus:
    """Describe a loaded model, or None, and say why it cannot train if so; never waits, never loads."""
    if sd_model is None:
        return ModelStatus(False, "The checkpoint is still being loaded; wait until the WebUI shows its name at the top left." if sd_models.model_data.lock.locked()
                           else "No checkpoint is loaded: choose one at the top left and wait until it is loaded.")
    if not isinstance(sd_model, torch.nn.Module) or "ldm_patched" in sys.modules:
        return ModelStatus(False, "This is Forge or reForge, which keep the model in a way that cannot be trained yet. Use AUTOMATIC1111's WebUI.")
    info, weight = sd_model.sd_checkpoint_info, next(sd_model.model.diffusion_model.parameters())
    reason = _refusal(sd_model, weight)
    return ModelStatus(not reason, reason, info.name_for_extra, family(sd_model), prediction_type(sd_model), info.sha256, str(devices.device),
                       str(weight.dtype).removeprefix("torch."))


def _refusal(sd_model: Any, weight: torch.nn.Parameter) -> str:
    """Return why a model cannot train, in a sentence, or nothing."""
    flags, kind = shared.cmd_opts, family(sd_model)
    always_exact = devices.device.type != "cuda" or devices.cuda_no_autocast()
    parked = weight.device.type != devices.device.type and not getattr(sd_model, "lowvram", False) and sd_unet.current_unet is None
    reasons = (
        (flags.lowvram, "The WebUI was started with --lowvram, which keeps the UNet in pieces. Start it with --medvram or without either to train."),
        (flags.upcast_sampling, "The WebUI was started with --upcast-sampling, which changes weights as it goes. Start it with --no-half to train."),
        (flags.precision == "half", "The WebUI was started with --precision half, which is too coarse to train in. Start it without."),
        (devices.fp8 or weight.dtype not in (torch.float32, torch.float16, torch.bfloat16),
         "The checkpoint is held in fp8, which is too coarse to train. Set Settings > Optimizations > FP8 weight to Disable."),
        (weight.is_meta or parked, "The checkpoint is unloaded. Choose Settings > Actions > Load SD checkpoint to VRAM."),
        (weight.dtype != torch.float32 and always_exact, "This device cannot train a checkpoint held in 16 bits. Start the WebUI with --no-half."),
        (kind == "sdxl" and not hasattr(sd_model.cond_stage_model, "embedders"), "This is an SDXL refiner. Train on a base checkpoint."),
        (kind == "sd1" and type(sd_model.cond_stage_model).__name__ != "FrozenCLIPEmbedderWithCustomWords",
         "The checkpoint has another text encoder than SD 1.x's CLIP, as AltDiffusion does. Choose one of SD 1.x."),
        (kind != "sd3" and _channels(sd_model) != 4,
         f"The checkpoint is for inpainting or editing: its UNet takes {_channels(sd_model)} channels, not 4. Train on the ordinary one it was made from."),
        (kind not in FAMILIES, f"The checkpoint is of {TITLES[kind]}; for now only those of SD 1.x can be trained."),
    )
    return next((sentence for applies, sentence in reasons if applies), "")


def _channels(sd_model: Any) -> int:
    return getattr(sd_model.model.diffusion_model, "in_channels", 4)


# --- Concerns: each is taken, then given back, whatever happens -----------------------------------------------------------

@contextlib.contextmanager
def random_state(sd_model: Any) -> Iterator[None]:
    with torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def frozen_weights(sd_model: Any) -> Iterator[None]:
    """Nothing of the base asks for a gradient; training flags stay as they are."""
    wanted = [(parameter, parameter.requires_grad) for parameter in sd_model.parameters()]
    training = [(module, module.training) for module in sd_model.modules()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


@contextlib.contextmanager
def structure(sd_model: Any) -> Iterator[None]:
    """Module objects are those of before. The adapters put them back themselves; this is for the day when something prevents that."""
    unet = sd_model.model.diffusion_model
    children = [(module, dict(module._modules)) for module in unet.modules()]
    marked = hasattr(unet, "peft_config")
    try:
        yield
    finally:
        for module, before in children:
            if module._modules != before:
                log.warning("putting %s back as it was", type(module).__name__)
                module._modules.clear()
                module._modules.update(before)
        if not marked:
            vars(unet).pop("peft_config", None)


@contextlib.contextmanager
def own_forwards(sd_model: Any) -> Iterator[None]:
    """UNet and VAE run their classes' code: other extensions (hypertile, for one) leave theirs on the objects after a picture."""
    modules = [*sd_model.model.diffusion_model.modules(), *sd_model.first_stage_model.modules()]
    left = {module: vars(module).pop("forward") for module in modules if "forward" in vars(module)}
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)
            if module in left:
                module.forward = left[module]


@contextlib.contextmanager
def clean_state(sd_model: Any) -> Iterator[None]:
    """What the last picture left in the model is gone: LoRAs, hypernetworks, tiling, another UNet. The latter three come back."""
    hijack, hypernetworks = sd_hijack.model_hijack, list(shared.loaded_hypernetworks)
    tiling, unet_option = hijack.circular_enabled, sd_unet.current_unet_option
    try:
        remove_loras([sd_model])
        shared.loaded_hypernetworks.clear()
        hijack.apply_circular(False)
        sd_unet.apply_unet("None")
        yield
    finally:
        shared.loaded_hypernetworks[:] = hypernetworks
        hijack.apply_circular(tiling)
        if sd_unet.current_unet_option is not unet_option:
            sd_unet.apply_unet(unet_option.label if unet_option else "None")


_ATTENTION = (ldm.modules.attention.CrossAttention, ldm.modules.diffusionmodules.model.AttnBlock, sgm.modules.attention.CrossAttention,
              sgm.modules.diffusionmodules.model.AttnBlock)


@contextlib.contextmanager
def training_attention(sd_model: Any) -> Iterator[None]:
    """torch's own attention, which keeps no attention matrices for the backward pass; the WebUI's default on a GPU keeps them all."""
    before, sdp = [each.forward for each in _ATTENTION], sd_hijack_optimizations.SdOptimizationSdp()
    try:
        if sdp.is_available():
            sdp.apply()
        yield
    finally:
        for each, forward in zip(_ATTENTION, before):
            each.forward = forward


CONCERNS = (random_state, frozen_weights, structure, own_forwards, clean_state, training_attention)


# --- LoRAs of the WebUI --------------------------------------------------------------------------------------------------

def lora_networks() -> Any | None:
    """Return the built-in Lora extension's `networks` module, or None where it is switched off."""
    registered = extra_networks.extra_network_registry.get("lora")
    return getattr(sys.modules.get(type(registered).__module__), "networks", None)


def remove_loras(models: list[Any]) -> None:
    """Put back the weights that LoRAs of earlier pictures changed, and forget that they did."""
    networks = lora_networks()
    if networks is None:
        return
    if models:
        networks.load_networks([], [], [], [])
    with torch.no_grad():
        for module in (module for model in models for module in model.modules() if hasattr(module, "network_layer_name")):
            networks.network_restore_weights_from_backup(module)
            networks.network_reset_cached_weight(module)


def forget_lora(path: Path) -> None:
    """Drop what is kept in memory of a LoRA file, and text embeddings made with it."""
    networks = lora_networks()
    if networks is not None:
        for name, network in list(networks.networks_in_memory.items()):
            if name == path.stem or os.path.realpath(network.network_on_disk.filename) == os.path.realpath(path):
                networks.networks_in_memory.pop(name)
    txt2img = processing.StableDiffusionProcessingTxt2Img
    for cache in (txt2img.cached_c, txt2img.cached_uc, txt2img.cached_hr_c, txt2img.cached_hr_uc):
        cache[:] = [None] * len(cache)


def list_again() -> None:
    """Look through the LoRA folder, and have the cards drawn anew for the next page that is opened."""
    networks = lora_networks()
    if networks is not None:
        networks.list_available_networks()
    for card_pages in _card_pages():
        card_pages.pages_contents = []


def _card_pages() -> Iterator[Any]:
    """Find the WebUI's ExtraNetworksUi objects, which only functions of its page refer to."""
    for function in getattr(shared.demo, "fns", None) or ():
        for cell in getattr(function.fn, "__closure__", None) or ():
            with contextlib.suppress(ValueError):                                  # a cell may be empty
                if hasattr(cell.cell_contents, "pages_contents"):
                    yield cell.cell_contents


# --- The host ------------------------------------------------------------------------------------------------------------

class WebUIHost(Host):
    kind = "webui"

    def __init__(self) -> None:
        self.version = launch_utils.git_tag()
        self.lora_dir = Path(getattr(shared.cmd_opts, "lora_dir", os.path.join(paths.models_path, "Lora")))
        self.data_dir = Path(getattr(shared.cmd_opts, "train_lora_dir", None) or os.path.join(paths.data_path, "train_lora")).absolute()
        self._turn_of: int | None = None

    def model_status(self) -> ModelStatus:
        return status_of(sd_models.model_data.sd_model)

    def peek_unet(self) -> torch.nn.Module | None:
        unet = getattr(getattr(sd_models.model_data.sd_model, "model", None), "diffusion_model", None)
        return unet if isinstance(unet, torch.nn.Module) else None

    @contextlib.contextmanager
    def borrow_model(self) -> Iterator[BaseModel]:
        """Wait for the model and for whoever uses it; nothing else uses it until the end. One thread, one loan at a time."""
        _wait_until_loaded()
        with self._turn(), contextlib.ExitStack() as concerns:
            sd_model, status = sd_models.model_data.sd_model, self.model_status()
            if not status.trainable:
                raise Refused(status.reason, code="not_trainable")
            concerns.callback(devices.torch_gc)
            for concern in CONCERNS:
                concerns.enter_context(concern(sd_model))
            yield FAMILIES[status.family](sd_model)

    @property
    def device(self) -> torch.device:
        """Where the WebUI's own captioners compute: `--use-cpu interrogate` counts for ours, too."""
        return devices.device_interrogate

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the queue; under --medvram and --lowvram the part of the checkpoint that is on the GPU makes room, as for Interrogate."""
        with self._turn():
            lowvram.send_everything_to_cpu()
            yield

    def wanted(self) -> bool:
        """Tell whether somebody waits in the queue; its list of waiters is private, and where it is not to be seen somebody always may."""
        waiting = getattr(call_queue.queue_lock, "_pending_threads", None)
        return waiting is None or len(waiting) > 0

    def captioners(self) -> list[Any]:
        return webui_captioners(self._turn)

    def register(self, path: Path) -> None:
        with self._turn():
            remove_loras(list(sd_models.model_data.loaded_sd_models))
            forget_lora(Path(path))
            list_again()

    def generate(self, prompt: str, *, negative_prompt: str = "", seed: int = 0, steps: int = 20, guidance: float = 7.0, width: int = 512,
                 height: int = 512) -> Any:
        """Draw as the WebUI's own page would, but save nothing and leave no LoRA, random state or setting behind."""
        with self._turn(), _without_prompt_history():
            sd_model = shared.sd_model
            info = sd_model.sd_checkpoint_info                                     # not another that was chosen meanwhile
            another = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint) is not info
            request = processing.StableDiffusionProcessingTxt2Img(
                sd_model=sd_model, prompt=prompt, negative_prompt=negative_prompt, seed=seed, steps=steps, cfg_scale=guidance, width=width, height=height,
                sampler_name=PREVIEW_SAMPLER, do_not_save_samples=True, do_not_save_grid=True,
                override_settings={"sd_model_checkpoint": info.title} if another else {})
            with random_state(sd_model), clean_state(sd_model), contextlib.closing(request):
                shared.state.begin(job="train_lora_preview")
                try:
                    return processing.process_images(request).images[0]
                finally:
                    shared.state.end()
                    shared.total_tqdm.clear()
                    remove_loras([sd_model])

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the WebUI's queue lock, which a thread can take only once."""
        if self._turn_of == threading.get_ident():
            yield
            return
        with call_queue.queue_lock:
            self._turn_of = threading.get_ident()
            try:
                yield
            finally:
                self._turn_of = None


def _wait_until_loaded() -> None:
    """Loading at the start goes on outside the queue; it is over when its own lock is free."""
    shared.sd_model                                                                # a property, which loads or waits
    with sd_models.model_data.lock:
        pass


@contextlib.contextmanager
def _without_prompt_history() -> Iterator[None]:
    """The prompt that the WebUI's button brings back stays the user's."""
    before, shared.cmd_opts.no_prompt_history = shared.cmd_opts.no_prompt_history, True
    try:
        yield
    finally:
        shared.cmd_opts.no_prompt_history = before


@functools.lru_cache(maxsize=None)
def training_service() -> Any:
    """Return this process's one TrainingService. It survives "Reload UI", which runs scripts anew but keeps imported packages."""
    from ..jobs.service import TrainingService
    host = WebUIHost()
    return TrainingService(host, allowed_roots=allowed_roots(host))
