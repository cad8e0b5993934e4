"""TrainConfig: the settings of a run, each declared once with all that is known of it.

A new setting is one field here and nothing else: the command line, the page's form, the API's
schema, resuming, presets and docs/settings.md derive from its `Setting` (setting.py). What of them
contradicts each other is in rules.py, other trainers' names in aliases.py.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from .aliases import aliases_of, rename_aliases, to_our_names, unknown_setting
from .files import read_settings
from .lora_name import check_name
from .setting import (
    Condition,
    OnResume,
    PathKind,
    Setting,
    SettingValues,
    WrittenSettings,
    settings_of,
)

GROUPS = {
    "pictures": "Pictures",
    "main": "The settings that matter",
    "output": "What comes out",
    "data": "Pictures in detail",
    "captions": "Captions while training",
    "network": "LoRA layers",
    "text": "Text encoder",
    "optimizer": "Optimizer and schedule",
    "loss": "Loss and noise",
    "memory": "Speed and memory",
    "saving": "Saving and sharing",
}
"""The parts of the page and of the reference in their order, with their titles."""

# Conditions of several settings: a LoRA that is gone on from (init_lora) brings its own layers.
NEW_LAYERS: Condition = {"init_lora": False}
NEW_UNET_LAYERS: Condition = {"train_unet": True, **NEW_LAYERS}
NEW_FEED_FORWARD_LAYERS: Condition = {
    **NEW_UNET_LAYERS,
    "lora_targets": ("attention+feed-forward", "all"),
}
NEW_CONVOLUTION_LAYERS: Condition = {**NEW_UNET_LAYERS, "lora_targets": ("all",)}
NEW_TEXT_ENCODER_LAYERS: Condition = {"train_text_encoder": True, **NEW_LAYERS}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. `parse` checks each by itself, `rules.check_contradictions` all
    together.
    """

    # What to learn from
    train_data_dir: str = Setting(
        "",
        "Pictures",
        "Folder with the pictures and their captions, or the name of a data set, or OneTrainer's"
        " concepts .json.",
        group="pictures",
        also=("data_dir", "train_dir", "dataset_dir", "dataset_path"),
        on_resume=OnResume.BY_EFFECT,
        path=PathKind.DATASET,
        kept_in_lora=False,
        kept_in_presets=False,
        hidden=True,
    ).field()
    extra_data_dirs: str = Setting(
        "",
        "More folders",
        "Further folders of pictures, one a line, each may begin with its own repeats: 5 x D:\\more"
        " pictures.",
        group="pictures",
        on_resume=OnResume.BY_EFFECT,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()
    metadata_path: str = Setting(
        "",
        "Caption table",
        "A metadata.csv (filename,prompt) or metadata.jsonl to read captions from, "
        "or kohya's metadata .json, where a picture has no .txt or .caption beside it.",
        group="pictures",
        kohya=("in_json", "metadata_file"),
        on_resume=OnResume.BY_EFFECT,
        path=PathKind.INPUT,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()
    trigger_word: str = Setting(
        "",
        "Trigger word",
        "A rare word that calls your subject in a prompt. It is put in front of every caption "
        "that lacks it.",
        group="main",
        kohya=("trigger_words",),
        on_resume=OnResume.BY_EFFECT,
        kept_in_presets=False,
    ).field()
    base_model: str = Setting(
        "",
        "Base model",
        "Checkpoint file to train against. Empty: the one that is loaded.",
        group="output",
        kohya=("pretrained_model_name_or_path",),
        also=("base_model_path", "pretrained_model", "model_path"),
        on_resume=OnResume.BY_EFFECT,
        path=PathKind.INPUT,
        kept_in_lora=False,
        kept_in_presets=False,
        hidden=True,
    ).field()

    # What to call it
    output_name: str = Setting(
        "",
        "Name",
        "The LoRA's file name; you will write <lora:name:0.8> in a prompt.",
        group="main",
        also=("lora_name",),
        on_resume=OnResume.BY_EFFECT,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()
    output_dir: str = Setting(
        "",
        "Output folder",
        "Where the LoRA is saved. Empty: the WebUI's LoRA folder.",
        group="output",
        also=("output_path",),
        on_resume=OnResume.BY_EFFECT,
        path=PathKind.OUTPUT,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()
    overwrite: bool = Setting(
        False,
        "Replace a LoRA of this name",
        "Off: a name that is taken is refused before anything starts.",
        group="output",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
        kept_in_presets=False,
        hidden=True,
    ).field()
    preferred_weight: float = Setting(
        0.8,
        "Preferred weight",
        "Weight written into the tag and the LoRA's card.",
        group="output",
        minimum=0.0,
        maximum=2.0,
        on_resume=OnResume.FREE,
    ).field()
    negative_text: str = Setting(
        "",
        "Negative prompt",
        "Written into the LoRA's card: the WebUI adds it to the "
        "negative prompt when the card is clicked.",
        group="output",
        on_resume=OnResume.FREE,
    ).field()

    # The settings that matter
    resolution: int = Setting(
        512,
        "Resolution",
        "Pictures are scaled to this area. 512 for SD1, 768 for SD2, 1024 for SDXL.",
        group="main",
        minimum=64,
        maximum=2048,
        unit="px",
    ).field()
    extra_resolutions: str = Setting(
        "",
        "More resolutions",
        "Learn each picture in these, too, as in 768, 1024: the LoRA then draws well in "
        "several sizes. Each adds as many steps to an epoch. Empty: only Resolution.",
        group="data",
        on_resume=OnResume.BY_EFFECT,
    ).field()
    epochs: int = Setting(
        10,
        "Epochs",
        "How often each picture is seen (times its repeats).",
        group="main",
        minimum=1,
        maximum=10_000,
        kohya=("max_train_epochs", "num_train_epochs"),
        also=("max_epochs", "num_epochs", "train_epochs"),
        effective_when=({"max_train_steps": False},),
        on_resume=OnResume.FREE,
    ).field()
    max_train_steps: int = Setting(
        0,
        "Steps",
        "Train exactly this many steps. 0: as many as the epochs need.",
        group="main",
        minimum=0,
        maximum=1_000_000,
        also=("max_steps", "train_steps"),
        on_resume=OnResume.FREE,
    ).field()
    batch_size: int = Setting(
        1,
        "Batch size",
        "Pictures per step. More is steadier and needs more memory.",
        group="main",
        minimum=1,
        maximum=256,
        kohya=("train_batch_size",),
        also=("batch",),
    ).field()
    learning_rate: float = Setting(
        1e-4,
        "Learning rate",
        "How big each correction is. 0.0001 suits most; too high breaks pictures. Prodigy and"
        " D-Adaptation find it themselves: 1.",
        group="main",
        minimum=1e-9,
        maximum=10.0,
        kohya=("unet_lr",),
        also=("lr",),
        on_resume=OnResume.FREE,
    ).field()
    lora_rank: int = Setting(
        16,
        "Rank",
        "How much the LoRA can hold. 8 to 32 suit characters and objects, 32 to 64 styles.",
        group="main",
        minimum=1,
        maximum=1024,
        kohya=("network_dim",),
        also=("rank", "network_rank", "dim", "lora_dim", "lora_r"),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    lora_alpha: float = Setting(
        0.0,
        "Alpha",
        "Strength while training: alpha / rank. 0: as the rank. Twice the rank, as some advise,"
        " doubles the effect of each step: halve the learning rate with it.",
        group="main",
        minimum=0.0,
        maximum=4096,
        kohya=("network_alpha",),
        also=("alpha",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    task_type: str = Setting(
        "stable-diffusion",
        "Task",
        "What is trained.",
        choices=("stable-diffusion",),
        group="output",
        on_resume=OnResume.FATAL,
        kept_in_lora=False,
        kept_in_presets=False,
        hidden=True,
    ).field()

    # Pictures in detail
    repeats: int = Setting(
        1,
        "Repeats",
        "How often each picture counts in an epoch. A folder named 10_name gives 10 by itself.",
        group="data",
        minimum=1,
        maximum=1000,
        kohya=("dataset_repeats", "num_repeats"),
        on_resume=OnResume.BY_EFFECT,
    ).field()
    enable_bucket: bool = Setting(
        True,
        "Aspect-ratio buckets",
        "Keep each picture's shape as far as possible. Off: everything is cropped to a square.",
        group="data",
    ).field()
    bucket_step: int = Setting(
        64,
        "Bucket step",
        "Sides of buckets are multiples of this.",
        group="data",
        minimum=8,
        maximum=256,
        unit="px",
        kohya=("bucket_reso_steps",),
        effective_when=({"enable_bucket": True},),
    ).field()
    bucket_min: int = Setting(
        0,
        "Shortest side",
        "No bucket's side is shorter. 0: no limit.",
        group="data",
        minimum=0,
        maximum=2048,
        unit="px",
        kohya=("min_bucket_reso",),
        effective_when=({"enable_bucket": True},),
    ).field()
    bucket_max: int = Setting(
        0,
        "Longest side",
        "No bucket's side is longer. 0: four times the resolution.",
        group="data",
        minimum=0,
        maximum=8192,
        unit="px",
        kohya=("max_bucket_reso",),
        effective_when=({"enable_bucket": True},),
        beside="bucket_min",
    ).field()
    bucket_no_upscale: bool = Setting(
        False,
        "Never enlarge",
        "Small pictures are trained in their own size, rounded down to the bucket step, not"
        " scaled up.",
        group="data",
        effective_when=({"enable_bucket": True},),
    ).field()
    mirror: bool = Setting(
        False,
        "Mirror",
        "Also learn from mirrored pictures. Not for text, logos or one-sided features.",
        group="data",
        kohya=("flip_aug",),
    ).field()
    random_crop: bool = Setting(
        False,
        "Random crop",
        "Cut the part that does not fit the bucket at random, not from both sides evenly.",
        group="data",
    ).field()
    color_jitter: float = Setting(
        0.0,
        "Colour jitter",
        "Vary brightness, contrast, saturation and hue by up to this share. Not for styles, whose"
        " colours matter.",
        group="data",
        minimum=0.0,
        maximum=0.5,
        kohya_forms=("color_aug",),
    ).field()
    masked_loss: str = Setting(
        "off",
        "Mask",
        "Learn only from a part of each picture. alpha: what is not transparent. files: the white"
        " part of name-masklabel.png or mask/name.png beside the picture.",
        choices=("off", "alpha", "files"),
        group="data",
        kohya_forms=("masked_loss, alpha_mask",),
    ).field()
    masked_loss_floor: float = Setting(
        0.0,
        "Outside the mask",
        "How much the rest of the picture counts. 0: nothing.",
        group="data",
        minimum=0.0,
        maximum=1.0,
        effective_when=({"masked_loss": True},),
        beside="masked_loss",
    ).field()
    reg_data_dir: str = Setting(
        "",
        "Regularisation pictures",
        "Folder with pictures of the same class that are not your subject; they keep the model from"
        " forgetting what such things look like.",
        group="data",
        on_resume=OnResume.BY_EFFECT,
        path=PathKind.INPUT,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()
    prior_loss_weight: float = Setting(
        1.0,
        "Their weight",
        "How much regularisation pictures count beside yours.",
        group="data",
        minimum=0.0,
        maximum=10.0,
        effective_when=({"reg_data_dir": True},),
        beside="reg_data_dir",
    ).field()
    validation_split: float = Setting(
        0.0,
        "Validation",
        "Share of the pictures that is kept out of training and only measured: its loss rises when"
        " the LoRA learns by heart.",
        group="data",
        minimum=0.0,
        maximum=0.5,
        on_resume=OnResume.BY_EFFECT,
    ).field()
    validate_every: int = Setting(
        0,
        "Measured every",
        "0: once an epoch.",
        group="data",
        minimum=0,
        maximum=100_000,
        unit="steps",
        kohya=("validate_every_n_steps",),
        effective_when=({"validation_split": True},),
        on_resume=OnResume.FREE,
        beside="validation_split",
    ).field()

    # Captions while training
    caption_extension: str = Setting(
        ".txt",
        "Caption file",
        "Which one counts where a picture has both.",
        choices=(".txt", ".caption"),
        group="captions",
    ).field()
    caption_lines: str = Setting(
        "join",
        "Several lines",
        "What several lines in a caption mean. join: they are one caption. first: only the first"
        " line counts. alternatives: one of them is drawn each time.",
        choices=("join", "first", "alternatives"),
        group="captions",
        kohya_forms=("enable_wildcard",),
    ).field()
    caption_wildcards: bool = Setting(
        False,
        "Wildcards",
        "{red|blue} in a caption is one of them, drawn each time; {{ and }} are braces. Off:"
        " captions are read literally.",
        group="captions",
        kohya_forms=("enable_wildcard",),
    ).field()
    shuffle_caption: bool = Setting(
        False,
        "Shuffle tags",
        "Put the comma-separated parts of captions in another order each time, so that none depends"
        " on its place.",
        group="captions",
    ).field()
    keep_tokens: int = Setting(
        0,
        "Tags kept in front",
        "So many of the first parts stay where they are and are never dropped.",
        group="captions",
        minimum=0,
        maximum=255,
        effective_when=(
            {"shuffle_caption": True},
            {"caption_tag_dropout_rate": True},
        ),
    ).field()
    keep_tokens_separator: str = Setting(
        "",
        "Kept up to",
        "Everything before this sign, such as |||, stays in front instead; everything after a"
        " second one stays at the end.",
        group="captions",
    ).field()
    caption_dropout_rate: float = Setting(
        0.0,
        "Caption dropout",
        "Share of the times that a picture is shown without any caption.",
        group="captions",
        minimum=0.0,
        maximum=1.0,
    ).field()
    caption_tag_dropout_rate: float = Setting(
        0.0,
        "Tag dropout",
        "Share of the tags left out each time.",
        group="captions",
        minimum=0.0,
        maximum=1.0,
    ).field()
    trigger_only_rate: float = Setting(
        0.0,
        "Trigger word alone",
        "Share of the times that the caption is the trigger word and nothing else.",
        group="captions",
        minimum=0.0,
        maximum=1.0,
        effective_when=({"trigger_word": True},),
    ).field()
    max_token_length: int = Setting(
        225,
        "Longest caption",
        "In tokens, about 3 for 2 words; more is cut off. Captions are read in portions of 75, as"
        " prompts are.",
        group="captions",
        minimum=75,
        maximum=750,
        unit="tokens",
    ).field()
    weighted_captions: bool = Setting(
        False,
        "Weighted captions",
        "(word:1.2) and [word] in captions mean what they mean in prompts. Off: captions are read"
        " literally.",
        group="captions",
    ).field()

    # LoRA layers
    lora_type: str = Setting(
        "lora",
        "Kind",
        "lora: what everybody uses. loha and lokr: other ways to build the change from few numbers;"
        " lokr makes small files.",
        choices=("lora", "loha", "lokr"),
        group="network",
        kohya_forms=("network_module",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    lora_targets: str = Setting(
        "attention+feed-forward",
        "Layers",
        "Which layers learn. attention: small files; attention+feed-forward: kohya's usual "
        "set; all: convolutions too, for styles and textures.",
        choices=("attention", "attention+feed-forward", "all"),
        group="network",
        kohya_forms=("network_args conv_dim, preset",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    attention_rank: int = Setting(
        0,
        "Rank, attention",
        "0: as Rank says.",
        group="network",
        minimum=0,
        maximum=1024,
        effective_when=(NEW_UNET_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    attention_alpha: float = Setting(
        0.0,
        "Alpha, attention",
        "0: in proportion to its rank.",
        group="network",
        minimum=0.0,
        maximum=4096,
        effective_when=(NEW_UNET_LAYERS,),
        on_resume=OnResume.FATAL,
        beside="attention_rank",
    ).field()
    feed_forward_rank: int = Setting(
        0,
        "Rank, feed-forward",
        "0: as Rank says.",
        group="network",
        minimum=0,
        maximum=1024,
        effective_when=(NEW_FEED_FORWARD_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    feed_forward_alpha: float = Setting(
        0.0,
        "Alpha, feed-forward",
        "0: in proportion to its rank.",
        group="network",
        minimum=0.0,
        maximum=4096,
        effective_when=(NEW_FEED_FORWARD_LAYERS,),
        on_resume=OnResume.FATAL,
        beside="feed_forward_rank",
    ).field()
    conv_rank: int = Setting(
        0,
        "Rank, convolutions",
        "Of the 3x3 convolutions, with Layers: all. 0: as Rank says.",
        group="network",
        minimum=0,
        maximum=1024,
        kohya=("conv_dim",),
        effective_when=(NEW_CONVOLUTION_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    conv_alpha: float = Setting(
        0.0,
        "Alpha, convolutions",
        "0: in proportion to its rank.",
        group="network",
        minimum=0.0,
        maximum=4096,
        effective_when=(NEW_CONVOLUTION_LAYERS,),
        on_resume=OnResume.FATAL,
        beside="conv_rank",
    ).field()
    lora_blocks: str = Setting(
        "",
        "Blocks",
        "Only these blocks of the UNet learn, by the WebUI's names, as in IN04-IN08, MID,"
        " OUT03-OUT05; each may have its own rank and alpha: MID=64:32; without one the alpha is in"
        " proportion to the rank. Or a preset: all, down, mid, up, character, style, composition."
        " Empty: all.",
        group="network",
        kohya_forms=("network_args block_dims",),
        effective_when=(NEW_UNET_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    block_learning_rates: str = Setting(
        "",
        "Learning rates of blocks",
        "How fast blocks of the UNet learn beside the others, by the WebUI's names: IN04-IN08=0.5,"
        " MID=2; 0 leaves a block out. Blocks that are not named learn as usual.",
        group="network",
        kohya_forms=("network_args down_lr_weight, mid_lr_weight, up_lr_weight",),
        effective_when=({"train_unet": True},),
        on_resume=OnResume.FATAL,
    ).field()
    lokr_factor: int = Setting(
        -1,
        "LoKr factor",
        "How layers are cut up: larger makes smaller files. -1: as evenly as possible.",
        group="network",
        minimum=-1,
        maximum=64,
        kohya_forms=("network_args factor",),
        effective_when=({**NEW_LAYERS, "lora_type": ("lokr",)},),
        on_resume=OnResume.FATAL,
    ).field()
    rslora: bool = Setting(
        False,
        "Rank-stabilised",
        "Scale by alpha / the square root of the rank, so that high ranks learn as fast as low"
        " ones.",
        group="network",
        kohya_forms=("network_args rs_lora",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    use_dora: bool = Setting(
        False,
        "DoRA",
        "Learns apart how much each input counts and what is done with it; often closer to the"
        " subject at low ranks, and slower. With any kind of layer. Such a file works in the WebUI"
        " and ComfyUI; diffusers cannot read it.",
        group="network",
        kohya=("dora_wd",),
        kohya_forms=("network_args dora_wd",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    lora_dropout: float = Setting(
        0.0,
        "Dropout",
        "Share of the LoRA's inputs left out at random; a little helps against overfitting. kohya's"
        " leaves out what lies between the LoRA's two halves instead.",
        group="network",
        minimum=0.0,
        maximum=0.9,
        kohya=("network_dropout",),
        also=("dropout",),
    ).field()
    rank_dropout: float = Setting(
        0.0,
        "Rank dropout",
        "Share of the ranks left out at random.",
        group="network",
        minimum=0.0,
        maximum=0.9,
        kohya_forms=("network_args rank_dropout",),
    ).field()
    module_dropout: float = Setting(
        0.0,
        "Layer dropout",
        "Share of the layers left out at random.",
        group="network",
        minimum=0.0,
        maximum=0.9,
        kohya_forms=("network_args module_dropout",),
    ).field()
    scale_weight_norms: float = Setting(
        0.0,
        "Weight-norm limit",
        "No layer's change may be larger than this; 1 is usual. 0: no limit. DoRA's magnitudes are"
        " free.",
        group="network",
        minimum=0.0,
        maximum=1000.0,
        on_resume=OnResume.FREE,
    ).field()
    init_lora: str = Setting(
        "",
        "Go on from a LoRA",
        "Name or file of a LoRA to start from, ours or any in kohya's layout. Its rank, alpha and"
        " layers are taken over.",
        group="network",
        kohya=("network_weights",),
        on_resume=OnResume.BY_EFFECT,
        path=PathKind.LORA,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()

    # Text encoder
    train_unet: bool = Setting(
        True,
        "Train the UNet",
        "Off: only the text encoder learns.",
        group="text",
        kohya_forms=("network_train_text_encoder_only (reversed)",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    train_text_encoder: bool = Setting(
        False,
        "Train the text encoder",
        "Also learn what words mean. Helps names and rare words; takes memory and overfits sooner.",
        group="text",
        kohya_forms=("network_train_unet_only (reversed)",),
        effective_when=(NEW_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    text_encoder_lr: float = Setting(
        5e-5,
        "Learning rate, text encoder",
        "Usually half of the UNet's or less.",
        group="text",
        minimum=0.0,
        maximum=10.0,
        effective_when=(
            {"train_text_encoder": True},
            {"init_lora": True},
        ),
        on_resume=OnResume.FREE,
    ).field()
    text_encoder_rank: int = Setting(
        0,
        "Rank, text encoder",
        "0: as Rank says.",
        group="text",
        minimum=0,
        maximum=1024,
        effective_when=(NEW_TEXT_ENCODER_LAYERS,),
        on_resume=OnResume.FATAL,
    ).field()
    text_encoder_alpha: float = Setting(
        0.0,
        "Alpha, text encoder",
        "0: in proportion to its rank.",
        group="text",
        minimum=0.0,
        maximum=4096,
        effective_when=(NEW_TEXT_ENCODER_LAYERS,),
        on_resume=OnResume.FATAL,
        beside="text_encoder_rank",
    ).field()
    clip_skip: int = Setting(
        0,
        "Clip skip",
        "As in the WebUI: 1 uses the text encoder's last layer, 2 the one before. 0: as the WebUI"
        " is set.",
        group="text",
        minimum=0,
        maximum=12,
    ).field()

    # Optimizer and schedule
    optimizer: str = Setting(
        "adamw",
        "Optimizer",
        "How corrections are computed. Some need a package that is only used when you have"
        " installed it.",
        choices=(
            "adamw",
            "adamw8bit",
            "lion",
            "adafactor",
            "prodigy",
            "dadaptation",
            "schedulefree",
        ),
        group="optimizer",
        kohya=("optimizer_type",),
        on_resume=OnResume.FATAL,
    ).field()
    optimizer_args: str = Setting(
        "",
        "Optimizer's own settings",
        "As name=value, separated by blanks: betas=0.9,0.99 d_coef=2.",
        group="optimizer",
        on_resume=OnResume.FATAL,
    ).field()
    weight_decay: float = Setting(
        0.01,
        "Weight decay",
        "Pull of the LoRA's weights towards zero.",
        group="optimizer",
        minimum=0.0,
        maximum=1.0,
        on_resume=OnResume.FREE,
    ).field()
    loraplus_lr_ratio: float = Setting(
        1.0,
        "LoRA+ ratio",
        "LoRA+: the upper half of each layer learns so many times as fast as the lower one, which"
        " shortens training. 16 is the paper's; with it halve the learning rate at first. 1: off."
        " Not for Prodigy and D-Adaptation.",
        group="optimizer",
        minimum=0.01,
        maximum=1000.0,
        kohya_forms=("network_args loraplus_lr_ratio, loraplus_unet_lr_ratio",),
        effective_when=(
            {"lora_type": ("lora",)},
            {"init_lora": True},
        ),
        on_resume=OnResume.FATAL,
    ).field()
    loraplus_text_encoder_lr_ratio: float = Setting(
        0.0,
        "LoRA+ ratio, text encoder",
        "0: as LoRA+ ratio says.",
        group="optimizer",
        minimum=0.0,
        maximum=1000.0,
        kohya_forms=("network_args loraplus_text_encoder_lr_ratio",),
        effective_when=(
            {"train_text_encoder": True, "lora_type": ("lora",)},
            {"init_lora": True},
        ),
        on_resume=OnResume.FATAL,
    ).field()
    max_grad_norm: float = Setting(
        1.0,
        "Gradient clipping",
        "Largest correction allowed in one step. 0: no limit.",
        group="optimizer",
        minimum=0.0,
        maximum=1000.0,
        on_resume=OnResume.FREE,
    ).field()
    scheduler: str = Setting(
        "cosine",
        "Schedule",
        "How the learning rate changes over the run.",
        group="optimizer",
        kohya=("lr_scheduler",),
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "one_cycle"),
        also=("lr_schedule",),
        on_resume=OnResume.FREE,
    ).field()
    lr_warmup_steps: int = Setting(
        0,
        "Warm-up",
        "Steps over which the learning rate rises from zero.",
        group="optimizer",
        minimum=0,
        maximum=100_000,
        on_resume=OnResume.FREE,
    ).field()
    scheduler_cycles: int = Setting(
        3,
        "Restarts",
        "How often cosine_with_restarts begins anew.",
        group="optimizer",
        minimum=1,
        maximum=100,
        kohya=("lr_scheduler_num_cycles",),
        effective_when=({"scheduler": ("cosine_with_restarts",)},),
        on_resume=OnResume.FREE,
    ).field()
    scheduler_power: float = Setting(
        2.0,
        "Power",
        "Of the polynomial: 1 is a straight line.",
        group="optimizer",
        minimum=0.1,
        maximum=10.0,
        kohya=("lr_scheduler_power",),
        effective_when=({"scheduler": ("polynomial",)},),
        on_resume=OnResume.FREE,
    ).field()
    ema_decay: float = Setting(
        0.0,
        "Averaged weights",
        "Save an average over the last steps (EMA), which is steadier: 0.99 is over about 100. 0:"
        " off.",
        group="optimizer",
        minimum=0.0,
        maximum=0.99999,
        on_resume=OnResume.FATAL,
    ).field()
    gradient_accumulation_steps: int = Setting(
        1,
        "Gradient accumulation",
        "Batches added up into one step: a larger batch without its memory.",
        group="optimizer",
        minimum=1,
        maximum=1024,
    ).field()
    seed: int = Setting(
        42,
        "Seed",
        "The same seed and settings give the same LoRA.",
        group="optimizer",
        minimum=0,
        maximum=2**32 - 1,
    ).field()

    # Loss and noise
    prediction_type: str = Setting(
        "auto",
        "The model predicts",
        "auto: what the checkpoint says. For SDXL children with v-prediction that do not say so:"
        " v_prediction.",
        choices=("auto", "epsilon", "v_prediction"),
        group="loss",
        kohya_forms=("v_parameterization",),
        on_resume=OnResume.BY_EFFECT,
    ).field()
    zero_terminal_snr: str = Setting(
        "auto",
        "Zero terminal SNR",
        "Train with a noise schedule that ends in pure noise, as NoobAI's v-prediction model does. "
        "auto: what the checkpoint says.",
        choices=("auto", "on", "off"),
        group="loss",
        on_resume=OnResume.BY_EFFECT,
    ).field()
    loss_type: str = Setting(
        "l2",
        "Loss",
        "How differences are counted. huber and smooth_l1 mind single large ones less: for pictures"
        " of mixed quality.",
        choices=("l2", "l1", "huber", "smooth_l1"),
        group="loss",
    ).field()
    huber_c: float = Setting(
        0.1,
        "Huber's border",
        "Differences above are counted by their size, below by their square.",
        group="loss",
        minimum=0.0001,
        maximum=10.0,
        effective_when=({"loss_type": ("huber", "smooth_l1")},),
    ).field()
    huber_schedule: str = Setting(
        "snr",
        "Huber's schedule",
        "How the border changes with the noise.",
        choices=("constant", "exponential", "snr"),
        group="loss",
        effective_when=({"loss_type": ("huber", "smooth_l1")},),
        beside="huber_c",
    ).field()
    min_snr_gamma: float = Setting(
        0.0,
        "Min-SNR gamma",
        "Steadies training by counting little noise less; 5 is usual. 0: off.",
        group="loss",
        minimum=0.0,
        maximum=100.0,
    ).field()
    debiased_estimation: bool = Setting(
        False,
        "Debiased estimation",
        "Counts each step by the noise in it; another way to what Min-SNR does.",
        group="loss",
        kohya=("debiased_estimation_loss",),
    ).field()
    v_pred_like_loss: float = Setting(
        0.0,
        "V-like loss",
        "Adds a loss as if the model predicted v, with this weight. For models that predict noise.",
        group="loss",
        minimum=0.0,
        maximum=10.0,
        effective_when=({"prediction_type": ("epsilon",)},),
    ).field()
    scale_v_pred_loss: bool = Setting(
        False,
        "Scale the v loss",
        "Counts a v-prediction model's loss as that of one that predicts noise.",
        group="loss",
        kohya=("scale_v_pred_loss_like_noise_pred",),
        effective_when=({"prediction_type": ("v_prediction",)},),
    ).field()
    noise_offset: float = Setting(
        0.0,
        "Noise offset",
        "Lets the LoRA learn very dark and very bright pictures; 0.05 is usual. 0: off.",
        group="loss",
        minimum=0.0,
        maximum=1.0,
    ).field()
    noise_offset_random: bool = Setting(
        False,
        "Random noise offset",
        "A different offset up to that each time.",
        group="loss",
        kohya=("noise_offset_random_strength",),
        effective_when=({"noise_offset": True},),
        beside="noise_offset",
    ).field()
    multires_noise_iterations: int = Setting(
        0,
        "Multi-resolution noise",
        "Also adds noise of coarser grains, so many of them; 6 is usual. 0: off.",
        group="loss",
        minimum=0,
        maximum=12,
    ).field()
    multires_noise_discount: float = Setting(
        0.3,
        "Coarse noise's share",
        "Each coarser grain counts this much of the one before.",
        group="loss",
        minimum=0.0,
        maximum=1.0,
        effective_when=({"multires_noise_iterations": True},),
        beside="multires_noise_iterations",
    ).field()
    input_perturbation: float = Setting(
        0.0,
        "Input perturbation",
        "Shows the model slightly more noise than it must predict; 0.1 is usual. 0: off.",
        group="loss",
        minimum=0.0,
        maximum=1.0,
        kohya=("ip_noise_gamma",),
    ).field()
    input_perturbation_random: bool = Setting(
        False,
        "Random perturbation",
        "A different amount up to that each time.",
        group="loss",
        kohya=("ip_noise_gamma_random_strength",),
        effective_when=({"input_perturbation": True},),
        beside="input_perturbation",
    ).field()
    min_timestep: int = Setting(
        0,
        "From timestep",
        "0 is the clean picture.",
        group="loss",
        minimum=0,
        maximum=999,
    ).field()
    max_timestep: int = Setting(
        1000,
        "To timestep",
        "1000 is pure noise. Low ones teach details, high ones composition.",
        group="loss",
        minimum=1,
        maximum=1000,
        beside="min_timestep",
    ).field()
    timestep_sampling: str = Setting(
        "uniform",
        "Timesteps",
        "uniform: all alike. logit_normal: those in the middle more often.",
        choices=("uniform", "logit_normal"),
        group="loss",
    ).field()
    logit_mean: float = Setting(
        0.0,
        "Logit mean",
        "Below 0: more details; above: more composition.",
        group="loss",
        minimum=-5.0,
        maximum=5.0,
        effective_when=({"timestep_sampling": ("logit_normal",)},),
    ).field()
    logit_std: float = Setting(
        1.0,
        "Logit spread",
        "Smaller: closer to the middle.",
        group="loss",
        minimum=0.01,
        maximum=5.0,
        effective_when=({"timestep_sampling": ("logit_normal",)},),
        beside="logit_mean",
    ).field()

    # Speed and memory
    mixed_precision: str = Setting(
        "auto",
        "Precision",
        "Numbers used while training; the LoRA itself is always fp32. auto: bf16 or fp16 on a GPU,"
        " fp32 on a CPU.",
        choices=("auto", "no", "fp16", "bf16"),
        group="memory",
    ).field()
    gradient_checkpointing: bool = Setting(
        False,
        "Save memory",
        "Gradient checkpointing: less memory, about 40 % slower. The result is the same.",
        group="memory",
        on_resume=OnResume.FREE,
    ).field()
    when_memory_runs_out: str = Setting(
        "adapt",
        "When memory runs out",
        "adapt: go on with less (slower, the same result). stop: end with a sentence.",
        choices=("adapt", "stop"),
        group="memory",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()

    # Saving and sharing
    save_precision: str = Setting(
        "fp16",
        "Saved as",
        "Numbers in the saved file. fp16 is what most people share; fp32 keeps every digit at twice"
        " the size.",
        choices=("fp16", "bf16", "fp32"),
        group="saving",
        on_resume=OnResume.FREE,
    ).field()
    save_steps: int = Setting(
        0,
        "Snapshot every",
        "Also save the LoRA every so many steps, as name-000100. 0: only at the end.",
        minimum=0,
        maximum=1_000_000,
        unit="steps",
        group="saving",
        kohya=("save_every_n_steps",),
        also=("save_every", "checkpointing_steps"),
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    save_every_n_epochs: int = Setting(
        0,
        "Snapshot every, in epochs",
        "Also save a snapshot after every so many epochs, named by its step as well. "
        "0: by steps only.",
        minimum=0,
        maximum=10_000,
        unit="epochs",
        group="saving",
        kohya_forms=("save_every_n_epochs, save_n_epoch_ratio",),
        on_resume=OnResume.FREE,
        kept_in_lora=False,
        beside="save_steps",
    ).field()
    keep_snapshots: int = Setting(
        0,
        "Snapshots kept",
        "So many of a run's newest snapshots are kept; it removes its older ones. Those that "
        "you asked for by hand stay. 0: all.",
        minimum=0,
        maximum=100_000,
        group="saving",
        kohya=("save_last_n_epochs",),
        kohya_forms=("save_last_n_steps (as a number of snapshots)",),
        effective_when=(
            {"save_steps": True},
            {"save_every_n_epochs": True},
        ),
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    sharing: str = Setting(
        "share",
        "Pictures meanwhile",
        "share: a picture that you generate is drawn between two steps, at once. exclusive:"
        " pictures wait until training has ended.",
        choices=("share", "exclusive"),
        group="saving",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    live: bool = Setting(
        False,
        "Live LoRA",
        "A picture whose prompt names this LoRA is drawn with what it has learned up to that"
        " moment. Off: with the newest snapshot.",
        group="saving",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    save_state_minutes: float = Setting(
        5.0,
        "Progress kept every",
        "How much work a power cut may cost at most. 0: by steps only.",
        minimum=0.0,
        maximum=1440.0,
        unit="minutes",
        group="saving",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    save_state_steps: int = Setting(
        0,
        "Or every",
        "Also keep the progress every so many steps. 0: by minutes only.",
        minimum=0,
        maximum=1_000_000,
        unit="steps",
        group="saving",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
        beside="save_state_minutes",
    ).field()
    keep_states: int = Setting(
        2,
        "Progress files",
        "How many of these files are kept; older ones are removed.",
        minimum=1,
        maximum=100,
        group="saving",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    preview: bool = Setting(
        True,
        "Preview picture",
        "Draw one picture with the finished LoRA, for its card. A picture that you chose for the"
        " card stays.",
        group="output",
        on_resume=OnResume.FREE,
        kept_in_lora=False,
    ).field()
    logging_dir: str = Setting(
        "",
        "Log folder",
        "Where the run's figures go. Empty: the job's own folder.",
        group="output",
        also=("log_dir",),
        on_resume=OnResume.FREE,
        path=PathKind.OUTPUT,
        kept_in_lora=False,
        kept_in_presets=False,
    ).field()

    @classmethod
    def parse(cls, values: WrittenSettings) -> "TrainConfig":
        """Make a config from a mapping of our names or kohya's.

        Raises `Refused` naming the first setting that is wrong.
        """
        settings = settings_of(cls)
        aliases = aliases_of(settings.values())
        read: dict[str, Any] = {}  # each of its own field's type
        for name, value in to_our_names(values, aliases).items():
            if name not in settings:
                raise unknown_setting(name, [*settings, *aliases])
            read[name] = settings[name].read(value)
        config = cls(**read)
        if config.output_name:
            check_name(config.output_name)
        return config

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read a YAML, TOML or JSON file; raises `Refused` when it cannot be read or is wrong."""
        return cls.parse(read_settings(path))

    def replace(self, **changes: object) -> "TrainConfig":
        """Return a checked copy with other values; raises `Refused`."""
        return type(self).parse({**self.to_dict(), **changes})

    def to_dict(self) -> SettingValues:
        """Return every setting by name, as it is written."""
        return dataclasses.asdict(self)

    @property
    def alpha(self) -> float:
        """The alpha that is meant: the rank where none is given."""
        return self.lora_alpha or float(self.lora_rank)

    def resolved(self) -> SettingValues:
        """Return every setting, an alpha that is left out filled in, so that two spellings of a run
        are equal.
        """
        return {**self.to_dict(), "lora_alpha": self.alpha}

    def to_yaml(self) -> str:
        """Return a settings file of all settings."""
        return yaml.safe_dump(self.to_dict(), allow_unicode=True, sort_keys=False)


def all_settings() -> list[Setting]:
    """Return every setting in the order of the page."""
    return list(settings_of(TrainConfig).values())


def setting_of(name: str) -> Setting:
    """Return the setting of this name; raises KeyError."""
    return settings_of(TrainConfig)[name]


KOHYA_NAMES = aliases_of(all_settings())
"""Other names of settings, kohya's and others', and what they are called here."""


def in_our_names(values: WrittenSettings) -> WrittenSettings:
    """Return the settings that are given under our names, by the rules of `rename_aliases`."""
    return rename_aliases(values, KOHYA_NAMES)


def names_kept_in_lora() -> list[str]:
    """Name the settings that a LoRA's metadata may hold, and that may be taken over from one."""
    return [setting.name for setting in all_settings() if setting.kept_in_lora]


def settings_kept_in_lora(config: TrainConfig) -> SettingValues:
    """Return the settings that made a LoRA what it is, for its metadata."""
    resolved = config.resolved()
    return {name: resolved[name] for name in names_kept_in_lora()}
