"""The model families of the standalone host behind the contract `BaseModel`, on diffusers' modules:
how captions are encoded, what else the UNet takes, and the names of layers in LoRA files.
"""

import math
from typing import TYPE_CHECKING

import torch

from ...base.autocast import no_autocast
from ...base.contracts import BaseModel, Conditioning, ModelOptions
from ...base.errors import ErrorCode, Refused
from ...base.fingerprint import fingerprint_of_weights
from ...lora.weight_names import SDXL_LEVELS, unet_to_ldm
from ...training.diffusion import rescale_zero_terminal_snr
from ...training.precision import free_memory
from ..checkpoint_file import CheckpointFacts
from ..model_families import INPAINTING
from ..prompts import CHUNK_TOKENS, Chunk, Part, parse_weights, split_chunks
from .loading import BETA_END, BETA_START, TRAINING_TIMESTEPS, text_encoders_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers.utils import ModelOutput

PENULTIMATE = 2  # as a clip skip
LONGEST_PROMPT_TOKENS = 1500


class StableDiffusion(BaseModel):
    """What all families have in common; `pipeline` is diffusers'."""

    # the tokens that each text encoder's chunks are padded with; None: the end token
    pad_tokens: tuple[int | None, ...]

    def __init__(
        self,
        pipeline: "DiffusionPipeline",
        facts: CheckpointFacts,
        *,
        name: str,
        sha256: str | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.unet = pipeline.unet
        self.text_encoders = text_encoders_of(pipeline)
        self._vae = pipeline.vae
        self._tokenizer = pipeline.tokenizer
        self.family = facts.family
        self.variant = facts.variant
        self.name = name
        self.sha256 = sha256
        self.device = device
        self.dtype = dtype
        self.fingerprint = fingerprint_of_weights(self.unet)
        self._facts = facts
        self._grey_latents: dict[tuple[int, int], torch.Tensor] = {}  # by height and width
        self._comma = self._tokenize(",")[0]
        self.configure(ModelOptions())

    def configure(self, options: ModelOptions) -> None:
        self.clip_skip = self._layers_back(options.clip_skip)
        self._options = options
        self.prediction_type = options.prediction_type or self._facts.prediction_type
        self.zero_terminal_snr = (
            self._facts.zero_terminal_snr
            if options.zero_terminal_snr is None
            else options.zero_terminal_snr
        )
        schedule = scaled_linear_alphas_cumprod()
        self.alphas_cumprod = (
            rescale_zero_terminal_snr(schedule) if self.zero_terminal_snr else schedule
        )

    def encoding_key(self) -> str:
        weighted = ", weighted" if self._options.weighted_captions else ""
        return f"clip skip {self.clip_skip}, {self._options.max_token_length} tokens{weighted}"

    def offload_encoders(self) -> None:
        for module in (self._vae, *self.text_encoders):
            module.to("cpu")
        free_memory(self.device)

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        with no_autocast(self.device):
            posterior = self._vae.encode(pixels.to(self._vae.device, self._vae.dtype)).latent_dist
        return posterior.mean.float() * self._vae.config.scaling_factor

    @torch.no_grad()
    def decode_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents `(batch, 4, h, w)` into pixels `(batch, 3, 8 h, 8 w)` in [-1, 1],
        float32.
        """
        with no_autocast(self.device):
            return self._vae.decode(
                latents.to(self._vae.device, self._vae.dtype) / self._vae.config.scaling_factor
            ).sample.float()

    def encode_captions(self, captions: list[str]) -> Conditioning:
        if self._options.weighted_captions:
            parts = [parse_weights(caption) for caption in captions]
        else:
            parts = [[Part(caption, 1.0)] for caption in captions]
        most_tokens = self._options.max_token_length
        return self._encode_all([self._split(of_caption, most_tokens) for of_caption in parts])

    def encode_prompts(self, prompts: list[str], *, negative: bool = False) -> Conditioning:
        """Encode prompts or negative prompts for drawing, weighted parts included."""
        return self._encode_all(
            [self._split(parse_weights(prompt), LONGEST_PROMPT_TOKENS) for prompt in prompts]
        )

    def predict(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return self.unet(
            self.unet_input(noisy_latents.to(self.device, self.dtype)),
            timesteps.to(self.device),
            encoder_hidden_states=conditioning.hidden_states.to(self.device, self.dtype),
            added_cond_kwargs=self._extra_inputs(conditioning),
            return_dict=False,
        )[0]

    def unet_input(self, latents: torch.Tensor) -> torch.Tensor:
        """Add the other inputs of an inpainting UNet to latents `(batch, 4, h, w)`: a mask over
        everything, and the latents of a grey picture.
        """
        if self.variant != INPAINTING:
            return latents
        grey = self._grey(*latents.shape[-2:]).to(latents).expand(len(latents), -1, -1, -1)
        return torch.cat([latents, torch.ones_like(latents[:, :1]), grey], dim=1)

    def export_name(self, path: str) -> str:
        part, _, rest = path.partition(".")
        if part == "unet":
            return f"lora_unet_{self._unet_name(rest)}"
        return f"lora_{self._text_part(part)}_{_text_name(rest)}"

    def _unet_name(self, path: str) -> str:
        return path.replace(".", "_")

    def _text_part(self, part: str) -> str:
        return "te"

    def _layers_back(self, clip_skip: int) -> int:
        """Return the clip skip in use, here always that of the layer before the last; raises
        `Refused` for a higher one.
        """
        if clip_skip > PENULTIMATE:
            raise Refused(
                f"Clip skip {clip_skip}: the text encoders of this model are always read at the"
                " layer before the last, by the WebUI too. Leave it at 0.",
                field="clip_skip",
                code=ErrorCode.BAD_VALUE,
            )
        return PENULTIMATE

    def _extra_inputs(self, conditioning: Conditioning) -> dict[str, torch.Tensor] | None:
        return None

    def _encode_all(self, read: list[list[Chunk]]) -> Conditioning:
        portions = [
            [chunks[number] if number < len(chunks) else Chunk() for chunks in read]
            for number in range(max(map(len, read)))
        ]
        encoded = [self._encode(portion) for portion in portions]
        return Conditioning(torch.cat([states for states, _ in encoded], dim=1), encoded[0][1])

    def _encode(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode one chunk of each caption to hidden states `(batch, 77, width)` and, for SDXL,
        pooled ones `(batch, width)`, float32.
        """
        states = self._states(0, self._ids(0, chunks)).last_hidden_state
        return self._weighted(states, chunks), None

    def _states(self, number: int, ids: torch.Tensor) -> "ModelOutput":
        return self.text_encoders[number](ids, output_hidden_states=True)

    def _split(self, parts: list[Part], most_tokens: int) -> list[Chunk]:
        return split_chunks(parts, self._tokenize, self._comma, most_tokens=most_tokens)

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]

    def _ids(self, number: int, chunks: list[Chunk]) -> torch.Tensor:
        """Return token numbers `(batch, 77)`: start, the chunk's, end, and this encoder's
        filling.
        """
        start, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        fill = end if self.pad_tokens[number] is None else self.pad_tokens[number]
        rows = [
            [start, *chunk.tokens, end, *[fill] * (CHUNK_TOKENS - len(chunk.tokens))]
            for chunk in chunks
        ]
        return torch.tensor(rows, device=next(self.text_encoders[number].parameters()).device)

    def _weighted(self, states: torch.Tensor, chunks: list[Chunk]) -> torch.Tensor:
        """Multiply hidden states by their tokens' weights, and scale each caption's to the mean it
        had before, as the WebUI does.
        """
        states = states.float()
        if all(weight == 1 for chunk in chunks for weight in chunk.weights):
            return states
        rows = [
            [1.0, *chunk.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(chunk.weights))]
            for chunk in chunks
        ]
        weighted = states * torch.tensor(rows, device=states.device)[:, :, None]
        mean_before = states.mean(dim=(1, 2), keepdim=True)
        return weighted * (mean_before / weighted.mean(dim=(1, 2), keepdim=True))

    def _grey(self, height: int, width: int) -> torch.Tensor:
        if (height, width) not in self._grey_latents:
            self._grey_latents[height, width] = self.encode_images(
                torch.zeros(1, 3, 8 * height, 8 * width)
            )
        return self._grey_latents[height, width]


class StableDiffusion1(StableDiffusion):
    """SD1: one CLIP, read after the last layer or, with clip skip, after an earlier one."""

    pad_tokens = (None,)

    def _layers_back(self, clip_skip: int) -> int:
        layers = self._facts.texts[0].layers
        if clip_skip > layers:
            raise Refused(
                f"Clip skip {clip_skip}: the text encoder of this checkpoint has {layers} layers."
                f" Use 1 to {layers}.",
                field="clip_skip",
                code=ErrorCode.BAD_VALUE,
            )
        return max(1, clip_skip)

    def _encode(self, chunks: list[Chunk]) -> tuple[torch.Tensor, None]:
        output = self._states(0, self._ids(0, chunks))
        if self.clip_skip == 1:
            return self._weighted(output.last_hidden_state, chunks), None
        encoder = self.text_encoders[0]
        text_model = getattr(encoder, "text_model", encoder)
        states = text_model.final_layer_norm(output.hidden_states[-self.clip_skip])
        return self._weighted(states, chunks), None


class StableDiffusion2(StableDiffusion):
    """SD2: one OpenCLIP, loaded without its last layer; its output is normalised."""

    pad_tokens = (0,)


class StableDiffusionXL(StableDiffusion):
    """SDXL and SSD-1B: a CLIP and an OpenCLIP, both read one layer before the last as they are, the
    second's pooled embedding, and sizes.
    """

    pad_tokens = (None, 0)

    def _encode(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [self._states(number, self._ids(number, chunks)) for number in range(2)]
        states = [self._weighted(output.hidden_states[-PENULTIMATE], chunks) for output in outputs]
        return torch.cat(states, dim=-1), outputs[1].text_embeds.float()

    def encode_prompts(self, prompts: list[str], *, negative: bool = False) -> Conditioning:
        encoded = super().encode_prompts(prompts)
        if not negative or any(prompts):
            return encoded
        # an empty negative prompt is zeros, as in the WebUI and diffusers
        return Conditioning(
            torch.zeros_like(encoded.hidden_states), torch.zeros_like(encoded.pooled)
        )

    def _extra_inputs(self, conditioning: Conditioning) -> dict[str, torch.Tensor]:
        if conditioning.pooled is None or conditioning.sizes is None:
            raise ValueError(
                "SDXL needs the pooled text embeddings and the picture sizes: use"
                " Conditioning.of_sizes"
            )
        return {
            "text_embeds": conditioning.pooled.to(self.device, self.dtype),
            "time_ids": conditioning.sizes.to(self.device),
        }

    def _unet_name(self, path: str) -> str:
        return unet_to_ldm(path, SDXL_LEVELS).replace(".", "_")

    def _text_part(self, part: str) -> str:
        return part


FAMILIES: dict[str, type[StableDiffusion]] = {
    "sd1": StableDiffusion1,
    "sd2": StableDiffusion2,
    "sdxl": StableDiffusionXL,
}


def scaled_linear_alphas_cumprod() -> torch.Tensor:
    """The noise schedule of all families: the square root of beta rises linearly; float32,
    (1000,).
    """
    start, end = math.sqrt(BETA_START), math.sqrt(BETA_END)
    roots = torch.linspace(start, end, TRAINING_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, dim=0).float()


def _text_name(path: str) -> str:
    """Name a text encoder's layer as files do, with the `text_model` that new transformers lack."""
    inner = path.removeprefix("text_model.")
    name = inner.replace(".", "_")
    return name if inner.startswith("text_projection") else f"text_model_{name}"
