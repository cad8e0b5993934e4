"""The reference of all settings as a Markdown table, for docs/settings.md, with kohya's names."""

import dataclasses

from ..settings.config import GROUPS, TrainConfig


def reference_table() -> str:
    """Return every setting as a Markdown table, a part for each group: our name, title, kohya's and
    other names, default, range, what it does.
    """
    lines = []
    for group, heading in GROUPS.items():
        lines += [
            f"### {heading}",
            "",
            "| setting | title | other names | default | range | what it does |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            _row(field)
            for field in dataclasses.fields(TrainConfig)
            if field.metadata["group"] == group
        ]
        lines.append("")
    return "\n".join(lines)


def _row(field: dataclasses.Field) -> str:
    facts = field.metadata
    default = (
        {True: "on", False: "off"}[field.default]
        if isinstance(field.default, bool)
        else f"{field.default:g}"
        if isinstance(field.default, float)
        else str(field.default)
    )
    limits = (
        ", ".join(f"`{choice}`" for choice in facts["choices"])
        if facts["choices"]
        else (
            ""
            if facts["minimum"] is None
            else f"{facts['minimum']:.10g} to {facts['maximum']:.10g}"
            + (f" {facts['unit']}" if facts["unit"] else "")
        )
    )
    cells = [
        f"`{field.name}`",
        facts["title"],
        ", ".join(
            f"`{name}`"
            for name in (*facts["kohya"], *facts["also"], *SPECIAL_NAMES.get(field.name, ()))
        ),
        default,
        limits,
        facts["help"],
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


SPECIAL_NAMES = {  # kohya's names that are not plain aliases: another form or meaning
    "save_every_n_epochs": ("save_every_n_epochs, save_n_epoch_ratio",),
    "keep_snapshots": ("save_last_n_steps (as a number of snapshots)",),
    "train_text_encoder": ("network_train_unet_only (reversed)",),
    "train_unet": ("network_train_text_encoder_only (reversed)",),
    "lora_type": ("network_module",),
    "lora_targets": ("network_args conv_dim, preset",),
    "lora_blocks": ("network_args block_dims",),
    "block_learning_rates": ("network_args down_lr_weight, mid_lr_weight, up_lr_weight",),
    "loraplus_lr_ratio": ("network_args loraplus_lr_ratio, loraplus_unet_lr_ratio",),
    "loraplus_text_encoder_lr_ratio": ("network_args loraplus_text_encoder_lr_ratio",),
    "lokr_factor": ("network_args factor",),
    "rslora": ("network_args rs_lora",),
    "use_dora": ("network_args dora_wd",),
    "rank_dropout": ("network_args rank_dropout",),
    "module_dropout": ("network_args module_dropout",),
    "prediction_type": ("v_parameterization",),
    "masked_loss": ("masked_loss, alpha_mask",),
    "caption_lines": ("enable_wildcard",),
    "caption_wildcards": ("enable_wildcard",),
    "color_jitter": ("color_aug",),
}
