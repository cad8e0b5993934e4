"""Make and compare a reference of short training runs: a change of the code changed no result.

    python tests/journeys/reference.py make FILE.json       # run all, write down fingerprints
    python tests/journeys/reference.py compare FILE.json    # run all again; exit status 1 where
                                                            # anything differs
    python tests/journeys/reference.py inspect              # leave out each option in turn: which
                                                            # of them change nothing?

`--package DIR` runs the code in another folder, `--only NAME` single runs (may be repeated),
`--at-once N` so many side by side. Only the command line is used. Checkpoints and pictures are made
anew, and are the same each time. A PYTHONPATH that is set is looked in after the package.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
NARROW_CHECKPOINTS = "tests.support.narrow_checkpoint"  # has `write_family(name, folder)`
WRITE_FAMILIES = f"""
import sys
from pathlib import Path
from {NARROW_CHECKPOINTS} import write_family
for name in sys.argv[2:]:
    write_family(name, Path(sys.argv[1]))
"""
RUN_SECONDS = 600
PACKAGES = (
    ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")
    + ("open_clip_torch", "prodigyopt", "lion-pytorch", "dadaptation", "schedulefree")
    + ("bitsandbytes", "kernels")
)
CHANGING_METADATA = {
    "modelspec.date",
    "ss_session_id",
    "ss_training_started_at",
    "ss_training_finished_at",
}
TIMES = {"seconds"}  # columns of metrics.csv

Settings = dict[str, Any]
BASE: Settings = dict(
    resolution=64,
    bucket_step=32,
    batch_size=2,
    max_train_steps=6,
    learning_rate=1e-3,
    lora_rank=4,
    seed=7,
    save_precision="fp32",
    preview=False,
)


class Run(NamedTuple):
    """A run, or several in a row in one folder: `then` are the settings of those that follow.

    `{folder}` in a setting is the run's own folder, `{data}` the folder of the data sets.
    """

    checkpoint: str
    data: str
    settings: Settings
    then: tuple[Settings, ...] = ()


BOTH = dict(train_text_encoder=True, text_encoder_lr=5e-4)
TEXT_ONLY = dict(train_unet=False, **BOTH)
ALL_DROPOUTS = dict(lora_dropout=0.2, rank_dropout=0.2, module_dropout=0.2)
NOISE = dict(noise_offset=0.1, noise_offset_random=True)
NOISE |= dict(multires_noise_iterations=4, multires_noise_discount=0.4)
NOISE |= dict(input_perturbation=0.1, input_perturbation_random=True)
BLOCKS = dict(lora_blocks="IN01-IN08=8:4, MID=2, OUT03-OUT11")
BLOCKS |= dict(block_learning_rates="IN04-IN08=0.5, MID=2")

RUNS = {
    # --- Kinds of layers, on the embedded checkpoint -------------------------------------------
    "lora": Run("demo", "plain", {}),
    "lora-all-layers": Run("demo", "plain", dict(lora_targets="all", conv_rank=2, conv_alpha=1)),
    "lora-attention": Run("demo", "plain", dict(lora_targets="attention", lora_alpha=2)),
    "lora-ranks": Run("demo", "plain", dict(attention_rank=2, feed_forward_rank=6, rslora=True)),
    "lora-blocks": Run("demo", "plain", BLOCKS),
    "loha": Run("demo", "plain", dict(lora_type="loha", lora_targets="all")),
    "lokr": Run("demo", "plain", dict(lora_type="lokr", lokr_factor=4)),
    "dora": Run("demo", "plain", dict(use_dora=True)),
    "dora-lokr-both": Run("demo", "plain", dict(use_dora=True, lora_type="lokr", **BOTH)),
    "loraplus": Run(
        "demo",
        "plain",
        dict(loraplus_lr_ratio=16, loraplus_text_encoder_lr_ratio=4, **BOTH),
    ),
    "layer-dropouts": Run("demo", "plain", ALL_DROPOUTS),
    "layer-dropouts-loha": Run("demo", "plain", dict(lora_type="loha", **ALL_DROPOUTS)),
    "weight-norms": Run("demo", "plain", dict(scale_weight_norms=0.02, learning_rate=1e-2)),
    # --- What learns ---------------------------------------------------------------------------
    "text-encoder-only": Run("demo", "plain", TEXT_ONLY),
    "both": Run("demo", "plain", dict(text_encoder_rank=2, text_encoder_alpha=1, **BOTH)),
    "clip-skip": Run("demo", "plain", dict(clip_skip=2, **BOTH)),
    # --- Pictures ------------------------------------------------------------------------------
    "buckets": Run("demo", "sizes", dict(bucket_step=16, max_train_steps=8)),
    "no-buckets-random-crop": Run("demo", "sizes", dict(enable_bucket=False, random_crop=True)),
    "resolutions": Run(
        "demo",
        "sizes",
        dict(extra_resolutions="96", bucket_no_upscale=True, max_train_steps=10),
    ),
    "flip-crop-colour": Run("demo", "sizes", dict(mirror=True, random_crop=True, color_jitter=0.2)),
    "masks": Run("demo", "masked", dict(masked_loss="files", masked_loss_floor=0.1)),
    "alpha-masks": Run("demo", "alpha", dict(masked_loss="alpha")),
    "regularisation": Run(
        "demo",
        "plain",
        dict(reg_data_dir="{data}/class", prior_loss_weight=0.5, max_train_steps=8),
    ),
    "validation": Run(
        "demo",
        "plain",
        dict(validation_split=0.3, validate_every=2, max_train_steps=8),
    ),
    "folders-repeats": Run(
        "demo",
        "plain",
        dict(extra_data_dirs="2 x {data}/sizes", repeats=2, max_train_steps=8),
    ),
    # --- Captions ------------------------------------------------------------------------------
    "captions": Run(
        "demo",
        "plain",
        dict(
            shuffle_caption=True,
            keep_tokens=1,
            caption_dropout_rate=0.2,
            caption_tag_dropout_rate=0.3,
            trigger_word="zib",
            trigger_only_rate=0.2,
            max_train_steps=8,
        ),
    ),
    "wildcards": Run(
        "demo",
        "wild",
        dict(caption_lines="alternatives", caption_wildcards=True, **BOTH),
    ),
    "weighted-long": Run("demo", "long", dict(weighted_captions=True, max_token_length=150)),
    "weighted-long-both": Run("demo", "long", dict(weighted_captions=True, **BOTH)),
    "table": Run("demo", "table", dict(metadata_path="{data}/table/metadata.csv")),
    # --- Optimizers and schedules --------------------------------------------------------------
    "adamw-args": Run(
        "demo",
        "plain",
        dict(optimizer_args="betas=0.8,0.95 eps=1e-6", weight_decay=0.3),
    ),
    "lion": Run("demo", "plain", dict(optimizer="lion", learning_rate=1e-4, weight_decay=0.3)),
    "adafactor": Run("demo", "plain", dict(optimizer="adafactor")),
    "prodigy": Run(
        "demo",
        "plain",
        dict(optimizer="prodigy", learning_rate=1, train_text_encoder=True, text_encoder_lr=1),
    ),
    "dadaptation": Run("demo", "plain", dict(optimizer="dadaptation", learning_rate=1)),
    "schedulefree": Run("demo", "plain", dict(optimizer="schedulefree", scheduler="constant")),
    "warmup-restarts": Run(
        "demo",
        "plain",
        dict(scheduler="cosine_with_restarts", scheduler_cycles=2, lr_warmup_steps=2),
    ),
    "polynomial": Run("demo", "plain", dict(scheduler="polynomial", scheduler_power=3)),
    "one-cycle": Run("demo", "plain", dict(scheduler="one_cycle", max_grad_norm=0.05)),
    "ema": Run("demo", "plain", dict(ema_decay=0.8, save_steps=2)),
    "accumulation": Run("demo", "plain", dict(gradient_accumulation_steps=3, max_train_steps=4)),
    # --- Loss and noise ------------------------------------------------------------------------
    "min-snr": Run("demo", "plain", dict(min_snr_gamma=1)),
    "huber": Run("demo", "plain", dict(loss_type="huber", huber_c=0.3, huber_schedule="snr")),
    "smooth-l1-debiased": Run(
        "demo",
        "plain",
        dict(loss_type="smooth_l1", debiased_estimation=True, v_pred_like_loss=0.5),
    ),
    "noise": Run("demo", "plain", NOISE),
    "timesteps": Run(
        "demo",
        "plain",
        dict(
            timestep_sampling="logit_normal",
            logit_mean=0.5,
            logit_std=0.7,
            min_timestep=100,
            max_timestep=800,
        ),
    ),
    # --- Precision, saving, going on -----------------------------------------------------------
    "bf16": Run("demo", "plain", dict(mixed_precision="bf16", save_precision="bf16")),
    "checkpointing-fp16-file": Run(
        "demo",
        "plain",
        dict(gradient_checkpointing=True, save_precision="fp16", save_every_n_epochs=1),
    ),
    "init-lora": Run(
        "demo",
        "plain",
        dict(output_name="first", lora_rank=3),
        (dict(init_lora="{folder}/first.safetensors", seed=8),),
    ),
    "init-lora-lokr-dora": Run(
        "demo",
        "plain",
        dict(output_name="first", lora_type="lokr", use_dora=True),
        (dict(init_lora="{folder}/first.safetensors", seed=8),),
    ),
    "longer-afterwards": Run(
        "demo",
        "sizes",
        dict(scheduler="constant", ema_decay=0.5, mirror=True, max_train_steps=3, save_steps=2),
        (
            dict(
                scheduler="constant",
                ema_decay=0.5,
                mirror=True,
                max_train_steps=7,
                save_steps=2,
                resume=True,
            ),
        ),
    ),
    "state-every-step": Run("demo", "plain", dict(save_state_steps=1, keep_states=3)),
    # --- Families ------------------------------------------------------------------------------
    "sd1": Run("sd1", "sizes", BOTH),
    "sd1-inpainting": Run("sd1-inpainting", "masked", dict(masked_loss="files", **BOTH)),
    "sd2": Run("sd2", "sizes", BOTH),
    "sd2-v": Run("sd2-v", "sizes", dict(min_snr_gamma=5, scale_v_pred_loss=True)),
    "sd2-inpainting": Run("sd2-inpainting", "plain", dict(max_train_steps=4)),
    "sdxl": Run("sdxl", "sizes", dict(max_train_steps=4, **BOTH)),
    "sdxl-v": Run("sdxl-v", "sizes", dict(min_snr_gamma=5, max_train_steps=5)),
    "sdxl-v-both-loha": Run("sdxl-v", "long", dict(lora_type="loha", max_train_steps=4, **BOTH)),
    "sdxl-inpainting": Run("sdxl-inpainting", "plain", dict(max_train_steps=4)),
    "ssd-1b": Run("ssd-1b", "plain", dict(max_train_steps=4, lora_targets="all")),
    "sd1-as-v": Run("sd1", "plain", dict(prediction_type="v_prediction", zero_terminal_snr="on")),
}


# --- Pictures -------------------------------------------------------------------------------------

SQUARE = [(64, 64)] * 6
SHAPES = [(64, 64), (96, 64), (64, 128), (128, 64), (80, 112), (64, 64), (160, 96), (64, 96)]
COLOURS = ("red", "green", "blue", "amber", "violet", "teal", "black", "white")
LONG = ", ".join(f"{colour} (stripe:1.{n}) and [line] {n}" for n, colour in enumerate(COLOURS))


def write_data(folder: Path) -> None:
    """Write all data sets."""
    write_pictures(folder / "plain", SQUARE)
    write_pictures(folder / "sizes", SHAPES)
    write_pictures(folder / "class" / "1_thing", SQUARE[:3], seed=50)
    write_pictures(folder / "long", SQUARE[:4], caption=f"zib, {LONG}, {LONG}, number {{}}")
    wild = "a {{red|blue}} thing, {0}\nanother, {{small|{{very |}}large}}\nround"
    write_pictures(folder / "wild", SQUARE[:4], caption=wild)
    write_pictures(folder / "alpha", SQUARE, mode="RGBA")
    for path in write_pictures(folder / "masked", SQUARE):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (8, 8, 40, 56))
        mask.save(path.with_name(f"{path.stem}-masklabel.png"))
    write_table(folder / "table")


def write_pictures(
    folder: Path, sizes: list, *, seed: int = 0, caption: str = "", mode: str = "RGB"
) -> list[Path]:
    """Write captioned pictures of coarse random squares; no drawing that a library may change."""
    folder.mkdir(parents=True)
    paths = []
    for number, (width, height) in enumerate(sizes):
        draws = random.Random(seed + number)
        cells = {at: draws.randbytes(len(mode)) for at in range(1024)}
        rows = (cells[y // 16 * 32 + x // 16] for y in range(height) for x in range(width))
        path = folder / f"{number}.png"
        Image.frombytes(mode, (width, height), b"".join(rows)).save(path)
        words = caption or f"zib, {COLOURS[number]}, striped, number {{}}, a thing"
        path.with_suffix(".txt").write_text(words.format(number), encoding="utf-8")
        paths.append(path)
    return paths


def write_table(folder: Path) -> None:
    """Write pictures whose captions stand in a metadata.csv."""
    rows = [("filename", "prompt")]
    for path in write_pictures(folder, SQUARE[:4]):
        path.with_suffix(".txt").unlink()
        rows.append((path.name, f'"a thing", number {path.stem}'))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


# --- Running --------------------------------------------------------------------------------------


class Workshop:
    """A folder with checkpoints and pictures in which runs of one code tree are made."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder, self.package, self.checkpoints = folder, package, {}
        write_data(folder / "data")

    def make_checkpoints(self, names: set[str]) -> None:
        """Write the checkpoints that runs need."""
        place, families = self.folder / "models", sorted(names - {"demo"})
        if "demo" in names:
            self._python(self.package, "-m", "lora_trainer", "demo-checkpoint", "--into", place)
            self.checkpoints["demo"] = next(place.glob("*demo.safetensors"))
        if families:
            self._python(REPOSITORY, "-c", WRITE_FAMILIES, place, *families)
        for name in families:
            self.checkpoints[name] = _in_order(place / f"{name}.safetensors")

    def run(self, name: str, run: Run, number: str = "") -> dict[str, Any]:
        """Make a run; return its fingerprints, or `{"error": …}` where it fails."""
        folder = self.folder / "runs" / (name + number)
        data = self.folder / "data"
        for settings in (run.settings, *run.then):
            values = {**BASE, "output_name": "result", **settings}
            values |= dict(base_model=self.checkpoints[run.checkpoint], output_dir=folder)
            values |= dict(train_data_dir=data / run.data)
            options = [*_options(values, folder=folder, data=data)]
            status, said = self._try(self.package, "-m", "lora_trainer", "train", *options)
            if status:
                return {"error": self._without_places(said.strip().splitlines()[-1])}
        found = fingerprints(folder)
        notes = [line for line in said.splitlines() if line.startswith("note: ")]
        found["said"] = [self._without_places(line) for line in notes]
        shutil.rmtree(folder)
        return found

    def _without_places(self, text: str) -> str:
        return text.replace(str(self.folder), "FOLDER")

    def _python(self, package: Path, *arguments: Any) -> str:
        status, said = self._try(package, *arguments)
        if status:
            raise SystemExit(said)
        return said

    def _try(self, package: Path, *arguments: Any) -> tuple[int, str]:
        places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        world = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
        world |= {"PYTHONIOENCODING": "utf-8", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=world,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=RUN_SECONDS,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")


def _options(values: Settings, **places: Path) -> Iterator[str]:
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if name == "resume":
            yield option
        elif isinstance(value, bool):
            yield from (option, "true" if value else "false")
        else:
            text = str(value)
            for place, folder in places.items():
                text = text.replace(f"{{{place}}}", str(folder))
            yield from (option, text)


def _in_order(path: Path) -> Path:
    """Write a file's metadata in the order of their names: the library writes them in any order."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path


# --- Fingerprints ---------------------------------------------------------------------------------


def fingerprints(folder: Path) -> dict[str, Any]:
    """Return what tells this run's results apart from others, for each file that matters."""
    found: dict[str, Any] = {"tensors": {}, "metadata": {}, "metrics": {}}
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        found["tensors"][name] = hash_of_tensors(path)
        if "state" not in path.parts:
            found["metadata"][name] = hash_of_metadata(path)
    for path in sorted(folder.rglob("metrics.csv")):
        found["metrics"][path.relative_to(folder).as_posix()] = hash_of_metrics(path)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found["files"] = sorted(re.sub(r"tfevents\..*", "tfevents", name) for name in names)
    return found


def hash_of_tensors(path: Path) -> str:
    """Return a hash of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    with safetensors.safe_open(str(path), "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_of_metadata(path: Path) -> str:
    """Return a hash of the metadata, but for what changes with the time of day."""
    with safetensors.safe_open(str(path), "pt") as file:
        metadata = {k: v for k, v in (file.metadata() or {}).items() if k not in CHANGING_METADATA}
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def hash_of_metrics(path: Path) -> str:
    """Return a hash of all columns but those of times."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def hash_of_file(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    """Describe what the figures may depend on beside the code."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {"processor": _processor(), "torch CPU": torch.backends.cpu.get_cpu_capability()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


# --- Commands -------------------------------------------------------------------------------------


def make_all(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Make these runs; return the reference."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workshop = Workshop(Path(folder).resolve(), args.package.resolve())
        workshop.make_checkpoints({RUNS[name].checkpoint for name in names})
        hashes = {name: hash_of_file(path) for name, path in workshop.checkpoints.items()}
        with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
            jobs = {name: pool.submit(workshop.run, name, RUNS[name]) for name in names}
            runs = {name: _told(name, job.result()) for name, job in jobs.items()}
    return {"environment": environment(), "checkpoints": hashes, "runs": runs}


def _told(name: str, found: dict[str, Any]) -> dict[str, Any]:
    print(f"{name}: {found.get('error', 'made')}", file=sys.stderr, flush=True)
    return found


def make(args: argparse.Namespace) -> int:
    """Write a reference; runs that are not made anew stay as they were."""
    names = args.only or list(RUNS)
    found = make_all(args, names)
    if args.only and args.file.is_file():
        old = json.loads(args.file.read_text(encoding="utf-8"))
        if old["environment"] != found["environment"]:
            raise SystemExit(f"{args.file} was made elsewhere: make all of it anew.")
        runs = old["runs"] | found["runs"]
        found["runs"] = {name: runs[name] for name in RUNS if name in runs}
        found["checkpoints"] = old["checkpoints"] | found["checkpoints"]
    args.file.parent.mkdir(parents=True, exist_ok=True)
    args.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(names)} runs, {sum('error' in run for run in found['runs'].values())} failed")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Make the runs again and print a table; return 1 where any differs."""
    wanted = json.loads(args.file.read_text(encoding="utf-8"))
    names = args.only or list(wanted["runs"])
    if missing := [name for name in names if name not in wanted["runs"]]:
        print(f"{args.file} has no run named {', '.join(missing)}.")
        return 1
    found = make_all(args, names)
    differs = False
    for name in names:
        different = list(differences(wanted["runs"][name], found["runs"][name]))
        print(f"{name:28} {'; '.join(different) or 'same'}")
        differs |= bool(different)
    for name in found["checkpoints"]:
        if found["checkpoints"][name] != wanted["checkpoints"][name]:
            print(f"The checkpoint {name} itself is another, so that its runs must differ.")
            differs = True
    _compare_environments(wanted["environment"], found["environment"])
    print("Something differs." if differs else f"All {len(names)} runs are the same, bit for bit.")
    return int(differs)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Say what is not as in the reference."""
    for part in sorted(wanted.keys() | found.keys()):
        old, new = wanted.get(part), found.get(part)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)]
            yield f"{part} differ ({', '.join(changed)})"
        else:
            yield f"{part}: {old!r} → {new!r}"


def _compare_environments(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            was, now = wanted.get(name, "none"), found.get(name, "none")
            print(f"ANOTHER ENVIRONMENT: {name} was {was} and is {now}; figures may differ for it.")


def inspect(args: argparse.Namespace) -> int:
    """Leave out each of a run's own settings in turn; name those without which nothing changes."""
    idle = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workshop = Workshop(Path(folder).resolve(), args.package.resolve())
        names = args.only or list(RUNS)
        workshop.make_checkpoints({RUNS[name].checkpoint for name in names})
        with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
            whole = {name: pool.submit(workshop.run, name, RUNS[name]) for name in names}
            without = {
                (name, left_out): pool.submit(workshop.run, name, lesser, f" {number}")
                for name in names
                for number, (left_out, lesser) in enumerate(_lesser(RUNS[name]))
            }
            for (name, left_out), job in without.items():
                same = job.result().get("tensors") == whole[name].result().get("tensors")
                idle += same
                words = job.result().get("error") or ("CHANGES NOTHING" if same else "counts")
                print(f"{name:28} {left_out:34} {words}", flush=True)
    print(f"{idle} settings change no tensor.")
    return 0


def _lesser(run: Run) -> Iterator[tuple[str, Run]]:
    for name in run.settings:
        rest = {key: value for key, value in run.settings.items() if key != name}
        if name != "output_name":
            yield name, run._replace(settings=rest)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (make, compare, inspect):
        words = command.__doc__.splitlines()[0]
        one = commands.add_parser(command.__name__, help=words, description=words)
        if command is not inspect:
            one.add_argument("file", type=Path, metavar="FILE.json")
        one.add_argument("--only", action="append", choices=RUNS, metavar="NAME")
        one.add_argument("--package", type=Path, default=REPOSITORY, metavar="DIR")
        one.add_argument("--at-once", type=int, default=2, metavar="N")
        one.set_defaults(run=command)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
