"""open_clip's models: which to choose from, where their weights are, and how they are loaded
without unpickling anything.

Loading is open_clip's own (`create_model_and_transforms`). Old versions read weights with plain
`torch.load`, which runs whatever a file says; for those the weights are read here (`safetensors`,
or `weights_only`) and put into the model that open_clip made.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image

from ...base.errors import ErrorCode, Refused
from ...base.files import write_atomically
from ...base.json_types import JsonObject
from ...base.paths import expand_user
from ...base.tensor_files import read_header, read_tensors
from ...settings.setting import Choice, Setting
from ..contracts import CheckPath, OnProgress, Readiness, ShouldStop
from ..downloads import RemoteFile, checked_repository, fetch, readiness_of
from ..options import OptionValues

CUSTOM = "custom"
WEIGHTS_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
CONFIG_NAME = "open_clip_config.json"
HUB = "hf-hub:"
ARCHIVE = b"PK\x03\x04"  # how a file of torch's begins since 1.6
FOREIGN = ("hf_model_name", "hf_tokenizer_name")
Preprocess = Callable[[Image.Image], torch.Tensor]
Tokenizer = Callable[[list[str]], torch.Tensor]
Architecture = JsonObject  # of an open_clip_config.json


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model of open_clip: its architecture by name or by a config file, its weights, and how its
    pictures are normalised.
    """

    title: str
    name: str
    weights: RemoteFile | Path
    config: RemoteFile | Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    quick_gelu: bool = False

    @property
    def downloads(self) -> list[RemoteFile]:
        return [file for file in (self.config, self.weights) if isinstance(file, RemoteFile)]

    @property
    def key(self) -> str:
        """Name the weights for caches: another model, or another file, has another key."""
        if isinstance(self.weights, RemoteFile):
            facts = (self.name, self.weights.repository, self.weights.url, self.weights.names)
        else:
            stat = self.weights.stat()
            facts = (self.name, str(self.weights.resolve()), stat.st_size, stat.st_mtime_ns)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def hub_weights(repository: str, size_bytes: int | None = None) -> RemoteFile:
    """Name a repository's weights; old ones have only a .bin, of which nothing but tensors is
    read.
    """
    return RemoteFile(WEIGHTS_NAMES, repository, size_bytes=size_bytes)


def model_options(
    known: Mapping[str, tuple[Choice, ModelSource]], default: str, *, more: tuple[Choice, ...] = ()
) -> list[Setting]:
    """Return the three options that choose a model: one of a list, or open_clip's name or a folder,
    with tag or file.
    """
    choices = (
        *more,
        *(choice for choice, _ in known.values()),
        Choice(CUSTOM, "Another", "Named below."),
    )
    return [
        Setting(
            default, "Model", "Larger ones see more and take longer.", name="model", choices=choices
        ),
        Setting(
            "",
            "Other model",
            "open_clip's name of a model (ViT-B-16), hf-hub:owner/repository, or a folder with"
            f" {CONFIG_NAME} and the weights.",
            name="model_name",
            effective_when=({"model": (CUSTOM,)},),
        ),
        Setting(
            "",
            "Its weights",
            "open_clip's tag (laion2b_s34b_b88k), or a file (.safetensors, .pt). Empty for a folder"
            " or a repository.",
            name="weights",
            effective_when=({"model": (CUSTOM,)},),
        ),
    ]


def resolve_source(
    options: OptionValues,
    known: Mapping[str, tuple[Choice, ModelSource]],
    check_path: CheckPath,
) -> ModelSource:
    """Return the model that the options name; raises `Refused` for one that cannot be. Imports
    open_clip only for names unknown to us.
    """
    if options["model"] != CUSTOM:
        return known[options["model"]][1]
    name, weights = options["model_name"].strip(), options["weights"].strip()
    if not name:
        raise Refused(
            "Which other model? Give open_clip's name of one, hf-hub:owner/repository, or a"
            " folder.",
            field="model_name",
            code=ErrorCode.BAD_VALUE,
        )
    if name.startswith(HUB):
        repository = checked_repository(name.removeprefix(HUB))
        return ModelSource(
            repository, "", hub_weights(repository), RemoteFile((CONFIG_NAME,), repository)
        )
    if (folder := _folder(name, check_path)) is not None:
        return _of_folder(folder)
    return _of_name(name, weights, check_path)


def _folder(name: str, check_path: CheckPath) -> Path | None:
    folder = expand_user(name)
    if re.fullmatch(r"[\w-]{1,100}(/\d+)?", name, re.ASCII) and not folder.is_dir():
        return None  # ViT-B/16 is an old way to write a name
    check_path(folder)
    if not folder.is_dir():
        raise Refused(f"There is no folder {folder}.", field="model_name", code=ErrorCode.NO_FOLDER)
    return folder


def _of_folder(folder: Path) -> ModelSource:
    weights = next((folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    if weights is None or not (folder / CONFIG_NAME).is_file():
        raise Refused(
            f"The folder {folder} needs {CONFIG_NAME} and {WEIGHTS_NAMES[0]} (or"
            f" {WEIGHTS_NAMES[2]}).",
            field="model_name",
            code=ErrorCode.NO_MODEL,
        )
    return ModelSource(folder.name, "", weights, folder / CONFIG_NAME)


def _of_name(name: str, weights: str, check_path: CheckPath) -> ModelSource:
    import open_clip

    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        raise Refused(
            f"The open_clip that is installed has no model {name!r}. Its models:"
            f" {', '.join(_alike(name, open_clip.list_models()))}, …",
            field="model_name",
            code=ErrorCode.NO_MODEL,
        )
    if any(sign in weights for sign in ("/", "\\", ".", "~")):
        path = expand_user(weights)
        check_path(path)
        if not path.is_file():
            raise Refused(f"There is no file {path}.", field="weights", code=ErrorCode.NO_MODEL)
        return ModelSource(f"{name} ({path.name})", name, path)
    return _of_tag(open_clip, name, weights)


def _of_tag(open_clip: ModuleType, name: str, tag: str) -> ModelSource:
    tags = open_clip.list_pretrained_tags_by_model(name)
    facts = open_clip.get_pretrained_cfg(name, tag) if tag else None
    if not facts:
        raise Refused(
            f"{name} has no weights {tag!r}; it has {', '.join(tags) or 'none to download'}.",
            field="weights",
            code=ErrorCode.NO_MODEL,
        )
    if repository := facts.get("hf_hub"):
        owner, _, file = repository.rpartition("/")
        remote = RemoteFile((file,), owner) if file else hub_weights(owner)
    else:
        remote = RemoteFile((os.path.basename(facts["url"]),), url=facts["url"])
    return ModelSource(
        f"{name} ({tag})",
        name,
        remote,
        mean=facts.get("mean"),
        std=facts.get("std"),
        quick_gelu=bool(facts.get("quick_gelu")) or tag.lower() == "openai",
    )


def _alike(name: str, names: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, names, n=5, cutoff=0.2) or names[:5]


def source_readiness(source: ModelSource, models: Path) -> Readiness:
    return readiness_of(source.downloads, models)


def load_open_clip(
    source: ModelSource,
    models: Path,
    cache: Path,
    *,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> tuple[torch.nn.Module, Preprocess, Tokenizer]:
    """Return model (float32, on the CPU, eval), picture transform and tokenizer, downloading what
    is missing.

    The tokenizer takes texts to int64 `(texts, context_length)`. `cache` is a folder for generated
    config files.
    """

    def on_this_machine(file: RemoteFile | Path) -> Path:
        if isinstance(file, Path):
            return file
        return fetch(file, models, on_progress=on_progress, should_stop=should_stop)

    config = None if source.config is None else on_this_machine(source.config)
    weights = on_this_machine(source.weights)
    on_progress(f"Loading {source.title}", 0.0)
    import open_clip

    preprocessing = {}
    name = source.name
    if config is not None:
        name, preprocessing = _register(open_clip, config, cache)
    mean = preprocessing.get("mean") or source.mean
    std = preprocessing.get("std") or source.std
    model, transform = _create(
        open_clip,
        name,
        weights,
        image_mean=tuple(mean) if mean else None,
        image_std=tuple(std) if std else None,
        force_quick_gelu=source.quick_gelu,
    )
    tokenizer = open_clip.get_tokenizer(name)
    context_length = getattr(model, "context_length", 77)
    return (
        model.eval().requires_grad_(False),
        transform,
        lambda texts: tokenizer(texts, context_length=context_length),
    )


def _register(open_clip: ModuleType, config: Path, cache: Path) -> tuple[str, Architecture]:
    """Make a model config known to open_clip under a name of its content; return the name and how
    pictures are normalised.
    """
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        architecture = _harmless(found.get("model_cfg", found), config)
        content = json.dumps(architecture, sort_keys=True)
        # Old versions know CoCa by its name.
        kind = "coca-" if "multimodal_cfg" in architecture else ""
    except (OSError, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise Refused(
            f"{config} is not a model config of open_clip: {error}",
            field="model_name",
            code=ErrorCode.NO_MODEL,
        ) from error
    name = f"train-lora-{kind}{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(cache / f"{name}.json", content.encode("utf-8"))
        open_clip.add_model_config(cache / f"{name}.json")
    return name, found.get("preprocess_cfg") or {}


def _harmless(architecture: Architecture, config: Path) -> Architecture:
    """Return a model config by which open_clip makes the model alone; raises `Refused` where others
    would fetch, and perhaps run, something.

    A text tower or tokenizer named `hf_…` is transformers' `from_pretrained`, which unpickles
    weights; timm reads repositories by name, too.
    """
    checked = {
        section: dict(values) if isinstance(values, dict) else values
        for section, values in architecture.items()
    }
    for section, values in (
        (section, values) for section, values in checked.items() if isinstance(values, dict)
    ):
        for key in FOREIGN:
            if foreign := values.pop(key, None):
                raise _foreign(config, foreign, f"{section}.{key}")
        if ":" in str(values.get("timm_model_name") or ""):
            raise _foreign(config, values["timm_model_name"], f"{section}.timm_model_name")
        if "timm_model_pretrained" in values:
            values["timm_model_pretrained"] = False
    return checked


def _foreign(config: Path, name: object, key: str) -> Refused:
    return Refused(
        f"{config} asks for a part from elsewhere, {str(name)[:80]} ({key}), which could run code."
        " Choose a model that is whole in itself.",
        field="model_name",
        code=ErrorCode.NOT_SAFE,
    )


def _create(
    open_clip: ModuleType, name: str, weights: Path, **arguments: object
) -> tuple[torch.nn.Module, Preprocess]:
    # All weights are in the file; open_clip would fetch these first.
    arguments |= {"pretrained_image": False, "pretrained_hf": False}
    try:
        _try_to_read(weights)
        if "weights_only" in inspect.signature(open_clip.create_model).parameters:
            model, _, transform = open_clip.create_model_and_transforms(
                name, pretrained=str(weights), weights_only=True, device="cpu", **arguments
            )
        else:
            model, _, transform = open_clip.create_model_and_transforms(
                name, pretrained=None, device="cpu", **arguments
            )
            _put(model, read_weights(weights))
    except (RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise Refused(
            f"The weights {weights} do not fit the model {name}, or are damaged:"
            f" {str(error)[:300]}",
            field="weights",
            code=ErrorCode.WRONG_MODEL,
        ) from error
    return model, transform


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name from .safetensors, or from a file of torch's without running anything in
    it.

    Raises `Refused` for what is no plain weights, and for a damaged file also ValueError, OSError,
    RuntimeError or UnpicklingError.
    """
    if path.suffix.lower() == ".safetensors":
        return read_tensors(path)
    _refuse_program(path)
    # A Path, no text: Forge's torch.load renames what a text names and fails to load.
    found = torch.load(Path(path), map_location="cpu", weights_only=True)
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise Refused(
            f"{path.name} holds no weights that can be read without running it. Choose weights in"
            " .safetensors.",
            field="weights",
            code=ErrorCode.WRONG_MODEL,
        )
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _try_to_read(path: Path) -> None:
    """Find out here what is wrong with a file, before open_clip does: Forge has functions that
    rename a file, named by a text, that fails to load.
    """
    if path.suffix.lower() == ".safetensors":
        read_header(path)
    else:
        read_weights(path)


def _refuse_program(path: Path) -> None:
    """Raise `Refused` for what torch runs or unpacks even with `weights_only`
    (CVE-2025-32434).

    That is a TorchScript archive, which is found with torch's own reader, so that both see the
    same; and whatever is no archive of torch's: its formats of before 1.6.
    """
    with open(path, "rb") as file:
        begin = file.read(len(ARCHIVE))
    if begin != ARCHIVE:
        raise Refused(
            f"{path.name} is in a format that torch left behind with version 1.6, or is damaged; it"
            " is not read. Choose weights in .safetensors.",
            field="weights",
            code=ErrorCode.WRONG_MODEL,
        )
    if "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise Refused(
            f"{path.name} is a TorchScript archive, a program; it is not run. Choose weights in"
            " .safetensors.",
            field="weights",
            code=ErrorCode.WRONG_MODEL,
        )


def _put(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """As open_clip's `load_checkpoint` does once it has read a file."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
    resize_pos_embed(state, model)
    model.load_state_dict(state, strict=True)
