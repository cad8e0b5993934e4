"""What a page is told of the settings: nothing that is not declared in settings/config.py, and
conditions that can come true.
"""

import pytest

from lora_trainer.jobs import settings_form
from lora_trainer.settings.config import GROUPS, all_settings

SETTINGS = {setting.name: setting for setting in all_settings()}
CONDITIONS = [
    (setting.name, condition) for setting in all_settings() for condition in setting.effective_when
]


def test_every_setting_is_in_a_group_that_has_a_title():
    told = settings_form.form()
    assert [entry["name"] for entry in told["settings"]] == list(SETTINGS) and {
        group["name"]: group["title"] for group in told["groups"]
    } == GROUPS
    assert {entry["group"] for entry in told["settings"]} <= set(GROUPS) and all(
        group["title"] for group in told["groups"]
    )
    by_name = {entry["name"]: entry for entry in told["settings"]}
    assert "network_dim" in by_name["lora_rank"]["kohya"] and by_name["huber_c"][
        "effective_when"
    ] == [{"loss_type": ("huber", "smooth_l1")}]
    assert by_name["seed"]["effective_when"] == []


@pytest.mark.parametrize("name, condition", CONDITIONS)
def test_conditions_name_settings_and_values_that_there_are(name, condition):
    assert name in SETTINGS and condition and name not in condition
    for other, wanted in condition.items():
        choices = SETTINGS[other].choices
        assert isinstance(wanted, bool) or (choices and set(wanted) < set(choices)), (
            f"{name} wants {other} to be {wanted}"
        )


def test_no_setting_waits_for_itself_over_others():
    waits_for = {
        setting.name: {other for condition in setting.effective_when for other in condition}
        for setting in all_settings()
    }
    for name in waits_for:
        seen, found = set(), {name}
        while found := {other for each in found for other in waits_for.get(each, ())} - seen:
            assert name not in found, f"{name} waits for itself"
            seen |= found


def test_an_optimizer_that_is_not_installed_says_how_to_get_it(monkeypatch):
    names = SETTINGS["optimizer"].choices
    there = [
        dict(
            name=name,
            title=name.title(),
            available=name != "prodigy",
            needs="" if name == "adamw" else f"pip install {name}",
        )
        for name in names
    ]
    monkeypatch.setattr(settings_form, "optimizer_choices", lambda: there)
    choices = next(
        entry for entry in settings_form.form()["settings"] if entry["name"] == "optimizer"
    )["choices"]
    assert [choice["value"] for choice in choices] == list(names) and choices[0] == {
        "value": "adamw",
        "title": "Adamw",
        "needs": "",
    }
    assert {choice["value"]: choice["needs"] for choice in choices if choice["needs"]} == {
        "prodigy": "pip install prodigy"
    }
