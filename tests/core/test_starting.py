"""Going on from an existing LoRA: ours, another trainer's, and files that are none."""
import pytest
import torch
from safetensors.torch import load, load_file, save_file

from lora_trainer.core.config import TrainConfig
from lora_trainer.core.errors import Refused
from lora_trainer.core.pipeline import train_lora
from lora_trainer.core.plan import make_plan

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def first(host, settings):
    """A LoRA of rank 2 and alpha 1 on the attention alone; further runs have other settings."""
    return train_lora(TrainConfig.parse({**settings, "output_name": "first", "lora_rank": 2, "lora_alpha": 1, "lora_targets": "attention"}), host).output_file


def train(host, settings, **changes):
    return train_lora(TrainConfig.parse({**settings, "learning_rate": 1e-9, "max_train_steps": 1, **changes}), host)


def test_rank_alpha_layers_and_weights_are_taken_over(host, settings, first):
    """With a learning rate of nearly nothing the new LoRA is the old one."""
    before, after = load_file(first), load_file(train(host, settings, init_lora="first").output_file)
    assert before.keys() == after.keys() and after[f"{NAME}.lora_down.weight"].shape[0] == 2 and after[f"{NAME}.alpha"] == 1
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before) and before[f"{NAME}.lora_up.weight"].any()


def test_it_learns_on(host, settings, first):
    before, after = load_file(first), load_file(train(host, settings, init_lora=str(first), learning_rate=1e-2).output_file)
    assert any(not torch.allclose(before[name], after[name], atol=1e-4) for name in before)


def test_the_plan_says_what_is_taken_over(host, settings, first):
    plan = make_plan(TrainConfig.parse({**settings, "init_lora": "first"}), lora_dir=host.lora_dir)
    assert "Going on from first.safetensors: its rank 2, alpha 1 and layers are used, whatever the settings say." in plan.warnings


def test_other_trainers_files(host, settings, tmp_path):
    """The checkpoint's own layer names, no alpha, other ranks, a linear layer's LoRA on a 1x1 convolution, a text encoder's part."""
    path = tmp_path / "theirs.safetensors"
    save_file({
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.ones(3, 16),
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.ones(16, 3),
        "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.ones(5, 16), "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.ones(16, 5),
        "lora_unet_input_blocks_1_1_proj_in.alpha": torch.tensor(2.0),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(3, 12), "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(12, 3),
    }, path)
    after = load_file(train(host, settings, init_lora=str(path)).output_file)
    assert after[f"{NAME}.alpha"] == 3 and after["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"] == 2
    assert after["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].shape == (5, 16, 1, 1) and len(after) == 6
    warnings = make_plan(TrainConfig.parse({**settings, "init_lora": str(path), "output_name": "x"}), lora_dir=host.lora_dir).warnings
    assert any("text encoder; that part is left out" in warning for warning in warnings)


@pytest.mark.parametrize("tensors, said", [
    ({"lora_unet_input_blocks_7_1_proj_in.lora_down.weight": (2, 16), "lora_unet_input_blocks_7_1_proj_in.lora_up.weight": (16, 2)}, "1 layers that this checkpoint lacks"),
    ({f"{NAME}.lora_down.weight": (2, 320), f"{NAME}.lora_up.weight": (320, 2)}, r"\(2, 320\).*this checkpoint needs \(2, 16\)"),
    ({f"{NAME}.hada_w1_a": (2, 16)}, "LoHa, LoKr, DoRA and full models are not"),
    ({f"{NAME}.lora_down.weight": (2, 16), f"{NAME}.lora_up.weight": (16, 2), f"{NAME}.dora_scale": (16, 1)}, r"dora_scale\)"),
    ({f"{NAME}.lora_down.weight": (2, 16)}, "lora_up.weight is missing"),
    ({"model.weight": (2, 2)}, "not a LoRA"),
])
def test_files_that_do_not_fit_are_refused(host, settings, tmp_path, tensors, said):
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(Refused, match=said) as refusal:
        train(host, settings, init_lora=str(tmp_path / "odd.safetensors"))
    assert refusal.value.field == "init_lora" and not (host.lora_dir / "mine.safetensors").exists()


def test_spoiled_missing_and_damaged(host, settings, tmp_path):
    save_file({f"{NAME}.lora_down.weight": torch.full((2, 16), float("nan")), f"{NAME}.lora_up.weight": torch.zeros(16, 2)}, tmp_path / "nan.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, said in (("nan.safetensors", "not finite"), ("text.safetensors", "cannot be read"), ("none.safetensors", "There is no LoRA")):
        with pytest.raises(Refused, match=said):
            train(host, settings, init_lora=str(tmp_path / name))


def test_going_on_from_itself_survives_a_crash(host, settings, first, tmp_path):
    """The LoRA that a run began from may be the one that it replaces; after a crash its state is enough."""
    config = TrainConfig.parse({**settings, "output_name": "first", "init_lora": "first", "overwrite": True, "save_steps": 2, "save_state_steps": 1})
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
        train_lora(config, host, folder=tmp_path / "job", on_progress=die)
    train_lora(config, host, folder=tmp_path / "job", resume=True)
    one, other = load_file(first), load(wanted)
    assert all(torch.equal(one[name], other[name]) for name in one)
