"""The embedded CLIP: a small open_clip model trained on `world`, to try and test captioning without
a download.

The package contains the learned weights (`clip.safetensors`, fp16, open_clip's keys). Of the 49,408
token embeddings only those of the world's words are stored; the others are zero. `write_clip`
writes what open_clip loads: a model config and the full weights. `pretrain_clip` trains the
weights, `pack_clip` packs them. Needs no open_clip itself.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from ..base.files import write_atomically
from ..base.tensor_files import read_tensors

ASSET = Path(__file__).with_name("clip.safetensors")
NAME = "train-lora-demo-clip"
SIZE_PX = 64
VOCABULARY = 49_408
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE_PX, "layers": [1, 1, 1, 1], "width": 12, "head_width": 64},
    "text_cfg": {
        "context_length": 24,
        "vocab_size": VOCABULARY,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}
TOKEN_EMBEDDING = "token_embedding.weight"
TOKEN_NUMBERS = "token_numbers"


def write_clip(folder: Path) -> tuple[Path, Path]:
    """Write `<NAME>.json`, for `open_clip.add_model_config`, and `<NAME>.safetensors` with the full
    weights (about 14 MB); return both.

    Existing files are kept, so every `version()` needs a folder of its own. Raises
    FileNotFoundError when the package was installed without its asset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = folder / f"{NAME}.json", folder / f"{NAME}.safetensors"
    if not config.is_file():
        write_atomically(config, json.dumps(CONFIG, indent=2).encode("utf-8"))
    if not weights.is_file():
        write_atomically(weights, save(load_state_dict()))
    return config, weights


def version() -> str:
    """Return a name for the asset and config that `write_clip` writes."""
    return hashlib.sha256(ASSET.read_bytes() + repr(CONFIG).encode()).hexdigest()[:12]


def load_state_dict() -> dict[str, torch.Tensor]:
    """Return the complete weights in float32 under open_clip's keys; tokens that are not stored are
    zero.
    """
    if not ASSET.is_file():
        raise FileNotFoundError(
            f"{ASSET} is missing; reinstall the package, or make it: python -m"
            " lora_trainer.demo.pretrain_clip --work work/"
        )
    state = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in read_tensors(ASSET).items()
    }
    numbers, rows = state.pop(TOKEN_NUMBERS), state[TOKEN_EMBEDDING]
    state[TOKEN_EMBEDDING] = torch.zeros(VOCABULARY, rows.shape[1]).index_copy(0, numbers, rows)
    return state


def pack_clip(state: dict[str, torch.Tensor], token_numbers: list[int], asset: Path = ASSET) -> int:
    """Write the asset from trained weights, keeping the token embeddings of these numbers; return
    its size in bytes.

    Raises ValueError when a weight is not finite in fp16.
    """
    numbers = torch.tensor(sorted(set(token_numbers)))
    kept = {key: tensor.detach() for key, tensor in state.items() if key != "attn_mask"}
    kept[TOKEN_EMBEDDING] = kept[TOKEN_EMBEDDING][numbers]
    for key, tensor in kept.items():
        kept[key] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
    broken = [
        key
        for key, tensor in kept.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"{len(broken)} weights are not finite in fp16, the first is {broken[0]}; train again"
        )
    asset.write_bytes(save({**kept, TOKEN_NUMBERS: numbers}))
    return asset.stat().st_size
