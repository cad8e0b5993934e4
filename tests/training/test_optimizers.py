"""Optimizers: each does what its paper says, is driven by group, and refuses what it cannot do in a
sentence that helps.
"""

import sys

import numpy as np
import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.settings.config import setting_of
from lora_trainer.training import optimizer_kinds
from lora_trainer.training.learning_rates import LearningRates, effective_rate
from lora_trainer.training.optimizer_kinds import KINDS
from lora_trainer.training.optimizers import check_with_step, optimizer_choices
from tests.support.optimizers import CPU, fall, groups_of, make, needs, rates_for


def test_an_optimizer_of_torch_without_a_fused_kernel_is_not_asked_for_one(monkeypatch):
    plain = optimizer_kinds.OptimizerKind("RMSprop", "torch.optim", "RMSprop")
    monkeypatch.setitem(KINDS, "rmsprop", plain)
    assert fall(make("rmsprop", learning_rates={"unet": 1e-2}), 10) < 1


# --- What there is --------------------------------------------------------------------------------


def test_the_choices_are_the_settings():
    assert [choice["name"] for choice in optimizer_choices()] == list(
        setting_of("optimizer").choices
    )
    assert optimizer_choices()[0] == dict(name="adamw", title="AdamW", available=True, needs="")
    assert all("pip install" in choice["needs"] for choice in optimizer_choices()[1:])


@pytest.mark.parametrize(
    "name, module, package",
    [
        ("prodigy", "prodigyopt", "prodigyopt"),
        ("lion", "lion_pytorch", "lion-pytorch"),
        ("dadaptation", "dadaptation", "dadaptation"),
        ("schedulefree", "schedulefree", "schedulefree"),
        ("adamw8bit", "bitsandbytes", "bitsandbytes"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    name, module, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.optim", raising=False)
    for ask in (
        lambda: check_with_step(name, "", CPU),
        lambda: make(name),
        lambda: check_with_step(name, "betas=0.9,0.99", CPU),
    ):
        with pytest.raises(
            Refused,
            match=(
                f"needs the package {package}, which is not installed. Install it with: .* -m pip"
                f" install --no-deps {package}"
            ),
        ) as caught:
            ask()
        assert caught.value.field == "optimizer"
    assert not next(choice for choice in optimizer_choices() if choice["name"] == name)["available"]


def test_a_package_that_fails_to_load_is_said_with_its_reason(monkeypatch, tmp_path):
    (tmp_path / "prodigyopt.py").write_text(
        "import torch\ntorch.library.register_nothing\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "prodigyopt", raising=False)
    with pytest.raises(
        Refused,
        match=(
            "prodigyopt fails to load .AttributeError: module 'torch.library' has no attribute"
            " 'register_nothing'"
        ),
    ):
        check_with_step("prodigy", "", CPU)
    sys.modules.pop("prodigyopt", None)


@pytest.mark.parametrize(
    "step, reason",
    [
        (
            "raise NotImplementedError('no kernel for cpu')",
            "NotImplementedError: no kernel for cpu",
        ),
        ("pass", "it changed nothing"),
        ("self.param_groups[0]['params'][0].data.fill_(float('nan'))", "not finite"),
    ],
)
def test_a_package_whose_step_fails_is_refused_before_the_run(step, reason, monkeypatch, tmp_path):
    (tmp_path / "lion_pytorch.py").write_text(
        "import torch\nclass Lion(torch.optim.Optimizer):\n    def __init__(self, params, lr=1.0,"
        " eps=1.0):\n        super().__init__(params, dict(lr=lr))\n    def step(self):\n       "
        f" {step}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lion_pytorch", raising=False)
    for arguments in ("", "eps=0.5"):  # which are not to blame
        with pytest.raises(
            Refused, match=f"a step of Lion fails on cpu .*{reason}.*Choose another"
        ) as caught:
            check_with_step("lion", arguments, CPU)
        assert caught.value.field == "optimizer"
    sys.modules.pop("lion_pytorch", None)


# --- Each of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_each_learns_says_its_groups_and_prints_nothing(name, capsys):
    needs(name)
    state = torch.random.get_rng_state()
    optimizer = make(name, weight_decay=0.01, unet=8, text_encoder=4096)
    assert [group["name"] for group in optimizer.param_groups] == ["unet", "text_encoder"]
    assert [group["lr"] for group in optimizer.param_groups] == list(
        rates_for(name, ["unet", "text_encoder"]).values()
    )
    assert fall(optimizer, 60) < 0.98
    assert capsys.readouterr().out == "" and torch.equal(torch.random.get_rng_state(), state)


def test_adamw_is_the_papers():
    """Against arXiv 1711.05101, algorithm 2, in numpy; one kernel for all where torch has one."""
    optimizer = make(weight_decay=0.1, unet=8)
    assert optimizer.param_groups[0]["fused"] == (optimizer_kinds.torch_version() >= (2, 4))
    w, m, v, rng = np.linspace(-1, 1, 8), np.zeros(8), np.zeros(8), np.random.default_rng(0)
    for step in range(1, 6):
        grad = rng.normal(size=8)
        optimizer.param_groups[0]["params"][0].grad = torch.tensor(
            grad, dtype=torch.float32
        ).reshape(2, 4)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        w = (
            w
            - 1e-2 * 0.1 * w
            - 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        )
    assert optimizer.param_groups[0]["params"][0].detach().flatten().numpy() == pytest.approx(
        w, abs=1e-6
    )


def test_lion_is_the_papers():
    """Against arXiv 2302.06675, algorithm 2, in numpy."""
    needs("lion")
    optimizer = make("lion", weight_decay=0.1, arguments="betas=0.8,0.95")
    w, m, rng = np.linspace(-1, 1, 8), np.zeros(8), np.random.default_rng(0)
    for _ in range(5):
        grad = rng.normal(size=8)
        optimizer.param_groups[0]["params"][0].grad = torch.tensor(
            grad, dtype=torch.float32
        ).reshape(2, 4)
        optimizer.step()
        w = w - 1e-2 * (np.sign(0.8 * m + 0.2 * grad) + 0.1 * w)
        m = 0.95 * m + 0.05 * grad
    assert optimizer.param_groups[0]["params"][0].detach().flatten().numpy() == pytest.approx(
        w, abs=1e-6
    )


def test_adafactor_takes_the_given_rate_unless_told_otherwise():
    """Without scaling by the parameter, arXiv 1804.04235's first step is the sign, clipped to a
    root mean square of 1, times the rate.
    """
    needs("adafactor")
    optimizer = make("adafactor")
    parameter, before = (
        optimizer.param_groups[0]["params"][0],
        torch.linspace(-1, 1, 8).reshape(2, 4),
    )
    parameter.grad = torch.full((2, 4), 0.3)
    optimizer.step()
    assert (
        torch.allclose(parameter.detach(), before - 1e-2, atol=1e-6)
        and effective_rate(optimizer) == 1e-2
    )


def test_the_packages_own_error_is_what_the_sentence_prevents():
    prodigyopt = pytest.importorskip("prodigyopt")
    optimizer = prodigyopt.Prodigy(
        [
            {"params": group, "lr": rate}
            for group, rate in zip(groups_of(a=4, b=4).values(), (1.0, 0.5))
        ]
    )
    with pytest.raises(RuntimeError, match="different lr values"):
        fall(optimizer, 1)


@pytest.mark.parametrize("name", KINDS)
def test_a_group_of_rate_zero_stays(name):
    needs(name)
    optimizer = make(
        name,
        learning_rates={**rates_for(name, ["unet"]), "text_encoder": 0.0},
        weight_decay=0.1,
        unet=8,
        text_encoder=8,
    )
    still = optimizer.param_groups[1]["params"][0].detach().clone()
    fall(optimizer, 3)
    assert torch.equal(optimizer.param_groups[1]["params"][0], still)
    with pytest.raises(Refused, match="nothing would learn"):
        make(name, learning_rates={"unet": 0.0}, unet=8)


def test_d_adaptation_decays_as_adamw_does_unless_told_otherwise(capsys):
    needs("dadaptation")
    assert make("dadaptation", weight_decay=0.1).param_groups[0]["decouple"] is True
    assert make("dadaptation", arguments="decouple=False").param_groups[0]["decouple"] is False
    assert capsys.readouterr().out == ""


def test_unknown_names_are_said():
    with pytest.raises(ValueError, match="optimizer is 'adam'; expected one of adamw, "):
        check_with_step("adam", "", CPU)
    with pytest.raises(ValueError, match="scheduler is 'wavy'"):
        LearningRates("wavy", make(), warmup_steps=0, total_steps=1)
