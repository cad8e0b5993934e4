"""The file: kohya's layout and names, metadata, hashes, safetensors, and the sidecar that the WebUI's card reads."""
import datetime
import errno
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .adapters import Shape
from .captions import split_tags, write_atomically
from .config import TrainConfig
from .contracts import BaseModel
from .dataset import Bucket, Picture
from .errors import Refused

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SOFTWARE, NOTES = "Train LoRA", "Trained with Train LoRA"
FAMILIES = {  # family: (ss_base_model_version, ss_v2, modelspec.architecture, the WebUI card's name)
    "sd1": ("sd_v1", "False", "stable-diffusion-v1/lora", "SD1"),
    "sd2": ("sd_v2", "True", "stable-diffusion-v2-768-v/lora", "SD2"),
    "sdxl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "SDXL"),
}


def to_tensors(weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, alphas: Mapping[str, float], export_name: Callable[[str], str],
               dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Name down and up weights as kohya does: `<name>.lora_down.weight`, `.lora_up.weight` and the scalar `.alpha`. All are by module path.

    Raises `Refused` (code "not_finite") for a weight that is not finite in `dtype`: no such file may be written.
    """
    tensors = {}
    for path, (down, up) in weights.items():
        name = export_name(path)
        tensors.update({f"{name}.lora_down.weight": down.to(dtype).contiguous(), f"{name}.lora_up.weight": up.to(dtype).contiguous(),
                        f"{name}.alpha": torch.tensor(float(alphas[path]))})
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise Refused(f"The LoRA has {len(broken)} weights that are not finite numbers (first: {broken[0]}), so it is not saved. "
                      "Lower the learning rate.", code="not_finite")
    return tensors


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a LoRA so that a reader sees the old file or the whole new one, once what was written reads back the same.

    Raises `Refused` (code "cannot_save") when the disk refuses or fails; the old file is then still there.
    """
    metadata = {**metadata, **_hashes(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.torch.save(tensors, metadata), check=True)
    except OSError as error:
        advice = "Free some space" if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)) else "Mend the folder"
        raise Refused(f"The LoRA cannot be saved to {path}: {error.strerror or error}. {advice} or choose another.", field="output_dir",
                      code="cannot_save") from error


def save_card(path: Path, *, family: str, trigger_word: str, preferred_weight: float, notes: str) -> None:
    """Write the sidecar `<stem>.json` of a LoRA, keeping the keys that other tools put there and notes that do not begin as ours."""
    sidecar = path.with_suffix(".json")
    try:
        known = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    if not str(known.get("notes") or NOTES).startswith(NOTES):                     # the user's own
        notes = known["notes"]
    card = {**known, "sd version": FAMILIES[family][3], "activation text": trigger_word, "preferred weight": preferred_weight, "notes": notes}
    write_atomically(sidecar, json.dumps(card, indent=4, ensure_ascii=False).encode("utf-8"))


def save_preview(path: Path, image: Image.Image) -> bool:
    """Save a picture for a LoRA's card as `<stem>.png`; one that was not drawn by us is the user's and stays. Says whether it was saved."""
    target = path.with_suffix(".png")
    if target.exists() and not _drawn_by_us(target):
        return False
    note, buffer = PngInfo(), io.BytesIO()
    note.add_text("Software", SOFTWARE)
    image.save(buffer, "PNG", pnginfo=note)
    write_atomically(target, buffer.getvalue())
    return True


def _drawn_by_us(picture: Path) -> bool:
    try:
        with Image.open(picture) as image:
            return image.info.get("Software") == SOFTWARE
    except OSError:
        return False


def metadata(config: TrainConfig, base_model: BaseModel, shapes: Mapping[str, Shape], pictures: list[Picture], buckets: list[Bucket], captions: list[str], *, steps: int,
             total_steps: int, steps_per_epoch: int, started_at: float, loss_average: float | None) -> dict[str, str]:
    """Describe a LoRA as kohya (`ss_*`) and Stability's model spec (`modelspec.*`) do; all values are strings."""
    version, v2, architecture, _ = FAMILIES[base_model.family]
    folder = Path(config.train_data_dir).name or "pictures"
    counted, usual = Counter(buckets), Counter(shapes.values()).most_common(1)[0][0]
    values: dict[str, Any] = {
        "ss_output_name": config.output_name, "ss_session_id": int(started_at), "ss_training_started_at": started_at,
        "ss_training_finished_at": time.time(), "ss_network_module": "networks.lora", "ss_network_dim": usual.rank,
        "ss_network_alpha": usual.alpha, "ss_network_dropout": config.lora_dropout,
        "ss_network_args": {"targets": config.lora_targets, **({"conv_dim": usual.rank, "conv_alpha": usual.alpha} if config.lora_targets == "all" else {})},
        "ss_base_model_version": version, "ss_v2": v2, "ss_sd_model_name": base_model.name, "ss_new_sd_model_hash": base_model.sha256,
        "ss_clip_skip": base_model.clip_skip, "ss_learning_rate": config.learning_rate, "ss_unet_lr": config.learning_rate, "ss_text_encoder_lr": 0.0,
        "ss_lr_scheduler": config.scheduler, "ss_lr_warmup_steps": config.lr_warmup_steps, "ss_optimizer": f"torch.optim.AdamW(weight_decay={config.weight_decay})",
        "ss_max_grad_norm": config.max_grad_norm, "ss_seed": config.seed, "ss_mixed_precision": config.mixed_precision,
        "ss_gradient_checkpointing": config.gradient_checkpointing, "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_batch_size_per_device": config.batch_size, "ss_total_batch_size": config.batch_size, "ss_num_batches_per_epoch": steps_per_epoch,
        "ss_num_epochs": -(-total_steps // steps_per_epoch), "ss_epoch": -(-steps // steps_per_epoch), "ss_steps": steps, "ss_max_train_steps": total_steps,
        "ss_num_train_images": sum(picture.repeats for picture in pictures), "ss_num_reg_images": 0, "ss_resolution": (config.resolution, config.resolution),
        "ss_enable_bucket": config.enable_bucket, "ss_flip_aug": config.mirror, "ss_random_crop": config.random_crop, "ss_training_comment": "",
        "ss_loss_average": loss_average,
        "ss_bucket_info": {"buckets": {str(at): {"resolution": [bucket.width, bucket.height], "count": count}
                                       for at, (bucket, count) in enumerate(sorted(counted.items(), key=lambda item: (item[0].width, item[0].height)))}},
        "ss_dataset_dirs": {folder: {"n_repeats": max((picture.repeats for picture in pictures), default=1), "img_count": len(pictures)}},
        "ss_tag_frequency": {folder: dict(Counter(tag for caption in captions for tag in split_tags(caption)).most_common())},
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": architecture, "modelspec.implementation": "diffusers",
        "modelspec.title": config.output_name, "modelspec.resolution": f"{config.resolution}x{config.resolution}",
        "modelspec.date": datetime.datetime.now().isoformat(timespec="seconds"), "modelspec.trigger_phrase": config.trigger_word,
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[base_model.prediction_type],
    }
    return {key: _text(value) for key, value in values.items() if value is not None}


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()                       # a folder's name need not be Unicode; metadata must


def _hashes(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """The hashes that the WebUI would otherwise compute: SHA-256 of everything after the header, and the old short one."""
    data = safetensors.torch.save(tensors, {})
    header_bytes = int.from_bytes(data[:8], "little") + 8
    legacy = io.BytesIO(data)
    legacy.seek(0x100000)
    return {"sshs_model_hash": hashlib.sha256(data[header_bytes:]).hexdigest(), "sshs_legacy_hash": hashlib.sha256(legacy.read(0x10000)).hexdigest()[:8]}
