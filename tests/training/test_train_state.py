"""What learns: taken down and set up again it goes on bit for bit, whatever the optimizer; averages
and norms are what they should be.
"""

import json
import math
from types import MappingProxyType

import pytest
import torch

from lora_trainer.lora.adapter_layers import AdapterSpec, RankAlpha
from lora_trainer.lora.adapters import Adapters
from lora_trainer.training import state_files
from lora_trainer.training.learning_rates import LearningRates, effective_rate
from lora_trainer.training.optimizer_kinds import KINDS
from lora_trainer.training.optimizers import make_optimizer
from lora_trainer.training.parameter_groups import RateChoice, groups_of, own_settings, rates_of
from lora_trainer.training.train_state import (
    TrainState,
    rank_alphas_in_state,
    smooth_loss,
    spec_in_state,
)
from tests.support.optimizers import needs

CPU = torch.device("cpu")
LAYERS = (
    "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "unet.input_blocks.1.0.in_layers.2",
)


def make(
    model,
    name="adamw",
    arguments="",
    *,
    rank=4,
    form=AdapterSpec(),
    text_encoder=True,
    schedule="cosine",
    rate=1e-2,
    weight_decay=0.01,
    rates=MappingProxyType({}),
    **options,
) -> TrainState:
    parts = model.parts()
    encoder = next(
        path
        for path, module in parts.named_modules()
        if path.startswith("te1.") and isinstance(module, torch.nn.Linear)
    )
    adapters = Adapters.create(
        parts,
        {path: RankAlpha(rank, 2.0) for path in (*LAYERS, *([encoder] if text_encoder else []))},
        form,
        seed=5,
    )
    choice = RateChoice(1.0, 1.0) if KINDS[name].finds_rate else RateChoice(rate, rate / 2, **rates)
    groups = groups_of(adapters.named_parameters(), choice, levels=4)
    optimizer = make_optimizer(
        name,
        {group.name: weights for group, weights in groups.items()},
        learning_rates=rates_of(groups, choice),
        weight_decay=weight_decay,
        arguments=arguments,
        own=own_settings(groups),
    )
    return TrainState(
        adapters,
        optimizer,
        LearningRates(schedule, optimizer, warmup_steps=2, total_steps=12),
        device=CPU,
        dtype=torch.float32,
        **options,
    )


def train(train_state, until: int) -> None:
    """Take steps whose gradients depend on the step and on the weights."""
    while train_state.step < until:
        train_state.rates.set(train_state.step)
        rng = torch.Generator().manual_seed(train_state.step)
        for parameter in train_state.adapters.parameters():
            parameter.grad = (
                torch.randn(parameter.shape, generator=rng).to(parameter.device)
                + parameter.detach()
            )
        train_state.optimizer.step()
        train_state.step += 1
        train_state.limit_norms_and_average()
        train_state.optimizer.zero_grad(set_to_none=True)


def through_a_file(train_state, folder) -> state_files.State:
    state_files.save(folder, train_state.state({"session": 7}), keep=2)
    return state_files.latest(folder)


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for path in one:
        assert one[path].keys() == other[path].keys()
        for name in one[path]:
            assert torch.equal(one[path][name], other[path][name]), f"{path} {name}"


def distance(one, other) -> float:
    return max(
        float((one[path][name] - other[path][name]).abs().max())
        for path in one
        for name in one[path]
    )


def norms_of(weights, alpha=2.0) -> list[float]:
    return [
        float(
            (factors["lora_up.weight"].flatten(1) @ factors["lora_down.weight"].flatten(1)).norm()
        )
        * alpha
        / len(factors["lora_down.weight"])
        for factors in weights.values()
    ]


# --- The same run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, arguments, options",
    [
        ("adamw", "", {}),
        ("adamw", "amsgrad=True", {}),
        ("adamw", "foreach=True", {}),
        ("adamw", "fused=False", {}),
        ("adamw", "", dict(ema_decay=0.9)),
        ("adamw", "", dict(scale_weight_norms=0.05, schedule="one_cycle")),
        ("adamw", "", dict(form=AdapterSpec("loha"), ema_decay=0.9, scale_weight_norms=0.05)),
        ("adamw", "", dict(form=AdapterSpec("lokr"), ema_decay=0.9)),
        (
            "adamw",
            "",
            dict(form=AdapterSpec(use_dora=True), ema_decay=0.9, scale_weight_norms=0.05),
        ),
        ("adamw", "", dict(form=AdapterSpec("lokr", use_dora=True))),
        (
            "adamw",
            "",
            dict(
                form=AdapterSpec(use_dora=True),
                rates=dict(loraplus_lr_ratio=16.0, block_learning_rates="IN01=0.5"),
                ema_decay=0.9,
            ),
        ),
        ("prodigy", "", dict(form=AdapterSpec(use_dora=True))),
        ("schedulefree", "", dict(form=AdapterSpec(use_dora=True), scale_weight_norms=0.05)),
        ("adamw8bit", "", dict(rank=256)),
        ("adamw8bit", "", dict(rank=4)),
        ("lion", "", {}),
        ("adafactor", "", {}),
        ("adafactor", "beta1=0.9", dict(ema_decay=0.5)),
        ("adafactor", "relative_step=True scale_parameter=True warmup_init=True", {}),
        ("prodigy", "", dict(schedule="constant")),
        ("prodigy", "d_coef=2 use_bias_correction=True safeguard_warmup=True slice_p=3", {}),
        ("dadaptation", "", {}),
        ("dadaptation", "use_bias_correction=True growth_rate=1.5", dict(ema_decay=0.9)),
        ("schedulefree", "", {}),
        ("schedulefree", "warmup_steps=4 r=0.5 foreach=False", {}),
        ("schedulefree", "", dict(ema_decay=0.9, scale_weight_norms=0.05)),
    ],
)
@pytest.mark.parametrize("broken_after", [1, 5])
def test_a_resumed_run_is_the_same_run(host, tmp_path, name, arguments, options, broken_after):
    needs(name)
    whole, first = (
        make(host.model, name, arguments, **options),
        make(host.model, name, arguments, **options),
    )
    train(whole, 9)
    train(first, broken_after)
    state = through_a_file(first, tmp_path)
    second = make(host.model, name, arguments, **options)
    second.restore(state)
    assert second.step == broken_after
    assert_same(second.weights_to_save(), first.weights_to_save())
    train(second, 9)
    assert_same(whole.adapters.weights(), second.adapters.weights())
    assert_same(whole.weights_to_save(), second.weights_to_save())
    assert effective_rate(whole.optimizer) == effective_rate(second.optimizer)
    assert distance(whole.adapters.weights(), first.adapters.weights()) > 0


@pytest.mark.parametrize("name", KINDS)
def test_a_learner_goes_back_to_its_own_state(host, tmp_path, name):
    """As after a step that broke off in the middle: nothing of what came later stays, not even
    Prodigy's d.
    """
    needs(name)
    whole, train_state = (
        make(host.model, name, ema_decay=0.9),
        make(host.model, name, ema_decay=0.9),
    )
    train(whole, 6)
    for step in (0, 2):
        train(train_state, step)
        state = through_a_file(train_state, tmp_path / str(step))
        train(train_state, 6)
        train_state.in_optimizer_step = True
        train_state.restore(state)
        assert (train_state.step, train_state.in_optimizer_step) == (step, False)
        train(train_state, 6)
        assert_same(whole.weights_to_save(), train_state.weights_to_save())
        train_state.restore(state)


@pytest.mark.parametrize("name", KINDS)
def test_dtypes_shapes_and_numbers_survive(host, tmp_path, name):
    needs(name)
    train_state, other = make(host.model, name, rank=256), make(host.model, name, rank=256)
    train(train_state, 3)
    other.restore(through_a_file(train_state, tmp_path))
    for mine, theirs in zip(train_state._parameters(), other._parameters()):
        before, after = train_state.optimizer.state[mine], other.optimizer.state[theirs]
        assert {key: type(value) for key, value in before.items()} == {
            key: type(value) for key, value in after.items()
        }
        for key, value in before.items():
            if isinstance(value, torch.Tensor):
                assert (value.dtype, value.shape) == (
                    after[key].dtype,
                    after[key].shape,
                ) and torch.equal(value, after[key])
            else:
                assert value == after[key]
    for before, after in zip(train_state.optimizer.param_groups, other.optimizer.param_groups):
        assert {key: value for key, value in before.items() if key not in ("params", "lr")} == {
            key: value for key, value in after.items() if key not in ("params", "lr")
        }


def test_what_several_parameters_share_is_kept_once(host, tmp_path):
    """bitsandbytes' tables of 256 numbers, one for all."""
    needs("adamw8bit")
    train_state, other = (
        make(host.model, "adamw8bit", rank=256),
        make(host.model, "adamw8bit", rank=256),
    )
    train(train_state, 2)
    state = through_a_file(train_state, tmp_path)
    assert sum("qmap" in name for name in state.tensors) == 2 and any(
        "qmap1" in name for name in state.facts["optimizer"]["shared"]
    )
    other.restore(state)
    other.to(torch.float64)
    tables = [values["qmap1"] for values in other.optimizer.state.values() if "qmap1" in values]
    assert len(tables) > 1 and all(table is tables[0] for table in tables)


def test_a_free_setting_may_change_in_the_middle(host, tmp_path):
    first, second = make(host.model), make(host.model, weight_decay=0.5, rate=1e-3)
    train(first, 3)
    second.restore(through_a_file(first, tmp_path))
    assert [group["weight_decay"] for group in second.optimizer.param_groups] == [0.5, 0.5]
    second.rates.set(2)
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_an_average_may_be_switched_on_or_off_in_the_middle(host, tmp_path):
    plain, averaging = make(host.model), make(host.model, ema_decay=0.9)
    train(plain, 3)
    averaging.restore(through_a_file(plain, tmp_path))
    assert_same(averaging.weights_to_save(), plain.weights_to_save())
    train(averaging, 6)
    plain.restore(through_a_file(averaging, tmp_path))
    assert_same(plain.weights_to_save(), averaging.adapters.weights())


def test_a_state_of_others_is_not_taken(host, tmp_path):
    train_state = make(host.model)
    train(train_state, 2)
    state, before = through_a_file(train_state, tmp_path), train_state.adapters.weights()
    with pytest.raises(ValueError, match="layers differ"):
        make(host.model, text_encoder=False).restore(state)
    needs("adafactor")
    other = make(host.model, "adafactor")
    with pytest.raises(ValueError, match="the state is of AdamW, not of Adafactor"):
        other.restore(state)
    assert not other.optimizer.state and distance(before, other.adapters.weights()) > 0


def test_a_state_says_what_it_is_of(host, tmp_path):
    train_state = make(host.model, form=AdapterSpec("loha", dropout=0.1), ema_decay=0.9)
    train_state.loss_average = 0.1 + 0.2
    train(train_state, 2)
    state = through_a_file(train_state, tmp_path)
    assert state.facts["session"] == 7 and state.facts["loss_average"] == 0.1 + 0.2
    assert rank_alphas_in_state(state) == train_state.adapters.rank_alphas and list(
        rank_alphas_in_state(state)
    ) == list(train_state.adapters.rank_alphas)
    assert spec_in_state(state) == AdapterSpec("loha", dropout=0.1)
    assert {f"{kind}/hada_w1_a/{LAYERS[0]}" for kind in ("lora", "ema")} < state.tensors.keys()
    json.dumps(dict(state.facts))


# --- Averages and norms ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "schedulefree"])
def test_the_average_is_the_weighted_sum_of_all_steps(host, name):
    """Against the sum written out, of what a run without it would have saved; the first steps count
    less than the decay says, so that the beginning is forgotten.
    """
    needs(name)
    train_state, plain, seen = make(host.model, name, ema_decay=0.6), make(host.model, name), []
    for step in range(1, 9):
        train(train_state, step)
        train(plain, step)
        seen.append(plain.weights_to_save())
    decays = [0.0, *(min(0.6, (1 + n) / (10 + n)) for n in range(1, 8))]
    assert decays[1] == pytest.approx(2 / 11) and decays[-1] < 0.6
    shares = [(1 - decays[n]) * math.prod(decays[n + 1 :]) for n in range(8)]
    assert sum(shares) == pytest.approx(1)
    saved = train_state.weights_to_save()
    for path in saved:
        for name, tensor in saved[path].items():
            expected = sum(
                share * weights[path][name].double() for share, weights in zip(shares, seen)
            )
            assert tensor.dtype == torch.float32 and torch.allclose(
                tensor.double(), expected, atol=1e-6
            )
    assert distance(saved, train_state.adapters.weights()) > 1e-4


def test_the_average_is_diffusers(host):
    ema_model = pytest.importorskip("diffusers.training_utils").EMAModel
    train_state = make(host.model, ema_decay=0.3)
    theirs = ema_model(train_state.adapters.parameters(), decay=0.3)
    for step in range(1, 9):
        train(train_state, step)
        theirs.step(train_state.adapters.parameters())
    own = [tensor for path in train_state.weights_to_save().values() for tensor in path.values()]
    assert all(
        torch.allclose(mine, shadow, atol=1e-6) for mine, shadow in zip(own, theirs.shadow_params)
    ) and len(own) == len(theirs.shadow_params)


@pytest.mark.parametrize(
    "name, options",
    [
        ("adamw", dict(ema_decay=0.9)),
        ("schedulefree", {}),
        ("schedulefree", dict(ema_decay=0.9, scale_weight_norms=0.05)),
        ("adamw", dict(ema_decay=0.9, scale_weight_norms=0.05)),
    ],
)
def test_saving_on_the_way_disturbs_nothing(host, name, options):
    needs(name)
    quiet, saving = make(host.model, name, **options), make(host.model, name, **options)
    for step in range(1, 7):
        train(quiet, step)
        train(saving, step)
        tensors = [parameter.data_ptr() for parameter in saving.adapters.parameters()]
        assert_same(saving.weights_to_save(), saving.weights_to_save())
        assert [parameter.data_ptr() for parameter in saving.adapters.parameters()] == tensors
        assert_same(saving.adapters.weights(), quiet.adapters.weights())
    assert distance(saving.weights_to_save(), saving.adapters.weights()) > 0


def test_limiting_what_is_saved_leaves_the_average_as_it_is(host):
    train_state = make(host.model, ema_decay=0.9, rate=0.1)
    train(train_state, 5)
    before, train_state._max_norm = train_state.weights_to_save(), 1e-3
    assert max(norms_of(train_state.weights_to_save())) < 2e-3 < min(norms_of(before))
    train_state._max_norm = 0.0
    assert_same(train_state.weights_to_save(), before)


def test_saving_that_fails_gives_the_weights_back(host, monkeypatch):
    train_state = make(host.model, ema_decay=0.9)
    train(train_state, 3)
    before, weights = train_state.adapters.weights(), train_state.adapters.weights
    monkeypatch.setattr(train_state.adapters, "weights", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_state.weights_to_save()
    assert_same(weights(), before)


def test_schedule_frees_saved_weights_are_those_of_its_eval_mode(host):
    needs("schedulefree")
    train_state, other = make(host.model, "schedulefree"), make(host.model, "schedulefree")
    train(train_state, 5)
    train(other, 5)
    other.optimizer.eval()
    assert_same(train_state.weights_to_save(), other.adapters.weights())


@pytest.mark.parametrize(
    "name, options",
    [
        ("adamw", {}),
        ("adamw", dict(ema_decay=0.9)),
        ("schedulefree", {}),
        ("schedulefree", dict(ema_decay=0.9)),
    ],
)
def test_no_layer_grows_beyond_the_limit(host, name, options):
    needs(name)
    free, limited = (
        make(host.model, name, **options),
        make(host.model, name, scale_weight_norms=0.01, **options),
    )
    train(free, 9)
    assert min(norms_of(free.weights_to_save())) > 0.014
    for step in range(1, 10):
        train(limited, step)
        for weights in (limited.adapters.weights(), limited.weights_to_save()):
            assert max(norms_of(weights)) <= 0.01 * (1 + 1e-5)
    assert max(norms_of(limited.adapters.weights())) == pytest.approx(0.01, rel=1e-3)


def test_schedule_free_is_scaled_down_as_a_whole(host):
    """Both of its points, so that the average of a layer points where it did."""
    needs("schedulefree")
    train_state = make(host.model, "schedulefree", rate=0.1)
    train(train_state, 6)
    before, train_state._max_norm = train_state.weights_to_save(), 1e-3
    train_state.limit_norms_and_average()
    after = train_state.weights_to_save()
    assert max(norms_of(after)) <= 1.001e-3 and min(norms_of(before)) > 0.1
    for path in before:
        for name in before[path]:
            assert float(
                torch.nn.functional.cosine_similarity(
                    after[path][name].flatten(), before[path][name].flatten(), dim=0
                )
            ) == pytest.approx(1.0, abs=1e-5)


# --- Devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_everything_large_moves(host, name):
    """Moved to another type in place of another device, which a machine without a GPU lacks:
    nothing may be left behind.
    """
    needs(name)
    train_state = make(host.model, name, rank=256, ema_decay=0.9)
    train(train_state, 2)
    train_state.to(torch.float64)
    held = [
        *train_state.adapters.parameters(),
        *train_state._ema,
        *(
            value
            for values in train_state.optimizer.state.values()
            for value in values.values()
            if isinstance(value, torch.Tensor) and value.dim()
        ),
    ]
    assert {tensor.dtype for tensor in held} == {torch.float64} and len(held) > 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", KINDS)
def test_a_pause_on_the_cpu_changes_nothing(host, name):
    gpu = torch.device("cuda")
    needs(name)
    still, moved = make(host.model, name, ema_decay=0.9), make(host.model, name, ema_decay=0.9)
    for train_state in (still, moved):
        train_state.to(gpu)
        train(train_state, 3)
    moved.to(CPU)
    moved.to(gpu)
    train(still, 6)
    train(moved, 6)
    assert_same(still.weights_to_save(), moved.weights_to_save())


def test_magnitudes_of_a_dora_are_neither_limited_nor_do_they_decay(host):
    """Both would take away what the base model knows."""
    train_state = make(
        host.model, form=AdapterSpec(use_dora=True), weight_decay=0.9, scale_weight_norms=1e-3
    )
    before = {
        path: weights["dora_scale"] for path, weights in train_state.adapters.weights().items()
    }
    for step in range(5):
        for parameter in train_state.adapters.parameters():
            parameter.grad = torch.zeros_like(parameter)
        train_state.rates.set(step)
        train_state.optimizer.step()
        train_state.step += 1
        train_state.limit_norms_and_average()
    after = train_state.adapters.weights()
    assert all(torch.equal(weights["dora_scale"], before[path]) for path, weights in after.items())


def test_rates_of_groups_follow_the_schedule_and_the_usual_one_is_reported(host):
    train_state = make(
        host.model,
        rates=dict(
            loraplus_lr_ratio=16.0,
            loraplus_text_encoder_lr_ratio=4.0,
            block_learning_rates="IN01=0.5",
        ),
        text_encoder=True,
    )
    train_state.rates.set(1)
    usual = 1e-2 * 2 / 3  # the warm-up's second step of two
    found = {group["name"]: group["lr"] for group in train_state.optimizer.param_groups}
    assert found == pytest.approx(
        {
            "unet x0.5": usual / 2,
            "unet x8": usual * 8,
            "text_encoder": usual / 2,
            "text_encoder x4": usual * 2,
        }
    )
    assert effective_rate(train_state.optimizer) == pytest.approx(usual)


def test_the_loss_is_averaged_over_the_last_steps():
    assert smooth_loss(None, 2.0, 1) == 2.0 and smooth_loss(2.0, 4.0, 2) == 3.0
