"""Warnings that know what would set them right."""

import json

from lora_trainer.settings.remedies import ActionableWarning, advice_in, details_of, set_to


def test_a_remedy_names_the_setting_as_the_page_does():
    assert set_to("learning_rate", 1e-4).label == "Set learning rate to 0.0001"
    assert set_to("optimizer", "prodigy").label == "Set optimizer to prodigy"
    assert set_to("lora_rank", 8).described() == {
        "label": "Set rank to 8",
        "changes": {"lora_rank": 8},
    }


def test_a_warning_is_a_string_and_its_remedies_come_with_it():
    warning = ActionableWarning("Too fast.", set_to("learning_rate", 1e-4), set_to("lora_rank", 8))
    assert warning == "Too fast." and json.dumps([warning]) == '["Too fast."]'
    found = advice_in(["A plain one.", warning])
    assert [(each["message"], each["changes"]) for each in found] == [
        ("Too fast.", {"learning_rate": 1e-4}),
        ("Too fast.", {"lora_rank": 8}),
    ]


def test_a_refusal_has_the_same_remedies():
    remedy = set_to("lora_rank", 8)
    assert details_of(remedy) == {"remedies": [remedy.described()]}
