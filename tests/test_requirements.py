"""What a person reads in the tab where the extension cannot start."""

import sys

import pytest

from lora_trainer import requirements


@pytest.mark.parametrize(
    "module, package", [("peft", "peft==0.13.2"), ("regex", "regex==2023.12.25")]
)
def test_a_missing_package_is_named_with_the_command_that_adds_it(module, package):
    problem = ModuleNotFoundError(f"No module named '{module}'", name=f"{module}.part")
    sentence, command = requirements.explain(problem)
    assert f"No module named '{module}'" in sentence and "Forge" not in sentence
    assert command == f'"{sys.executable}" -m pip install --no-deps {package}'


def test_another_host_is_named_as_such():
    problem = ModuleNotFoundError("No module named 'modules.x'", name="modules.x")
    sentence, command = requirements.explain(problem)
    assert "AUTOMATIC1111's WebUI 1.10" in sentence and not command


def test_any_other_error_points_to_the_console():
    sentence, command = requirements.explain(ZeroDivisionError("division by zero"))
    assert "ZeroDivisionError: division by zero" in sentence and not command
