"""Tests mirror the sources: who changes lora_trainer/lora/save.py runs tests/lora/test_save.py.

A module of more than 60 lines has that file, or an entry in `TESTED_IN`. A test file bears the name
of a module (test_<module>.py, or test_<module>_<aspect>.py beside it), or is in `OF_NO_MODULE`.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES, TESTS = ROOT / "lora_trainer", ROOT / "tests"
FEW_LINES = 60
# Modules, or whole folders, whose tests are elsewhere: the file or folder, and how it gets there
# where no import shows it.
TESTED_IN = {
    "base/contracts.py": ("tests/hosts/test_families.py", ""),
    "captioning/hub_process.py": ("tests/captioning/test_hub_download.py", "which starts it"),
    "cli/main.py": ("tests/cli/test_train.py", ""),
    "demo/pretrain.py": ("tests/demo/test_checkpoint.py", "which judges the weights it made"),
    "demo/pretrain_clip.py": ("tests/demo/test_clip.py", "which judges the weights it made"),
    "hosts/standalone": ("tests/hosts/standalone/test_host.py", ""),
    "hosts/webui": ("tests/webui", "a WebUI that runs, with the extension in it"),
    "jobs/caption_service.py": ("tests/jobs/test_captioning_job.py", "as `service.captions`"),
    "jobs/presets.py": ("tests/web/routes/test_presets.py", "by the API, as `service.presets`"),
    "runs/prepare.py": ("tests/runs/test_pipeline.py", "the first stage of every run"),
    "web/responses.py": ("tests/journeys/test_fuzz.py", "whose checks hold answers to it"),
}
# Folders and files that go through many modules.
OF_NO_MODULE = {
    "journeys": "a browser, kills, fuzzing, the documents",
    "webui": "a WebUI that runs",
    "hosts/test_families.py": "every family of checkpoints in the standalone host",
    "hosts/test_same_lora.py": "a LoRA does the same wherever it is loaded",
    "runs/test_every_setting.py": "each setting changes what is learned",
    "test_architecture.py": "the import rule",
    "test_install.py": "install.py, beside the package",
    "test_mirror.py": "this file",
}


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


MODULES = [path.relative_to(SOURCES) for path in sorted(SOURCES.rglob("*.py"))]
MODULES = [module for module in MODULES if module.name != "__init__.py"]
LARGE = [module for module in MODULES if lines_of(SOURCES / module) > FEW_LINES]
TEST_FILES = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py"))]


def mirror_of(module: Path) -> Path:
    return module.with_name(f"test_{module.name}")


def entries_of(path: Path, table: dict) -> set[str]:
    """Return the entries of a table that a path is of: its own, and those of its folders."""
    return {place.as_posix() for place in (path, *path.parents)} & table.keys()


def imports_of(path: Path) -> set[str]:
    """Return the modules that a test file imports, and what it imports from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("module", LARGE, ids=Path.as_posix)
def test_a_module_has_its_test_file_or_says_where_it_is_tested(module):
    assert mirror_of(module) in TEST_FILES or entries_of(module, TESTED_IN), (
        f"tests/{mirror_of(module).as_posix()} is missing"
    )


@pytest.mark.parametrize("test_file", TEST_FILES, ids=Path.as_posix)
def test_a_test_file_is_named_after_a_module_or_says_why_not(test_file):
    words = test_file.stem.split("_")[1:]
    beginnings = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
    named = any(test_file.with_name(f"{each}.py") in MODULES for each in beginnings)
    assert named != bool(entries_of(test_file, OF_NO_MODULE)), "either, and not both"


@pytest.mark.parametrize("entry", TESTED_IN)
def test_an_entry_is_needed_and_true(entry):
    place, how = TESTED_IN[entry]
    modules = [module for module in LARGE if entry in entries_of(module, TESTED_IN)]
    assert any(mirror_of(module) not in TEST_FILES for module in modules), "it is not needed"
    files = [ROOT / place] if place.endswith(".py") else [*(ROOT / place).rglob("test_*.py")]
    assert files and all(file.is_file() for file in files)
    name = f"lora_trainer.{entry.removesuffix('.py').replace('/', '.')}"
    imported = {other for file in files for other in imports_of(file)}
    shown = any(other == name or other.startswith(f"{name}.") for other in imported)
    assert shown != bool(how), "an import shows how it gets there, or a phrase says it"


@pytest.mark.parametrize("entry", OF_NO_MODULE)
def test_what_is_of_no_module_is_there(entry):
    assert (TESTS / entry).exists() and OF_NO_MODULE[entry]
