"""`coca`: sentences written by open_clip's CoCa models (arXiv:2205.01917), which read a picture and
say the next word.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from ...base.errors import ErrorCode, Refused
from ...settings.setting import Choice, Setting
from ..contracts import Captioner, CheckPath, LoadedCaptioner, OnProgress, Readiness, ShouldStop
from ..options import OptionValues, batch_size_option
from .beam_search import BeamSearch, beam_search
from .open_clip_models import (
    ModelSource,
    hub_weights,
    load_open_clip,
    model_options,
    resolve_source,
    source_readiness,
)

LAION = "laion/CoCa-{}-laion2B-s13B-b90k"
MSCOCO = "laion/mscoco_finetuned_CoCa-{}-laion2B-s13B-b90k"
KNOWN = {
    "coca_ViT-L-14": (
        Choice(
            "coca_ViT-L-14",
            "CoCa ViT-L-14",
            "The better one: 2.55 GB, fine-tuned to describe photos (MSCOCO).",
        ),
        ModelSource(
            "coca_ViT-L-14 (MSCOCO)",
            "coca_ViT-L-14",
            hub_weights(MSCOCO.format("ViT-L-14"), 2_554_000_000),
        ),
    ),
    "coca_ViT-L-14-laion": (
        Choice(
            "coca_ViT-L-14-laion",
            "CoCa ViT-L-14, LAION",
            "2.55 GB; knows names and art, writes as the web does.",
        ),
        ModelSource(
            "coca_ViT-L-14 (LAION)",
            "coca_ViT-L-14",
            hub_weights(LAION.format("ViT-L-14"), 2_554_000_000),
        ),
    ),
    "coca_ViT-B-32": (
        Choice(
            "coca_ViT-B-32",
            "CoCa ViT-B-32",
            "Small: 1.01 GB, fine-tuned to describe photos (MSCOCO).",
        ),
        ModelSource(
            "coca_ViT-B-32 (MSCOCO)",
            "coca_ViT-B-32",
            hub_weights(MSCOCO.format("ViT-B-32"), 1_014_000_000),
        ),
    ),
}


class CocaCaptioner(Captioner):
    """`data_dir` keeps models; `check_path` raises `Refused` for a path that may not be read from
    here.
    """

    name = "coca"
    title = "CoCa sentences"
    help = "Writes a sentence about each picture (open_clip's CoCa)."

    def __init__(self, data_dir: Path, check_path: CheckPath) -> None:
        self._models = data_dir / "models"
        self._cache = data_dir / "cache"
        self._check_path = check_path

    def options(self) -> list[Setting]:
        return [
            *model_options(KNOWN, "coca_ViT-L-14"),
            Setting(
                6,
                "Beams",
                "How many sentences are followed at once; more is better and slower. 1: the"
                " likeliest word each time.",
                name="num_beams",
                minimum=1,
                maximum=32,
            ),
            Setting(
                30,
                "Longest",
                "At most so many tokens (a word has one or two).",
                name="max_length",
                minimum=3,
                maximum=74,
            ),
            Setting(
                5, "Shortest", "At least so many tokens.", name="min_length", minimum=0, maximum=60
            ),
            Setting(
                1.0,
                "Length",
                "Above 1 longer sentences are preferred, below 1 shorter ones.",
                name="length_penalty",
                minimum=-2.0,
                maximum=4.0,
                step=0.1,
            ),
            batch_size_option(8, maximum=128),
        ]

    def readiness(self, options: OptionValues) -> Readiness:
        if options["min_length"] > options["max_length"]:
            raise Refused(
                f"The shortest sentence ({options['min_length']}) is longer than the longest"
                f" ({options['max_length']}).",
                field="min_length",
                code=ErrorCode.BAD_VALUE,
            )
        return source_readiness(resolve_source(options, KNOWN, self._check_path), self._models)

    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        source = resolve_source(options, KNOWN, self._check_path)
        model, transform, tokenizer = load_open_clip(
            source,
            self._models,
            self._cache / "open_clip",
            on_progress=on_progress,
            should_stop=should_stop,
        )
        if not hasattr(model, "text_decoder"):
            raise Refused(
                f"{source.title} writes no sentences; choose a CoCa model, or the captioner"
                " clip-labels.",
                field="model_name",
                code=ErrorCode.WRONG_MODEL,
            )
        return _Coca(model, transform, tokenizer, options)


class _Coca(LoadedCaptioner):
    sentences = True

    def __init__(
        self,
        model: torch.nn.Module,
        transform: Callable,
        tokenizer: Callable,
        options: OptionValues,
    ) -> None:
        self._model = model
        self._transform = transform
        self._device = torch.device("cpu")
        self.batch_size = options["batch_size"]
        start, end = tokenizer([""])[0, :2].tolist()
        self._search = BeamSearch(
            start,
            end,
            beams=options["num_beams"],
            max_length=min(options["max_length"], model.text_decoder.context_length - 2),
            min_length=options["min_length"],
            length_penalty=options["length_penalty"],
        )
        # Versions of open_clip call it one or the other; either keeps the sentence as it is.
        known = inspect.signature(model.forward).parameters
        self._arguments = {name: False for name in ("embed_cls", "output_labels") if name in known}

    @torch.no_grad()
    def caption(self, images: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        pixels = torch.stack([self._transform(image) for image in images]).to(self._device)
        latent, tokens = (
            each.repeat_interleave(self._search.beams, dim=0)
            for each in self._model._encode_image(pixels)
        )

        def next_logits(sentences: torch.Tensor) -> torch.Tensor:
            return self._model(
                None, sentences, image_latent=latent, image_embs=tokens, **self._arguments
            )["logits"][:, -1]

        found = beam_search(next_logits, len(images), self._search, device=self._device)
        return [[sentence_of(tokens)] for tokens in found]

    def to(self, device: torch.device) -> None:
        self._device = device
        self._model.to(device)

    def close(self) -> None:
        self._model = None


def sentence_of(tokens: list[int]) -> str:
    """Turn CLIP's tokens into a sentence without its full stop."""
    import open_clip

    words = open_clip.decode(torch.tensor(tokens, dtype=torch.long)) if tokens else ""
    words = re.sub(r"<\w+>", " ", words.split("<end_of_text>")[0])
    return re.sub(r"\s+([,.;:!?'])", r"\1", " ".join(words.split())).strip(" .")
