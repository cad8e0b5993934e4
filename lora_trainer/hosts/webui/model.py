"""The WebUI's loaded checkpoint behind the contract `BaseModel`: one class for each family, on the
modules that the WebUI has in memory.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from modules import devices, lowvram, sd_vae, shared

from ...base.autocast import no_autocast
from ...base.contracts import BaseModel, Conditioning, ModelOptions
from ...base.errors import ErrorCode, Refused
from ...lora.weight_names import unet_to_diffusers
from ...training.diffusion import rescale_zero_terminal_snr
from ..model_families import INPAINTING
from . import captions as captioned
from .checkpoint import (
    family,
    prediction_type,
    text_wrappers,
    variant,
    zero_terminal_snr,
)

if TYPE_CHECKING:
    from modules.sd_hijack_clip import PromptChunk, TextConditionalModel
    from modules.sd_models_types import WebuiSdModel

PENULTIMATE = 2  # as a clip skip
_SIZES = {
    "original_size_as_tuple": slice(0, 2),
    "crop_coords_top_left": slice(2, 4),
    "target_size_as_tuple": slice(4, 6),
}  # of `Size.numbers`
_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(attn|mlp)\.(\w+)")
_OPEN_CLIP_NAMES = {"attn": "self_attn", "c_fc": "fc1", "c_proj": "fc2"}


class WebUIModel(BaseModel):
    """What all families have in common; subclasses encode captions, and name layers."""

    exact_vae = False  # whether pictures are encoded in float32, whatever the VAE's dtype

    def __init__(self, sd_model: "WebuiSdModel") -> None:
        info = sd_model.sd_checkpoint_info
        self.family = family(sd_model)
        self.variant = variant(sd_model)
        self.device = devices.device
        self.dtype = next(sd_model.model.diffusion_model.parameters()).dtype
        self.name = info.name_for_extra
        self.sha256 = info.sha256
        self.encoders_offloaded = False
        self.adopt(sd_model)
        self.configure(ModelOptions())

    def adopt(self, sd_model: "WebuiSdModel") -> None:
        """Use the modules of this `sd_model` from now on; it holds the same checkpoint."""
        self._sd_model = sd_model
        self.unet = sd_model.model.diffusion_model
        self.text_encoders = text_encoders_of(sd_model)
        self.encodes_between_steps = not sd_model.lowvram
        self._grey_latents: dict[tuple[int, int], torch.Tensor] = {}

    def parts(self) -> torch.nn.ModuleDict:
        """As `BaseModel.parts`; under --medvram brings the UNet to the GPU, where adapters for its
        layers are to be made.
        """
        bring_to_device(self._sd_model, self._sd_model.model)
        return super().parts()

    def configure(self, options: ModelOptions) -> None:
        sd_model = self._sd_model
        self.clip_skip = self._layers_back(options.clip_skip)
        self._options = options
        self.prediction_type = options.prediction_type or prediction_type(sd_model)
        self.zero_terminal_snr = (
            zero_terminal_snr(sd_model)
            if options.zero_terminal_snr is None
            else options.zero_terminal_snr
        )
        schedule = noise_schedule(sd_model)
        self.alphas_cumprod = (
            rescale_zero_terminal_snr(schedule) if self.zero_terminal_snr else schedule
        )

    def encoding_key(self) -> str:
        vae = (
            f"{sd_vae.get_loaded_vae_name() or 'the VAE of the checkpoint'}"
            f" {sd_vae.get_loaded_vae_hash() or ''}"
        )
        return f"{vae}, clip skip {self.clip_skip}, {captioned.key_of(self._options)}"

    def offload_encoders(self) -> None:
        """As `BaseModel.offload_encoders`; under --medvram the WebUI's own hooks do it."""
        self.encoders_offloaded = True
        if not self._sd_model.lowvram:
            for module in vae_and_text_encoders(self._sd_model):
                module.to(devices.cpu)
            devices.torch_gc()

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self._sd_model.first_stage_model
        bring_to_device(self._sd_model, vae)
        weight = next(vae.encoder.parameters())
        exactly = self.exact_vae or weight.device.type == "cpu"  # a CPU cannot compute in 16 bits
        with (
            no_autocast(self.device),
            _in_float32(vae.encoder, vae.quant_conv) if exactly else contextlib.nullcontext(),
        ):
            moments = vae.quant_conv(vae.encoder(pixels.to(weight.device, weight.dtype)))
        mean, _ = moments.chunk(2, dim=1)
        return mean.to(self.device, torch.float32) * float(self._sd_model.scale_factor)

    def encode_captions(self, captions: list[str]) -> Conditioning:
        """Encode weighted captions as prompts, others literally; as `BaseModel.encode_captions`.

        In autocast where the weights need it and the caller has none; on a CPU without, because
        open_clip's attention cannot compute in it there.
        """
        wrappers = text_wrappers(self._sd_model)
        read = [
            [captioned.chunks_of(text, caption, self._options) for caption in captions]
            for text in wrappers
        ]
        portions = max(len(chunks) for of_encoder in read for chunks in of_encoder)
        bring_to_device(self._sd_model, self._text_owner())
        with self._text_precision(), captioned.no_embeddings_left(wrappers[0].hijack):
            encoded = [
                self._encode(number, text, chunks, portions)
                for number, (text, chunks) in enumerate(zip(wrappers, read, strict=True))
            ]
        pooled = encoded[-1][1]
        return Conditioning(
            torch.cat([states for states, _ in encoded], dim=-1).float(),
            None if pooled is None else pooled.float(),
        )

    def _encode(
        self,
        number: int,
        text: "TextConditionalModel",
        read: list[list["PromptChunk"]],
        portions: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode all chunks with one text encoder: hidden states `(batch, 77 * portions, width)`,
        and pooled ones of the first chunk, if there are.
        """
        found = []
        for portion in range(portions):
            chunks = [
                chunks[portion] if portion < len(chunks) else text.empty_chunk() for chunks in read
            ]
            rows = torch.tensor(captioned.token_rows(text, chunks), device=self.device)
            states = self._states(number, text, rows)
            pooled = getattr(states, "pooled", None)
            if self._options.weighted_captions:
                states = captioned.emphasized(states, chunks)
            found.append((states, pooled))
        return torch.cat([states for states, _ in found], dim=1), found[0][1]

    def _states(
        self, number: int, text: "TextConditionalModel", rows: torch.Tensor
    ) -> torch.Tensor:
        """Return hidden states `(batch, 77, width)` of token numbers `(batch, 77)`; OpenCLIP's are
        those of its last layer but one in any case.
        """
        return text.encode_with_transformers(rows)

    def _layers_back(self, clip_skip: int) -> int:
        """Return the clip skip in use, where 0 is as the WebUI is set; raises `Refused` for one
        that the model cannot be read with.
        """
        if clip_skip > PENULTIMATE:
            raise Refused(
                f"Clip skip {clip_skip}: the WebUI reads the text encoder of this model at the"
                " layer before the last, whatever clip skip is set to. Leave it at 0.",
                field="clip_skip",
                code=ErrorCode.BAD_VALUE,
            )
        return PENULTIMATE

    def _text_owner(self) -> torch.nn.Module:
        """Return the module whose hook brings the text encoders to the GPU under --medvram."""
        return self.text_encoders[0]

    def predict(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        bring_to_device(self._sd_model, self._sd_model.model)
        with self._half_precision():
            return self.unet(
                self._unet_input(noisy_latents),
                timesteps=timesteps,
                context=conditioning.hidden_states,
                y=self._extra_inputs(conditioning),
            ).float()

    def _extra_inputs(self, conditioning: Conditioning) -> torch.Tensor | None:
        return None

    def _unet_input(self, latents: torch.Tensor) -> torch.Tensor:
        """Add the other inputs of an inpainting UNet to latents `(batch, 4, h, w)`, as the WebUI's
        txt2img does: a mask over everything, and the latents of a grey picture.
        """
        if self.variant != INPAINTING:
            return latents
        grey = self._grey(*latents.shape[-2:]).to(latents).expand(len(latents), -1, -1, -1)
        return torch.cat([latents, torch.ones_like(latents[:, :1]), grey], dim=1)

    def _grey(self, height: int, width: int) -> torch.Tensor:
        if (height, width) not in self._grey_latents:
            self._grey_latents[height, width] = self.encode_images(
                torch.zeros(1, 3, 8 * height, 8 * width)
            )
            bring_to_device(self._sd_model, self._sd_model.model)
        return self._grey_latents[height, width]

    def _half_precision(self) -> contextlib.AbstractContextManager:
        """Return an autocast for 16-bit weights, which are only ever on a GPU, if the caller has
        none.
        """
        if self.dtype == torch.float32 or torch.is_autocast_enabled():
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _text_precision(self) -> contextlib.AbstractContextManager:
        return no_autocast(self.device) if self.device.type == "cpu" else self._half_precision()

    def export_name(self, path: str) -> str:
        part, _, rest = path.partition(".")
        if part == "unet":
            return f"lora_unet_{self._unet_name(rest)}"
        return f"lora_{self._text_part(part)}_{_text_name(rest)}"

    def _unet_name(self, path: str) -> str:
        return unet_to_diffusers(path).replace(".", "_")

    def _text_part(self, part: str) -> str:
        return "te"


class SD1Model(WebUIModel):
    """SD1: one CLIP, read after the last layer or, with clip skip, after an earlier one and its
    final norm.
    """

    def _layers_back(self, clip_skip: int) -> int:
        layers = self.text_encoders[0].config.num_hidden_layers
        if clip_skip > layers:
            raise Refused(
                f"Clip skip {clip_skip}: the text encoder of this checkpoint has {layers} layers."
                f" Use 1 to {layers}.",
                field="clip_skip",
                code=ErrorCode.BAD_VALUE,
            )
        return clip_skip or shared.opts.CLIP_stop_at_last_layers

    def _states(
        self, number: int, text: "TextConditionalModel", rows: torch.Tensor
    ) -> torch.Tensor:
        clip = self.text_encoders[0]
        output = clip(input_ids=rows, output_hidden_states=True)
        if self.clip_skip == 1:
            return output.last_hidden_state
        return clip.text_model.final_layer_norm(output.hidden_states[-self.clip_skip])


class SD2Model(WebUIModel):
    """SD2: one OpenCLIP, read at the layer before the last and its final norm."""


class SDXLModel(WebUIModel):
    """SDXL and SSD-1B: a CLIP and an OpenCLIP, the second's pooled embedding, and sizes. Its VAE
    overflows in 16 bits.
    """

    exact_vae = True
    _has_clip_skip = False  # by the WebUI's setting, when the model was last read

    def _layers_back(self, clip_skip: int) -> int:
        """Clip skip is for the CLIP alone, and only with the WebUI's setting for it."""
        self._has_clip_skip = bool(shared.opts.sdxl_clip_l_skip)
        if not self._has_clip_skip:
            return super()._layers_back(clip_skip)
        layers = self.text_encoders[0].config.num_hidden_layers
        if clip_skip > layers:
            raise Refused(
                f"Clip skip {clip_skip}: the first text encoder of this checkpoint has {layers}"
                f" layers. Use 1 to {layers}.",
                field="clip_skip",
                code=ErrorCode.BAD_VALUE,
            )
        return clip_skip or shared.opts.CLIP_stop_at_last_layers

    def _states(
        self, number: int, text: "TextConditionalModel", rows: torch.Tensor
    ) -> torch.Tensor:
        if number > 0:
            return super()._states(number, text, rows)
        output = self.text_encoders[0](input_ids=rows, output_hidden_states=True)
        if self._has_clip_skip:
            return output.hidden_states[-self.clip_skip]
        if text.wrapped.layer == "last":
            return output.last_hidden_state
        return output.hidden_states[text.wrapped.layer_idx]

    def _text_owner(self) -> torch.nn.Module:
        return self._sd_model.conditioner

    def _extra_inputs(self, conditioning: Conditioning) -> torch.Tensor:
        """Return what goes into the UNet beside the caption, `(batch, pooled + 6 * width)`,
        embedded by the model's own embedders.
        """
        if conditioning.pooled is None or conditioning.sizes is None:
            raise ValueError(
                "SDXL needs the pooled text embeddings and the picture sizes: use"
                " Conditioning.of_sizes"
            )
        embedded = [
            embedder(conditioning.sizes[:, _SIZES[embedder.input_key]])
            for embedder in self._sd_model.conditioner.embedders
            if embedder.input_key in _SIZES
        ]
        return torch.cat([conditioning.pooled, *embedded], dim=1)

    def _unet_name(self, path: str) -> str:
        return path.replace(".", "_")

    def _text_part(self, part: str) -> str:
        return part


FAMILIES: dict[str, type[WebUIModel]] = {"sd1": SD1Model, "sd2": SD2Model, "sdxl": SDXLModel}


def text_encoders_of(sd_model: "WebuiSdModel") -> list[torch.nn.Module]:
    """Return what holds each text encoder's layers: HF's CLIPTextModel or open_clip's CLIP."""
    wrapped = [text.wrapped for text in text_wrappers(sd_model)]
    return [each.transformer if hasattr(each, "transformer") else each.model for each in wrapped]


def parts_of(sd_model: "WebuiSdModel") -> torch.nn.ModuleDict | None:
    """Return what `WebUIModel.parts` would, to look at; None for what cannot be trained."""
    if family(sd_model) not in FAMILIES:
        return None
    texts = {
        f"te{number}": module for number, module in enumerate(text_encoders_of(sd_model), start=1)
    }
    return torch.nn.ModuleDict({"unet": sd_model.model.diffusion_model, **texts})


def noise_schedule(sd_model: "WebuiSdModel") -> torch.Tensor:
    """Return alphas_cumprod, float32, without the settings' overrides and, where it is Stable
    Diffusion's usual one, without fp16's rounding.
    """
    found = sd_model.alphas_cumprod_original.detach().to("cpu", torch.float64)
    roots = torch.linspace(0.00085**0.5, 0.0120**0.5, len(found), dtype=torch.float64)
    usual = torch.cumprod(1 - roots**2, dim=0)
    return (usual if torch.allclose(found, usual, rtol=2e-3) else found).float()


def vae_and_text_encoders(sd_model: "WebuiSdModel") -> list[torch.nn.Module]:
    """The VAE and the text encoders, as the modules to be moved."""
    return [sd_model.first_stage_model, sd_model.cond_stage_model]


def bring_to_device(sd_model: "WebuiSdModel", module: torch.nn.Module) -> None:
    """Under --medvram let the WebUI's own hooks move this module to the GPU, and the one that is
    there away; else do nothing.
    """
    if not sd_model.lowvram:
        return
    for hook in list(module._forward_pre_hooks.values()):
        if hook.__module__ == lowvram.__name__:
            hook(module, ())


@contextlib.contextmanager
def _in_float32(*modules: torch.nn.Module) -> Iterator[None]:
    """Compute with float32 copies of the weights; the original tensors come back."""
    kept = [
        (parameter, parameter.data)
        for module in modules
        for parameter in module.parameters()
        if parameter.dtype != torch.float32
    ]
    try:
        for parameter, data in kept:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _text_name(path: str) -> str:
    """Name a text encoder's layer as HF does, whichever class holds it."""
    found = _OPEN_CLIP_LAYER.fullmatch(path)
    if not found:
        return path.replace(".", "_")
    number, part, layer = found.groups()
    part, layer = _OPEN_CLIP_NAMES.get(part, part), _OPEN_CLIP_NAMES.get(layer, layer)
    return f"text_model_encoder_layers_{number}_{part}_{layer}"
