"""Trains the embedded CLIP, a small open_clip model, on pictures of the world and their captions.

    python -m lora_trainer.demo.pretrain_clip --work work/    # 17 minutes on one CPU core

The seed is fixed. Two losses, both on the similarities of picture and text features. Contrastive:
of the batch's captions, most of them incomplete ("a picture of a red shape"), all that are true of
a picture share its probability. Zero-shot: among the names of a group, inside a random phrase, the
right one; this is what the captioner `clip-labels` does. Nothing at run time imports this module.
"""

import argparse
import io
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file

from . import world
from .clip import ASSET, CONFIG, NAME, SIZE_PX, load_state_dict, pack_clip

log = logging.getLogger(__name__)
SEED = 20_232
STEPS = 5_000
BATCH = 64
RATE = 2e-3
OPENINGS = (
    "",
    "a photo of ",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "a painting of ",
    "this is ",
)
GROUPS = {
    "shape": dict.fromkeys(world.SHAPES, ("{a}", "{}", "{a} on a background", "a shape: {}")),
    "colour": dict.fromkeys(
        world.COLOURS, ("{a} shape", "{}", "something {}", "{a} thing", "{a} shape on a background")
    ),
    "background": dict.fromkeys(
        world.COLOURS,
        (
            "{a} background",
            "something on {a} background",
            "{} background",
            "a shape on {a} background",
        ),
    ),
    "size": {
        "small": ("{a} shape", "{} shape", "something {}"),
        "": ("a shape of ordinary size", "ordinary size"),
        "large": ("{a} shape", "{} shape", "something {}"),
    },
    "striped": {
        True: ("a striped background", "stripes", "something on stripes"),
        False: ("a plain background", "plain background"),
    },
}


def phrase(template: str, name: str | bool) -> str:
    """Put a name into a template: "{a}" with its article, "{}" without."""
    with_article = world.with_article(name) if isinstance(name, str) and name else ""
    return template.replace("{a}", with_article).replace("{}", str(name))


def group_texts(group: str, rng: np.random.RandomState) -> list[str]:
    """Return one random phrase for each name of a group."""
    opening = OPENINGS[rng.randint(len(OPENINGS))]
    return [
        opening + phrase(templates[rng.randint(len(templates))], name)
        for name, templates in GROUPS[group].items()
    ]


def partial_caption(scene: world.Scene, rng: np.random.RandomState) -> tuple[str, dict]:
    """Return a caption that says some of what is true of a scene, and what it says by field."""
    says = {
        field: getattr(scene, field)
        for field in ("shape", "colour", "background")
        if rng.rand() < 0.7
    }
    if scene.size and rng.rand() < 0.7:
        says["size"] = scene.size
    if scene.striped and "background" in says:
        says["striped"] = True
    words = [says.get("size"), says.get("colour"), says.get("shape", "shape")]
    thing = world.with_article(" ".join(str(word) for word in words if word))
    ground = ""
    if "background" in says:
        striped = "striped " if "striped" in says else ""
        ground = " on " + world.with_article(f"{striped}{says['background']} background")
    return OPENINGS[rng.randint(len(OPENINGS))] + thing + ground, says


def is_true(says: dict, scene: world.Scene) -> bool:
    return all(getattr(scene, field) == value for field, value in says.items())


def worn(picture: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Return a picture as people bring it: enlarged, cropped by a few pixels, blurred, noisy or
    through JPEG; uint8 `(64, 64, 3)`.
    """
    image = Image.fromarray(picture)
    if rng.rand() < 0.5:
        side = rng.randint(56, 200)
        image = image.resize(
            (side, side), (Image.BICUBIC, Image.BILINEAR, Image.LANCZOS)[rng.randint(3)]
        )
    if rng.rand() < 0.3:
        left, top, right, bottom = rng.uniform(0, 0.06, 4) * image.width
        image = image.crop(
            (int(left), int(top), image.width - int(right), image.height - int(bottom))
        )
    if rng.rand() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    if rng.rand() < 0.4:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.randint(40, 96)))
        image = Image.open(buffer)
    pixels = np.asarray(image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.BICUBIC), np.float32)
    if rng.rand() < 0.4:
        pixels = pixels * rng.uniform(0.92, 1.08) + rng.normal(0, rng.uniform(0, 10), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def to_pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    """Turn uint8 pictures into what the model's own preprocessing makes of them: float32 `(n, 3,
    64, 64)`.
    """
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255 - mean) / std


def batch_loss(model: torch.nn.Module, rng: np.random.RandomState) -> torch.Tensor:
    scenes = [world.random_scene(rng) for _ in range(BATCH)]
    captions, says = zip(*(partial_caption(scene, rng) for scene in scenes), strict=True)
    groups = {group: group_texts(group, rng) for group in GROUPS}
    texts = [*captions, *(text for names in groups.values() for text in names)]
    pictures = model.encode_image(
        to_pixels([worn(world.paint(scene, rng), rng) for scene in scenes]), normalize=True
    )
    words = model.encode_text(
        open_clip.tokenize(texts, context_length=CONFIG["text_cfg"]["context_length"]),
        normalize=True,
    )
    similarities = (
        model.logit_scale.exp() * pictures @ words.T
    )  # (pictures, captions and then the groups' names)
    loss, offset = contrastive(similarities[:, :BATCH], scenes, says), BATCH
    for group, names in groups.items():
        answers = torch.tensor(
            [list(GROUPS[group]).index(getattr(scene, group)) for scene in scenes]
        )
        loss = loss + F.cross_entropy(similarities[:, offset : offset + len(names)], answers)
        offset += len(names)
    return loss


def contrastive(
    similarities: torch.Tensor, scenes: list[world.Scene], says: tuple[dict, ...]
) -> torch.Tensor:
    """Cross entropy both ways, the probability shared by all that is true: pictures by captions
    `(n, n)` to a scalar.
    """
    true = torch.tensor([[float(is_true(said, scene)) for said in says] for scene in scenes])
    by_picture = F.cross_entropy(similarities, true / true.sum(1, keepdim=True))
    return (by_picture + F.cross_entropy(similarities.T, true.T / true.T.sum(1, keepdim=True))) / 2


def used_tokens() -> list[int]:
    """Return the numbers of every token that the recipe's texts are made of."""
    texts = [
        opening + phrase(template, name)
        for names in GROUPS.values()
        for name, templates in names.items()
        for template in templates
        for opening in OPENINGS
    ]
    texts += [
        "small",
        "large",
        "striped",
        "plain",
        "on the left",
        "on the right",
        "at the top",
        "at the bottom",
        "in the middle",
        "an orange circle of ordinary size",
    ]
    return sorted(set(open_clip.tokenize(texts).flatten().tolist()))


def make_model(work: Path) -> torch.nn.Module:
    config = work / f"{NAME}.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(config)
    return open_clip.create_model(NAME)


def train(work: Path, steps: int = STEPS) -> None:
    torch.manual_seed(SEED)
    rng, model = np.random.RandomState(SEED), make_model(work).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    started, average = time.monotonic(), None
    for step in range(steps):
        loss = batch_loss(model, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        average = loss.item() if average is None else average * 0.98 + loss.item() * 0.02
        if step % 100 == 99:
            log.info("step %d loss %.3f %.0f s", step + 1, average, time.monotonic() - started)
        if step % 500 == 499:
            log.info("%s", zero_shot_accuracy(model.eval(), pictures=200))
            save_file(
                {key: tensor.contiguous() for key, tensor in model.state_dict().items()},
                work / "clip.safetensors",
            )
            model.train()


@torch.no_grad()
def zero_shot_accuracy(
    model: torch.nn.Module, *, pictures: int = 1000, seed: int = 7
) -> dict[str, float]:
    """Return the share of right answers by group, zero-shot, on worn pictures of held-out
    combinations; one plain phrase for each name.
    """
    rng = np.random.RandomState(seed)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(pictures)]
    features = model.encode_image(
        to_pixels([worn(world.paint(scene, rng), rng) for scene in scenes]), normalize=True
    )
    right = {}
    for group, names in GROUPS.items():
        texts = [phrase(templates[0], name) for name, templates in names.items()]
        words = model.encode_text(
            open_clip.tokenize(texts, context_length=CONFIG["text_cfg"]["context_length"]),
            normalize=True,
        )
        found = (features @ words.T).argmax(1).tolist()
        guesses = [list(names)[index] for index in found]
        is_right = [
            guess == getattr(scene, group) for guess, scene in zip(guesses, scenes, strict=True)
        ]
        right[group] = sum(is_right) / pictures
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded CLIP.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    train(args.work, args.steps)
    size = pack_clip(load_file(args.work / "clip.safetensors"), used_tokens())
    model = make_model(args.work).eval()
    model.load_state_dict(load_state_dict())
    log.info(
        "%s: %.2f MB, held-out pictures: %s", ASSET.name, size / 1e6, zero_shot_accuracy(model)
    )


if __name__ == "__main__":
    main()
