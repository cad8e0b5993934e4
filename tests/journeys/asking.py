"""What is asked of the older version and of the code under test: questions, changes, commands."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.journeys.older import PACKAGE, Page, commands

COMMANDS = ("train", "jobs", "storage", "import-settings", "new-config", "auto-label", "demo")
COMMANDS += ("demo-checkpoint", "ui", "bench")

LORA_SCRIPTS = """\
train_data_dir: "./data/style_train"
metadata_path: "./data/style_train/metadata.csv"
base_model: "./models/Stable-diffusion/v1-5-pruned.safetensors"
lora_rank: 8 # 风格
alpha: 16
lora_dropout: 0.1
epochs: 10
batch_size: 4
learning_rate: 2e-4
optimizer: AdamW
scheduler: cosine
output_dir: ./output/my_style_lora
logging_dir: ./output/my_style_lora/logs
save_steps: 100
wandb: off
"""
OUR_YAML = """\
train_data_dir: zib
output_name: ours
trigger_word: zib
lora_type: lokr
lora_rank: 12
max_train_steps: 50
mirror: true
reg_data_dir: ""
lora_blocks: IN04-IN08, MID=64:32
optimizer_args: betas=0.9,0.99
"""
KOHYA_TOML = """\
pretrained_model_name_or_path = "/models/anything.safetensors"
train_data_dir = "/pictures"
output_dir = "/loras"
output_name = "mine"
resolution = "512,768"
train_batch_size = 2
max_train_epochs = 8
learning_rate = 1e-4
unet_lr = 1e-4
text_encoder_lr = 1e-5
network_module = "lycoris.kohya"
network_dim = 32
network_alpha = 16
network_args = ["algo=loha", "conv_dim=8", "conv_alpha=4", "dora_wd=True"]
optimizer_type = "Prodigy"
optimizer_args = ["decouple=True", "weight_decay=0.01", "d_coef=2"]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 2
shuffle_caption = true
keep_tokens = 1
enable_bucket = true
bucket_reso_steps = 64
min_snr_gamma = 5
noise_offset = 0.05
mixed_precision = "bf16"
save_precision = "fp16"
save_every_n_epochs = 1
xformers = true
seed = 1337
"""
KOHYA_DATASET = """\
[general]
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = [512, 768]
batch_size = 4
enable_bucket = true

  [[datasets.subsets]]
  image_dir = "/pictures/hoge"
  num_repeats = 3
  class_tokens = "hoge girl"

  [[datasets.subsets]]
  is_reg = true
  image_dir = "/reg"
  class_tokens = "human"
"""
KOHYA_PAGE = {
    "LoRA_type": "LyCORIS/LoKr",
    "factor": 6,
    "additional_parameters": "--max_grad_norm 0.5 --weighted_captions",
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "cache_latents": True,
    "caption_dropout_rate": 0.05,
    "clip_skip": 2,
    "conv_alpha": 1,
    "conv_dim": 1,
    "enable_bucket": True,
    "epoch": 12,
    "flip_aug": True,
    "learning_rate": 0.0001,
    "lr_scheduler": "cosine_with_restarts",
    "lr_warmup": 10,
    "max_resolution": "512,512",
    "max_token_length": "150",
    "min_snr_gamma": 5,
    "multires_noise_discount": 0.2,
    "multires_noise_iterations": 8,
    "network_alpha": 16,
    "network_dim": 32,
    "noise_offset_type": "Multires",
    "optimizer": "AdamW8bit",
    "output_dir": "/loras",
    "output_name": "mine",
    "pretrained_model_name_or_path": "/models/a.safetensors",
    "seed": "0",
    "text_encoder_lr": 5e-05,
    "train_batch_size": 3,
    "train_data_dir": "/pictures",
    "unet_lr": 0.0002,
    "xformers": "xformers",
}
ONE_TRAINER = {
    "__version": 11,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "models/illustrious.safetensors",
    "output_model_destination": "/loras/zib_v1.safetensors",
    "learning_rate_scheduler": "COSINE_WITH_HARD_RESTARTS",
    "learning_rate": 1e-4,
    "learning_rate_cycles": 2.0,
    "epochs": 20,
    "batch_size": 2,
    "ema": "GPU",
    "ema_decay": 0.99,
    "train_dtype": "BFLOAT_16",
    "resolution": "1024,768",
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "force_v_prediction": True,
    "unet": {"train": True, "learning_rate": None, "weight_dtype": "FLOAT_16"},
    "text_encoder": {"train": True, "learning_rate": 2e-5},
    "masked_training": True,
    "unmasked_weight": 0.2,
    "peft_type": "LORA",
    "lora_rank": 32,
    "lora_alpha": 16.0,
    "optimizer": {"optimizer": "PRODIGY", "beta2": 0.99, "d_coef": 2.0},
}
SETTINGS_FILES = {
    "lora_scripts.yaml": LORA_SCRIPTS,
    "ours.yaml": OUR_YAML,
    "kohya.toml": KOHYA_TOML,
    "kohya_dataset.toml": KOHYA_DATASET,
    "kohya_ss.json": json.dumps(KOHYA_PAGE, indent=1),
    "onetrainer.json": json.dumps(ONE_TRAINER, indent=1),
}
PLANS = (
    {"train_data_dir": "zib", "output_name": "new", "resolution": 64, "epochs": 3},
    {"train_data_dir": "zib", "output_name": "finished", "resolution": 64},
    {"train_data_dir": "elsewhere", "output_name": "new", "network_dim": 8, "lr": 1e-4},
    {"train_data_dir": "nowhere", "output_name": "new"},
    {"train_data_dir": "zib", "output_name": "new", "lora_rnk": 8},
)
DATASETS = ("zib", "elsewhere")
OF_ENVIRONMENT = {"needs", "ready", "downloads", "download_bytes", "device", "dtype"}


def ask_all(page: Page, root: Path) -> dict[str, Any]:
    """Ask for everything that is listed; change nothing."""
    found = {path: page.get(path) for path in paths_of(page)}
    for path in ("/status", "/settings", "/captioners"):
        found[path] = _without_environment(found[path])
    del found["/status"]["version"], found["/status"]["host"]["version"]
    found["/loras"] = _in_any_order(found["/loras"])
    for number, config in enumerate(PLANS):
        found[f"plan {number}"] = _without_estimates(page.send("POST", "/plan", {"config": config}))
    for path in sorted((root / "settings").iterdir()):
        found[f"import {path.name}"] = page.upload(
            "/settings/import", {path.name: path.read_bytes()}, "file"
        )
        settings = found[f"import {path.name}"].get("settings", {})
        found[f"export {path.name}"] = page.send("POST", "/settings/export", {"config": settings})
    lora = (root / "home/finished.safetensors").read_bytes()
    found["import a LoRA"] = page.upload("/settings/import", {"finished.safetensors": lora}, "file")
    return found


def _in_any_order(loras: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what goes by the files' times and by the length of the folder's name."""
    varying = ("modified_at", "size_bytes")
    told = [{k: v for k, v in each.items() if k not in varying} for each in loras]
    return sorted(told, key=lambda each: each["path"])


def _without_environment(answer: Any) -> Any:
    """Leave out what goes by the packages that are installed and by the machine."""
    if isinstance(answer, list):
        return [_without_environment(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    return {k: _without_environment(v) for k, v in answer.items() if k not in OF_ENVIRONMENT}


def paths_of(page: Page) -> Iterator[str]:
    """Name what can be asked."""
    yield from ("/status", "/settings", "/presets", "/labels", "/captioners", "/datasets", "/loras")
    yield from ("/jobs", "/jobs?kind=training", "/jobs?kind=captioning", "/storage")
    yield from (f"/presets/{name}/export" for name in ("mine", "character"))
    for job in page.get("/jobs"):
        yield from (f"/jobs/{job['id']}{what}" for what in ("", "/metrics", "/files", "/log"))
        yield f"/jobs/{job['id']}/metrics?since=3"
    for name in DATASETS:
        yield from (f"/datasets/{name}{what}" for what in ("", "/captions/export?format=csv"))


def _without_estimates(plan: dict[str, Any]) -> dict[str, Any]:
    """Leave out what goes by the machine's memory and speed."""
    return {name: value for name, value in plan.items() if "seconds" not in name}


def change_all(page: Page, root: Path) -> list[Any]:
    """Undo, redo, move, cancel, rename and remove; return all answers, with what is there then."""
    found: list[Any] = []
    for name in DATASETS:
        place = f"/datasets/{name}"
        undone = 0
        while undone < 30:
            answer = page.send("POST", f"{place}/captions/undo")
            found += [answer, _content(page, place)]
            undone += 1
            if "refusal" in answer or not answer.get("history", {}).get("undo", True):
                break
        for _ in range(undone // 2):
            found += [page.send("POST", f"{place}/captions/redo"), _content(page, place)]
        edit = {"action": "trigger_first", "text": "zib"}
        found += [page.send("POST", f"{place}/bulk-edit", edit), _content(page, place)]
    ids = {job["name"]: job["id"] for job in page.get("/jobs") if job["kind"] == "training"}
    for method, path, body in (
        ("PUT", "/presets/mine", {"settings": {"lora_rank": 3}}),
        ("PUT", "/presets/mine", {"settings": {"lora_rank": 3}, "overwrite": True}),
        ("POST", "/presets/mine/rename", {"to": "yours"}),
        ("DELETE", "/presets/für später", None),
        ("DELETE", "/labels/shapes", None),
        ("POST", f"/jobs/{ids['queued']}/move", {"position": 0}),
        ("POST", f"/jobs/{ids['queued']}/stop", None),
        ("POST", f"/jobs/{ids['finished']}/resume", {"changes": {"lora_rank": 9}}),
        ("POST", f"/jobs/{ids['stopped']}/resume", None),
        ("DELETE", f"/jobs/{ids['failed']}", None),
        ("POST", "/storage/clear", {"what": "trash"}),
        ("POST", "/storage/clear", {"what": "states"}),
    ):
        found.append([method, path, page.send(method, path, body)])
    found += [page.get(path) for path in ("/presets", "/labels", "/jobs", "/datasets")]
    return found


def _content(page: Page, place: str) -> list[Any]:
    return [page.get(place), page.get(f"{place}/captions/export?format=csv")]


def finish_all(page: Page) -> None:
    """Let what was interrupted and stopped go on to an end, and what waits run."""
    for name in ("interrupted", "stopped"):
        job = next(job for job in page.get("/jobs") if job["name"] == name)
        changes = {"max_train_steps": job["resume_step"] + 5}
        body = {"changes": changes, "anyway": True}
        answer = page.send("POST", f"/jobs/{job['id']}/resume", body)
        assert "refusal" not in answer, answer
        page.until(job["id"], "finished")
    for job in page.get("/jobs"):
        if job["state"] not in ("failed", "stopped"):
            page.until(job["id"], "finished")


def ends_in(root: Path) -> list[Path]:
    """Name the LoRAs that runs ended with after they had gone on."""
    runs = sorted((root / "runs").rglob("*.safetensors"))
    loras = [*runs, *sorted((root / "home").glob("*.safetensors"))]
    return [path for path in loras if "state" not in path.parts and "-0" not in path.stem]


def command_all(root: Path, package: Path = PACKAGE) -> dict[str, Any]:
    """Run commands that only look; return what they say and write."""
    said = commands(*command_lines(root), folder=root, package=package)
    written = {path.name: path.read_text("utf-8") for path in sorted((root / "written").iterdir())}
    return {"said": [[status, without_sizes(text)] for status, text in said], "written": written}


def without_sizes(text: str) -> str:
    """Leave out how much there is on the disk; and what a library says of itself."""
    lines = [line for line in text.splitlines() if "gemm_4bit_forward" not in line]
    return re.sub(r"[\d.]+ [kMG]B", "? kB", "\n".join(lines))


def command_lines(root: Path) -> list[list[str]]:
    """Name commands that only look, or write into `written`."""
    written, data = root / "written", str(root / "home/train_lora")
    written.mkdir(exist_ok=True)
    files = [*sorted((root / "settings").iterdir()), root / "home/finished.safetensors"]
    lines = [["jobs", "--data-dir", data], ["storage", "--data-dir", data]]
    lines += [
        ["import-settings", str(path), "--into", str(written / f"{path.stem}.yaml")]
        for path in files
    ]
    preset = ["--preset", "mine", "--data-dir", data]
    lines += [["new-config", str(written / "new.yaml")]]
    lines += [["new-config", str(written / "own.yaml"), *preset]]
    return lines
