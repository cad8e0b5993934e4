"""The table of settings for docs/settings.md."""

from lora_trainer.settings.config import GROUPS, KOHYA_NAMES, all_settings, setting_of
from lora_trainer.settings.reference import reference_table


def test_the_reference_has_every_setting_once_with_its_names():
    table = reference_table()
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(
        setting.name for setting in all_settings()
    )
    assert all(f"### {heading}" in table for heading in GROUPS.values()) and all(
        f"`{theirs}`" in table for theirs in KOHYA_NAMES
    )
    row = next(row for row in rows if "`lora_rank`" in row)
    assert (
        row == "| `lora_rank` | Rank | `network_dim`, `rank`, `network_rank`, `dim`, `lora_dim`,"
        " `lora_r` | 16 | 1 to 1024 | " + setting_of("lora_rank").help + " |"
    )
