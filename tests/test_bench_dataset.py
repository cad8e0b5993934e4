"""The bench of data sets."""

from lora_trainer.bench_dataset import report


def test_the_bench_prints_each_action_with_its_seconds():
    lines = report(12).splitlines()
    assert lines[0].startswith("A data set of 12 pictures") and any(
        line.startswith("bulk edit of all  ") for line in lines
    )
    assert (
        all(float(line.split()[-4]) >= 0 and float(line.split()[-2]) >= 0 for line in lines[2:])
        and len(lines) > 15
    )
