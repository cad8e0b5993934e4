"""Optimizers: each does what its paper says, is driven by group, and refuses what it cannot do in a
sentence that helps.
"""

import math
import sys

import numpy as np
import pytest
import torch

from lora_trainer.base.errors import Refused
from lora_trainer.settings.config import setting_of
from lora_trainer.training import optimizer_kinds, schedule_free
from lora_trainer.training.learning_rates import LearningRates, effective_rate, rate_warnings
from lora_trainer.training.optimizer_kinds import KINDS
from lora_trainer.training.optimizers import check_optimizer, make_optimizer, optimizer_choices

CPU = torch.device("cpu")
RATES = {"unet": 1e-2, "text_encoder": 5e-3}


def needs(name: str) -> None:
    """Skip unless the package of an optimizer is there and works on the CPU; bitsandbytes' older
    versions need a GPU.
    """
    package = KINDS[name].module.split(".")[0]
    if package != "torch":
        pytest.importorskip(package, exc_type=ImportError)
    if name == "adamw8bit":
        try:
            check_optimizer(name, "", CPU)
        except Refused as refused:
            pytest.skip(refused.message)


def groups_of(**sizes) -> dict:
    return {
        name: [torch.nn.Parameter(torch.linspace(-1, 1, count).reshape(2, -1))]
        for name, count in sizes.items()
    }


def rates_for(name: str, names) -> dict:
    return {group: 1.0 if KINDS[name].finds_rate else RATES[group] for group in names}


def make(name="adamw", *, arguments="", weight_decay=0.0, learning_rates=None, **sizes):
    groups = groups_of(**(sizes or {"unet": 8}))
    return make_optimizer(
        name,
        groups,
        learning_rates=learning_rates or rates_for(name, groups),
        weight_decay=weight_decay,
        arguments=arguments,
    )


def fall(optimizer, steps: int) -> float:
    """Walk down |x - 3|^2 and return how far it is then, of how far it was."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = sum(float((parameter.detach() - 3).square().sum()) for parameter in parameters)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = 2 * (parameter.detach() - 3)
        optimizer.step()
    return sum(float((parameter.detach() - 3).square().sum()) for parameter in parameters) / before


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
        lambda: check_optimizer(name, "", CPU),
        lambda: make(name),
        lambda: check_optimizer(name, "betas=0.9,0.99", CPU),
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
        check_optimizer("prodigy", "", CPU)
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
            check_optimizer("lion", arguments, CPU)
        assert caught.value.field == "optimizer"
    sys.modules.pop("lion_pytorch", None)


def test_old_torch_is_offered_the_bitsandbytes_that_loads_with_it(monkeypatch):
    """Newer ones fail at import under torch 2.1, and take peft with them."""
    monkeypatch.setattr(optimizer_kinds, "torch_version", lambda: (2, 1))
    assert optimizer_choices()[1]["needs"].endswith("--no-deps bitsandbytes==0.45.5")
    monkeypatch.setattr(optimizer_kinds, "torch_version", lambda: (2, 10))
    assert optimizer_choices()[1]["needs"].endswith("--no-deps bitsandbytes")


@pytest.mark.parametrize(
    "version, expected", [("2.1.2+cu121", (2, 1)), ("2.15.0", (2, 15)), ("2.4.0a0", (2, 4))]
)
def test_versions_are_numbers(version, expected, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert optimizer_kinds.torch_version() == expected


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
    w, m, v, draws = np.linspace(-1, 1, 8), np.zeros(8), np.zeros(8), np.random.default_rng(0)
    for step in range(1, 6):
        grad = draws.normal(size=8)
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
    w, m, draws = np.linspace(-1, 1, 8), np.zeros(8), np.random.default_rng(0)
    for _ in range(5):
        grad = draws.normal(size=8)
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


def test_adafactor_may_find_its_rate_itself():
    needs("adafactor")
    optimizer = make(
        "adafactor", arguments="relative_step=True warmup_init=True", unet=8, text_encoder=4
    )
    rates = LearningRates("cosine", optimizer, warmup_steps=0, total_steps=10)
    rates.set(3)
    assert optimizer.param_groups[0]["lr"] is None and effective_rate(optimizer) == 0.0
    fall(optimizer, 3)
    assert effective_rate(optimizer) == pytest.approx(3e-6)


@pytest.mark.parametrize("name", ["prodigy", "dadaptation"])
def test_a_found_rate_is_told_and_grows(name):
    needs(name)
    optimizer = make(name, arguments="d0=1e-5")
    rates = LearningRates("linear", optimizer, warmup_steps=0, total_steps=2)
    rates.set(1)
    assert optimizer.param_groups[0]["lr"] == 0.5 and effective_rate(optimizer) == pytest.approx(
        0.5e-5
    )
    fall(optimizer, 30)
    assert effective_rate(optimizer) > 1e-4


@pytest.mark.parametrize("name", ["prodigy", "dadaptation"])
def test_one_rate_is_found_for_all_groups(name):
    needs(name)
    with pytest.raises(
        Refused,
        match=(
            r"finds one learning rate for everything, and 1 \(unet\) and 5e-05 \(text_encoder\)"
            r" differ.*the same, usually 1; or 0"
        ),
    ) as caught:
        make(name, learning_rates={"unet": 1.0, "text_encoder": 5e-5}, unet=8, text_encoder=8)
    assert caught.value.field == "text_encoder_lr"
    optimizer = make(
        name,
        learning_rates={"unet": 1.0, "text_encoder": 0.0},
        weight_decay=0.1,
        unet=8,
        text_encoder=8,
    )
    still = optimizer.param_groups[1]["params"][0].detach().clone()
    fall(optimizer, 5)
    assert torch.equal(optimizer.param_groups[1]["params"][0], still)


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


def test_schedule_free_is_the_papers():
    """Against arXiv 2405.15682, equations 1 to 3 with Adam's scaling, kept as z and x; y is where
    gradients are taken.
    """
    needs("schedulefree")
    optimizer = make("schedulefree")
    group, draws, beta = optimizer.param_groups[0], np.random.default_rng(0), 0.9
    z, v = np.linspace(-1, 1, 8), np.zeros(8)
    x = z.copy()
    for step in range(1, 8):
        grad = draws.normal(size=8)
        group["params"][0].grad = torch.tensor(grad, dtype=torch.float32).reshape(2, 4)
        optimizer.step()
        v = 0.999 * v + 0.001 * grad**2
        z = z - 1e-2 * grad / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        x = (1 - 1 / step) * x + z / step
        assert group["params"][0].detach().flatten().numpy() == pytest.approx(
            (1 - beta) * z + beta * x, abs=2e-6
        )
    assert schedule_free.averaged_weights(
        optimizer, group, group["params"][0]
    ).flatten().numpy() == pytest.approx(x, abs=2e-6)


def test_schedule_frees_average_is_the_packages_own():
    needs("schedulefree")
    optimizer = make("schedulefree", arguments="betas=0.95,0.99")
    fall(optimizer, 5)
    group = optimizer.param_groups[0]
    mine, training = (
        schedule_free.averaged_weights(optimizer, group, group["params"][0]).clone(),
        group["params"][0].detach().clone(),
    )
    assert torch.equal(group["params"][0], training) and group["train_mode"]
    optimizer.eval()
    assert torch.equal(group["params"][0], mine) and not torch.equal(mine, training)


# --- Arguments ------------------------------------------------------------------------------------


def test_arguments_reach_the_optimizer_and_win():
    group = make(
        arguments="betas=0.9,0.99 eps=1e-6, amsgrad=true weight_decay=0.5", weight_decay=0.1
    ).param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"], group["weight_decay"]) == (
        (0.9, 0.99),
        1e-6,
        True,
        0.5,
    )
    assert make(arguments=" betas = [0.8, 0.95] ").param_groups[0]["betas"] == (0.8, 0.95)
    assert make(arguments="foreach=True").param_groups[0]["foreach"] is True


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("d_coef=2", "AdamW takes no 'd_coef'. It takes: amsgrad, betas, eps, "),
        ("lr=1", "AdamW takes no 'lr'. The learning rate has a field of its own"),
        ("capturable=True", "takes no 'capturable'"),
        (
            "betas=0.9",
            (
                "betas=0.9 does not fit. Expected 2 numbers with commas between, such as"
                " betas=0.9,0.999"
            ),
        ),
        ("betas=0.9,high", "betas=0.9,high does not fit"),
        ("amsgrad=1", "amsgrad=1 does not fit. Expected True or False"),
        ("eps=tiny", "eps=tiny does not fit. Expected a number"),
        ("eps=nan", "eps=nan does not fit"),
        ("eps=__import__('os')", "does not fit"),
        ("eps=" + "(" * 500, "does not fit"),
        ("weight_decay=-1", "weight_decay=-1 does not fit"),
        ("betas", "is not of the form name=value"),
        ("fast betas=0.9,0.99", "is not of the form name=value"),
        (
            "betas=0.9,1.5",
            "with 'betas=0.9,1.5' a step of AdamW fails .ValueError: Invalid beta parameter",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused_with_what_can(arguments, sentence):
    with pytest.raises(
        Refused, match=sentence.replace("(", r"\(") if "(" in sentence else sentence
    ) as caught:
        check_optimizer("adamw", arguments, CPU)
    assert caught.value.field == "optimizer_args"


def test_arguments_of_other_kinds():
    needs("prodigy")
    group = make(
        "prodigy",
        arguments="d_coef=2 decouple=False use_bias_correction=True beta3=None growth_rate=inf",
    ).param_groups[0]
    assert (
        group["d_coef"],
        group["decouple"],
        group["use_bias_correction"],
        group["beta3"],
        group["growth_rate"],
    ) == (2, False, True, None, math.inf)
    with pytest.raises(Refused, match="with 'slice_p=2.5' a step of Prodigy fails"):
        check_optimizer("prodigy", "slice_p=2.5", CPU)


def test_d_adaptation_decays_as_adamw_does_unless_told_otherwise(capsys):
    needs("dadaptation")
    assert make("dadaptation", weight_decay=0.1).param_groups[0]["decouple"] is True
    assert make("dadaptation", arguments="decouple=False").param_groups[0]["decouple"] is False
    assert capsys.readouterr().out == ""


# --- Rates ----------------------------------------------------------------------------------------


def rates_at(rates, optimizer, *steps):
    """The first group's rate at each of the steps."""
    found = []
    for step in steps:
        rates.set(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_every_group_keeps_its_own_highest_rate():
    optimizer = make(unet=8, text_encoder=8)
    rates = LearningRates("linear", optimizer, warmup_steps=0, total_steps=2)
    assert rates_at(rates, optimizer, 1, 0, 1) == pytest.approx([0.005, 0.01, 0.005])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0025])
    assert effective_rate(optimizer) == pytest.approx(0.005)


def test_cycles_and_power_are_the_settings():
    optimizer = make()
    restarts = LearningRates(
        "cosine_with_restarts", optimizer, warmup_steps=0, total_steps=10, cycles=5
    )
    assert rates_at(restarts, optimizer, 2) == pytest.approx([1e-2])
    optimizer = make()
    power = LearningRates("polynomial", optimizer, warmup_steps=0, total_steps=10, power=3.0)
    assert rates_at(power, optimizer, 5) == pytest.approx([1e-2 / 8])


def test_schedule_free_only_warms_up():
    needs("schedulefree")
    optimizer = make("schedulefree")
    rates = LearningRates("cosine", optimizer, warmup_steps=3, total_steps=10)
    assert rates_at(rates, optimizer, 0, 3, 9) == pytest.approx([0.0025, 0.01, 0.01])


def test_unknown_names_are_said():
    with pytest.raises(ValueError, match="optimizer is 'adam'; expected one of adamw, "):
        check_optimizer("adam", "", CPU)
    with pytest.raises(ValueError, match="scheduler is 'wavy'"):
        LearningRates("wavy", make(), warmup_steps=0, total_steps=1)


@pytest.mark.parametrize(
    "name, rate, scheduler, said",
    [
        ("prodigy", 1e-4, "cosine", "learns next to nothing. 1 is usual"),
        ("adamw", 1.0, "cosine", "will break the pictures"),
        ("lion", 1e-4, "cosine", "third to a tenth"),
        ("schedulefree", 1e-3, "cosine", "cosine is not used"),
        ("adamw", 1e-4, "cosine", ""),
        ("prodigy", 1.0, "cosine", ""),
        ("schedulefree", 1e-3, "constant", ""),
    ],
)
def test_unusual_settings_are_remarked(name, rate, scheduler, said):
    remarks = rate_warnings(name, learning_rates={"unet": rate}, scheduler=scheduler)
    assert (said in remarks[0]) if said else remarks == []
