"""`clip-labels`: the labels of each group compete for a picture, and the best of each makes the
caption (zero-shot, arXiv:2103.00020).

Picture features and label features are unit vectors; within a group, softmax(scale · picture ·
label) is the probability of each label, with the scale that the model was trained with. Label
features are averages over prompts, kept in memory and on disk.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save

from ...base.files import write_atomically
from ...base.tensor_files import read_tensors
from ...demo import clip as demo_clip
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
from ..labels import Label, LabelGroup, LabelSets
from ..options import OptionValues, batch_size_option
from .open_clip_models import (
    ModelSource,
    hub_weights,
    load_open_clip,
    model_options,
    resolve_source,
    source_readiness,
)

log = logging.getLogger(__name__)
DEMO = "demo"
LABELS_AT_ONCE = 32
KNOWN = {
    "ViT-L-14": (
        Choice("ViT-L-14", "ViT-L-14", "The usual choice: 1.71 GB, DataComp-XL's weights."),
        ModelSource(
            "ViT-L-14 (datacomp_xl_s13b_b90k)",
            "ViT-L-14",
            hub_weights("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 1_710_600_000),
        ),
    ),
    "ViT-B-32": (
        Choice(
            "ViT-B-32", "ViT-B-32", "Small and fast, also on a CPU: 605 MB, LAION-2B's weights."
        ),
        ModelSource(
            "ViT-B-32 (laion2b_s34b_b79k)",
            "ViT-B-32",
            hub_weights("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 605_200_000),
        ),
    ),
    "ViT-H-14": (
        Choice("ViT-H-14", "ViT-H-14", "Sees most: 3.94 GB, LAION-2B's weights."),
        ModelSource(
            "ViT-H-14 (laion2b_s32b_b79k)",
            "ViT-H-14",
            hub_weights("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 3_944_500_000),
        ),
    ),
}


class ClipLabelsCaptioner(Captioner):
    """`data_dir` keeps models, caches and the user's label lists; `check_path` raises `Refused` for
    a path that may not be read from here.
    """

    name = "clip-labels"
    title = "CLIP labels"
    help = (
        "Looks for the labels of a list, group by group (subject, medium, style, light,"
        " composition, colour), and writes the best of each. You can edit the lists."
    )

    def __init__(self, data_dir: Path, label_sets: LabelSets, check_path: CheckPath) -> None:
        self._models = data_dir / "models"
        self._cache = data_dir / "cache"
        self._label_sets = label_sets
        self._check_path = check_path
        # Label features on the CPU, by model.
        self._features: dict[str, dict[str, torch.Tensor]] = {}

    def options(self) -> list[Setting]:
        demo = Choice(
            DEMO,
            "Embedded demo",
            "Knows shapes and colours only; always ready. To try how it works.",
        )
        sets = [Choice(name, self._label_sets.title(name)) for name in self._label_sets.names()]
        return [
            *model_options(KNOWN, "ViT-L-14", more=(demo,)),
            Setting(
                "",
                "Labels",
                "The list that is looked through.",
                name="labels",
                choices=(Choice("", "Suits the model"), *sets),
            ),
            Setting(
                0.2,
                "Threshold",
                "A label is written if its share among its group is at least this.",
                name="threshold",
                minimum=0.0,
                maximum=1.0,
                step=0.05,
            ),
            Setting(
                1,
                "Labels per group",
                "At most so many of each group.",
                name="per_group",
                minimum=1,
                maximum=10,
            ),
            batch_size_option(16, maximum=256),
        ]

    def readiness(self, options: OptionValues) -> Readiness:
        self._groups(options)
        if options["model"] == DEMO:
            if demo_clip.ASSET.is_file():
                return READY
            return Readiness(
                False,
                f"The package was installed without {demo_clip.ASSET.name}; install it again.",
            )
        return source_readiness(resolve_source(options, KNOWN, self._check_path), self._models)

    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        groups, source = self._groups(options), self._source(options)
        model, transform, tokenizer = load_open_clip(
            source,
            self._models,
            self._cache / "open_clip",
            on_progress=on_progress,
            should_stop=should_stop,
        )
        kept = self._features.setdefault(source.key, {})
        features = LabelFeatures(kept, self._cache / "labels" / f"{source.key}.safetensors")
        return _Labeller(
            model,
            transform,
            tokenizer,
            groups,
            features,
            threshold=options["threshold"],
            per_group=options["per_group"],
            batch_size=options["batch_size"],
        )

    def _groups(self, options: OptionValues) -> list[LabelGroup]:
        return self._label_sets.groups(
            options["labels"] or ("shapes" if options["model"] == DEMO else "default")
        )

    def _source(self, options: OptionValues) -> ModelSource:
        if options["model"] != DEMO:
            return resolve_source(options, KNOWN, self._check_path)
        config, weights = demo_clip.write_clip(self._cache / "demo_clip" / demo_clip.version())
        return ModelSource("the embedded demo", "", weights, config)


class LabelFeatures:
    """Features by prompts, in memory and in a safetensors file, which is a cache: a damaged one is
    made anew.
    """

    def __init__(self, kept: dict[str, torch.Tensor], file: Path) -> None:
        self._kept, self._file = kept, file
        if not kept and file.is_file():
            try:
                kept.update(read_tensors(file))
            except (ValueError, OSError):
                log.warning("%s is damaged and made anew", file)

    def of(self, prompts: Sequence[tuple[str, ...]]) -> torch.Tensor:
        """Return float32 `(labels, width)`, unit length: for each label the mean of its prompts'
        features. All have to be known.
        """
        return torch.stack([self._kept[_key(each)] for each in prompts])

    def learn(
        self, prompts: Sequence[tuple[str, ...]], encode: Callable[[list[str]], torch.Tensor]
    ) -> Generator[float, None, None]:
        """Encode the prompts that are not known yet, some labels at a time, and keep the features;
        yields the share that is done before each time.

        `encode` takes texts to unit features `(texts, width)` on the CPU.
        """
        missing = [each for each in dict.fromkeys(prompts) if _key(each) not in self._kept]
        try:
            for first in range(0, len(missing), LABELS_AT_ONCE):
                yield first / len(missing)
                some = missing[first : first + LABELS_AT_ONCE]
                for each, feature in zip(some, _means(some, encode), strict=True):
                    self._kept[_key(each)] = feature
        finally:
            if missing:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file, save(self._kept))


def _means(
    prompts: Sequence[tuple[str, ...]], encode: Callable[[list[str]], torch.Tensor]
) -> list[torch.Tensor]:
    features = encode([text for each in prompts for text in each])
    return [
        F.normalize(part.mean(0), dim=-1).contiguous()
        for part in features.split([len(each) for each in prompts])
    ]


def _key(prompts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(prompts).encode("utf-8")).hexdigest()


def choose(
    probabilities: torch.Tensor, labels: Sequence[Label], *, threshold: float, per_group: int
) -> list[str]:
    """Return the words of the best labels of a group, best first: of `(labels,)` at most
    `per_group`, each at least `threshold`.
    """
    best = probabilities.topk(min(per_group, len(labels)))
    chosen = [
        labels[index].words
        for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if share >= threshold
    ]
    return [words for words in chosen if words]


class _Labeller(LoadedCaptioner):
    def __init__(
        self,
        model: torch.nn.Module,
        transform: Callable,
        tokenizer: Callable,
        groups: list[LabelGroup],
        features: LabelFeatures,
        *,
        threshold: float,
        per_group: int,
        batch_size: int,
    ) -> None:
        self._model = model
        self._transform = transform
        self._tokenizer = tokenizer
        self._groups = groups
        self._features = features
        self._threshold = threshold
        self._per_group = per_group
        self.batch_size = batch_size
        self._device = torch.device("cpu")
        self._labels = None
        self._prompts = [[group.prompts_for(label) for label in group.labels] for group in groups]

    def preparation(self) -> Generator[tuple[str, float], None, None]:
        every = [each for group in self._prompts for each in group]
        with contextlib.closing(self._features.learn(every, self._encode)) as shares:
            for share in shares:
                yield "Reading the labels, once for this model", share

    @torch.no_grad()
    def caption(self, images: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        pixels = torch.stack([self._transform(image) for image in images]).to(self._device)
        pictures = F.normalize(self._model.encode_image(pixels).float(), dim=-1)
        scale = self._model.logit_scale.exp().float()
        words = [[] for _ in images]
        for group, features in zip(self._groups, self._label_features(), strict=True):
            for found, probabilities in zip(
                words, (scale * pictures @ features.T).softmax(-1).cpu(), strict=True
            ):
                found += choose(
                    probabilities,
                    group.labels,
                    threshold=self._threshold,
                    per_group=self._per_group,
                )
        return words

    def to(self, device: torch.device) -> None:
        self._device = device
        self._model.to(device)
        self._labels = (
            None if self._labels is None else [features.to(device) for features in self._labels]
        )

    def close(self) -> None:
        self._model = self._labels = None

    def _label_features(self) -> list[torch.Tensor]:
        """Features `(labels, width)` of each group, on the model's device."""
        if self._labels is None:
            self._labels = [
                self._features.of(prompts).to(self._device) for prompts in self._prompts
            ]
        return self._labels

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(texts).to(self._device)
        return F.normalize(self._model.encode_text(tokens).float(), dim=-1).cpu()
