"""The embedded checkpoint: a Stable Diffusion with the blocks of SD1 and narrow widths, which draws
the pictures of `world`.

The package contains the learned weights (`checkpoint.safetensors`, LDM's keys, fp16). The token
embeddings are random numbers from a seed, and the CLIP vocabulary is made from open_clip's.
`load_state_dict` returns the whole checkpoint, `write_checkpoint` writes it for a WebUI. `pretrain`
trains the weights, `pack` converts them to the asset. Needs neither diffusers nor a WebUI.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from ..base.files import write_atomically
from ..base.tensor_files import read_tensors
from ..lora.weight_names import unet_to_ldm
from .vae_names import vae_to_ldm

ASSET = Path(__file__).with_name("checkpoint.safetensors")
SEED = 20_231
SCALE_FACTOR = 0.18215
TEXT_WIDTH = 64
TEXT_LAYERS = 2
UNET_WIDTHS = (64, 64, 64, 64)
VAE_WIDTHS = (64, 64, 64, 64)
UNET_CONFIG = dict(
    sample_size=8,
    block_out_channels=UNET_WIDTHS,
    cross_attention_dim=TEXT_WIDTH,
    attention_head_dim=8,
)
VAE_CONFIG = dict(
    block_out_channels=VAE_WIDTHS,
    layers_per_block=2,
    latent_channels=4,
    sample_size=64,
    scaling_factor=SCALE_FACTOR,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
TEXT_ENCODER_CONFIG = dict(
    hidden_size=TEXT_WIDTH,
    intermediate_size=4 * TEXT_WIDTH,
    num_hidden_layers=TEXT_LAYERS,
    num_attention_heads=4,
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    projection_dim=TEXT_WIDTH,
    bos_token_id=49406,
    eos_token_id=49407,
    pad_token_id=1,
)
NAME = "lora-trainer-demo"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
TOKEN_EMBEDDING = TEXT_PREFIX + "embeddings.token_embedding.weight"
POSITION_IDS = TEXT_PREFIX + "embeddings.position_ids"
_WEBUI_CONFIG = """\
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: {image_size}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {scale_factor}
    use_ema: False

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: {image_size}
        in_channels: 4
        out_channels: 4
        model_channels: {model_channels}
        attention_resolutions: [ 4, 2, 1 ]
        num_res_blocks: 2
        channel_mult: {channel_mult}
        num_heads: {heads}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {context_dim}
        use_checkpoint: False
        legacy: False

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {resolution}
          in_channels: 3
          out_ch: 3
          ch: {ch}
          ch_mult: {ch_mult}
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {version}
"""


def token_embeddings() -> np.ndarray:
    """Return the random token embeddings, float32 `(49408, 64)` with unit variance.

    They come from numpy's legacy generator, which gives the same numbers in all versions.
    """
    shape = (TEXT_ENCODER_CONFIG["vocab_size"], TEXT_WIDTH)
    embeddings = np.random.RandomState(SEED).standard_normal(shape)
    return embeddings.astype(np.float16).astype(np.float32)


def make_text_encoder() -> torch.nn.Module:
    """Build the text encoder with its random token embeddings frozen, the rest freshly
    initialised.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER_CONFIG))
    state = model.state_dict()
    key = next(name for name in state if name.endswith("token_embedding.weight"))
    state[key] = torch.from_numpy(token_embeddings())
    model.load_state_dict(state)
    model.get_input_embeddings().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "position_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def write_tokenizer(folder: Path) -> Path:
    """Write CLIP's vocab.json, merges.txt and config.json, made from open_clip's vocabulary file;
    return the folder.

    Raises FileNotFoundError when open_clip is not installed.
    """
    source = _vocabulary_file()
    folder.mkdir(parents=True, exist_ok=True)
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    special_tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    tokenizer_config = {
        **special_tokens,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
    }
    model_config = {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        **TEXT_ENCODER_CONFIG,
    }
    vocabulary = {token: number for number, token in enumerate(_tokens(merges))}
    texts = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "special_tokens_map.json": json.dumps(special_tokens),
        "tokenizer_config.json": json.dumps(tokenizer_config),
        "config.json": json.dumps(model_config),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return folder


def _tokens(merges: list[str]) -> list[str]:
    """Return CLIP's tokens in the order of their numbers."""
    alphabet = _byte_alphabet()
    at_word_end = [letter + "</w>" for letter in alphabet]
    merged = ["".join(merge.split()) for merge in merges]
    return [*alphabet, *at_word_end, *merged, "<|startoftext|>", "<|endoftext|>"]


def _vocabulary_file() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found and found.origin:
        path = Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
        if path.is_file():
            return path
    raise FileNotFoundError(
        "CLIP's vocabulary comes with the package open_clip_torch, which is not installed; "
        "run: pip install open_clip_torch"
    )


def _byte_alphabet() -> list[str]:
    """Return the 256 letters of byte-level BPE in CLIP's order: printable Latin-1 bytes as
    themselves, the others from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def pack(work: Path, asset: Path = ASSET) -> int:
    """Convert the trained parts in `work` (diffusers and transformers layout) to the package's
    asset; return its size in bytes.

    Raises ValueError when a weight is not finite in fp16.
    """
    state = {
        UNET_PREFIX + unet_to_ldm(key): tensor
        for key, tensor in read_tensors(work / "unet.safetensors").items()
    }
    state |= {
        VAE_PREFIX + vae_to_ldm(key): _as_convolution(key, tensor)
        for key, tensor in read_tensors(work / "vae.safetensors").items()
    }
    state |= {
        TEXT_PREFIX + key.removeprefix("text_model."): tensor
        for key, tensor in read_tensors(work / "text.safetensors").items()
    }
    for regenerated in (TOKEN_EMBEDDING, POSITION_IDS):  # by `load_state_dict`
        state.pop(regenerated, None)
    state = {key: tensor.to(torch.float16).contiguous() for key, tensor in state.items()}
    broken = [key for key, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} weights are not finite in fp16, the first is {broken[0]}; train again"
            " or rescale them"
        )
    _save(state, asset)
    return asset.stat().st_size


def _as_convolution(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Turn a linear weight `(out, in)` of the VAE's attention into LDM's 1x1 convolution `(out, in,
    1, 1)`.
    """
    return tensor[:, :, None, None] if ".attentions." in key and tensor.ndim == 2 else tensor


def load_state_dict() -> dict[str, torch.Tensor]:
    """Return the complete checkpoint under LDM's keys in fp16: the asset, the token embeddings, the
    position numbers (int64 `(1, 77)`).

    Raises FileNotFoundError when the package was installed without its asset.
    """
    if not ASSET.is_file():
        raise FileNotFoundError(
            f"{ASSET} is missing; reinstall the package, or make it: python -m"
            " lora_trainer.demo.pretrain all --work work/"
        )
    state = read_tensors(ASSET)
    state[TOKEN_EMBEDDING] = torch.from_numpy(token_embeddings()).to(torch.float16)
    state[POSITION_IDS] = torch.arange(TEXT_ENCODER_CONFIG["max_position_embeddings"])[None]
    return state


def write_checkpoint(folder: Path, name: str = NAME) -> Path:
    """Write `<name>.safetensors`, `<name>.yaml` and the tokenizer folder `<name>-clip` for a WebUI;
    return the checkpoint's path.

    The checkpoint is written last and atomically, for a WebUI may list the folder meanwhile.
    """
    folder = Path(folder).absolute()
    tokenizer = write_tokenizer(folder / f"{name}-clip")
    write_atomically(folder / f"{name}.yaml", webui_config(tokenizer).encode())
    target = folder / f"{name}.safetensors"
    _save(load_state_dict(), target)
    return target


def webui_config(tokenizer: Path) -> str:
    """Return the WebUI's v1-inference.yaml with the widths of this checkpoint and its own tokenizer
    folder.
    """
    first = UNET_WIDTHS[0]
    return _WEBUI_CONFIG.format(
        image_size=UNET_CONFIG["sample_size"],
        scale_factor=SCALE_FACTOR,
        model_channels=first,
        heads=UNET_CONFIG["attention_head_dim"],
        channel_mult=[width // first for width in UNET_WIDTHS],
        context_dim=TEXT_WIDTH,
        ch=VAE_WIDTHS[0],
        ch_mult=[width // VAE_WIDTHS[0] for width in VAE_WIDTHS],
        resolution=VAE_CONFIG["sample_size"],
        version=json.dumps(str(tokenizer), ensure_ascii=False),  # JSON strings are YAML, too
    )


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    size_px = VAE_CONFIG["sample_size"]
    # one entry only: safetensors writes several in any order
    metadata = {"modelspec.resolution": f"{size_px}x{size_px}"}
    # not by save_file, which makes a file that only its owner may read
    write_atomically(path, save(state, metadata=metadata))
