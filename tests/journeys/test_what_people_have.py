"""Data, commands and requests of an older version still do what they did.

`make_fixtures.py` made the data and the answers with that version. What is compared is what users
see: the command line, the page's API, and files. TRAIN_LORA_PACKAGE names another code tree.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.journeys import asking
from tests.journeys.older import (
    FIXTURES,
    REPOSITORY,
    Page,
    begin,
    command,
    commands,
    differences,
    ended,
    laid_out,
    page_of,
    without_place,
)
from tests.journeys.reference import environment, hash_of_tensors

REFERENCE = REPOSITORY / "tests" / "journeys" / "reference"
RUNS = ("simple", "rich", "prodigy")
# The checks of pictures took more than can be trained with; now they take the settings' own ranges.
MENDED = {
    "/datasets/{name}/checks/post/requestBody/content/application/json/schema/properties/"
    + difference
    for difference in (
        "resolution/maximum was 4096 and is 2048",
        "bucket_step/maximum was 512 and is 256",
    )
}
IN_WORDS_ONLY = {"operationId", "title", "summary", "description", "tags"}


def stored(name: str) -> Any:
    """Read what the older version said or made."""
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def needs_page() -> None:
    """Skip where the page cannot be served."""
    gradio = pytest.importorskip("gradio", reason="the page needs gradio")
    if int(gradio.__version__.split(".")[0]) < 6:
        pytest.skip("the standalone page needs gradio 6")
    pytest.importorskip("diffusers", reason="the standalone page trains with diffusers")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Write the checkpoint on which the older runs learned; return its folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    command("demo-checkpoint", "--into", folder / "models", folder=folder)
    return folder / "models"


@pytest.fixture
def root(tmp_path, models) -> Path:
    """Lay out the older data, with the checkpoint where it was."""
    root = laid_out(tmp_path / "older")
    (root / "models").symlink_to(models, target_is_directory=True)
    return root


@pytest.fixture
def page(root) -> Iterator[Page]:
    """Serve the page with the older data."""
    needs_page()
    with page_of(root / "home", root / "models" / "lora-trainer-demo.safetensors") as page:
        yield page


def assert_as_it_was(name: str, found: Any) -> None:
    """Compare with what is stored; what is new is nobody's loss."""
    different = list(differences(stored(name), found))
    assert not different, "\n".join(different[:30])


def test_everything_is_listed_and_read_as_before(page, root):
    assert_as_it_was("questions", without_place(asking.ask_all(page, root), root))
    document = json.loads((REFERENCE / "openapi.json").read_text(encoding="utf-8"))
    found = missing(resolved(document)["paths"], resolved(page.get("/openapi.json"))["paths"])
    gone = [each for each in found if each.partition("/v1")[2] not in MENDED]
    assert not gone, "\n".join(gone[:30])


def test_undo_and_all_other_changes_work_as_before(page, root):
    assert_as_it_was("changes", without_place(asking.change_all(page, root), root))


def test_what_was_interrupted_on_the_page_goes_on_and_what_waits_runs(page, root):
    asking.finish_all(page)
    assert_ends(root / "home", "interrupted", "stopped", "queued")


def test_killed_runs_go_on_to_the_very_same_loras(root):
    pytest.importorskip("diffusers", reason="the command line trains with diffusers")
    anyway = [] if same_torch() else ["--resume-anyway"]
    files = [root / "runs" / f"{name}.yaml" for name in RUNS]
    started = [begin("train", "--config", file, *anyway, folder=root) for file in files]
    for name, said in zip(RUNS, map(ended, started)):
        assert "going on at step" in said
        assert_ends(root / "runs" / name, name)


def test_commands_say_what_they_said(root):
    assert_as_it_was("commands", without_place(asking.command_all(root), root))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse writes help otherwise")
def test_every_option_is_there_with_its_help(tmp_path):
    names = ("", *asking.COMMANDS)
    lines = [[*name.split(), "--help"] for name in names]
    for name, (status, text) in zip(names, commands(*lines, folder=tmp_path)):
        old = (REFERENCE / "help" / f"{name or 'all'}.txt").read_text(encoding="utf-8")
        found = entries(text)
        assert not status and not [entry for entry in entries(old) if entry not in found], name


# --- Comparing ------------------------------------------------------------------------------------


def same_torch() -> bool:
    """Tell whether this is the environment that the older version ran in."""
    return stored("ends")["environment"] == environment()


def assert_ends(folder: Path, *names: str) -> None:
    """LoRAs are those that the older version ended with; in another environment nearly so."""
    for name in names:
        path = folder / f"{name}.safetensors"
        wanted, found = load_file(str(FIXTURES / "ends" / path.name)), load_file(str(path))
        assert wanted.keys() == found.keys()
        if same_torch():
            assert hash_of_tensors(path) == stored("ends")["tensors"][name], name
        for key in wanted:
            assert torch.allclose(wanted[key], found[key], rtol=0.02, atol=2e-4), (name, key)


def entries(text: str) -> list[str]:
    """Return the options and commands of a help text, each with its help in one line."""
    body = text.partition("\n\n")[2]
    found = re.split(r"\n(?=  ? ? ? ?[-\w])", body)
    return [" ".join(entry.split()) for entry in found if entry.startswith("  ")]


def resolved(document: dict[str, Any]) -> Any:
    """Put schemas in the place of references to them, whose names may change."""
    schemas = document.get("components", {}).get("schemas", {})

    def within(value: Any) -> Any:
        if isinstance(value, list):
            return [within(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return within(schemas[value["$ref"].rpartition("/")[2]])
        return {k: within(v) for k, v in value.items() if k not in IN_WORDS_ONLY or _is_schema(v)}

    return within(document)


def _is_schema(value: Any) -> bool:
    """Tell a property of the name `title` from a title."""
    return isinstance(value, dict)


def missing(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Say what a document had and has no more; additions are allowed, but for what is required."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if key not in new:
                yield f"{at}/{key} is gone"
            else:
                yield from missing(old[key], new[key], f"{at}/{key}")
    elif isinstance(old, list) and isinstance(new, list):
        yield from _missing_in_list(old, new, at)
    elif old != new:
        yield f"{at} was {old!r} and is {new!r}"


def _missing_in_list(old: list[Any], new: list[Any], at: str) -> Iterator[str]:
    for each in old:
        if not any(not list(missing(each, other)) for other in new):
            yield f"{at} has no {each!r} any more"
    if at.endswith("/required") and len(new) > len(old):
        yield f"{at} asks for more: {new!r}"
