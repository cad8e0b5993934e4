"""Requests of the user to a run."""

from lora_trainer.base.control import Control


def test_a_run_that_nobody_speaks_to_goes_on():
    control = Control()
    assert not control.should_stop() and not control.interrupt_requested
    assert not control.pause_requested and not control.free_memory_requested
    assert not control.pop_snapshot_request()


def test_the_end_of_the_program_is_a_stop_and_a_stop_is_no_end_of_the_program():
    stopped, interrupted = Control(), Control()
    stopped.stop()
    interrupted.interrupt()
    assert stopped.should_stop() and not stopped.interrupt_requested
    assert interrupted.should_stop() and interrupted.interrupt_requested


def test_the_last_pause_says_whether_memory_is_freed():
    control = Control()
    control.pause(free_memory=True)
    assert control.pause_requested and control.free_memory_requested
    control.resume()
    assert not control.pause_requested
    control.pause()
    assert control.pause_requested and not control.free_memory_requested


def test_a_request_for_a_snapshot_is_answered_once():
    control = Control()
    control.take_snapshot()
    control.take_snapshot()
    assert control.pop_snapshot_request() and not control.pop_snapshot_request()
