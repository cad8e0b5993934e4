"""The WebUI's checkpoint behind the contract `BaseModel`, and whether it can be trained at all."""
import contextlib
import sys
from typing import Any

import torch

from modules import devices, sd_models, sd_unet, sd_vae, shared

from ..core.contracts import BaseModel, Conditioning, ModelStatus, Size
from ..core.layouts import unet_to_diffusers
from ..core.precision import no_autocast

TOKENS_PER_ROW = 75                # the WebUI encodes prompts in rows of this many, between a start and an end


class LdmModel(BaseModel):
    """A checkpoint of ldm's LatentDiffusion, which SD1 and SD2 are; subclasses say what differs."""

    def __init__(self, sd_model: Any) -> None:
        info = sd_model.sd_checkpoint_info
        self.prediction_type, self.alphas_cumprod = prediction_type(sd_model), noise_schedule(sd_model)
        self.device, self.dtype = devices.device, next(sd_model.model.diffusion_model.parameters()).dtype
        self.name, self.sha256 = info.name_for_extra, info.sha256
        self.encoders_aside = False
        self.adopt(sd_model)

    def adopt(self, sd_model: Any) -> None:
        """Use these objects from now on; they hold the same checkpoint."""
        self._sd_model, self.unet = sd_model, sd_model.model.diffusion_model

    @property
    def _text(self) -> Any:
        """The text encoder's wrapper, which a change of settings makes anew."""
        return self._sd_model.cond_stage_model

    def encoding_key(self) -> str:
        return f"{sd_vae.get_loaded_vae_name() or 'the VAE of the checkpoint'} {sd_vae.get_loaded_vae_hash() or ''}, clip skip {shared.opts.CLIP_stop_at_last_layers}"

    def set_encoders_aside(self) -> None:
        """Under --medvram they are aside anyway, and the WebUI's own hooks keep the books."""
        self.encoders_aside = True
        if not self._sd_model.lowvram:
            for module in encoders(self._sd_model):
                module.to(devices.cpu)
            devices.torch_gc()

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
        self.clip_skip = shared.opts.CLIP_stop_at_last_layers

    def adopt(self, sd_model: Any) -> None:
        super().adopt(sd_model)
        self.text_encoders = [self._text.wrapped.transformer]


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


def encoders(sd_model: Any) -> list[torch.nn.Module]:
    """The VAE and the text encoders, as the modules to be moved."""
    return [sd_model.first_stage_model, sd_model.cond_stage_model]


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
