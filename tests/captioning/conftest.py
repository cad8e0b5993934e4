"""Real classes with small random weights, saved as people have them: folders of open_clip and timm,
loaded on the real path.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.captioning.labels import LabelSets
from lora_trainer.captioning.registry import Captioners

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COCA = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        **CLIP["vision_cfg"],
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        **CLIP["text_cfg"],
        "context_length": 76,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {**CLIP["text_cfg"], "context_length": 76, "attn_pooler_heads": 2},
}
VIT = dict(
    img_size=32,
    patch_size=8,
    embed_dim=32,
    depth=1,
    num_heads=2,
    class_token=False,
    global_pool="avg",
    fc_norm=False,
)
TAGS = (
    ("general", 9),
    ("explicit", 9),
    ("1girl", 0),
    ("long_hair", 0),
    ("0_0", 0),
    ("miku_(x)", 4),
)


def quiet(*_):
    """Reports to nobody."""


def never():
    return False


def save_open_clip(folder: Path, config: dict, name: str) -> Path:
    """Make a model of open_clip with seeded random weights and save it as a repository has it."""
    import open_clip

    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        if (
            projection := getattr(getattr(model, "text_decoder", None), "text_projection", None)
        ) is not None:
            torch.nn.init.normal_(projection, std=0.2)  # open_clip leaves it as torch.empty made it
    (folder / f"{name}.json").rename(folder / "open_clip_config.json")
    (folder / "open_clip_config.json").write_text(
        json.dumps(
            {
                "model_cfg": config,
                "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            }
        )
    )
    save_file(
        {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(autouse=True)
def _nothing_downloaded_before(tmp_path, monkeypatch):
    """What lies in this machine's caches, and whether it may ask the network, has no part in the
    tests.
    """
    import huggingface_hub.constants

    from lora_trainer.captioning import downloads

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.setattr(downloads, "OPEN_CLIP_CACHE", tmp_path / "no-cache")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("clip") / "tiny", CLIP, "tiny-for-tests")


@pytest.fixture(scope="session")
def coca_folder(tmp_path_factory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("coca") / "tiny", COCA, "coca-tiny-for-tests")


@pytest.fixture
def tagger_folder(tmp_path) -> Path:
    """A timm ViT whose outputs do not depend on the picture: its head's biases decide."""
    import timm

    folder = tmp_path / "tagger"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=len(TAGS), **VIT)
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor(
        [0.2, 0.5, 2.0, 3.0, 1.0, 1.5]
    )  # as shares: .55 .62 .88 .95 .73 .82
    facts = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "num_classes": 1000,
    }
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_tiny_patch16_224",
                "num_classes": len(TAGS),
                "num_features": 32,
                "model_args": VIT,
                "pretrained_cfg": facts,
            }
        )
    )
    rows = "".join(
        f"{number},{name},{category},9\n" for number, (name, category) in enumerate(TAGS)
    )
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def label_sets(tmp_path) -> LabelSets:
    return LabelSets(tmp_path / "labels")


@pytest.fixture
def captioners(tmp_path, label_sets) -> Captioners:
    return Captioners(tmp_path / "data", label_sets, lambda path: None)


@pytest.fixture
def load(captioners):
    """Load a captioner by name with options, as the loop does."""

    def load(name: str, **options):
        captioner, values = captioners.read(name, options)
        loaded = captioner.load(values, on_progress=quiet, should_stop=never)
        assert all(0 <= share < 1 for _, share in loaded.preparation())
        return loaded

    return load
