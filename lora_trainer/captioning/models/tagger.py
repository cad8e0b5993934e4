"""`wd-tagger`: Danbooru's tags by SmilingWolf's WD taggers, version 3, which are models of timm.

A model is a folder: config.json (timm's), model.safetensors, selected_tags.csv (`name,category`; 0
general, 4 character, 9 rating).
"""

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...base.errors import ErrorCode, Refused
from ...base.json_types import JsonObject
from ...base.paths import expand_user
from ...base.tensor_files import read_tensors
from ...settings.setting import Choice, Setting
from ..contracts import (
    READY,
    Captioner,
    CheckPath,
    LoadedCaptioner,
    OnProgress,
    Readiness,
    ShouldStop,
)
from ..downloads import RemoteFile, fetch, readiness_of
from ..options import OptionValues, batch_size_option

CUSTOM = "custom"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TAGS = "selected_tags.csv"
GENERAL = 0
CHARACTER = 4
RATING = 9
WHITE = (255, 255, 255)
MODEL_ARGS = frozenset(
    # what timm's models call their shape; checkpoint_path, features_only, scriptable … are not
    # among it
    {
        "act_layer",
        "attn_drop_rate",
        "block_size",
        "class_token",
        "conv_mlp",
        "depth",
        "depths",
        "dims",
        "drop_path_rate",
        "drop_rate",
        "dynamic_img_size",
        "embed_dim",
        "fc_norm",
        "final_norm",
        "global_pool",
        "head_init_scale",
        "img_size",
        "in_chans",
        "init_values",
        "kernel_sizes",
        "ls_init_value",
        "mlp_ratio",
        "no_embed_class",
        "norm_eps",
        "norm_layer",
        "num_heads",
        "num_reg_tokens",
        "patch_size",
        "pos_embed",
        "pre_norm",
        "pretrained_window_sizes",
        "proj_drop_rate",
        "qk_norm",
        "qkv_bias",
        "qkv_fused",
        "ref_feat_shape",
        "reg_tokens",
        "rope_type",
        "scale_mlp",
        "strict_img_size",
        "swiglu_mlp",
        "use_abs_pos_emb",
        "use_grn",
        "use_post_norm",
        "use_rot_pos_emb",
        "weight_init",
        "window_size",
    }
)
KNOWN = {
    "wd-vit-tagger-v3": (Choice("wd-vit-tagger-v3", "ViT", "The fastest: 378 MB."), 378_500_000),
    "wd-swinv2-tagger-v3": (
        Choice("wd-swinv2-tagger-v3", "SwinV2", "A little better: 392 MB."),
        392_200_000,
    ),
    "wd-convnext-tagger-v3": (
        Choice("wd-convnext-tagger-v3", "ConvNeXt", "Between the two: 395 MB."),
        394_900_000,
    ),
    "wd-eva02-large-tagger-v3": (
        Choice("wd-eva02-large-tagger-v3", "EVA02 Large", "The best and slowest: 1.26 GB."),
        1_260_900_000,
    ),
}


@dataclasses.dataclass(frozen=True)
class Tag:
    name: str
    category: int


class WdTagger(Captioner):
    """`data_dir` keeps models; `check_path` raises `Refused` for a path that may not be read from
    here.
    """

    name = "wd-tagger"
    title = "WD tagger v3"
    help = "Tags in Danbooru's words, for anime and illustrations; newer and better than DeepBooru."
    underscores_to_spaces = True

    def __init__(self, data_dir: Path, check_path: CheckPath) -> None:
        self._models = data_dir / "models"
        self._check_path = check_path

    def options(self) -> list[Setting]:
        return [
            Setting(
                "wd-vit-tagger-v3",
                "Model",
                "By SmilingWolf.",
                name="model",
                choices=(
                    *(choice for choice, _ in KNOWN.values()),
                    Choice(CUSTOM, "Another", "The folder below."),
                ),
            ),
            Setting(
                "",
                "Other model",
                f"A folder with {CONFIG}, {WEIGHTS} and {TAGS}.",
                name="folder",
                effective_when=({"model": (CUSTOM,)},),
            ),
            Setting(
                0.35,
                "Threshold",
                "A tag is written if the model is at least this sure of it.",
                name="general_threshold",
                minimum=0.0,
                maximum=1.0,
                step=0.05,
            ),
            Setting(
                0.85,
                "Threshold for characters",
                "The same for names of characters, which are easily mistaken.",
                name="character_threshold",
                minimum=0.0,
                maximum=1.0,
                step=0.05,
            ),
            Setting(
                False,
                "Rating",
                "Also write the likeliest rating: general, sensitive, questionable or explicit.",
                name="rating",
            ),
            batch_size_option(8, maximum=128),
        ]

    def readiness(self, options: OptionValues) -> Readiness:
        if options["model"] == CUSTOM:
            self._folder(options)
            return READY
        return readiness_of(_files(options["model"]), self._models)

    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        if options["model"] == CUSTOM:
            paths = [self._folder(options) / name for name in (CONFIG, TAGS, WEIGHTS)]
        else:
            paths = [
                fetch(file, self._models, on_progress=on_progress, should_stop=should_stop)
                for file in _files(options["model"])
            ]
        on_progress("Loading the tagger", 0.0)
        config, tags, weights = paths
        model, preprocessing = load_model(config, weights)
        return _Tagger(model, preprocessing, read_tags(tags, outputs=model.num_classes), options)

    def _folder(self, options: OptionValues) -> Path:
        if not options["folder"].strip():
            raise Refused(
                "Which other model? Give its folder.", field="folder", code=ErrorCode.BAD_VALUE
            )
        folder = expand_user(options["folder"].strip())
        self._check_path(folder)
        if missing := [name for name in (CONFIG, TAGS, WEIGHTS) if not (folder / name).is_file()]:
            raise Refused(
                f"The folder {folder} lacks {' and '.join(missing)}.",
                field="folder",
                code=ErrorCode.NO_MODEL,
            )
        return folder


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a picture is made ready: side in pixels, and mean and deviation of its channels, blue
    first.
    """

    side_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Pad to a white square, scale (bicubic), turn round the channels: float32 `(3, side,
        side)`.
        """
        side = max(image.size)
        square = Image.new("RGB", (side, side), WHITE)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = (
            np.asarray(
                square.resize((self.side_px, self.side_px), Image.Resampling.BICUBIC), np.float32
            )[..., ::-1]
            / 255
        )
        return (
            torch.from_numpy((pixels - np.float32(self.mean)) / np.float32(self.std))
            .permute(2, 0, 1)
            .contiguous()
        )


def load_model(config: Path, weights: Path) -> tuple[torch.nn.Module, Preprocessing]:
    """Make timm's model of a config and put the weights in; float32, on the CPU, eval. Raises
    `Refused`.
    """
    try:
        import timm
    except ImportError as error:
        raise Refused(
            "The package timm is missing, which WebUIs have through open_clip. Install it: pip"
            " install timm",
            code=ErrorCode.NO_PACKAGE,
        ) from error
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        facts = found["pretrained_cfg"]
        facts = {**facts, "num_classes": found.get("num_classes", facts.get("num_classes"))}
        architecture, arguments = architecture_of(found, config)
        model = timm.create_model(architecture, pretrained=False, pretrained_cfg=facts, **arguments)
        model.load_state_dict(read_tensors(weights), strict=True)
        preprocessing = Preprocessing(
            facts["input_size"][-1], tuple(facts["mean"]), tuple(facts["std"])
        )
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Refused(
            f"The tagger in {config.parent} cannot be loaded: {type(error).__name__}:"
            f" {str(error)[:300]}",
            field="model",
            code=ErrorCode.WRONG_MODEL,
        ) from error
    return model.eval().requires_grad_(False), preprocessing


def architecture_of(config: JsonObject, place: Path) -> tuple[str, dict[str, Any]]:
    """Return the model's name and arguments for timm; raises `Refused` for what would make timm
    read other files or repositories.
    """
    architecture, arguments = config["architecture"], config.get("model_args") or {}
    if not isinstance(architecture, str) or not re.fullmatch(r"[\w.-]+", architecture):
        raise Refused(
            f"{place} names the architecture {str(architecture)[:80]!r}, which is not the plain"
            " name of a model of timm.",
            field="model",
            code=ErrorCode.NOT_SAFE,
        )
    named = arguments if isinstance(arguments, dict) else {str(arguments): None}
    if strange := [
        name for name, value in named.items() if name not in MODEL_ARGS or not _is_plain(value)
    ]:
        raise Refused(
            f"{place} gives the model the argument {strange[0][:80]!r}, which is not one of its"
            f" shape ({', '.join(sorted(MODEL_ARGS))}).",
            field="model",
            code=ErrorCode.NOT_SAFE,
        )
    return architecture, dict(named)


def _is_plain(value: object) -> bool:
    return all(
        each is None or isinstance(each, (bool, int, float, str))
        for each in (value if isinstance(value, list) else [value])
    )


def read_tags(path: Path, *, outputs: int) -> list[Tag]:
    """Read selected_tags.csv, in the order of the model's outputs; raises `Refused` when it is not
    of this model.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            tags = [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{path} is not a list of tags with the columns name and category: {error}",
            field="model",
            code=ErrorCode.WRONG_MODEL,
        ) from error
    if len(tags) != outputs:
        raise Refused(
            f"{path} has {len(tags)} tags, but the model beside it has {outputs}; they are not of"
            " the same model.",
            field="model",
            code=ErrorCode.WRONG_MODEL,
        )
    return tags


def choose_tags(
    shares: Sequence[float], tags: Sequence[Tag], *, general: float, character: float, rating: bool
) -> list[str]:
    """Return characters, then general tags, each surest first, then the likeliest rating if it is
    wanted.
    """

    def above(category: int, threshold: float) -> list[str]:
        found = [
            (share, tag.name)
            for share, tag in zip(shares, tags, strict=True)
            if tag.category == category and share >= threshold
        ]
        return [name for _, name in sorted(found, key=lambda each: -each[0])]

    ratings = above(RATING, 0.0)[:1] if rating else []
    return [*above(CHARACTER, character), *above(GENERAL, general), *ratings]


class _Tagger(LoadedCaptioner):
    def __init__(
        self,
        model: torch.nn.Module,
        preprocessing: Preprocessing,
        tags: list[Tag],
        options: OptionValues,
    ) -> None:
        self._model = model
        self._preprocessing = preprocessing
        self._tags = tags
        self._device = torch.device("cpu")
        self.batch_size = options["batch_size"]
        self._wanted = {
            "general": options["general_threshold"],
            "character": options["character_threshold"],
            "rating": options["rating"],
        }

    @torch.no_grad()
    def caption(self, images: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        pixels = torch.stack([self._preprocessing(image) for image in images]).to(self._device)
        return [
            choose_tags(shares, self._tags, **self._wanted)
            for shares in self._model(pixels).float().sigmoid().cpu().tolist()
        ]

    def to(self, device: torch.device) -> None:
        self._device = device
        self._model.to(device)

    def close(self) -> None:
        self._model = None


def _files(name: str) -> list[RemoteFile]:
    """Config and tags first: they are small, and without a network the first failure comes at
    once.
    """
    repository = f"SmilingWolf/{name}"
    return [
        RemoteFile((CONFIG,), repository, size_bytes=1_000),
        RemoteFile((TAGS,), repository, size_bytes=310_000),
        RemoteFile((WEIGHTS,), repository, size_bytes=KNOWN[name][1]),
    ]
