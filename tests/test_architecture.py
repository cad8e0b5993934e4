"""The import rule of docs/architecture.md: one direction, from the entry points down to errors and
settings; heavy or host packages in their place.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lora_trainer"
# The import rule, from the lowest floor up: a folder may import those below its own floor, and
# nothing beside it.
FLOORS = (
    {"base"},
    {"settings"},
    {"dataset", "lora"},
    {"editor", "training", "captioning", "interop"},
    {"runs"},
    {"jobs"},
    {"hosts", "web"},
    {"cli"},
)
# What runs before anything else can be imported; entry points, which tie folders together; and the
# embedded world, which they and its own commands use: it lends its vocabulary to the standalone
# host and its CLIP to the captioners.
ENTRIES = {"requirements", "__main__", "bench", "bench_dataset", "demo"}
MAY_IMPORT_ENTRIES = {
    f"{PACKAGE}.cli.main": {"bench", "bench_dataset", "demo"},
    f"{PACKAGE}.captioning.models.clip_labels": {"demo"},
    f"{PACKAGE}.hosts.standalone.loading": {"demo"},
}
BELOW_JOBS = {folder for floor in FLOORS[:5] for folder in floor} - {"captioning"}
THEIR_PACKAGES = {
    "torch",
    "peft",
    "safetensors",
    "numpy",
    "pandas",
    "PIL",
    "yaml",
    "tomli",
    "tomllib",
    "regex",
    "charset_normalizer",
}
PLACES = {
    "modules": {f"{PACKAGE}.hosts.webui"},
    "ldm": {f"{PACKAGE}.hosts.webui.model_state"},
    "sgm": {f"{PACKAGE}.hosts.webui.model_state"},
    "gradio": {f"{PACKAGE}.web"},
    "uvicorn": {f"{PACKAGE}.web"},
    "fastapi": {f"{PACKAGE}.web", f"{PACKAGE}.hosts.webui.guard"},
    "open_clip": {f"{PACKAGE}.captioning", f"{PACKAGE}.demo.pretrain_clip"},
    "timm": {f"{PACKAGE}.captioning"},
    "huggingface_hub": {f"{PACKAGE}.captioning"},
    "tensorboardX": {f"{PACKAGE}.jobs.tensorboard"},
    "diffusers": {f"{PACKAGE}.hosts.standalone", f"{PACKAGE}.demo.pretrain", f"{PACKAGE}.bench"},
}
MOST_FILES = 25  # of a folder


def modules() -> dict[str, Path]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module that names are imported from, as seen in a package."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, node.module] if node.module else above)


def imports_of(name: str, path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions, by absolute name."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            found |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base
                for alias in node.names
            }
    return found


IMPORTS = {name: imports_of(name, path) for name, path in modules().items()}


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def floor_of(folder: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if folder in floor)


@pytest.mark.parametrize("name", IMPORTS)
def test_no_arrow_runs_up_or_sideways(name):
    folder = part_of(name)
    if folder in ENTRIES | {""}:
        return
    ours = {part_of(other) for other in IMPORTS[name] if other.startswith(PACKAGE + ".")}
    ours -= {folder, *MAY_IMPORT_ENTRIES.get(name, ())}
    below = {other for floor in FLOORS[: floor_of(folder)] for other in floor}
    assert ours <= below, f"{name} imports {sorted(ours - below)}"


@pytest.mark.parametrize("name", [name for name in IMPORTS if part_of(name) in BELOW_JOBS])
def test_what_training_is_imports_few_packages(name):
    others = (
        {other.split(".")[0] for other in IMPORTS[name]} - {PACKAGE} - set(sys.stdlib_module_names)
    )
    assert others <= THEIR_PACKAGES, f"{name} imports {sorted(others - THEIR_PACKAGES)}"


def test_a_folder_can_be_overlooked():
    for folder in {path.parent for path in modules().values()}:
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


@pytest.mark.parametrize("package", PLACES)
def test_packages_stay_in_their_place(package):
    users = {
        name
        for name, imported in IMPORTS.items()
        if any(within(other, {package}) for other in imported)
    }
    strangers = {name for name in users if not within(name, PLACES[package])}
    assert not strangers, f"{package} is imported by {sorted(strangers)}"


def test_no_circles():
    graph = {
        name: {other for other in imported if other in IMPORTS and other != name}
        for name, imported in IMPORTS.items()
    }
    while leaves := [name for name, imported in graph.items() if not imported]:
        graph = {
            name: imported - set(leaves) for name, imported in graph.items() if name not in leaves
        }
    assert not graph, f"modules that import each other: {sorted(graph)}"


def test_the_walk_sees_imports_inside_functions():
    assert "diffusers" in {
        other.split(".")[0] for other in IMPORTS[f"{PACKAGE}.hosts.standalone.host"]
    }
    assert f"{PACKAGE}.base.errors" in IMPORTS[f"{PACKAGE}.hosts.standalone.host"]


# --- Hosts replace functions that read files ------------------------------------------------------

RENAMING = {
    "safetensors.torch.load_file",
    "safetensors.torch.load_model",
    "torch.load",
}  # Forge's rename a file that fails to load
READS_TORCH_FILES = {
    f"{PACKAGE}.captioning.models.open_clip_models"
}  # by a Path, which those leave alone: tests/captioning shows it
OF_OUR_OWN = {
    f"{PACKAGE}.demo.pretrain",
    f"{PACKAGE}.demo.pretrain_clip",
}  # how the embedded models were made; never run in a host


@pytest.mark.parametrize("name", [name for name in IMPORTS if name not in OF_OUR_OWN])
def test_no_foreign_file_is_read_by_a_function_that_a_host_may_have_replaced(name):
    called = {call for call, _ in calls_of(modules()[name].read_text(encoding="utf-8"))} & RENAMING
    assert called <= ({"torch.load"} if name in READS_TORCH_FILES else set()), (
        f"{name} calls {sorted(called)}; base/tensor_files.py reads tensors"
    )


# --- Nothing that a file says is run, and no archive is unpacked ----------------------------------

SHIPPED = [
    *modules().values(),
    *sorted((ROOT / "scripts").glob("*.py")),
    ROOT / "preload.py",
    ROOT / "install.py",
]
UNPICKLERS = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
NEVER = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "pandas.read_pickle",
    "pandas.read_hdf",
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "zipfile.ZipFile",
    "tarfile.open",
    "tarfile.TarFile",
}


# Uploaded ZIPs are read here alone, file by file and within limits, and where each goes is decided
# by us; nothing is extracted by an archive's own names.
READS_ARCHIVES = {f"{PACKAGE}/editor/zip_archive.py": ["calls zipfile.ZipFile"]}


def calls_of(source: str) -> list[tuple[str, ast.Call]]:
    """Every call in a text, by its name as far as it is written with dots; names that were imported
    from a module are given with it.
    """
    tree, imported = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            imported |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        elif isinstance(node, ast.Import):
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            found.append((imported.get(first, first) + dot + rest, node))
    return found


def dangers_in(source: str) -> list[str]:
    """What in a Python text reads pickles, runs texts, or unpacks archives."""
    found = [
        f"imports {name}"
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] in UNPICKLERS
    ]
    for name, call in calls_of(source):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (name in NEVER and not _writes_archive(name, call)) or name.endswith(
            (".read_pickle", ".extract", ".extractall", ".unpack_archive")
        ):
            found.append(f"calls {name}")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("calls torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"calls {name} with allow_pickle")
        if given.get("shell", "False") != "False":
            found.append(f"calls {name} with shell")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"calls {name} with trust_remote_code")
    return found


def _writes_archive(name: str, call: ast.Call) -> bool:
    """Tell whether a ZIP is made, which unpacks nothing."""
    return name == "zipfile.ZipFile" and len(call.args) > 1 and ast.unparse(call.args[1]) == "'w'"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_run_or_unpacked(path):
    assert dangers_in(path.read_text(encoding="utf-8")) == READS_ARCHIVES.get(
        path.relative_to(ROOT).as_posix(), []
    )


@pytest.mark.parametrize(
    "source",
    [
        "import pickle; pickle.load(f)",
        "from pickle import loads; loads(x)",
        "import pickle as p; p.loads(x)",
        "import torch; torch.load(f)",
        "torch.load(f, weights_only=False)",
        "from torch import load; load(f)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import pandas as pd; pd.read_pickle(f)",
        "import yaml; yaml.load(t, Loader=yaml.Loader)",
        "import joblib",
        "from dill import loads",
        "eval(text)",
        "exec(text)",
        "import zipfile; zipfile.ZipFile(f).extractall()",
        "archive.extract(member)",
        "from zipfile import ZipFile; ZipFile(f)",
        "import zipfile; zipfile.ZipFile(f, 'r')",
        "import tarfile; tarfile.open(f)",
        "import shutil; shutil.unpack_archive(f)",
        "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
    ],
)
def test_the_search_for_dangers_finds(source):
    assert dangers_in(source)


# --- Names are imported from where they are defined -----------------------------------------------


def names_bound_in(tree: ast.Module) -> set[str]:
    """Return what a module defines itself, not what it imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


DEFINED = {
    name: names_bound_in(ast.parse(path.read_text(encoding="utf-8")))
    for name, path in modules().items()
}


@pytest.mark.parametrize("name", IMPORTS)
def test_nothing_is_re_exported(name):
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert "__all__" not in DEFINED[name]
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]:
        source = absolute(node, package)
        for alias in node.names if source in DEFINED else ():
            if f"{source}.{alias.name}" not in DEFINED:
                assert alias.name in DEFINED[source], f"{alias.name} is not defined in {source}"
