"""Make the data of an older version that `test_what_people_have.py` opens, by running that version.

    python tests/journeys/make_fixtures.py --package DIR

`DIR` is a working tree of the older version. Everything is made by its command line and its API.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.journeys import asking  # noqa: E402
from tests.journeys.older import (  # noqa: E402
    FIXTURES,
    PLACE,
    VARIES,
    Page,
    begin,
    command,
    commands,
    laid_out,
    move,
    page_of,
    stable,
    without_place,
)
from tests.journeys.reference import environment, hash_of_tensors  # noqa: E402

REFERENCE = Path(__file__).resolve().parent / "reference"
COLOURS = ("red", "green", "blue", "amber", "violet", "teal")
SIZES = [(64, 64), (96, 64), (64, 96), (64, 64), (64, 64), (96, 64)]

SMALL = dict(resolution=64, bucket_step=32, batch_size=2, lora_targets="attention", lora_rank=1)
SMALL |= dict(learning_rate=1e-3, save_precision="fp32", preview=False, keep_states=1, seed=5)
SIMPLE = dict(SMALL, output_name="simple", max_train_steps=24, save_state_steps=4)
RICH = dict(
    SMALL,
    output_name="rich",
    max_train_steps=30,
    save_state_steps=5,
    save_steps=12,
    random_crop=True,
    mirror=True,
    color_jitter=0.1,
    shuffle_caption=True,
    keep_tokens=1,
    caption_dropout_rate=0.1,
    caption_tag_dropout_rate=0.2,
    train_text_encoder=True,
    text_encoder_lr=5e-4,
    ema_decay=0.8,
    lora_dropout=0.1,
    gradient_accumulation_steps=2,
    lr_warmup_steps=4,
    noise_offset=0.05,
    min_snr_gamma=5,
    validation_split=0.2,
    validate_every=6,
    prior_loss_weight=0.5,
)
PRODIGY = dict(SMALL, output_name="prodigy", max_train_steps=20, save_state_steps=4, lora_rank=2)
PRODIGY |= dict(lora_type="lokr", optimizer="prodigy", learning_rate=1, random_crop=True)
RUNS = {"simple": SIMPLE, "rich": RICH, "prodigy": PRODIGY}


def write_pictures(folder: Path, count: int, *, seed: int) -> None:
    """Write captioned pictures of coarse random squares."""
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES[:count]):
        draws = random.Random(seed + number)
        cells = [draws.randbytes(3) for _ in range(256)]
        rows = (cells[y // 16 * 16 + x // 16] for y in range(height) for x in range(width))
        path = folder / f"{COLOURS[number]}.png"
        Image.frombytes("RGB", (width, height), b"".join(rows)).save(path)
        words = f"zib, {COLOURS[number]}, striped, number {number}"
        path.with_suffix(".txt").write_text(words, encoding="utf-8")


# --- Interrupted runs -----------------------------------------------------------------------------


def interrupt_run(root: Path, name: str, package: Path) -> None:
    """Begin a run from the command line and kill it when it has kept its progress."""
    values = {**RUNS[name], "base_model": str(checkpoint_in(root))}
    values |= dict(train_data_dir=str(root / "runs/pictures"), output_dir=str(root / "runs" / name))
    if name == "rich":
        values["reg_data_dir"] = str(root / "runs/class")
    settings = root / "runs" / f"{name}.yaml"
    settings.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    process = begin("train", "--config", settings, folder=root, package=package)
    states = root / "runs" / name / "train_lora/jobs/1/state"
    while process.poll() is None and not any(map(_step_of, states.glob("step-*.safetensors"))):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    steps = [_step_of(path) for path in states.glob("step-*.safetensors")]
    assert 0 < max(steps) < values["max_train_steps"], steps


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def checkpoint_in(root: Path) -> Path:
    """Return where the embedded checkpoint is."""
    return root / "models" / "lora-trainer-demo.safetensors"


# --- The page's data folder -----------------------------------------------------------------------


def fill_page(root: Path, package: Path) -> None:
    """Do on the page what people do, and kill it in the middle of a run."""
    write_pictures(root / "elsewhere", 3, seed=30)
    write_pictures(root / "upload", 6, seed=40)
    write_pictures(root / "doomed", 2, seed=60)
    with page_of(root / "home", checkpoint_in(root), package=package) as page:
        edit_data_sets(page, root)
        keep_presets(page)
        run_jobs(page, root)
    shutil.rmtree(root / "upload")


def edit_data_sets(page: Page, root: Path) -> None:
    """Upload, edit, rename, rotate, throw away, undo: a history of all kinds of steps."""
    page.do("POST", "/datasets", {"name": "zib"})
    files = {path.name: path.read_bytes() for path in sorted((root / "upload").iterdir())}
    page.upload("/datasets/zib/images", files)
    page.do("POST", "/datasets", {"name": "elsewhere", "path": str(root / "elsewhere")})
    zib = "/datasets/zib"
    captions = {"red.png": "zib, a red one", "blue.png": "zib, blau — später 蓝"}
    page.do("PATCH", f"{zib}/captions", {"changes": captions})
    page.do("POST", f"{zib}/bulk-edit", {"action": "append", "text": "flat"})
    lined = {"action": "replace", "find": "striped", "replace": "lined"}
    page.do("POST", f"{zib}/bulk-edit", lined)
    page.do("POST", f"{zib}/rename", {"filename": "green.png", "to": "grass.png"})
    page.do("POST", f"{zib}/rotate", {"filenames": ["amber.png"], "degrees": 90})
    page.do("POST", f"{zib}/trash", {"filenames": ["teal.png"]})
    page.do("PATCH", f"{zib}/captions", {"changes": {"violet.png": "mistaken"}})
    page.do("PATCH", f"{zib}/captions", {"changes": {"violet.png": "mistaken again"}})
    page.do("POST", f"{zib}/captions/undo")
    page.do("PATCH", "/datasets/elsewhere/captions", {"changes": {"red.png": "from elsewhere"}})
    page.do("POST", f"{zib}/checks", {"resolution": 64})


def keep_presets(page: Page) -> None:
    """Keep presets and a list of labels."""
    mine = {"settings": {"lora_rank": 12, "optimizer": "prodigy", "learning_rate": 1}}
    page.do("PUT", "/presets/mine", {**mine, "help": "What worked for the last one."})
    page.do("PUT", "/presets/für später", {"settings": {"epochs": 3, "use_dora": True}})
    page.do("PUT", "/labels/shapes", {"groups": {"shape": "prompt: a photo of {}\nround\nsquare"}})


def run_jobs(page: Page, root: Path) -> None:
    """Leave jobs of every state behind."""
    page.do("PATCH", "/datasets/zib/captions", {"changes": {"amber.png": ""}})
    fixed = {"captioner": "fixed", "options": {"template": "{trigger}, {filename}"}}
    captioning = page.do("POST", "/datasets/zib/autocaption", fixed)
    page.until(captioning["id"], "finished")

    finished = dict(SMALL, output_name="finished", max_train_steps=6, save_steps=3)
    finished |= dict(train_data_dir="zib", validation_split=0.2, validate_every=2)
    finished |= dict(trigger_word="zib", logging_dir=str(root / "home/figures"))
    page.until(start(page, finished), "finished")

    page.do("POST", "/queue/hold")
    doomed = start(page, dict(SMALL, output_name="failed", train_data_dir=str(root / "doomed")))
    shutil.rmtree(root / "doomed")
    page.do("POST", "/queue/start")
    page.until(doomed, "failed")

    long = dict(SMALL, train_data_dir="zib", max_train_steps=100_000, save_state_steps=2)
    stopped = start(page, dict(long, output_name="stopped"))
    wait_for_step(page, stopped, 5)
    page.do("POST", f"/jobs/{stopped}/snapshot")
    page.do("POST", f"/jobs/{stopped}/stop")
    page.until(stopped, "stopped")

    interrupted = start(page, dict(long, output_name="interrupted", save_state_steps=3))
    page.do("POST", "/queue/hold")
    elsewhere = dict(SMALL, train_data_dir="elsewhere", max_train_steps=5, lora_type="loha")
    start(page, dict(elsewhere, output_name="queued"))
    page.do("POST", "/datasets/elsewhere/autocaption", {**fixed, "overwrite": True})
    cancelled = start(page, dict(elsewhere, output_name="cancelled"))
    again = page.do("POST", f"/jobs/{cancelled}/duplicate", {})["id"]
    page.do("POST", f"/jobs/{again}/move", {"position": 0})
    page.do("POST", f"/jobs/{cancelled}/stop")
    wait_for_step(page, interrupted, 4)


def start(page: Page, settings: dict[str, Any]) -> str:
    """Put a run into the queue; return its id."""
    answer = page.do("POST", "/jobs", {"config": settings})
    assert "id" in answer, answer
    return answer["id"]


def wait_for_step(page: Page, job_id: str, step: int) -> None:
    """Wait until a run has kept its progress at a step."""
    while page.get(f"/jobs/{job_id}").get("state_step", 0) < step:
        time.sleep(0.01)


# --- What the older version answers ---------------------------------------------------------------


def write_settings(folder: Path) -> None:
    """Write the settings files that people bring."""
    folder.mkdir()
    for name, content in asking.SETTINGS_FILES.items():
        (folder / name).write_text(content, encoding="utf-8")


def record(package: Path, kind: str) -> Any:
    """Ask the older version in two places at two times; return what is the same."""
    found = []
    for number in range(2):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            root = laid_out(Path(folder).resolve() / f"place{'-of-old' * number}")
            age_files(root, number)
            command("demo-checkpoint", "--into", root / "models", folder=root, package=package)
            if kind == "commands":
                found.append(without_place(asking.command_all(root, package), root))
                continue
            with page_of(root / "home", checkpoint_in(root), package=package) as page:
                if kind == "questions":
                    found.append(without_place(asking.ask_all(page, root), root))
                    keep_document(page)
                else:
                    found.append(without_place(asking.change_all(page, root), root))
    return without_package(stable(*found), package)


def without_package(found: Any, package: Path) -> Any:
    """Mark what names a place in the code itself."""
    if isinstance(found, dict):
        return {key: without_package(value, package) for key, value in found.items()}
    if isinstance(found, list):
        return [without_package(value, package) for value in found]
    return VARIES if isinstance(found, str) and package.as_posix() in found else found


def age_files(root: Path, number: int) -> None:
    """Give files another time in each place."""
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            os.utime(path, (1.7e9 + 5000 * number, 1.7e9 + 5000 * number))


def keep_document(page: Page) -> None:
    """Keep what the API says of itself."""
    document = json.dumps(page.get("/openapi.json"), indent=1, sort_keys=True)
    (REFERENCE / "openapi.json").write_text(document + "\n", encoding="utf-8")


def keep_help(package: Path) -> None:
    """Keep the help texts of all commands."""
    folder = REFERENCE / "help"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [["--help"], *([name, "--help"] for name in asking.COMMANDS)]
    said = commands(*lines, folder=REFERENCE, package=package)
    for name, (status, text) in zip(("", *asking.COMMANDS), said):
        assert status == 0, text
        (folder / f"{name or 'all'}.txt").write_text(text, encoding="utf-8")


def keep_ends(package: Path) -> None:
    """Let the interrupted runs go on; keep the LoRAs that they end with."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = laid_out(Path(folder).resolve() / "place")
        command("demo-checkpoint", "--into", root / "models", folder=root, package=package)
        for name in RUNS:
            options = ("--config", root / "runs" / f"{name}.yaml")
            command("train", *options, folder=root, package=package)
        with page_of(root / "home", checkpoint_in(root), package=package) as page:
            asking.finish_all(page)
        ends = {path.stem: path for path in asking.ends_in(root)}
        (FIXTURES / "ends").mkdir()
        for name in (*RUNS, "interrupted", "stopped", "queued"):
            shutil.copyfile(ends[name], FIXTURES / "ends" / f"{name}.safetensors")
        hashes = {name: hash_of_tensors(path) for name, path in sorted(ends.items())}
    keep(FIXTURES / "ends.json", {"environment": environment(), "tensors": hashes})


def keep(path: Path, found: Any) -> None:
    """Write something down as JSON."""
    path.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def make_data(package: Path) -> None:
    """Make the folders and store them."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve() / "older"
        root.mkdir()
        command("demo-checkpoint", "--into", root / "models", folder=root, package=package)
        write_pictures(root / "runs/pictures", 6, seed=10)
        write_pictures(root / "runs/class/1_thing", 2, seed=20)
        for name in RUNS:
            interrupt_run(root, name, package)
        fill_page(root, package)
        write_settings(root / "settings")
        shutil.rmtree(root / "models")
        (root / "home.log").unlink()
        move(root, root.as_posix(), PLACE)
        shutil.rmtree(FIXTURES, ignore_errors=True)
        shutil.copytree(root, FIXTURES)


def main() -> None:
    """Make everything anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only-answers", action="store_true", help="keep the data as they are")
    args = parser.parse_args()
    package = args.package.resolve()
    if not args.only_answers:
        make_data(package)
        keep_ends(package)
    keep_help(package)
    for kind in ("questions", "changes", "commands"):
        found = record(package, kind)
        keep(FIXTURES / f"{kind}.json", found)
        print(f"{kind}: {json.dumps(found).count(VARIES)} values vary and are not compared")


if __name__ == "__main__":
    main()
