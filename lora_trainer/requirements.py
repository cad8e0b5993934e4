"""The packages that the extension adds to a WebUI, pinned, and the message for a person who lacks
one. Imports nothing: install.py and the tab use this when nothing else can be imported.
"""

import sys

PEFT = "peft==0.13.2"
# The other packages that are needed, by module; a WebUI has most of them.
EXPECTED = {
    "yaml": "PyYAML==6.0.1",
    "pandas": "pandas==2.1.4",
    "safetensors": "safetensors==0.4.2",
    "PIL": "Pillow==9.5.0",
    "psutil": "psutil==5.9.5",
    "regex": "regex==2023.12.25",
    "charset_normalizer": "charset-normalizer==3.3.2",
    "tensorboardX": "tensorboardX==2.6.2.2",
    **({"tomli": "tomli==2.0.1"} if sys.version_info < (3, 11) else {}),
}
# What is missing without a package; without any other there is no training.
WITHOUT = {
    "tensorboardX==2.6.2.2": "without figures for TensorBoard",
    "tomli==2.0.1": "without settings from TOML files",
}


def explain(problem: BaseException) -> tuple[str, str]:
    """Say why the extension cannot start, and the command that mends it ("" where there is
    none).
    """
    if not isinstance(problem, ImportError):
        found = f"{type(problem).__name__}: {problem}"
        return f"Train LoRA cannot start: {found}. The console says where.", ""
    module = (problem.name or "").partition(".")[0]
    package = PEFT if module == "peft" else EXPECTED.get(module)
    if package is None:
        return (
            f"Train LoRA cannot start here: {problem}. It needs AUTOMATIC1111's WebUI 1.10; Forge"
            " and reForge are not supported yet.",
            "",
        )
    return (
        f"Train LoRA cannot start: {problem}. Close the WebUI, run this command, and start it"
        " again:",
        f'"{sys.executable}" -m pip install --no-deps {package}',
    )
