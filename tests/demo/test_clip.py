"""The embedded CLIP: small enough to ship, complete for open_clip's own loading, and right about
pictures it has not seen.
"""

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_trainer.demo import clip, world


def load(folder):
    """Load as anybody would with open_clip: a config file and a weights file of torch's, which old
    versions need.
    """
    config, weights = clip.write_clip(folder)
    open_clip.add_model_config(config)
    torch.save(load_file(weights), folder / "weights.pt")
    model, _, transform = open_clip.create_model_and_transforms(
        clip.NAME, pretrained=str(folder / "weights.pt")
    )
    return model.eval(), transform


def test_it_is_small_and_whole(tmp_path):
    assert clip.ASSET.stat().st_size < 2_000_000
    config, weights = clip.write_clip(tmp_path / "a" / "b")
    state = load_file(weights)
    assert (
        state["token_embedding.weight"].shape == (49408, 64) and config.name == f"{clip.NAME}.json"
    )
    known = state["token_embedding.weight"].abs().sum(1) > 0
    words = open_clip.tokenize(
        ["a red circle on a striped blue background small large cross square triangle"]
    )[0, :14]
    assert (
        known[words].all() and known.sum() < 200 and not known[open_clip.tokenize(["zebra"])[0, 1]]
    )
    before = weights.stat().st_mtime_ns
    assert clip.write_clip(tmp_path / "a" / "b")[1].stat().st_mtime_ns == before


def test_open_clip_loads_it_and_it_is_right(tmp_path):
    model, transform = load(tmp_path)
    rng = np.random.RandomState(3)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(150)]
    pictures = torch.stack(
        [transform(Image.fromarray(world.paint(scene, rng)).resize((150, 150))) for scene in scenes]
    )
    length = clip.CONFIG["text_cfg"]["context_length"]
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.encode_image(pictures), dim=-1)
        for field, names, text in (
            ("shape", world.SHAPES, "a photo of a {}"),
            ("colour", world.COLOURS, "a photo of something {}"),
            ("background", world.COLOURS, "{} background"),
        ):
            labels = torch.nn.functional.normalize(
                model.encode_text(
                    open_clip.tokenize([text.format(name) for name in names], context_length=length)
                ),
                dim=-1,
            )
            found = (features @ labels.T).argmax(1).tolist()
            right = np.mean(
                [list(names)[index] == getattr(scene, field) for index, scene in zip(found, scenes)]
            )
            assert right >= 0.9, (field, right)


def test_packing_keeps_the_words_asked_for_and_refuses_broken_weights(tmp_path):
    state = clip.load_state_dict()
    size = clip.pack_clip(state, [320, 49406, 49407], tmp_path / "small.safetensors")
    packed = load_file(tmp_path / "small.safetensors")
    assert (
        size < clip.ASSET.stat().st_size
        and packed["token_embedding.weight"].shape == (3, 64)
        and packed["token_numbers"].tolist() == [320, 49406, 49407]
    )
    assert torch.equal(
        packed["token_embedding.weight"][0].float(), state["token_embedding.weight"][320]
    )
    state["ln_final.weight"] = state["ln_final.weight"] * 1e9
    try:
        clip.pack_clip(state, [320], tmp_path / "broken.safetensors")
    except ValueError as error:
        assert "not finite" in str(error) and not (tmp_path / "broken.safetensors").exists()
    else:
        raise AssertionError("broken weights were packed")
