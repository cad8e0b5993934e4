"""What a run reports: events of steps, states, and warnings that are said once."""

from lora_trainer.runs.progress import ProgressReporter, RunStatus, StepMetrics


def metrics(step, validation_loss=None):
    return StepMetrics(step, 0.5, 0.4, 1e-4, step * 0.1, validation_loss)


def test_a_step_is_an_event_and_then_a_state():
    sent = []
    reporter = ProgressReporter(
        lambda status: sent.append(("status", status.step)),
        lambda metrics, status: sent.append(("step", metrics.step, status.step)),
    )
    reporter.finish_step(metrics(1), stage="training")
    reporter.update(stage="paused")
    assert sent == [("step", 1, 1), ("status", 1), ("status", 1)]


def test_a_validation_loss_is_an_event_of_its_step_and_stays_in_the_status():
    events, losses = [], []
    reporter = ProgressReporter(
        lambda status: losses.append(status.validation_loss),
        lambda metrics, status: events.append(metrics.validation_loss),
    )
    for step, loss in enumerate([None, 0.5, None, 0.5], start=1):
        reporter.finish_step(metrics(step, loss))
    assert events == [None, 0.5, None, 0.5] and losses == [None, 0.5, 0.5, 0.5]


def test_a_warning_is_said_once_replaced_and_withdrawn():
    sent = []
    reporter = ProgressReporter(lambda status: sent.append(status.warnings))
    reporter.warn("The disk is full.", about="state")
    reporter.warn("The disk is full.", about="state")
    reporter.warn("Something else.")
    reporter.warn("No permission.", about="state")
    reporter.withdraw_warning("state")
    reporter.withdraw_warning("state")
    assert sent == [
        ("The disk is full.",),
        ("The disk is full.", "Something else."),
        ("Something else.", "No permission."),
        ("Something else.",),
    ]


def test_the_status_has_the_keys_of_the_api():
    values = RunStatus(warnings=("A warning.",)).to_json()
    assert values["remarks"] == ("A warning.",) and "warnings" not in values
