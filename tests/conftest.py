"""A tiny, real model of SD1's names behind the contract, and pictures to train it on. Small enough
for a run of seconds.
"""

import atexit
import contextlib
import gc
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from lora_trainer.base.contracts import BaseModel, Conditioning, Host, ModelStatus  # noqa: E402
from lora_trainer.base.patching import outline_of  # noqa: E402
from lora_trainer.lora.weight_names import unet_to_diffusers  # noqa: E402
from lora_trainer.training import diffusion  # noqa: E402

WIDTH, TEXT_WIDTH = 16, 12


class Attention(torch.nn.Module):
    def __init__(self, context_width: int) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = torch.nn.Linear(context_width, WIDTH, bias=False)
        self.to_v = torch.nn.Linear(context_width, WIDTH, bias=False)
        self.to_out = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.0))

    def forward(self, x, context):
        return self.to_out(
            torch.softmax(self.to_q(x) @ self.to_k(context).mT / WIDTH**0.5, -1)
            @ self.to_v(context)
        )


class GEGLU(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * torch.nn.functional.gelu(gate)


class FeedForward(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            GEGLU(), torch.nn.Dropout(0.0), torch.nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x):
        return self.net(x)


class BasicTransformerBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(TEXT_WIDTH), FeedForward()

    def forward(self, x, context):
        x = x + self.attn1(x, x)
        x = x + self.attn2(x, context)
        return x + self.ff(x)


class SpatialTransformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj_in, self.proj_out = (
            torch.nn.Conv2d(WIDTH, WIDTH, 1),
            torch.nn.Conv2d(WIDTH, WIDTH, 1),
        )
        self.transformer_blocks = torch.nn.ModuleList([BasicTransformerBlock()])

    def forward(self, x, context):
        h = self.proj_in(x)
        tokens = self.transformer_blocks[0](h.flatten(2).mT, context)
        return x + self.proj_out(tokens.mT.reshape(h.shape))


class ResBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_layers = torch.nn.Sequential(
            torch.nn.GroupNorm(4, WIDTH),
            torch.nn.SiLU(),
            torch.nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )
        self.emb_layers = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(WIDTH, WIDTH))

    def forward(self, x, embedding):
        return x + self.in_layers(x) + self.emb_layers(embedding)[..., None, None]


class TinyUNet(torch.nn.Module):
    """Module paths as in LDM's SD1: time_embed, input_blocks.0.0, input_blocks.1.{0,1}, out."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = torch.nn.Sequential(
            torch.nn.Linear(1, WIDTH), torch.nn.SiLU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        self.input_blocks = torch.nn.ModuleList(
            [
                torch.nn.ModuleList([torch.nn.Conv2d(4, WIDTH, 3, padding=1)]),
                torch.nn.ModuleList([ResBlock(), SpatialTransformer()]),
            ]
        )
        self.out = torch.nn.Sequential(
            torch.nn.GroupNorm(4, WIDTH), torch.nn.SiLU(), torch.nn.Conv2d(WIDTH, 4, 3, padding=1)
        )

    def forward(self, x, timesteps, context):
        embedding = self.time_embed(timesteps[:, None].float() / 1000)
        h = self.input_blocks[0][0](x)
        h = self.input_blocks[1][1](self.input_blocks[1][0](h, embedding), context)
        return self.out(h)


class SelfAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            torch.nn.Linear(TEXT_WIDTH, TEXT_WIDTH) for _ in range(4)
        )

    def forward(self, x):
        return self.out_proj(
            torch.softmax(self.q_proj(x) @ self.k_proj(x).mT / TEXT_WIDTH**0.5, -1) @ self.v_proj(x)
        )


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = (
            torch.nn.Linear(TEXT_WIDTH, 2 * TEXT_WIDTH),
            torch.nn.Linear(2 * TEXT_WIDTH, TEXT_WIDTH),
        )

    def forward(self, x):
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class CLIPEncoderLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = SelfAttention(), Mlp()

    def forward(self, x):
        x = x + self.self_attn(x)
        return x + self.mlp(x)


class TinyTextEncoder(torch.nn.Module):
    """Module paths as in transformers' CLIPTextModel:
    text_model.encoder.layers.0.{self_attn,mlp}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text_model = torch.nn.ModuleDict(
            {"encoder": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([CLIPEncoderLayer()])})}
        )

    def forward(self, x):
        return self.text_model["encoder"]["layers"][0](x)


class TinyModel(BaseModel):
    family, prediction_type, name, sha256, clip_skip = "sd1", "epsilon", "tiny", "0" * 64, 1
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet = TinyUNet().eval()
            self._encoder = torch.nn.Conv2d(3, 4, 8, stride=8)
            self.text_encoders = [TinyTextEncoder().eval()]
        self.alphas_cumprod = torch.cumprod(
            1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0
        )

    def encode_images(self, pixels):
        return self._encoder(pixels).detach()

    def configure(self, options):
        self.clip_skip = options.clip_skip or 1
        self.prediction_type = options.prediction_type or "epsilon"
        self.zero_terminal_snr = bool(options.zero_terminal_snr)
        if self.zero_terminal_snr:
            self.alphas_cumprod = diffusion.rescale_zero_terminal_snr(self.alphas_cumprod)

    def encode_captions(self, captions):
        """In chunks of twenty words, filled up with empty ones."""
        chunks = [
            [" ".join(words[at : at + 20]) for at in range(0, len(words), 20)] or [""]
            for words in map(str.split, captions)
        ]
        longest = max(map(len, chunks))
        rows = [
            [self._embedded(chunk) for chunk in each + [""] * (longest - len(each))]
            for each in chunks
        ]
        return Conditioning(
            torch.cat([self.text_encoders[0](torch.stack(column)) for column in zip(*rows)], dim=1)
        )

    @staticmethod
    def _embedded(chunk):
        return torch.randn(
            77, TEXT_WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(chunk.encode()))
        )

    def predict(self, noisy_latents, timesteps, conditioning):
        return self.unet(noisy_latents, timesteps, conditioning.hidden_states)

    def export_name(self, path):
        part, _, inner = path.partition(".")
        return (
            "lora_unet_" + unet_to_diffusers(inner) if part == "unet" else "lora_te_" + inner
        ).replace(".", "_")


class TinyHost(Host):
    kind, version = "standalone", "test"

    def __init__(self, folder: Path) -> None:
        self.lora_dir, self.data_dir = folder / "Lora", folder / "train_lora"
        self.lora_dir.mkdir(parents=True)
        self.model, self.registered, self.gave_way, self.waiting, self.status = (
            TinyModel(),
            [],
            0,
            False,
            ModelStatus(True, checkpoint="tiny", family="sd1", prediction_type="epsilon"),
        )
        self._lent_parts = None

    def model_status(self):
        return self.status

    def loaded_parts(self):
        return self.model.parts() if self._lent_parts is None else self._lent_parts

    @contextlib.contextmanager
    def borrow_model(self):
        parts = self.model.parts()
        flags = [parameter.requires_grad for parameter in parts.parameters()]
        try:
            parts.requires_grad_(False)
            self._lent_parts = outline_of(parts)
            yield self.model
        finally:
            self._lent_parts = None
            for parameter, flag in zip(parts.parameters(), flags):
                parameter.requires_grad_(flag)

    def others_are_waiting(self):
        return self.waiting

    def give_way(
        self,
        *,
        until=lambda: True,
        on_wait=lambda waiting_for, sentence: None,
        should_stop=lambda: False,
    ):
        self.gave_way += 1
        self.waiting = False
        while not until() and not should_stop():
            time.sleep(0.005)
        return not should_stop()

    def register(self, path):
        self.registered.append(path)

    def generate(self, prompt, **settings):
        return Image.new("RGB", (64, 64))


_frozen_modules = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Take what libraries leave in memory out of the garbage collector's sight, whenever more of
    them have been imported. Each run collects garbage, which takes half a second otherwise; what
    tests make themselves is collected as ever.
    """
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 20:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what earlier tests left is not for this one to answer
            gc.collect()
        gc.freeze()
        _frozen_modules = len(sys.modules)


atexit.register(gc.unfreeze)  # at the end of the process all is collected in its order


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Reports can be sent between processes: what was logged of names that are not Unicode is
    escaped.
    """
    report = (yield).get_result()
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]


pytest_plugins = [
    "tests.support.pages",
    "tests.support.data_sets",
    "tests.support.finished_jobs",
]
# What `--quick` leaves out: processes, browsers, servers, whole runs by way of the command line.
SLOW_FOLDERS = {"captioning", "cli", "demo", "hosts", "jobs", "journeys", "web", "webui"}
SLOW_FILES = {"test_bench.py", "test_install.py"}


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="only the tests of what training is: under two minutes"
    )


def pytest_ignore_collect(collection_path, config):
    if not config.getoption("--quick"):
        return None
    inside = collection_path.relative_to(Path(__file__).parent).parts
    return bool(inside) and (inside[0] in SLOW_FOLDERS or inside[-1] in SLOW_FILES) or None


@pytest.fixture
def host(tmp_path) -> TinyHost:
    return TinyHost(tmp_path / "host")


def draw_pictures(folder: Path) -> Path:
    """Draw six captioned pictures of three shapes."""
    folder.mkdir()
    for number, size in enumerate([(64, 64), (64, 64), (128, 64), (64, 128), (96, 96), (128, 64)]):
        image = Image.new("RGB", size, (40 * number, 90, 200 - 20 * number))
        ImageDraw.Draw(image).ellipse([8, 8, 40, 40], fill=(250, 20 * number, 30))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a circle, number {number}", encoding="utf-8")
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    return draw_pictures(tmp_path / "pictures")


SMALL = dict(
    output_name="mine",
    resolution=64,
    bucket_step=32,
    batch_size=2,
    max_train_steps=6,
    learning_rate=1e-2,
    lora_rank=4,
    lora_alpha=4,
    save_precision="fp32",
)


@pytest.fixture
def settings(pictures) -> dict:
    return {**SMALL, "train_data_dir": str(pictures)}
