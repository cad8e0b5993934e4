"""TrainConfig: one field, one default, one help text. The command line, the page and the API's
schema derive from it.

Reads lora-scripts' YAML names, which are ours, and kohya's as aliases, from YAML, TOML or JSON. An
unknown key is an error that names the nearest known one.
"""

import dataclasses
import difflib
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import Refused
from ..base.text import is_plain_text
from .files import read_settings
from .lora_name import check_name

LANGUAGE_TASKS = ("text-generation", "text_generation", "causal-lm", "causal_lm", "llm")
LONGEST_KEY = 80  # characters of a name that one could have meant
LONGEST_TEXT = 20_000  # characters of a setting; lists of blocks are read at every plan

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


def setting(  # noqa: PLR0913
    default: Any,
    title: str,
    help: str,
    *,
    group: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    unit: str = "",
    kohya: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> Any:
    """Declare one setting: default, what it is called and does, its range or choices, the group it
    is shown in, kohya's names for it, and how people and other programs write it besides (`also`).
    """
    return dataclasses.field(
        default=default,
        metadata=dict(
            title=title,
            help=help,
            group=group,
            minimum=minimum,
            maximum=maximum,
            choices=choices,
            unit=unit,
            kohya=kohya,
            also=also,
        ),
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run can be told. `parse` validates each setting by itself;
    `choices.check_choices` tells which contradict each other.
    """

    # What to learn from
    train_data_dir: str = setting(
        "",
        "Pictures",
        "Folder with the pictures and their captions, or the name of a data set, or OneTrainer's"
        " concepts .json.",
        group="pictures",
        also=("data_dir", "train_dir", "dataset_dir", "dataset_path"),
    )
    extra_data_dirs: str = setting(
        "",
        "More folders",
        "Further folders of pictures, one a line, each may begin with its own repeats: 5 x D:\\more"
        " pictures.",
        group="pictures",
    )
    metadata_path: str = setting(
        "",
        "Caption table",
        "A metadata.csv (filename,prompt) or metadata.jsonl to read captions from, "
        "or kohya's metadata .json, where a picture has no .txt or .caption beside it.",
        group="pictures",
        kohya=("in_json", "metadata_file"),
    )
    trigger_word: str = setting(
        "",
        "Trigger word",
        "A rare word that calls your subject in a prompt. It is put in front of every caption "
        "that lacks it.",
        group="main",
        kohya=("trigger_words",),
    )
    base_model: str = setting(
        "",
        "Base model",
        "Checkpoint file to train against. Empty: the one that is loaded.",
        group="output",
        kohya=("pretrained_model_name_or_path",),
        also=("base_model_path", "pretrained_model", "model_path"),
    )

    # What to call it
    output_name: str = setting(
        "",
        "Name",
        "The LoRA's file name; you will write <lora:name:0.8> in a prompt.",
        group="main",
        also=("lora_name",),
    )
    output_dir: str = setting(
        "",
        "Output folder",
        "Where the LoRA is saved. Empty: the WebUI's LoRA folder.",
        group="output",
        also=("output_path",),
    )
    overwrite: bool = setting(
        False,
        "Replace a LoRA of this name",
        "Off: a name that is taken is refused before anything starts.",
        group="output",
    )
    preferred_weight: float = setting(
        0.8,
        "Preferred weight",
        "Weight written into the tag and the LoRA's card.",
        group="output",
        minimum=0.0,
        maximum=2.0,
    )
    negative_text: str = setting(
        "",
        "Negative prompt",
        "Written into the LoRA's card: the WebUI adds it to the "
        "negative prompt when the card is clicked.",
        group="output",
    )

    # The settings that matter
    resolution: int = setting(
        512,
        "Resolution",
        "Pictures are scaled to this area. 512 for SD1, 768 for SD2, 1024 for SDXL.",
        group="main",
        minimum=64,
        maximum=2048,
        unit="px",
    )
    extra_resolutions: str = setting(
        "",
        "More resolutions",
        "Learn each picture in these, too, as in 768, 1024: the LoRA then draws well in "
        "several sizes. Each adds as many steps to an epoch. Empty: only Resolution.",
        group="data",
    )
    epochs: int = setting(
        10,
        "Epochs",
        "How often each picture is seen (times its repeats).",
        group="main",
        minimum=1,
        maximum=10_000,
        kohya=("max_train_epochs", "num_train_epochs"),
        also=("max_epochs", "num_epochs", "train_epochs"),
    )
    max_train_steps: int = setting(
        0,
        "Steps",
        "Train exactly this many steps. 0: as many as the epochs need.",
        group="main",
        minimum=0,
        maximum=1_000_000,
        also=("max_steps", "train_steps"),
    )
    batch_size: int = setting(
        1,
        "Batch size",
        "Pictures per step. More is steadier and needs more memory.",
        group="main",
        minimum=1,
        maximum=256,
        kohya=("train_batch_size",),
        also=("batch",),
    )
    learning_rate: float = setting(
        1e-4,
        "Learning rate",
        "How big each correction is. 0.0001 suits most; too high breaks pictures. Prodigy and"
        " D-Adaptation find it themselves: 1.",
        group="main",
        minimum=1e-9,
        maximum=10.0,
        kohya=("unet_lr",),
        also=("lr",),
    )
    lora_rank: int = setting(
        16,
        "Rank",
        "How much the LoRA can hold. 8 to 32 suit characters and objects, 32 to 64 styles.",
        group="main",
        minimum=1,
        maximum=1024,
        kohya=("network_dim",),
        also=("rank", "network_rank", "dim", "lora_dim", "lora_r"),
    )
    lora_alpha: float = setting(
        0.0,
        "Alpha",
        "Strength while training: alpha / rank. 0: as the rank. Twice the rank, as some advise,"
        " doubles the effect of each step: halve the learning rate with it.",
        group="main",
        minimum=0.0,
        maximum=4096,
        kohya=("network_alpha",),
        also=("alpha",),
    )
    task_type: str = setting(
        "stable-diffusion",
        "Task",
        "What is trained.",
        choices=("stable-diffusion",),
        group="output",
    )

    # Pictures in detail
    repeats: int = setting(
        1,
        "Repeats",
        "How often each picture counts in an epoch. A folder named 10_name gives 10 by itself.",
        group="data",
        minimum=1,
        maximum=1000,
        kohya=("dataset_repeats", "num_repeats"),
    )
    enable_bucket: bool = setting(
        True,
        "Aspect-ratio buckets",
        "Keep each picture's shape as far as possible. Off: everything is cropped to a square.",
        group="data",
    )
    bucket_step: int = setting(
        64,
        "Bucket step",
        "Sides of buckets are multiples of this.",
        group="data",
        minimum=8,
        maximum=256,
        unit="px",
        kohya=("bucket_reso_steps",),
    )
    bucket_min: int = setting(
        0,
        "Shortest side",
        "No bucket's side is shorter. 0: no limit.",
        group="data",
        minimum=0,
        maximum=2048,
        unit="px",
        kohya=("min_bucket_reso",),
    )
    bucket_max: int = setting(
        0,
        "Longest side",
        "No bucket's side is longer. 0: four times the resolution.",
        group="data",
        minimum=0,
        maximum=8192,
        unit="px",
        kohya=("max_bucket_reso",),
    )
    bucket_no_upscale: bool = setting(
        False,
        "Never enlarge",
        "Small pictures are trained in their own size, rounded down to the bucket step, not"
        " scaled up.",
        group="data",
    )
    mirror: bool = setting(
        False,
        "Mirror",
        "Also learn from mirrored pictures. Not for text, logos or one-sided features.",
        group="data",
        kohya=("flip_aug",),
    )
    random_crop: bool = setting(
        False,
        "Random crop",
        "Cut the part that does not fit the bucket at random, not from both sides evenly.",
        group="data",
    )
    color_jitter: float = setting(
        0.0,
        "Colour jitter",
        "Vary brightness, contrast, saturation and hue by up to this share. Not for styles, whose"
        " colours matter.",
        group="data",
        minimum=0.0,
        maximum=0.5,
    )
    masked_loss: str = setting(
        "off",
        "Mask",
        "Learn only from a part of each picture. alpha: what is not transparent. files: the white"
        " part of name-masklabel.png or mask/name.png beside the picture.",
        choices=("off", "alpha", "files"),
        group="data",
    )
    masked_loss_floor: float = setting(
        0.0,
        "Outside the mask",
        "How much the rest of the picture counts. 0: nothing.",
        group="data",
        minimum=0.0,
        maximum=1.0,
    )
    reg_data_dir: str = setting(
        "",
        "Regularisation pictures",
        "Folder with pictures of the same class that are not your subject; they keep the model from"
        " forgetting what such things look like.",
        group="data",
    )
    prior_loss_weight: float = setting(
        1.0,
        "Their weight",
        "How much regularisation pictures count beside yours.",
        group="data",
        minimum=0.0,
        maximum=10.0,
    )
    validation_split: float = setting(
        0.0,
        "Validation",
        "Share of the pictures that is kept out of training and only measured: its loss rises when"
        " the LoRA learns by heart.",
        group="data",
        minimum=0.0,
        maximum=0.5,
    )
    validate_every: int = setting(
        0,
        "Measured every",
        "0: once an epoch.",
        group="data",
        minimum=0,
        maximum=100_000,
        unit="steps",
        kohya=("validate_every_n_steps",),
    )

    # Captions while training
    caption_extension: str = setting(
        ".txt",
        "Caption file",
        "Which one counts where a picture has both.",
        choices=(".txt", ".caption"),
        group="captions",
    )
    caption_lines: str = setting(
        "join",
        "Several lines",
        "What several lines in a caption mean. join: they are one caption. first: only the first"
        " line counts. alternatives: one of them is drawn each time.",
        choices=("join", "first", "alternatives"),
        group="captions",
    )
    caption_wildcards: bool = setting(
        False,
        "Wildcards",
        "{red|blue} in a caption is one of them, drawn each time; {{ and }} are braces. Off:"
        " captions are read literally.",
        group="captions",
    )
    shuffle_caption: bool = setting(
        False,
        "Shuffle tags",
        "Put the comma-separated parts of captions in another order each time, so that none depends"
        " on its place.",
        group="captions",
    )
    keep_tokens: int = setting(
        0,
        "Tags kept in front",
        "So many of the first parts stay where they are and are never dropped.",
        group="captions",
        minimum=0,
        maximum=255,
    )
    keep_tokens_separator: str = setting(
        "",
        "Kept up to",
        "Everything before this sign, such as |||, stays in front instead; everything after a"
        " second one stays at the end.",
        group="captions",
    )
    caption_dropout_rate: float = setting(
        0.0,
        "Caption dropout",
        "Share of the times that a picture is shown without any caption.",
        group="captions",
        minimum=0.0,
        maximum=1.0,
    )
    caption_tag_dropout_rate: float = setting(
        0.0,
        "Tag dropout",
        "Share of the tags left out each time.",
        group="captions",
        minimum=0.0,
        maximum=1.0,
    )
    trigger_only_rate: float = setting(
        0.0,
        "Trigger word alone",
        "Share of the times that the caption is the trigger word and nothing else.",
        group="captions",
        minimum=0.0,
        maximum=1.0,
    )
    max_token_length: int = setting(
        225,
        "Longest caption",
        "In tokens, about 3 for 2 words; more is cut off. Captions are read in portions of 75, as"
        " prompts are.",
        group="captions",
        minimum=75,
        maximum=750,
        unit="tokens",
    )
    weighted_captions: bool = setting(
        False,
        "Weighted captions",
        "(word:1.2) and [word] in captions mean what they mean in prompts. Off: captions are read"
        " literally.",
        group="captions",
    )

    # LoRA layers
    lora_type: str = setting(
        "lora",
        "Kind",
        "lora: what everybody uses. loha and lokr: other ways to build the change from few numbers;"
        " lokr makes small files.",
        choices=("lora", "loha", "lokr"),
        group="network",
    )
    lora_targets: str = setting(
        "attention+feed-forward",
        "Layers",
        "Which layers learn. attention: small files; attention+feed-forward: kohya's usual "
        "set; all: convolutions too, for styles and textures.",
        choices=("attention", "attention+feed-forward", "all"),
        group="network",
    )
    attention_rank: int = setting(
        0, "Rank, attention", "0: as Rank says.", group="network", minimum=0, maximum=1024
    )
    attention_alpha: float = setting(
        0.0,
        "Alpha, attention",
        "0: in proportion to its rank.",
        group="network",
        minimum=0.0,
        maximum=4096,
    )
    feed_forward_rank: int = setting(
        0, "Rank, feed-forward", "0: as Rank says.", group="network", minimum=0, maximum=1024
    )
    feed_forward_alpha: float = setting(
        0.0,
        "Alpha, feed-forward",
        "0: in proportion to its rank.",
        group="network",
        minimum=0.0,
        maximum=4096,
    )
    conv_rank: int = setting(
        0,
        "Rank, convolutions",
        "Of the 3x3 convolutions, with Layers: all. 0: as Rank says.",
        group="network",
        minimum=0,
        maximum=1024,
        kohya=("conv_dim",),
    )
    conv_alpha: float = setting(
        0.0,
        "Alpha, convolutions",
        "0: in proportion to its rank.",
        group="network",
        minimum=0.0,
        maximum=4096,
    )
    lora_blocks: str = setting(
        "",
        "Blocks",
        "Only these blocks of the UNet learn, by the WebUI's names, as in IN04-IN08, MID,"
        " OUT03-OUT05; each may have its own rank and alpha: MID=64:32; without one the alpha is in"
        " proportion to the rank. Or a preset: all, down, mid, up, character, style, composition."
        " Empty: all.",
        group="network",
    )
    block_learning_rates: str = setting(
        "",
        "Learning rates of blocks",
        "How fast blocks of the UNet learn beside the others, by the WebUI's names: IN04-IN08=0.5,"
        " MID=2; 0 leaves a block out. Blocks that are not named learn as usual.",
        group="network",
    )
    lokr_factor: int = setting(
        -1,
        "LoKr factor",
        "How layers are cut up: larger makes smaller files. -1: as evenly as possible.",
        group="network",
        minimum=-1,
        maximum=64,
    )
    rslora: bool = setting(
        False,
        "Rank-stabilised",
        "Scale by alpha / the square root of the rank, so that high ranks learn as fast as low"
        " ones.",
        group="network",
    )
    use_dora: bool = setting(
        False,
        "DoRA",
        "Learns apart how much each input counts and what is done with it; often closer to the"
        " subject at low ranks, and slower. With any kind of layer. Such a file works in the WebUI"
        " and ComfyUI; diffusers cannot read it.",
        group="network",
        kohya=("dora_wd",),
    )
    lora_dropout: float = setting(
        0.0,
        "Dropout",
        "Share of the LoRA's inputs left out at random; a little helps against overfitting. kohya's"
        " leaves out what lies between the LoRA's two halves instead.",
        group="network",
        minimum=0.0,
        maximum=0.9,
        kohya=("network_dropout",),
        also=("dropout",),
    )
    rank_dropout: float = setting(
        0.0,
        "Rank dropout",
        "Share of the ranks left out at random.",
        group="network",
        minimum=0.0,
        maximum=0.9,
    )
    module_dropout: float = setting(
        0.0,
        "Layer dropout",
        "Share of the layers left out at random.",
        group="network",
        minimum=0.0,
        maximum=0.9,
    )
    scale_weight_norms: float = setting(
        0.0,
        "Weight-norm limit",
        "No layer's change may be larger than this; 1 is usual. 0: no limit. DoRA's magnitudes are"
        " free.",
        group="network",
        minimum=0.0,
        maximum=1000.0,
    )
    init_lora: str = setting(
        "",
        "Go on from a LoRA",
        "Name or file of a LoRA to start from, ours or any in kohya's layout. Its rank, alpha and"
        " layers are taken over.",
        group="network",
        kohya=("network_weights",),
    )

    # Text encoder
    train_unet: bool = setting(
        True, "Train the UNet", "Off: only the text encoder learns.", group="text"
    )
    train_text_encoder: bool = setting(
        False,
        "Train the text encoder",
        "Also learn what words mean. Helps names and rare words; takes memory and overfits sooner.",
        group="text",
    )
    text_encoder_lr: float = setting(
        5e-5,
        "Learning rate, text encoder",
        "Usually half of the UNet's or less.",
        group="text",
        minimum=0.0,
        maximum=10.0,
    )
    text_encoder_rank: int = setting(
        0, "Rank, text encoder", "0: as Rank says.", group="text", minimum=0, maximum=1024
    )
    text_encoder_alpha: float = setting(
        0.0,
        "Alpha, text encoder",
        "0: in proportion to its rank.",
        group="text",
        minimum=0.0,
        maximum=4096,
    )
    clip_skip: int = setting(
        0,
        "Clip skip",
        "As in the WebUI: 1 uses the text encoder's last layer, 2 the one before. 0: as the WebUI"
        " is set.",
        group="text",
        minimum=0,
        maximum=12,
    )

    # Optimizer and schedule
    optimizer: str = setting(
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
    )
    optimizer_args: str = setting(
        "",
        "Optimizer's own settings",
        "As name=value, separated by blanks: betas=0.9,0.99 d_coef=2.",
        group="optimizer",
    )
    weight_decay: float = setting(
        0.01,
        "Weight decay",
        "Pull of the LoRA's weights towards zero.",
        group="optimizer",
        minimum=0.0,
        maximum=1.0,
    )
    loraplus_lr_ratio: float = setting(
        1.0,
        "LoRA+ ratio",
        "LoRA+: the upper half of each layer learns so many times as fast as the lower one, which"
        " shortens training. 16 is the paper's; with it halve the learning rate at first. 1: off."
        " Not for Prodigy and D-Adaptation.",
        group="optimizer",
        minimum=0.01,
        maximum=1000.0,
    )
    loraplus_text_encoder_lr_ratio: float = setting(
        0.0,
        "LoRA+ ratio, text encoder",
        "0: as LoRA+ ratio says.",
        group="optimizer",
        minimum=0.0,
        maximum=1000.0,
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradient clipping",
        "Largest correction allowed in one step. 0: no limit.",
        group="optimizer",
        minimum=0.0,
        maximum=1000.0,
    )
    scheduler: str = setting(
        "cosine",
        "Schedule",
        "How the learning rate changes over the run.",
        group="optimizer",
        kohya=("lr_scheduler",),
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "one_cycle"),
        also=("lr_schedule",),
    )
    lr_warmup_steps: int = setting(
        0,
        "Warm-up",
        "Steps over which the learning rate rises from zero.",
        group="optimizer",
        minimum=0,
        maximum=100_000,
    )
    scheduler_cycles: int = setting(
        3,
        "Restarts",
        "How often cosine_with_restarts begins anew.",
        group="optimizer",
        minimum=1,
        maximum=100,
        kohya=("lr_scheduler_num_cycles",),
    )
    scheduler_power: float = setting(
        2.0,
        "Power",
        "Of the polynomial: 1 is a straight line.",
        group="optimizer",
        minimum=0.1,
        maximum=10.0,
        kohya=("lr_scheduler_power",),
    )
    ema_decay: float = setting(
        0.0,
        "Averaged weights",
        "Save an average over the last steps (EMA), which is steadier: 0.99 is over about 100. 0:"
        " off.",
        group="optimizer",
        minimum=0.0,
        maximum=0.99999,
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Gradient accumulation",
        "Batches added up into one step: a larger batch without its memory.",
        group="optimizer",
        minimum=1,
        maximum=1024,
    )
    seed: int = setting(
        42,
        "Seed",
        "The same seed and settings give the same LoRA.",
        group="optimizer",
        minimum=0,
        maximum=2**32 - 1,
    )

    # Loss and noise
    prediction_type: str = setting(
        "auto",
        "The model predicts",
        "auto: what the checkpoint says. For SDXL children with v-prediction that do not say so:"
        " v_prediction.",
        choices=("auto", "epsilon", "v_prediction"),
        group="loss",
    )
    zero_terminal_snr: str = setting(
        "auto",
        "Zero terminal SNR",
        "Train with a noise schedule that ends in pure noise, as NoobAI's v-prediction model does. "
        "auto: what the checkpoint says.",
        choices=("auto", "on", "off"),
        group="loss",
    )
    loss_type: str = setting(
        "l2",
        "Loss",
        "How differences are counted. huber and smooth_l1 mind single large ones less: for pictures"
        " of mixed quality.",
        choices=("l2", "l1", "huber", "smooth_l1"),
        group="loss",
    )
    huber_c: float = setting(
        0.1,
        "Huber's border",
        "Differences above are counted by their size, below by their square.",
        group="loss",
        minimum=0.0001,
        maximum=10.0,
    )
    huber_schedule: str = setting(
        "snr",
        "Huber's schedule",
        "How the border changes with the noise.",
        choices=("constant", "exponential", "snr"),
        group="loss",
    )
    min_snr_gamma: float = setting(
        0.0,
        "Min-SNR gamma",
        "Steadies training by counting little noise less; 5 is usual. 0: off.",
        group="loss",
        minimum=0.0,
        maximum=100.0,
    )
    debiased_estimation: bool = setting(
        False,
        "Debiased estimation",
        "Counts each step by the noise in it; another way to what Min-SNR does.",
        group="loss",
        kohya=("debiased_estimation_loss",),
    )
    v_pred_like_loss: float = setting(
        0.0,
        "V-like loss",
        "Adds a loss as if the model predicted v, with this weight. For models that predict noise.",
        group="loss",
        minimum=0.0,
        maximum=10.0,
    )
    scale_v_pred_loss: bool = setting(
        False,
        "Scale the v loss",
        "Counts a v-prediction model's loss as that of one that predicts noise.",
        group="loss",
        kohya=("scale_v_pred_loss_like_noise_pred",),
    )
    noise_offset: float = setting(
        0.0,
        "Noise offset",
        "Lets the LoRA learn very dark and very bright pictures; 0.05 is usual. 0: off.",
        group="loss",
        minimum=0.0,
        maximum=1.0,
    )
    noise_offset_random: bool = setting(
        False,
        "Random noise offset",
        "A different offset up to that each time.",
        group="loss",
        kohya=("noise_offset_random_strength",),
    )
    multires_noise_iterations: int = setting(
        0,
        "Multi-resolution noise",
        "Also adds noise of coarser grains, so many of them; 6 is usual. 0: off.",
        group="loss",
        minimum=0,
        maximum=12,
    )
    multires_noise_discount: float = setting(
        0.3,
        "Coarse noise's share",
        "Each coarser grain counts this much of the one before.",
        group="loss",
        minimum=0.0,
        maximum=1.0,
    )
    input_perturbation: float = setting(
        0.0,
        "Input perturbation",
        "Shows the model slightly more noise than it must predict; 0.1 is usual. 0: off.",
        group="loss",
        minimum=0.0,
        maximum=1.0,
        kohya=("ip_noise_gamma",),
    )
    input_perturbation_random: bool = setting(
        False,
        "Random perturbation",
        "A different amount up to that each time.",
        group="loss",
        kohya=("ip_noise_gamma_random_strength",),
    )
    min_timestep: int = setting(
        0, "From timestep", "0 is the clean picture.", group="loss", minimum=0, maximum=999
    )
    max_timestep: int = setting(
        1000,
        "To timestep",
        "1000 is pure noise. Low ones teach details, high ones composition.",
        group="loss",
        minimum=1,
        maximum=1000,
    )
    timestep_sampling: str = setting(
        "uniform",
        "Timesteps",
        "uniform: all alike. logit_normal: those in the middle more often.",
        choices=("uniform", "logit_normal"),
        group="loss",
    )
    logit_mean: float = setting(
        0.0,
        "Logit mean",
        "Below 0: more details; above: more composition.",
        group="loss",
        minimum=-5.0,
        maximum=5.0,
    )
    logit_std: float = setting(
        1.0,
        "Logit spread",
        "Smaller: closer to the middle.",
        group="loss",
        minimum=0.01,
        maximum=5.0,
    )

    # Speed and memory
    mixed_precision: str = setting(
        "auto",
        "Precision",
        "Numbers used while training; the LoRA itself is always fp32. auto: bf16 or fp16 on a GPU,"
        " fp32 on a CPU.",
        choices=("auto", "no", "fp16", "bf16"),
        group="memory",
    )
    gradient_checkpointing: bool = setting(
        False,
        "Save memory",
        "Gradient checkpointing: less memory, about 40 % slower. The result is the same.",
        group="memory",
    )
    when_memory_runs_out: str = setting(
        "adapt",
        "When memory runs out",
        "adapt: go on with less (slower, the same result). stop: end with a sentence.",
        choices=("adapt", "stop"),
        group="memory",
    )

    # Saving and sharing
    save_precision: str = setting(
        "fp16",
        "Saved as",
        "Numbers in the saved file. fp16 is what most people share; fp32 keeps every digit at twice"
        " the size.",
        choices=("fp16", "bf16", "fp32"),
        group="saving",
    )
    save_steps: int = setting(
        0,
        "Snapshot every",
        "Also save the LoRA every so many steps, as name-000100. 0: only at the end.",
        minimum=0,
        maximum=1_000_000,
        unit="steps",
        group="saving",
        kohya=("save_every_n_steps",),
        also=("save_every", "checkpointing_steps"),
    )
    save_every_n_epochs: int = setting(
        0,
        "Snapshot every, in epochs",
        "Also save a snapshot after every so many epochs, named by its step as well. "
        "0: by steps only.",
        minimum=0,
        maximum=10_000,
        unit="epochs",
        group="saving",
    )
    keep_snapshots: int = setting(
        0,
        "Snapshots kept",
        "So many of a run's newest snapshots are kept; it removes its older ones. Those that "
        "you asked for by hand stay. 0: all.",
        minimum=0,
        maximum=100_000,
        group="saving",
        kohya=("save_last_n_epochs",),
    )
    sharing: str = setting(
        "share",
        "Pictures meanwhile",
        "share: a picture that you generate is drawn between two steps, at once. exclusive:"
        " pictures wait until training has ended.",
        choices=("share", "exclusive"),
        group="saving",
    )
    live: bool = setting(
        False,
        "Live LoRA",
        "A picture whose prompt names this LoRA is drawn with what it has learned up to that"
        " moment. Off: with the newest snapshot.",
        group="saving",
    )
    save_state_minutes: float = setting(
        5.0,
        "Progress kept every",
        "How much work a power cut may cost at most. 0: by steps only.",
        minimum=0.0,
        maximum=1440.0,
        unit="minutes",
        group="saving",
    )
    save_state_steps: int = setting(
        0,
        "Or every",
        "Also keep the progress every so many steps. 0: by minutes only.",
        minimum=0,
        maximum=1_000_000,
        unit="steps",
        group="saving",
    )
    keep_states: int = setting(
        2,
        "Progress files",
        "How many of these files are kept; older ones are removed.",
        minimum=1,
        maximum=100,
        group="saving",
    )
    preview: bool = setting(
        True,
        "Preview picture",
        "Draw one picture with the finished LoRA, for its card. A picture that you chose for the"
        " card stays.",
        group="output",
    )
    logging_dir: str = setting(
        "",
        "Log folder",
        "Where the run's figures go. Empty: the job's own folder.",
        group="output",
        also=("log_dir",),
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Make a config from a mapping of our names or kohya's; raises `Refused` naming the first
        field that is wrong.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        cleaned = {}
        for key, value in _translate(values).items():
            if key not in known:
                raise Refused(_unknown_key(key, known), field=key, code="unknown_setting")
            cleaned[key] = _checked(known[key], value)
        config = cls(**cleaned)
        if config.output_name:
            check_name(config.output_name)
        return config

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read a YAML, TOML or JSON file; raises `Refused` when it cannot be read or says something
        impossible.
        """
        return cls.parse(read_settings(path))

    def replace(self, **changes: Any) -> "TrainConfig":
        return type(self).parse({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def alpha(self) -> float:
        """The alpha that is meant: the rank where none is given."""
        return self.lora_alpha or float(self.lora_rank)

    def meant(self) -> dict[str, Any]:
        """Return the settings with an alpha left out filled in, so that two spellings of one run
        are equal.
        """
        return {**self.to_dict(), "lora_alpha": self.alpha}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), allow_unicode=True, sort_keys=False)


def schema() -> list[dict[str, Any]]:
    """Describe every setting for interfaces: name, type, default, title, help, group, range,
    choices, unit.
    """
    return [
        dict(
            name=field.name,
            type=field.type.__name__ if isinstance(field.type, type) else field.type,
            default=field.default,
            **field.metadata,
        )
        for field in dataclasses.fields(TrainConfig)
    ]


# --- Names from other trainers --------------------------------------------------------------------

# kohya's first, which go before other spellings where a file gives both.
KOHYA_NAMES = {
    theirs: field.name
    for kind in ("kohya", "also")
    for field in dataclasses.fields(TrainConfig)
    for theirs in field.metadata[kind]
}


def _translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn other trainers' names and spellings into ours; our own name wins where both are
    given.
    """
    ours = {
        str(key): value
        for key, value in values.items()
        if str(key) not in KOHYA_NAMES and value is not None
    }
    if values.get("unet_lr") is not None:
        ours["learning_rate"] = values[
            "unet_lr"
        ]  # kohya trains the UNet at this one where both are given
    for theirs, name in KOHYA_NAMES.items():
        if values.get(theirs) is not None:
            ours.setdefault(name, values[theirs])
    ours |= read_resolutions(ours, kohya=bool(_KOHYAS_ALONE & {str(key) for key in values}))
    if isinstance(ours.get("optimizer"), str):
        ours["optimizer"] = ours["optimizer"].lower()
    if ours.get("scheduler") == "constant_with_warmup":
        ours["scheduler"] = "constant"
    if ours.get("save_precision") == "float":
        ours["save_precision"] = "fp32"
    if ours.get("task_type") in ("lora", "sd", "stable_diffusion"):
        ours["task_type"] = "stable-diffusion"
    if str(ours.get("task_type")) in LANGUAGE_TASKS:
        raise Refused(
            f"Task: {ours['task_type']}, training a language model, is not there yet;"
            " stable-diffusion is. It will take base_model as a name on the Hugging Face hub, such"
            " as meta-llama/Llama-2-7b-chat-hf, or a folder of such a model as transformers"
            " loads it." + _not_for_training(ours.get("base_model")),
            field="task_type",
            code="bad_value",
        )
    return ours


_KOHYAS_ALONE = {
    "network_dim",
    "network_alpha",
    "network_module",
    "train_batch_size",
    "pretrained_model_name_or_path",
}


def read_resolutions(values: Mapping[str, Any], *, kohya: bool = False) -> dict[str, Any]:
    """Read a `resolution` of several numbers: the first counts, the others are `extra_resolutions`.

    "512x768" is a rectangle, and so is "512,768" in a file of `kohya`'s: the side of the square of
    the same area counts. Returns what of the two settings was given; what cannot be read stays as
    it is, for the check of its type.
    """
    found = {name: values[name] for name in ("resolution", "extra_resolutions") if name in values}
    extra, given = found.get("extra_resolutions"), found.get("resolution")
    if _are_plain(extra):
        found["extra_resolutions"] = extra = ", ".join(map(str, extra))
    if not (isinstance(given, str) or _are_plain(given)) or len(given) > LONGEST_KEY:
        return found
    parts = (
        re.sub(r"[()\[\] ]", "", given).split(",")
        if isinstance(given, str)
        else list(map(str, given))
    )
    sides = (
        [_side("x".join(parts))] if kohya and len(parts) == 2 else [_side(part) for part in parts]
    )
    if not sides or None in sides:
        return found
    main, *more = dict.fromkeys(sides)
    if more:
        found["extra_resolutions"] = ", ".join([*map(str, more), *([str(extra)] if extra else [])])
    return {**found, "resolution": main}


def _are_plain(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(type(value) in (int, str) for value in values)


def _side(text: str) -> int | None:
    """Return the side of the square of a text's area, "512" or "512x768"; None for another text."""
    try:
        width, height = (
            (int(part) for part in (text.split("x") * 2)[:2]) if text.count("x") < 2 else (0, 0)
        )
        return round(math.sqrt(width * height)) if min(width, height) > 0 else None
    except (ValueError, OverflowError):
        return None


def _not_for_training(base_model: Any) -> str:
    """Say that a language model in GGML's or GGUF's format, as its name shows, is no base model."""
    name = re.split(r"[\\/]", str(base_model or "")[-200:])[-1]
    if not re.search(r"(?i)ggml|\.gguf$", name):
        return ""
    return (
        f" {name} is a quantised file (GGML or GGUF) that is made for running only: nothing can be"
        " trained on it."
    )


def in_our_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under our names; where both ours and another are given, ours counts."""
    ours = {
        name: value
        for name, value in values.items()
        if name not in KOHYA_NAMES and value is not None
    }
    return {
        **{
            KOHYA_NAMES[name]: value
            for name, value in values.items()
            if name in KOHYA_NAMES and value is not None
        },
        **ours,
    }


def _unknown_key(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key[:LONGEST_KEY], [*known, *KOHYA_NAMES], n=1, cutoff=0.5)
    return f"There is no setting {_short(key)}." + (
        f" Did you mean {near[0]!r}?"
        if near
        else " Run `python -m lora_trainer train --help` for the list."
    )


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Return a value in the field's own type, or raise `Refused` with what was found and what was
    expected.
    """
    try:
        converted = _convert(type(field.default), value)
    except (TypeError, ValueError, OverflowError):
        converted = None
    low, high, choices = (field.metadata[key] for key in ("minimum", "maximum", "choices"))
    title = field.metadata["title"]
    if converted is None:
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[
            type(field.default)
        ]
        raise Refused(
            f"{title}: {_short(value)} is not {kind}.", field=field.name, code="bad_value"
        )
    if isinstance(converted, str) and len(converted) > LONGEST_TEXT:
        raise Refused(
            f"{title}: {len(converted):,} characters are too many. Use at most {LONGEST_TEXT:,}.",
            field=field.name,
            code="bad_value",
        )
    if choices and converted not in choices:
        near = difflib.get_close_matches(str(converted), choices, n=1)
        raise Refused(
            f"{title}: {_short(value)} is not known. Choose one of: {', '.join(choices)}."
            + (f" Did you mean {near[0]}?" if near else ""),
            field=field.name,
            code="bad_value",
        )
    if low is not None and not low <= converted <= high:
        raise Refused(
            f"{title}: {_short(value)} is out of range. Use {low:g} to {high:g}.",
            field=field.name,
            code="bad_value",
        )
    return converted


def _convert(kind: type, value: Any) -> Any:
    if kind is str:
        text = (
            str(value).strip()
            if isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
            else None
        )
        return text if text is not None and is_plain_text(text) else None
    if kind is bool:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        return (
            value
            if isinstance(value, bool)
            else (
                words.get(str(value).strip().lower())
                if isinstance(value, (str, int, float))
                else None
            )
        )
    if isinstance(value, bool):
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    if kind is int:
        return int(number) if number == int(number) else None
    return number


def _short(value: Any) -> str:
    text = reprlib.repr(value) if isinstance(value, (Mapping, list, tuple, set)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NOT_OF_TRAINING = {
    "pictures",
    "output",
    "saving",
    "memory",
}  # groups of settings that name places or suit one machine


_HELD_ALL_THE_SAME = {
    "preferred_weight",
    "negative_text",
    "save_precision",
    "mixed_precision",
    "gradient_checkpointing",
}


_NAMES = {"output_name", "reg_data_dir", "init_lora"}


def held_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that made a LoRA what it is: no names, no places, nothing that only suits
    a machine.
    """
    meant = config.meant()
    return {name: meant[name] for name in held_names()}


def held_names() -> list[str]:
    """Name the settings that a LoRA may hold, and that may be taken over from one: files come from
    strangers.
    """
    return [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _NAMES
        and (field.metadata["group"] not in _NOT_OF_TRAINING or field.name in _HELD_ALL_THE_SAME)
    ]
