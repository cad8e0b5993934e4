"""docs/settings.md is what the settings are: made from where they are declared."""

from pathlib import Path

from lora_trainer.interop.settings_table import reference_table

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Every setting, by the groups of the page. The names are those of YAML, TOML and JSON files, of the command line (`--lora-rank 16`) and of the API; kohya's names
are taken, too. Made from `lora_trainer/settings/config.py`; `python tests/journeys/test_readme.py` writes it anew.

"""  # noqa: E501


def test_the_reference_is_up_to_date():
    assert SETTINGS.read_text(encoding="utf-8") == HEAD + reference_table().strip() + "\n", (
        "run python tests/journeys/test_readme.py"
    )


if __name__ == "__main__":
    SETTINGS.write_text(HEAD + reference_table().strip() + "\n", encoding="utf-8")
