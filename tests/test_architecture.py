"""The import rule of DESIGN.md: one direction, from the entry points down to contracts and settings; heavy or host packages in their place."""
import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lora_trainer"
ENTRIES = {f"{PACKAGE}.__main__", f"{PACKAGE}.demo.pretrain", f"{PACKAGE}.demo.pretrain_clip", f"{PACKAGE}.bench"}
WEBUI = {f"{PACKAGE}.hosts.webui", f"{PACKAGE}.hosts.webui_guard", f"{PACKAGE}.hosts.webui_captioners"}
# What a part may import besides itself. `demo` lends its vocabulary writer to hosts, its CLIP to captioners and its commands to the command line.
MAY_IMPORT = {
    "core": set(),
    "captioning": {"core", "demo"},
    "jobs": {"core", "captioning"},
    "interfaces": {"core", "captioning", "jobs", "demo", "bench"},
    "hosts": {"core", "captioning", "jobs", "demo"},
    "demo": {"core", "jobs"},
}
CORE_PACKAGES = {"torch", "peft", "safetensors", "numpy", "pandas", "PIL", "yaml", "tomli", "tomllib", "regex", "charset_normalizer"}
PLACES = {
    "modules": WEBUI, "ldm": {f"{PACKAGE}.hosts.webui"}, "sgm": {f"{PACKAGE}.hosts.webui"},
    "gradio": {f"{PACKAGE}.interfaces"}, "uvicorn": {f"{PACKAGE}.interfaces"}, "fastapi": {f"{PACKAGE}.interfaces", f"{PACKAGE}.hosts.webui_guard"},
    "open_clip": {f"{PACKAGE}.captioning", f"{PACKAGE}.demo.pretrain_clip"}, "timm": {f"{PACKAGE}.captioning"}, "huggingface_hub": {f"{PACKAGE}.captioning"},
    "diffusers": {f"{PACKAGE}.hosts.standalone", f"{PACKAGE}.demo.pretrain", f"{PACKAGE}.bench"},
}
LOWEST = {"errors", "layouts"}                 # import nothing of ours
FOUNDATION = {"contracts", "config"}           # import the lowest only; every step may import them
STORY = {"pipeline"}                           # imports the steps; no step imports it


def modules() -> dict[str, Path]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(name: str, path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions, by absolute name."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[:len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names}
    return found


IMPORTS = {name: imports_of(name, path) for name, path in modules().items()}


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


@pytest.mark.parametrize("name", IMPORTS)
def test_parts_import_only_downwards(name):
    part = part_of(name)
    if name in ENTRIES or not part:
        return
    assert part in MAY_IMPORT, f"{name} is in no part of the house; add {part!r} to DESIGN.md's picture and here"
    ours = {part_of(other) for other in IMPORTS[name] if other.startswith(PACKAGE + ".")} - {part}
    assert ours <= MAY_IMPORT[part], f"{name} imports {sorted(ours - MAY_IMPORT[part])}"


@pytest.mark.parametrize("name", [name for name in IMPORTS if part_of(name) == "core"])
def test_core_imports_only_its_packages(name):
    others = {other.split(".")[0] for other in IMPORTS[name]} - {PACKAGE} - set(sys.stdlib_module_names)
    assert others <= CORE_PACKAGES, f"{name} imports {sorted(others - CORE_PACKAGES)}"


@pytest.mark.parametrize("package", PLACES)
def test_packages_stay_in_their_place(package):
    users = {name for name, imported in IMPORTS.items() if any(within(other, {package}) for other in imported)}
    strangers = {name for name in users if not within(name, PLACES[package])}
    assert not strangers, f"{package} is imported by {sorted(strangers)}"


def test_steps_do_not_know_the_story():
    for name, imported in IMPORTS.items():
        if part_of(name) != "core":
            continue
        step, ours = name.rpartition(".")[2], {other.rpartition(".")[2] for other in imported if other.startswith(f"{PACKAGE}.core.")}
        if step in LOWEST:
            assert not ours, f"{name} imports {sorted(ours)}"
        elif step in FOUNDATION:
            assert ours <= LOWEST, f"{name} imports {sorted(ours - LOWEST)}"
        elif step not in STORY:
            assert not ours & STORY, f"{name} imports {sorted(ours & STORY)}"


def test_no_circles():
    graph = {name: {other for other in imported if other in IMPORTS and other != name} for name, imported in IMPORTS.items()}
    while leaves := [name for name, imported in graph.items() if not imported]:
        graph = {name: imported - set(leaves) for name, imported in graph.items() if name not in leaves}
    assert not graph, f"modules that import each other: {sorted(graph)}"


def test_the_walk_sees_imports_inside_functions():
    assert "diffusers" in {other.split(".")[0] for other in IMPORTS[f"{PACKAGE}.hosts.standalone"]}
    assert f"{PACKAGE}.core.errors" in IMPORTS[f"{PACKAGE}.hosts.standalone"]
