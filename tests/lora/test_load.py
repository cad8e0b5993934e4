"""Going on from an existing LoRA: ours, another trainer's, and files that are none."""

import time

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from lora_trainer.base.errors import Refused
from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.adapters import Adapters
from lora_trainer.lora.load import fit_to_model, inspect_lora
from lora_trainer.lora.save import to_tensors
from lora_trainer.lora.target_layers import LayerSettings, assign_ranks
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.plan import make_plan
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.settings.config import TrainConfig
from tests.support.open_clip_text import OpenClipText

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def first(host, settings):
    """A LoRA of rank 2 and alpha 1 on the attention alone; further runs have other settings."""
    return train_lora(
        TrainConfig.parse(
            {
                **settings,
                "output_name": "first",
                "lora_rank": 2,
                "lora_alpha": 1,
                "lora_targets": "attention",
            }
        ),
        host,
    ).output_file


def train(host, settings, **changes):
    return train_lora(
        TrainConfig.parse({**settings, "learning_rate": 1e-9, "max_train_steps": 1, **changes}),
        host,
    )


def test_rank_alpha_layers_and_weights_are_taken_over(host, settings, first):
    """With a learning rate of nearly nothing the new LoRA is the old one."""
    before, after = (
        load_file(first),
        load_file(train(host, settings, init_lora="first").output_file),
    )
    assert (
        before.keys() == after.keys()
        and after[f"{NAME}.lora_down.weight"].shape[0] == 2
        and after[f"{NAME}.alpha"] == 1
    )
    assert (
        all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
        and before[f"{NAME}.lora_up.weight"].any()
    )


def test_it_learns_on(host, settings, first):
    before, after = (
        load_file(first),
        load_file(train(host, settings, init_lora=str(first), learning_rate=1e-2).output_file),
    )
    assert any(not torch.allclose(before[name], after[name], atol=1e-4) for name in before)


def test_the_plan_says_what_is_taken_over(host, settings, first):
    plan = make_plan(TrainConfig.parse({**settings, "init_lora": "first"}), lora_dir=host.lora_dir)
    assert (
        "Going on from first.safetensors: its rank 2, alpha 1 and layers are used, whatever the"
        " settings say." in plan.warnings
    )


def test_other_trainers_files(host, settings, tmp_path):
    """The checkpoint's own layer names, no alpha, other ranks, a linear layer's LoRA on a 1x1
    convolution, the text encoder under another name.
    """
    path = tmp_path / "theirs.safetensors"
    save_file(
        {
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight": (
                torch.ones(3, 16)
            ),
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.ones(
                16, 3
            ),
            "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.ones(5, 16),
            "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.ones(16, 5),
            "lora_unet_input_blocks_1_1_proj_in.alpha": torch.tensor(2.0),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 12),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(24, 2),
        },
        path,
    )
    after = load_file(train(host, settings, init_lora=str(path)).output_file)
    assert (
        after[f"{NAME}.alpha"] == 3
        and after["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"] == 2
    )
    assert (
        after["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].shape
        == (5, 16, 1, 1)
        and len(after) == 9
    )
    assert after["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"].shape == (24, 2)


FORMS = [
    AdapterSpec("lora"),
    AdapterSpec("loha"),
    AdapterSpec("loha", tucker=True),
    AdapterSpec("lokr"),
    AdapterSpec("lokr", lokr_factor=2),
    AdapterSpec("lokr", lokr_factor=8, lokr_both=True),
    AdapterSpec("lokr", tucker=True),
    AdapterSpec("lora", use_dora=True),
    AdapterSpec("loha", tucker=True, use_dora=True),
    AdapterSpec("lokr", use_dora=True),
]


@pytest.fixture
def parts(host):
    return torch.nn.ModuleDict({**host.model.parts(), "te2": OpenClipText()})


def export_name(path):
    """The checkpoint's own names in the UNet; kohya's, which are transformers', in text encoders of
    either kind.
    """
    part, _, inside = path.partition(".")
    if part == "unet":
        return "lora_unet_" + inside.replace(".", "_")
    inside = (
        inside.replace("transformer.resblocks", "text_model.encoder.layers")
        .replace(".attn.", ".self_attn.")
        .replace("c_fc", "fc1")
        .replace("c_proj", "fc2")
    )
    return f"lora_{part}_" + inside.replace(".", "_")


def written(parts, shapes, form, path, *, name=export_name):
    """Save adapters with random weights; return what they hold."""
    adapters = Adapters.create(parts, shapes, form)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    save_file(
        to_tensors(
            adapters.weights(), alphas=adapters.alphas, export_name=name, dtype=torch.float32
        ),
        path,
    )
    return adapters.weights()


def nameless(path):
    raise KeyError(path)


@pytest.mark.parametrize(
    "form",
    FORMS,
    ids=lambda form: "-".join(
        str(value)
        for value in (form.kind, form.lokr_factor, form.lokr_both, form.tucker, form.use_dora)
    ),
)
@pytest.mark.parametrize("rank", [1, 3])
def test_every_kind_fits_again(parts, tmp_path, form, rank):
    """UNet with convolutions and both kinds of text encoder: layers, ranks, alphas, way of building
    and weights, by names that no host has to know.
    """
    shapes = assign_ranks(
        parts,
        LayerSettings(
            "all",
            rank,
            0.5,
            conv_rank=2,
            conv_alpha=0.5,
            text_encoder_rank=2,
            text_encoder_alpha=0.5,
            text_encoder=True,
        ),
    )
    weights = written(parts, shapes, form, tmp_path / "x.safetensors")
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.kind, found.text_encoder_layers, found.parameters) == (
        form.kind,
        18,
        sum(w.numel() for layer in weights.values() for w in layer.values()),
    )
    again, taken, built = fit_to_model(found, parts, nameless)
    assert (
        list(again) == list(shapes)
        and (built.kind, built.use_dora) == (form.kind, form.use_dora)
        and taken.keys() == weights.keys()
    )
    whole = {path for path in shapes if {"lokr_w1", "lokr_w2"} <= weights[path].keys()}
    assert {path: shape for path, shape in again.items() if path not in whole} == {
        path: shape for path, shape in shapes.items() if path not in whole
    }
    adapters = Adapters.create(parts, again, built)
    adapters.load(taken)
    assert all(
        torch.equal(weight, weights[path][name])
        for path, layer in adapters.weights().items()
        for name, weight in layer.items()
    )
    assert (
        to_tensors(adapters.weights(), alphas=adapters.alphas, export_name=export_name).keys()
        == to_tensors(weights, alphas=dict.fromkeys(shapes, 1.0), export_name=export_name).keys()
    )


def test_rslora_goes_on_with_the_same_scale(parts, tmp_path):
    shapes = {"unet.input_blocks.1.1.proj_in": RankAlpha(4, 3.0)}
    written(parts, shapes, AdapterSpec(rslora=True), tmp_path / "x.safetensors")
    again, _, form = fit_to_model(inspect_lora(tmp_path / "x.safetensors"), parts, export_name)
    assert form.scale(again["unet.input_blocks.1.1.proj_in"]) == pytest.approx(3 / 2)


def test_without_a_text_encoder_its_layers_are_left_out(parts, tmp_path):
    written(
        parts,
        assign_ranks(parts, LayerSettings("attention", 1, 1, text_encoder=True)),
        AdapterSpec(),
        tmp_path / "x.safetensors",
    )
    again, _, _ = fit_to_model(
        inspect_lora(tmp_path / "x.safetensors"),
        torch.nn.ModuleDict({"unet": parts["unet"]}),
        export_name,
    )
    assert len(again) == 8 and all(path.startswith("unet.") for path in again)


@pytest.mark.parametrize(
    "levels, theirs, ours",
    [
        (
            3,
            "lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_q",
            "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q",
        ),
        (3, "lora_unet_input_blocks_8_0_emb_layers_1", "down_blocks.2.resnets.1.time_emb_proj"),
        (
            3,
            "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_q",
            "output_blocks.5.1.transformer_blocks.0.attn1.to_q",
        ),
        (4, "lora_unet_up_blocks_3_attentions_2_proj_in", "output_blocks.11.1.proj_in"),
        (4, "lora_unet_output_blocks_11_1_proj_in", "up_blocks.3.attentions.2.proj_in"),
    ],
)
def test_names_of_either_layout_fit_a_unet_of_either(tmp_path, levels, theirs, ours):
    last = {3: "up_blocks.2.resnets.2.time_emb_proj", 4: "up_blocks.3.resnets.2.time_emb_proj"}[
        levels
    ]
    if "output" in ours:
        last = f"output_blocks.{3 * levels - 1}.0.emb_layers.1"
    unet = torch.nn.Module()
    for path in (ours, last):
        module = unet
        for name in path.split(".")[:-1]:
            if not hasattr(module, name):
                module.add_module(name, torch.nn.Module())
            module = getattr(module, name)
        module.add_module(path.rpartition(".")[2], torch.nn.Linear(4, 6))
    save_file(
        {
            f"{theirs}.lora_down.weight": torch.ones(2, 4),
            f"{theirs}.lora_up.weight": torch.ones(6, 2),
        },
        tmp_path / "x.safetensors",
    )
    shapes, _, _ = fit_to_model(
        inspect_lora(tmp_path / "x.safetensors"), torch.nn.ModuleDict({"unet": unet}), nameless
    )
    assert shapes == {f"unet.{ours}": RankAlpha(2, 2.0)}


def test_a_lycoris_of_whole_matrices(parts, tmp_path):
    """LyCORIS's full_matrix: no rank anywhere, whatever alpha says; the scale is 1."""
    name = "lora_unet_input_blocks_1_1_proj_in"
    save_file(
        {
            f"{name}.lokr_w1": torch.ones(2, 2),
            f"{name}.lokr_w2": torch.ones(8, 8, 1, 1),
            f"{name}.alpha": torch.tensor(0.25),
        },
        tmp_path / "x.safetensors",
    )
    shapes, weights, form = fit_to_model(
        inspect_lora(tmp_path / "x.safetensors"), parts, export_name
    )
    adapters = Adapters.create(parts, shapes, form)
    adapters.load(weights)
    assert form.lokr_factor == 2 and adapters.weights()["unet.input_blocks.1.1.proj_in"][
        "lokr_w2"
    ].shape == (8, 8, 1, 1)
    assert adapters._layers["unet.input_blocks.1.1.proj_in"].scale == 1.0 and adapters.alphas == {
        "unet.input_blocks.1.1.proj_in": 4.0
    }


TE2 = "lora_te2_text_model_encoder_layers_0"


@pytest.mark.parametrize(
    "weight_shapes, said",
    [
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": (2, 16),
                "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (16, 2),
                "lora_unet_input_blocks_1_1_proj_in.dora_scale": (1, 16),
                "lora_unet_input_blocks_1_1_proj_out.lora_down.weight": (2, 16),
                "lora_unet_input_blocks_1_1_proj_out.lora_up.weight": (16, 2),
            },
            "another way than its other layers: dora_scale is missing",
        ),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": (2, 16),
                "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (16, 2),
                "lora_unet_input_blocks_1_1_proj_in.dora_scale": (1, 12),
            },
            r"dora_scale of \(1, 12\); this checkpoint needs \(1, 16, 1, 1\)",
        ),
        (
            {
                f"{TE2}_self_attn_q_proj.lora_down.weight": (2, 12),
                f"{TE2}_self_attn_q_proj.lora_up.weight": (12, 2),
            },
            "not all of the attention that it is part of",
        ),
        (
            {"lora_te3_x.lora_down.weight": (2, 12), "lora_te3_x.lora_up.weight": (12, 2)},
            "1 layers that this checkpoint lacks",
        ),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lokr_w1": (4, 2),
                "lora_unet_input_blocks_1_1_proj_in.lokr_w2": (5, 8),
            },
            "not cut up by one common factor",
        ),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lokr_w1": (4, 4),
                "lora_unet_input_blocks_1_1_proj_in.lokr_w2_a": (4, 3),
                "lora_unet_input_blocks_1_1_proj_in.lokr_w2_b": (3, 4),
            },
            "builds lora_unet_input_blocks_1_1_proj_in in another way",
        ),
        ({"lora_unet_input_blocks_1_1_proj_in.lokr_w1": (4, 4)}, r"lokr_w2_a is missing"),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": (2, 16),
                "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (16, 2),
                "lora_unet_input_blocks_1_0_in_layers_2.hada_w1_a": (16, 2),
            },
            r"in_layers_2.hada_w1_a\)",
        ),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.hada_w1_a": (16, 2),
                "lora_unet_input_blocks_1_1_proj_in.hada_w1_b": (2, 16),
                "lora_unet_input_blocks_1_1_proj_in.hada_w2_a": (16, 2),
                "lora_unet_input_blocks_1_1_proj_in.hada_w2_b": (2, 16),
                "lora_unet_input_blocks_1_1_proj_in.hada_t1": (2, 2, 1, 1),
            },
            "hada_t2 is missing",
        ),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": (),
                "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (),
            },
            r"lora_down.weight is \(\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(parts, tmp_path, weight_shapes, said):
    save_file(
        {name: torch.zeros(size) for name, size in weight_shapes.items()},
        tmp_path / "odd.safetensors",
    )
    with pytest.raises(Refused, match=said) as refusal:
        fit_to_model(inspect_lora(tmp_path / "odd.safetensors"), parts, export_name)
    assert refusal.value.field == "init_lora"


def test_an_alpha_that_is_no_number(parts, tmp_path):
    save_file(
        {
            f"{NAME}.lora_down.weight": torch.ones(2, 16),
            f"{NAME}.lora_up.weight": torch.ones(16, 2),
            f"{NAME}.alpha": torch.tensor(float("nan")),
        },
        tmp_path / "x.safetensors",
    )
    with pytest.raises(Refused, match="alpha is nan"):
        inspect_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "tensors, said",
    [
        (
            {
                "lora_unet_input_blocks_7_1_proj_in.lora_down.weight": (2, 16),
                "lora_unet_input_blocks_7_1_proj_in.lora_up.weight": (16, 2),
            },
            "1 layers that this checkpoint lacks",
        ),
        (
            {f"{NAME}.lora_down.weight": (2, 320), f"{NAME}.lora_up.weight": (320, 2)},
            r"\(2, 320\).*this checkpoint needs \(2, 16\)",
        ),
        (
            {
                f"{NAME}.lora_down.weight": (2, 16),
                f"{NAME}.lora_up.weight": (16, 2),
                f"{NAME}.dora_scale": (16, 1),
            },
            "magnitudes are those of the outputs",
        ),
        (
            {
                f"{NAME}.lora_down.weight": (2, 16),
                f"{NAME}.lora_up.weight": (16, 2),
                f"{NAME}.diff": (16, 1),
            },
            r"diff\).*mixtures and full models are not",
        ),
        ({f"{NAME}.lora_down.weight": (2, 16)}, "lora_up.weight is missing"),
        ({"model.weight": (2, 2)}, "not a LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused(host, settings, tmp_path, tensors, said):
    save_file(
        {name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "odd.safetensors"
    )
    with pytest.raises(Refused, match=said) as refusal:
        train(host, settings, init_lora=str(tmp_path / "odd.safetensors"))
    assert refusal.value.field == "init_lora" and not (host.lora_dir / "mine.safetensors").exists()


def test_spoiled_missing_and_damaged(host, settings, tmp_path):
    save_file(
        {
            f"{NAME}.lora_down.weight": torch.full((2, 16), float("nan")),
            f"{NAME}.lora_up.weight": torch.zeros(16, 2),
        },
        tmp_path / "nan.safetensors",
    )
    (tmp_path / "text.safetensors").write_text("hello")
    for name, said in (
        ("nan.safetensors", "not finite"),
        ("text.safetensors", "cannot be read"),
        ("none.safetensors", "There is no LoRA"),
    ):
        with pytest.raises(Refused, match=said):
            train(host, settings, init_lora=str(tmp_path / name))


def test_going_on_from_itself_survives_a_crash(host, settings, first, tmp_path):
    """The LoRA that a run began from may be the one that it replaces; after a crash its state is
    enough.
    """
    config = TrainConfig.parse(
        {
            **settings,
            "output_name": "first",
            "init_lora": "first",
            "overwrite": True,
            "save_steps": 2,
            "save_state_steps": 1,
        }
    )
    old = first.read_bytes()
    train_lora(config, host)
    wanted = first.read_bytes()
    first.write_bytes(old)

    class Killed(BaseException):
        pass

    def die(progress):
        if progress.step == 4 and progress.stage == "training":
            raise Killed

    with pytest.raises(Killed):
        train_lora(config, host, folder=tmp_path / "job", reporter=ProgressReporter(die))
    train_lora(config, host, folder=tmp_path / "job", resume=True)
    one, other = load_file(first), load(wanted)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_going_on_from_a_dora(host, settings, kind):
    """With a learning rate of nearly nothing it is the old one, magnitudes and all; the plan says
    that it is one.
    """
    first = train(
        host,
        settings,
        output_name="first",
        lora_type=kind,
        use_dora=True,
        learning_rate=1e-2,
        max_train_steps=3,
        train_text_encoder=True,
    ).output_file
    before, after = (
        load_file(first),
        load_file(train(host, settings, init_lora="first", text_encoder_lr=1e-9).output_file),
    )
    assert before.keys() == after.keys() and all(
        torch.allclose(before[name], after[name], atol=1e-6) for name in before
    )
    assert sum(name.endswith("dora_scale") for name in after) == 12 + 6
    plan = make_plan(
        TrainConfig.parse({**settings, "output_name": "new", "init_lora": "first"}),
        lora_dir=host.lora_dir,
    )
    assert any(
        "first.safetensors is a DoRA, and so will this be" in warning for warning in plan.warnings
    )


def test_blocks_of_a_rate_of_0_stay_as_they_are(host, settings, first):
    """All layers of the file are here in one block; the text encoder learns on."""
    both = train(
        host,
        settings,
        output_name="both",
        train_text_encoder=True,
        learning_rate=1e-2,
        text_encoder_lr=1e-2,
        max_train_steps=3,
    ).output_file
    result = train(
        host,
        settings,
        init_lora="both",
        learning_rate=1e-2,
        text_encoder_lr=1e-2,
        block_learning_rates="IN01=0, IN11=2",
    )
    before, after = load_file(both), load_file(result.output_file)
    changed = {name.split("_")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"te"}


# --- Files that would burn a core -----------------------------------------------------------------


def looked_into_in_time(path, seconds):
    began = time.monotonic()
    found = inspect_lora(path)
    assert time.monotonic() - began < seconds
    return found


def test_many_tensors_are_read_in_time_and_once(tmp_path):
    """safetensors 0.4.2 looks all names up anew for each tensor: 10,000 took 12 to 23 seconds, at
    every key press.
    """
    path = tmp_path / "many.safetensors"
    save_file(
        {
            f"lora_unet_{number}.{part}": torch.zeros(size)
            for number in range(3333)
            for part, size in (
                ("lora_down.weight", (1, 2)),
                ("lora_up.weight", (2, 1)),
                ("alpha", ()),
            )
        },
        path,
    )
    assert len(looked_into_in_time(path, 3).ranks) == 3333
    assert looked_into_in_time(path, 0.05) is inspect_lora(path)


def test_more_tensors_than_any_lora_has_are_refused(tmp_path):
    path = tmp_path / "many.safetensors"
    save_file({f"lora_unet_{number}.alpha": torch.tensor(1.0) for number in range(20_001)}, path)
    with pytest.raises(Refused, match="it holds 20,001 tensors; at most 20,000"):
        inspect_lora(path)


@pytest.mark.parametrize(
    "first, second", [((4_000_000, 1), (1, 1)), ((1, 4_000_000), (1, 1)), ((3, 4), (4, 4))]
)
def test_a_lokr_is_measured_against_its_layer_before_anything_is_built(
    parts, tmp_path, first, second
):
    """Its first factor was tried against every number up to its size, while the model was held."""
    name, path = "lora_unet_input_blocks_1_1_proj_in", tmp_path / "x.safetensors"
    save_file(
        {
            f"{name}.lokr_w1": torch.ones(first, dtype=torch.float16),
            f"{name}.lokr_w2": torch.ones(second),
        },
        path,
    )
    began = time.monotonic()
    with pytest.raises(Refused, match="cannot be cut into"):
        fit_to_model(inspect_lora(path), parts, export_name)
    assert time.monotonic() - began < 1


def test_a_file_that_was_changed_between_plan_and_run_is_refused(parts, tmp_path):
    path, name = tmp_path / "x.safetensors", "lora_unet_input_blocks_1_1_proj_in"
    save_file(
        {
            f"{name}.lora_down.weight": torch.ones(2, 16),
            f"{name}.lora_up.weight": torch.ones(16, 2),
        },
        path,
    )
    found = inspect_lora(path)
    save_file(
        {
            f"{name}.lora_down.weight": torch.ones(3, 16),
            f"{name}.lora_up.weight": torch.ones(16, 3),
        },
        path,
    )
    with pytest.raises(Refused, match="changed in the meantime"):
        fit_to_model(found, parts, export_name)


def test_an_alpha_of_many_numbers(tmp_path):
    save_file(
        {
            f"{NAME}.lora_down.weight": torch.ones(2, 16),
            f"{NAME}.lora_up.weight": torch.ones(16, 2),
            f"{NAME}.alpha": torch.ones(2),
        },
        tmp_path / "x.safetensors",
    )
    with pytest.raises(Refused, match="alpha is not one number"):
        inspect_lora(tmp_path / "x.safetensors")


def test_a_file_that_goes_while_it_is_read_is_refused(host, first, tmp_path):
    path = tmp_path / "gone.safetensors"
    path.write_bytes(first.read_bytes())
    found = inspect_lora(path)
    path.unlink()
    with pytest.raises(Refused, match="gone.safetensors cannot be read"):
        fit_to_model(found, host.model.parts(), host.model.export_name)
