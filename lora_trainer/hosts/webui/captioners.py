"""The captioners that the WebUI has itself: BLIP, which its Interrogate CLIP button begins with,
and DeepBooru.

Their own objects and loading are used, so a model that the WebUI keeps in memory is not loaded
twice, and one that it did not have is gone afterwards. The WebUI's settings give the defaults of
the options; nothing is changed in them. Its Interrogate buttons take no turn and move the models
when they like: a batch calls its model back first, and its pixels go wherever the model is.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from modules import deepbooru, devices, images, interrogate, paths, shared
from PIL import Image

from ...captioning.contracts import Captioner, LoadedCaptioner, OnProgress, Readiness, ShouldStop
from ...captioning.downloads import RemoteFile, fetch, find, forbidden, readiness_of
from ...captioning.options import OptionValues, batch_size_option
from ...settings.setting import Setting

Turn = Callable[[], AbstractContextManager[None]]
DEEPBOORU_FILE = RemoteFile(
    ("model-resnet_custom_v3.pt",),
    size_bytes=644_000_000,
    url="https://github.com/AUTOMATIC1111/TorchDeepDanbooru/releases/download/v1/model-resnet_custom_v3.pt",
)
BLIP_FILE = RemoteFile(
    ("model_base_caption_capfilt_large.pth",),
    size_bytes=896_000_000,
    url="https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_caption_capfilt_large.pth",
)
# BLIP's own code asks for it by this name.
BLIP_WORDS = RemoteFile(("vocab.txt",), "bert-base-uncased", size_bytes=232_000)
DEEPBOORU_SIZE_PX = 512
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def webui_captioners(turn: Turn) -> list[Captioner]:
    """Return them; `turn` is the context in which the WebUI's models may be touched."""
    return [BlipCaptioner(turn), DeepbooruCaptioner(turn)]


class _WebUICaptioner(Captioner):
    """A captioner whose model is in a folder of the WebUI's; any file of the kind there is taken,
    as the WebUI takes it.
    """

    folder_name: str
    pattern: str  # of the names of models in the folder
    file: RemoteFile  # what the WebUI would fetch into an empty one

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._folder = Path(paths.models_path) / self.folder_name

    def readiness(self, options: OptionValues) -> Readiness:
        return readiness_of([] if self._has_model() else [self.file], self._folder)

    def _fetch(self, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        if not self._has_model():
            fetch(self.file, self._folder, on_progress=on_progress, should_stop=should_stop)

    def _has_model(self) -> bool:
        return any(self._folder.glob(self.pattern))


class DeepbooruCaptioner(_WebUICaptioner):
    folder_name = "torch_deepdanbooru"
    pattern = "*.pt"
    file = DEEPBOORU_FILE
    name = "deepbooru"
    title = "DeepBooru (the WebUI's)"
    help = (
        "Tags in Danbooru's words, for anime pictures; the same model as the WebUI's Interrogate"
        " DeepBooru."
    )
    underscores_to_spaces = True

    def options(self) -> list[Setting]:
        return [
            Setting(
                float(shared.opts.interrogate_deepbooru_score_threshold),
                "Threshold",
                "A tag is written if the model is at least this sure of it.",
                name="threshold",
                minimum=0.0,
                maximum=1.0,
                step=0.05,
            ),
            Setting(
                False,
                "In alphabetical order",
                "Else the surest tag comes first.",
                name="alphabetical",
            ),
            batch_size_option(4, maximum=64),
        ]

    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        self._fetch(on_progress, should_stop)
        on_progress("Loading DeepBooru", 0.0)
        with self._turn():
            had_it = deepbooru.model.model is not None
            deepbooru.model.load()
        return _Deepbooru(options, self._turn, keep=had_it)


class _Deepbooru(LoadedCaptioner):
    def __init__(self, options: OptionValues, turn: Turn, *, keep: bool) -> None:
        self.batch_size = options["batch_size"]
        self._threshold = options["threshold"]
        self._alphabetical = options["alphabetical"]
        self._turn = turn
        self._keep = keep
        self._device = devices.cpu

    def caption(self, pictures: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        squares = [
            images.resize_image(2, picture, DEEPBOORU_SIZE_PX, DEEPBOORU_SIZE_PX)
            for picture in pictures
        ]
        # (batch, height, width, 3)
        pixels = torch.from_numpy(
            np.stack([np.asarray(square, np.float32) / 255 for square in squares])
        )
        model = deepbooru.model.model.to(self._device)
        weight = next(model.parameters())
        with torch.no_grad(), devices.autocast():
            shares = model(pixels.to(weight.device, weight.dtype)).float().cpu()
        return [self._tags(each.tolist()) for each in shares]

    def _tags(self, shares: list[float]) -> list[str]:
        found = {
            tag: share
            for tag, share in zip(deepbooru.model.model.tags, shares, strict=True)
            if share >= self._threshold and not tag.startswith("rating:")
        }
        return sorted(found, key=None if self._alphabetical else lambda tag: -found[tag])

    def to(self, device: torch.device) -> None:
        self._device = devices.device if device.type != "cpu" else devices.cpu
        deepbooru.model.model.to(self._device)

    def close(self) -> None:
        with self._turn():
            if not self._keep:
                deepbooru.model.model = None
            devices.torch_gc()


class BlipCaptioner(_WebUICaptioner):
    folder_name = "BLIP"
    pattern = "*.pth"
    file = BLIP_FILE
    name = "blip"
    title = "BLIP (the WebUI's)"
    help = "Writes a sentence; the same model as the WebUI's Interrogate CLIP begins with."

    def options(self) -> list[Setting]:
        return [
            Setting(
                int(shared.opts.interrogate_clip_num_beams),
                "Beams",
                "How many sentences are followed at once; more is better and slower.",
                name="num_beams",
                minimum=1,
                maximum=16,
            ),
            Setting(
                int(shared.opts.interrogate_clip_min_length),
                "Shortest",
                "At least so many tokens.",
                name="min_length",
                minimum=1,
                maximum=128,
            ),
            Setting(
                int(shared.opts.interrogate_clip_max_length),
                "Longest",
                "At most so many tokens.",
                name="max_length",
                minimum=1,
                maximum=256,
            ),
            batch_size_option(4, maximum=64),
        ]

    def readiness(self, options: OptionValues) -> Readiness:
        """Its word list is fetched by transformers, by name, into Hugging Face's cache; nowhere
        else is it looked for.
        """
        if find(BLIP_WORDS, self._folder) is None and forbidden(BLIP_WORDS):
            return Readiness(
                False,
                f"It needs the word list {BLIP_WORDS.repository} in Hugging Face's cache, and"
                " downloads are switched off (HF_HUB_OFFLINE).",
            )
        return super().readiness(options)

    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        self._fetch(on_progress, should_stop)
        on_progress("Loading BLIP", 0.0)
        models = shared.interrogator
        with self._turn():
            had_it = models.blip_model is not None
            if not had_it:
                models.blip_model = models.load_blip_model()
                if not shared.cmd_opts.no_half and not models.running_on_cpu:
                    models.blip_model = models.blip_model.half()
        return _Blip(options, self._turn, keep=had_it)


class _Blip(LoadedCaptioner):
    sentences = True

    def __init__(self, options: OptionValues, turn: Turn, *, keep: bool) -> None:
        self.batch_size = options["batch_size"]
        self._options = options
        self._turn = turn
        self._keep = keep
        self._device = devices.cpu

    def caption(self, pictures: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        model = shared.interrogator.blip_model.to(self._device)
        weight = next(model.parameters())
        pixels = torch.stack([self._pixels(picture) for picture in pictures]).to(
            weight.device, weight.dtype
        )
        with torch.no_grad():
            sentences = model.generate(
                pixels,
                sample=False,
                num_beams=self._options["num_beams"],
                max_length=self._options["max_length"],
                min_length=min(self._options["min_length"], self._options["max_length"]),
            )
        return [[sentence] for sentence in sentences]

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        """As the WebUI prepares a picture: float32 `(3, 384, 384)`."""
        side = interrogate.blip_image_eval_size
        pixels = torch.from_numpy(
            np.asarray(picture.resize((side, side), Image.BICUBIC), np.float32) / 255
        ).permute(2, 0, 1)
        mean = torch.tensor(CLIP_MEAN)[:, None, None]
        std = torch.tensor(CLIP_STD)[:, None, None]
        return (pixels - mean) / std

    def to(self, device: torch.device) -> None:
        self._device = devices.device_interrogate if device.type != "cpu" else devices.cpu
        shared.interrogator.blip_model = shared.interrogator.blip_model.to(self._device)

    def close(self) -> None:
        with self._turn():
            if not self._keep:
                shared.interrogator.blip_model = None
            devices.torch_gc()
