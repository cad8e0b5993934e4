"""A table of captions on disk: ours come in, and nothing of a person's is lost."""

import json

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.captioning import table_file
from lora_trainer.captioning.table_file import TableFile

PICTURES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def csv(tmp_path):
    return tmp_path / "metadata.csv"


def save(table, **captions):
    table.put({f"{name}.png": caption for name, caption in captions.items()})
    table.save()


def test_a_new_table_is_made_with_its_folder(tmp_path):
    path = tmp_path / "new" / "metadata.csv"
    table = TableFile(path, PICTURES)
    assert table.captions == {}
    table.save()
    assert not path.parent.exists(), "nothing was put"
    save(table, a="zib, cat", b='"dog"\nred')
    assert path.read_bytes() == b'filename,prompt\na.png,"zib, cat"\nb.png,"""dog""\nred"\n'
    assert table.captions == {"a.png": "zib, cat", "b.png": '"dog"\nred'} and table.unsaved == 0
    save(table, c="last")
    assert TableFile(path, PICTURES).captions["c.png"] == "last"
    assert path.read_bytes().startswith(b'filename,prompt\na.png,"zib, cat"\n')


def test_rows_are_changed_in_their_place_and_all_else_stays(csv):
    csv.write_bytes(
        "\ufefffile_name;note;text\r\nother.png;x;mine\r\nb.png;;old\r\na.png;n;cat\r\n".encode()
    )
    table = TableFile(csv, PICTURES)
    assert table.captions == {"a.png": "cat", "b.png": "old"}
    save(table, b="new", c="猫")
    assert csv.read_bytes().decode() == (
        "\ufefffile_name;note;text\r\n"
        "other.png;x;mine\r\nb.png;;new\r\na.png;n;cat\r\nc.png;;猫\r\n"
    )


def test_json_lines_keep_their_other_keys(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "b.png", "text": "old", "score": 1.50}\n', encoding="utf-8")
    table = TableFile(path, PICTURES)
    save(table, b="new", a="猫")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"file_name": "b.png", "text": "new", "score": 1.5},
        {"file_name": "a.png", "text": "猫"},
    ]
    assert "猫" in path.read_text(encoding="utf-8")


def test_what_a_person_wrote_meanwhile_wins(csv):
    csv.write_text("filename,prompt\na.png,old\nb.png,old\n")
    table = TableFile(csv, PICTURES)
    csv.write_text("filename,prompt\nb.png,old\na.png,by hand\nc.png,by hand\n")
    save(table, a="ours", b="ours", c="ours")
    assert csv.read_text() == "filename,prompt\nb.png,ours\na.png,by hand\nc.png,by hand\n"
    assert table.edited_by_user == {"a.png", "c.png"} and table.captions["a.png"] == "by hand"
    save(table, a="asked for once more")
    assert table.captions["a.png"] == "asked for once more"


def test_a_table_that_was_taken_away_comes_back_whole(csv):
    table = TableFile(csv, PICTURES)
    save(table, a="one")
    csv.unlink()
    save(table, b="two")
    assert csv.read_text() == "filename,prompt\na.png,one\nb.png,two\n"


def test_what_cannot_go_into_the_table_goes_beside_it(csv, tmp_path):
    table = TableFile(csv, PICTURES)
    save(table, a="one")
    spoiled = "filename,prompt\na.png,one,too many\n"
    csv.write_text(spoiled)
    (tmp_path / "metadata-auto.csv").write_text("of another")
    save(table, b="two")
    assert csv.read_text() == spoiled and "Line 2" in table.failure
    assert table.written_to == tmp_path / "metadata-auto-2.csv"
    assert table.written_to.read_text() == "filename,prompt\na.png,one\nb.png,two\n"
    save(table, c="three")
    assert TableFile(table.written_to, PICTURES).captions["c.png"] == "three"


def test_a_disk_that_takes_neither_is_said_with_both(csv, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device")

    table = TableFile(csv, PICTURES)
    monkeypatch.setattr(table_file, "write_atomically", refuse)
    with pytest.raises(Refused, match="cannot be written: No space.*-auto.csv cannot be written"):
        save(table, a="one")
    assert table.unsaved == 1


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("captions.txt", None, "ends neither with .csv nor with .jsonl"),
        ("a.csv", b"filename,prompt\na.png,x,y\n", "Line 2 of .*would be lost"),
        (
            "a.jsonl",
            b'{"file_name": "a.png", "text": "x"}\nnonsense\n',
            "Line 2 of .*would be lost",
        ),
    ],
)
def test_a_table_that_would_lose_something_is_refused_at_once(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=says) as caught:
        TableFile(tmp_path / name, PICTURES)
    assert caught.value.field == "output"
    assert content is None or (tmp_path / name).read_bytes() == content
