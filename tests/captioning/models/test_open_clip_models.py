"""Models of open_clip: names, tags, folders and files, and that nothing in a file is ever run."""

import json
import os
import pickle
import shutil

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.downloads import RemoteFile
from lora_trainer.captioning.models import clip_labels, coca, open_clip_models


def load(source, tmp_path):
    return open_clip_models.load_open_clip(
        source, tmp_path, tmp_path / "cache", on_progress=lambda *_: None, should_stop=lambda: False
    )


def resolve(check_path=lambda path: None, **options):
    return open_clip_models.resolve_source(
        {"model": "custom", "model_name": "", "weights": "", **options},
        clip_labels.KNOWN,
        check_path,
    )


def test_a_tag_is_looked_up_in_open_clip():
    source = resolve(model_name="ViT-B/16", weights="laion2b_s34b_b88k")
    assert (
        source.name == "ViT-B-16"
        and source.weights.repository.startswith("laion/CLIP-ViT-B-16")
        and source.weights.names[0].endswith(".safetensors")
    )
    assert resolve(model_name="hf-hub:me/mine").downloads == [
        RemoteFile(("open_clip_config.json",), "me/mine"),
        open_clip_models.hub_weights("me/mine"),
    ]
    assert resolve(model="ViT-B-32").weights.size_bytes == 605_200_000


@pytest.mark.parametrize(
    "options, says, field",
    [
        ({}, "Which other model", "model_name"),
        (
            {"model_name": "ViT-B-17", "weights": "x"},
            r"no model 'ViT-B-17'. Its models: ViT-B-\d\d",
            "model_name",
        ),
        (
            {"model_name": "ViT-B-16", "weights": "nonsense"},
            "no weights 'nonsense'; it has openai",
            "weights",
        ),
        ({"model_name": "ViT-B-16"}, "no weights ''", "weights"),
        ({"model_name": "/nowhere/at/all"}, "There is no folder", "model_name"),
        (
            {"model_name": "ViT-B-16", "weights": "/nowhere/model.safetensors"},
            "There is no file",
            "weights",
        ),
    ],
)
def test_what_is_not_there_is_said(options, says, field):
    with pytest.raises(Refused, match=says) as caught:
        resolve(**options)
    assert caught.value.field == field


def test_paths_are_checked_first(clip_folder):
    def forbid(path):
        raise Refused("only folders inside", code="forbidden_path")

    for options in (
        {"model_name": str(clip_folder)},
        {"model_name": "ViT-B-16", "weights": str(clip_folder / "open_clip_model.safetensors")},
    ):
        with pytest.raises(Refused, match="only folders inside"):
            resolve(forbid, **options)


def test_a_folder_is_loaded_on_open_clips_path(clip_folder, tmp_path):
    import open_clip

    source = resolve(model_name=str(clip_folder))
    model, transform, tokenizer = load(source, tmp_path)
    saved = load_file(clip_folder / "open_clip_model.safetensors")
    assert isinstance(model, open_clip.CLIP) and not model.training
    assert (
        all(
            torch.equal(tensor, saved[key])
            for key, tensor in model.state_dict().items()
            if key in saved
        )
        and "visual.conv1.weight" in saved
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tuple(tokenizer(["a cat", "a dog"]).shape) == (2, 77)
    normalise = transform.transforms[-1]
    assert list(normalise.mean) == [0.5, 0.5, 0.5] and list(normalise.std) == [0.25, 0.25, 0.25]


@pytest.mark.filterwarnings("ignore:TypedStorage")  # torch 2.1's own
def test_torch_files_are_read_without_running_anything(clip_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    (folder / "open_clip_model.safetensors").unlink()
    weights = folder / "open_clip_pytorch_model.bin"
    state = load_file(clip_folder / "open_clip_model.safetensors")
    torch.save(
        {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3},
        weights,
    )
    model = load(resolve(model_name=str(folder)), tmp_path)[0]
    assert torch.equal(model.state_dict()["visual.conv1.weight"], state["visual.conv1.weight"])

    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    for data in (
        lambda: torch.save({"state_dict": {"a": Trap()}}, weights),
        lambda: weights.write_bytes(pickle.dumps(Trap(), protocol=2)),
    ):
        data()
        with pytest.raises(Refused):
            load(resolve(model_name=str(folder)), tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_programs_and_nonsense_are_refused(clip_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    (folder / "open_clip_model.safetensors").unlink()
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(Refused, match="TorchScript archive"):
        load(resolve(model_name=str(folder)), tmp_path)
    with pytest.raises(Refused, match="TorchScript archive"):
        open_clip_models.read_weights(folder / "open_clip_pytorch_model.bin")
    torch.save([1, 2], folder / "list.bin")
    with pytest.raises(Refused, match="no weights that can be read"):
        open_clip_models.read_weights(folder / "list.bin")
    (folder / "open_clip_model.safetensors").write_bytes(b"half a file")
    with pytest.raises(Refused, match="do not fit|damaged"):
        load(resolve(model_name=str(folder)), tmp_path)
    (folder / "open_clip_config.json").write_text("[]")
    with pytest.raises(Refused, match="not a model config"):
        load(resolve(model_name=str(folder)), tmp_path)


@pytest.fixture
def as_in_forge(monkeypatch):
    """Functions that rename a file that is named by a text and fails to load, in the place of
    torch's and safetensors'.
    """

    def renaming(load):
        def loader(*arguments, **options):
            try:
                return load(*arguments, **options)
            except Exception as error:
                for path in [*arguments, *options.values()]:
                    if isinstance(path, str) and os.path.exists(path):
                        os.replace(path, path + ".corrupted")
                raise ValueError(f"File corrupted: {error}") from error

        return loader

    for module, name in ((torch, "load"), (safetensors.torch, "load_file")):
        monkeypatch.setattr(module, name, renaming(getattr(module, name)))


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_damaged_weights_keep_their_name_in_forge(clip_folder, tmp_path, as_in_forge, name):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save({"state_dict": {"a": os.system}}, folder / name)
    else:
        (folder / name).write_bytes(whole[:-100])
    with pytest.raises(Refused, match="damaged"):
        load(resolve(model_name=str(folder)), tmp_path)
    assert (folder / name).is_file()


def test_another_file_has_another_key(clip_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    before = resolve(model_name=str(folder)).key
    assert resolve(model_name=str(folder)).key == before
    os.utime(folder / "open_clip_model.safetensors", (1, 1))
    assert resolve(model_name=str(folder)).key != before
    assert resolve(model="ViT-B-32").key != resolve(model="ViT-L-14").key


def test_a_config_of_an_older_form_is_understood(clip_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    (folder / "open_clip_config.json").write_text(
        json.dumps(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
    )
    assert load(resolve(model_name=str(folder)), tmp_path)[0]


@pytest.mark.parametrize(
    "known, tags",
    [
        (
            clip_labels.KNOWN,
            {
                "ViT-L-14": "datacomp_xl_s13b_b90k",
                "ViT-B-32": "laion2b_s34b_b79k",
                "ViT-H-14": "laion2b_s32b_b79k",
            },
        ),
        (
            coca.KNOWN,
            {
                "coca_ViT-L-14": "mscoco_finetuned_laion2b_s13b_b90k",
                "coca_ViT-L-14-laion": "laion2b_s13b_b90k",
                "coca_ViT-B-32": "mscoco_finetuned_laion2b_s13b_b90k",
            },
        ),
    ],
)
def test_our_short_list_says_what_open_clip_says(known, tags):
    """The list is ours so that it can be shown without importing open_clip; names, places and
    normalisation have to be open_clip's.
    """
    import open_clip

    for name, tag in tags.items():
        source = known[name][1]
        facts = open_clip.get_pretrained_cfg(source.name, tag)
        assert (
            facts["hf_hub"] == source.weights.repository + "/"
            and source.name in open_clip.list_models()
        )
        assert (
            tuple(facts.get("mean") or open_clip.OPENAI_DATASET_MEAN)
            == open_clip.OPENAI_DATASET_MEAN
            and source.mean is None
            and not facts.get("quick_gelu")
        )
    assert list(known) == list(tags)


@pytest.fixture
def transformers_refused(monkeypatch):
    """Notes every call that lets transformers fetch, and perhaps unpickle, something."""
    transformers, called = pytest.importorskip("transformers"), []
    for name in ("AutoConfig", "AutoModel", "AutoTokenizer"):
        monkeypatch.setattr(
            getattr(transformers, name),
            "from_pretrained",
            lambda *arguments, **_: called.append(arguments),
        )
    return called


@pytest.mark.parametrize(
    "section, key",
    [
        ("text_cfg", "hf_model_name"),
        ("text_cfg", "hf_tokenizer_name"),
        ("multimodal_cfg", "hf_model_name"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_a_config_that_leads_to_transformers_is_refused(
    clip_folder, tmp_path, transformers_refused, section, key, remote
):
    folder = tmp_path / "me--mine" if remote else tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"].setdefault(section, {})[key] = "someone/else"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match=f"someone/else.*{section}.{key}") as caught:
        load(resolve(model_name="hf-hub:me/mine" if remote else str(folder)), tmp_path)
    assert (caught.value.field, caught.value.code) == (
        "model_name",
        "not_safe",
    ) and not transformers_refused


def test_empty_names_for_transformers_are_ignored(clip_folder, tmp_path, transformers_refused):
    folder = tmp_path / "model"
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].update(hf_model_name=None, hf_tokenizer_name="")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert (
        load(resolve(model_name=str(folder)), tmp_path)[2](["a cat"]).shape == (1, 77)
        and not transformers_refused
    )


def test_timms_own_weights_are_never_fetched(clip_folder, tmp_path, monkeypatch):
    import timm

    folder, made = tmp_path / "model", []
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())

    def create_model(name, *arguments, pretrained=False, **_):
        made.append((name, pretrained))
        raise RuntimeError("seen enough")

    monkeypatch.setattr(timm, "create_model", create_model)
    for name in ("resnet18", "hf-hub:someone/else", "local-dir:/tmp"):
        config["model_cfg"]["vision_cfg"].update(timm_model_name=name, timm_model_pretrained=True)
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(
            Refused,
            match="seen enough" if name == "resnet18" else f"{name}.*vision_cfg.timm_model_name",
        ):
            load(resolve(model_name=str(folder)), tmp_path)
    assert made == [("resnet18", False)]


def test_open_clips_own_models_get_no_text_tower_from_transformers(monkeypatch, clip_folder):
    import open_clip

    given = {}

    def create(name, **arguments):
        given.update(arguments)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    with pytest.raises(Refused):
        open_clip_models._create(
            open_clip, "roberta-ViT-B-32", clip_folder / "open_clip_model.safetensors"
        )
    assert (given["pretrained_image"], given["pretrained_hf"]) == (False, False)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "x/..",
        "a/b/c",
        "a b",
        "a/b c",
        "",
        " ",
        "a",
        "/a",
        "a/",
        "a//b",
        r"D:\\x",
        "D:/x",
        r"a\\b",
        "a/b@main",
        ".a/b",
        "a/b..c",
    ],
)
def test_names_of_repositories_are_checked(name):
    with pytest.raises(Refused, match="owner/repository") as caught:
        resolve(model_name=f"hf-hub:{name}")
    assert (caught.value.field, caught.value.code) == ("model_name", "bad_value")
    assert (
        resolve(model_name="hf-hub:laion/CLIP-ViT_B.16").weights.repository == "laion/CLIP-ViT_B.16"
    )
