"""Zero-shot labels: the embedded world, whose answers are known, and a rigged model, whose answers
we choose.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.labels import Label
from lora_trainer.captioning.models.clip_labels import LabelFeatures, choose
from lora_trainer.demo import world

PICTURES = 120


@pytest.fixture(scope="module")
def held_out():
    """Pictures of combinations that the model was not trained on, of the sizes that people have."""
    rng = np.random.RandomState(11)
    scenes = [world.random_scene(rng, held_out=True) for _ in range(PICTURES)]
    return scenes, [
        Image.fromarray(world.paint(scene, rng)).resize(
            (int(rng.randint(60, 300)),) * 2, Image.BICUBIC
        )
        for scene in scenes
    ]


def test_the_embedded_model_knows_its_world(load, held_out):
    scenes, images = held_out
    words = load("clip-labels", model="demo").caption(images, [])
    right = {
        "shape": np.mean([scene.shape in found for scene, found in zip(scenes, words)]),
        "colour": np.mean([scene.colour in found for scene, found in zip(scenes, words)]),
        "background": np.mean(
            [f"{scene.background} background" in found for scene, found in zip(scenes, words)]
        ),
        "striped": np.mean(
            [
                ("striped background" in found) == scene.striped
                for scene, found in zip(scenes, words)
            ]
        ),
    }
    assert min(right.values()) >= 0.9, right
    assert words[0][:3] == [
        scenes[0].shape,
        scenes[0].colour,
        f"{scenes[0].background} background",
    ]  # in the groups' order


def test_a_users_list_is_looked_through(load, label_sets, held_out):
    label_sets.save(
        "mine", {"kind": "prompt: a picture of {}\nround = a circle\nwith corners = a square"}
    )
    scenes, images = held_out
    chosen = [
        (scene, image)
        for scene, image in zip(scenes, images)
        if scene.shape in ("circle", "square")
    ]
    words = load("clip-labels", model="demo", labels="mine").caption(
        [image for _, image in chosen], []
    )
    assert (
        np.mean(
            [
                found == [{"circle": "round", "square": "with corners"}[scene.shape]]
                for (scene, _), found in zip(chosen, words)
            ]
        )
        >= 0.9
    )


def test_threshold_and_number(load, held_out):
    image = held_out[1][0]
    assert (
        len(
            load("clip-labels", model="demo", threshold=0.0, per_group=2, labels="shapes").caption(
                [image], []
            )[0]
        )
        >= 8
    )


@pytest.mark.parametrize(
    "threshold, per_group, words",
    [
        (0.0, 1, ["b"]),
        (0.55, 1, ["b"]),
        (0.65, 1, []),
        (0.0, 2, ["b"]),
        (0.0, 3, ["b", "a"]),
        (0.0, 9, ["b", "a"]),
        (0.2, 3, ["b"]),
    ],
)
def test_the_best_labels_are_chosen_and_a_dash_writes_nothing(threshold, per_group, words):
    labels = [Label("a", "a"), Label("b", "b"), Label("", "nothing")]
    assert (
        choose(torch.tensor([0.1, 0.6, 0.3]), labels, threshold=threshold, per_group=per_group)
        == words
    )


def test_any_model_of_open_clip_and_a_rigged_label_wins(load, clip_folder, label_sets):
    """With the weights as they are, set a label's features to the picture's: it has to win, by the
    model's own scale.
    """
    label_sets.save("pair", {"first": "cat\ndog", "second": "red\nblue"})
    loaded = load(
        "clip-labels", model="custom", model_name=str(clip_folder), labels="pair", threshold=0.5
    )
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    loaded.caption([image], [])
    with torch.no_grad():
        picture = torch.nn.functional.normalize(
            loaded._model.encode_image(loaded._transform(image)[None]), dim=-1
        )[0]
    for winner in (0, 1):
        loaded._labels[0] = torch.stack(
            [picture if index == winner else -picture for index in range(2)]
        )
        loaded._labels[1] = torch.stack(
            [picture if index != winner else -picture for index in range(2)]
        )
        assert (
            loaded.caption([image, image], [])
            == [[["cat", "dog"][winner], ["blue", "red"][winner]]] * 2
        )


def test_shares_are_the_models_own_softmax(load, clip_folder, label_sets):
    """Compared with open_clip's features and scale, put together here."""
    label_sets.save("pair", {"animal": "prompt: a photo of {}\nprompt: {}\ncat\ndog\nfish"})
    loaded = load(
        "clip-labels",
        model="custom",
        model_name=str(clip_folder),
        labels="pair",
        threshold=0.0,
        per_group=3,
    )
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    with torch.no_grad():
        texts = torch.stack(
            [
                torch.nn.functional.normalize(
                    torch.nn.functional.normalize(
                        loaded._model.encode_text(loaded._tokenizer([f"a photo of {name}", name])),
                        dim=-1,
                    ).mean(0),
                    dim=-1,
                )
                for name in ("cat", "dog", "fish")
            ]
        )
        picture = torch.nn.functional.normalize(
            loaded._model.encode_image(loaded._transform(image)[None]), dim=-1
        )
        shares = (loaded._model.logit_scale.exp() * picture @ texts.T).softmax(-1)[0]
    assert loaded.caption([image], [])[0] == [
        ["cat", "dog", "fish"][index] for index in shares.argsort(descending=True).tolist()
    ]


def test_features_are_kept_in_memory_and_on_disk(tmp_path):
    asked = []

    def encode(texts):
        asked.append(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    file = tmp_path / "labels" / "model.safetensors"
    prompts = [("a photo of cat", "cat"), ("a photo of dog", "dog")]

    def learned(features, prompts):
        assert list(features.learn(prompts, encode)) in ([], [0.0])
        return features.of(prompts)

    first = learned(LabelFeatures({}, file), prompts)
    assert (
        torch.allclose(first.norm(dim=-1), torch.ones(2))
        and len(asked) == 1
        and len(load_file(file)) == 2
    )
    again = LabelFeatures({}, file)
    assert torch.equal(learned(again, prompts), first) and len(asked) == 1
    assert len(learned(again, [*prompts, ("owl",)])) == 3 and asked[1:] == [["owl"]]
    file.write_bytes(b"damaged")
    assert torch.equal(learned(LabelFeatures({}, file), prompts), first) and len(asked) == 3


def test_labels_learned_by_then_are_kept_when_it_is_stopped(tmp_path):
    prompts = [(f"label {number}",) for number in range(100)]
    learning = LabelFeatures({}, tmp_path / "model.safetensors").learn(
        prompts, lambda texts: torch.ones(len(texts), 3)
    )
    assert [next(learning), next(learning), next(learning)] == [0.0, 0.32, 0.64]
    learning.close()
    assert len(load_file(tmp_path / "model.safetensors")) == 64
    assert list(
        LabelFeatures({}, tmp_path / "model.safetensors").learn(
            prompts, lambda texts: torch.ones(len(texts), 3)
        )
    ) == [0.0, 32 / 36]


def test_caches_lie_in_the_data_folder_and_are_used(load, tmp_path, held_out, monkeypatch):
    first = load("clip-labels", model="demo").caption(held_out[1][:5], [])
    files = list((tmp_path / "data" / "cache" / "labels").iterdir())
    assert len(files) == 1 and len(load_file(files[0])) == 25
    loaded = load("clip-labels", model="demo")
    monkeypatch.setattr(type(loaded), "_encode", lambda self, texts: pytest.fail("encoded again"))
    assert loaded.caption(held_out[1][:5], []) == first


def test_what_is_needed_is_said_without_loading_anything(captioners, label_sets, tmp_path):
    before = captioners.readiness("clip-labels", {})
    assert (
        not before["ready"]
        and before["download_bytes"] == 1_710_600_000
        and "1.71 GB" in before["needs"]
        and "laion/CLIP-ViT-L-14" in before["downloads"]
    )
    folder = tmp_path / "data" / "models" / "laion--CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
    folder.mkdir(parents=True)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"put here by hand")
    assert (
        captioners.readiness("clip-labels", {})["ready"]
        and captioners.readiness("clip-labels", {"model": "demo"})["ready"]
    )
    (tmp_path / "labels" / "default").mkdir(parents=True)
    assert (
        "label list default is empty"
        in [each for each in captioners.all() if each["name"] == "clip-labels"][0]["needs"]
    )
    with pytest.raises(Refused, match="can be '', 'default', 'shapes'"):
        captioners.readiness("clip-labels", {"labels": "nowhere"})


def test_the_model_goes_where_it_is_told_and_is_given_back(load):
    import gc
    import weakref

    loaded = load("clip-labels", model="demo")
    model = weakref.ref(loaded._model)
    loaded.caption([Image.new("RGB", (64, 64))], [])
    loaded.to(torch.device("meta"))
    assert {parameter.device.type for parameter in loaded._model.parameters()} == {
        "meta"
    } and loaded._labels[0].device.type == "meta"
    loaded.close()
    gc.collect()
    assert model() is None
