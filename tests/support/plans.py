"""Runs worked out from settings of tests."""

from lora_trainer.runs.memory import estimate
from lora_trainer.runs.plan import make_plan
from lora_trainer.settings.config import TrainConfig


def planned(settings, host, thorough=True, session_id=None, **changes):
    return make_plan(
        TrainConfig.parse({**settings, **changes}),
        lora_dir=host.lora_dir,
        thorough=thorough,
        session_id=session_id,
    )


def captions(plan):
    return [sample.caption for sample in plan.samples]


def estimated(plan, config, parts=None):
    return estimate(config, plan.samples, parts, init_lora=plan.init_lora)
