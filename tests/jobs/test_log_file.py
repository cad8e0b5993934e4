"""log.txt: what one job's thread logs, run after run, and how it is read bit by bit."""

import logging
import threading

from lora_trainer.jobs.log_file import MOST_BYTES, log_file, read_log

log = logging.getLogger("lora_trainer.runs.pipeline")


def test_runs_are_appended_and_other_threads_left_out(tmp_path):
    path = tmp_path / "log.txt"
    level = logging.getLogger("lora_trainer").level
    for number in (1, 2):
        with log_file(path):
            log.info("run %d", number)
            other = threading.Thread(target=log.info, args=("somebody else",))
            other.start()
            other.join()
    log.info("afterwards")
    text = path.read_text(encoding="utf-8")
    assert (
        "run 1" in text
        and "run 2" in text
        and "somebody else" not in text
        and "afterwards" not in text
    )
    assert logging.getLogger("lora_trainer").level == level


def test_it_is_read_from_where_one_was(tmp_path):
    path = tmp_path / "log.txt"
    assert read_log(path) == {"text": "", "next": 0}
    path.write_bytes("zwölf\n".encode())
    first = read_log(path)
    assert first == {"text": "zwölf\n", "next": 7} and read_log(path, 7) == {"text": "", "next": 7}
    with open(path, "ab") as file:
        file.write("Käfer".encode()[:2])  # half an ä
    assert read_log(path, 7) == {"text": "K", "next": 8}
    with open(path, "ab") as file:
        file.write("Käfer".encode()[2:])
    assert read_log(path, 8) == {"text": "äfer", "next": 13}
    assert read_log(path, 99)["text"] == "zwölf\nKäfer" and read_log(path, -5)["next"] == 13


def test_of_a_long_one_the_end(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"\xff" + b"x" * MOST_BYTES + b"the end")
    found = read_log(path)
    assert (
        len(found["text"]) == MOST_BYTES
        and found["text"].endswith("the end")
        and found["next"] == MOST_BYTES + 8
    )
    path.write_bytes(b"a\xffb")
    assert read_log(path)["text"] == "a\ufffdb"
