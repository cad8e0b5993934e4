"""`auto-label`: tables and .txt files, what is kept, what fails, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.cli.main import main
from lora_trainer.demo import world
from lora_trainer.hosts.standalone.host import StandaloneHost
from tests.support.processes import start

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "10_zib").mkdir(parents=True)
    for name, scene in {
        "0.png": world.Scene("circle", "red", "blue"),
        "1.png": world.Scene("cross", "green", "white"),
        "10_zib/2.png": world.Scene("square", "black", "yellow"),
    }.items():
        Image.fromarray(world.paint(scene)).resize((128, 128)).save(folder / name)
    return folder


@pytest.fixture
def label(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def label(*arguments):
        return main(
            [
                "auto-label",
                "--input",
                str(folder),
                "--data-dir",
                str(tmp_path / "home"),
                "--device",
                "cpu",
                *arguments,
            ],
            make_host=StandaloneHost,
        )

    return label


def test_a_table_as_lora_scripts_users_know_it(label, folder, capsys):
    assert (
        label(
            "--output",
            str(folder / "metadata.csv"),
            "--option",
            "model=demo",
            "--trigger-word",
            "zib",
        )
        == 0
    )
    assert (
        (folder / "metadata.csv").read_text(encoding="utf-8")
        == 'filename,prompt\n0.png,"zib, circle, red, blue background"\n1.png,"zib, cross, green, white background"\n10_zib/2.png,"zib, square, black, yellow background"\n'  # noqa: E501
    )
    assert not list(folder.rglob("*.txt")) and "3 captions written to" in capsys.readouterr().out


def test_text_files_without_an_output(label, folder):
    assert (
        label(
            "--captioner",
            "fixed",
            "--option",
            "template={folder} {filename}",
            "--prefix",
            "art of ",
            "--underscores-to-spaces",
        )
        == 0
    )
    assert {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.txt"))
    } == {
        "0.txt": "art of pictures 0\n",
        "1.txt": "art of pictures 1\n",
        "10_zib/2.txt": "art of zib 2\n",
    }


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_what_is_there_is_kept_unless_told_otherwise(label, folder, table, capsys):
    (folder / "0.txt").write_text("my own", encoding="utf-8")
    output = folder / table
    output.write_text(
        (
            'filename,prompt\n1.png,"mine, too"\nelsewhere.png,gone\n'
            if table.endswith("csv")
            else (
                '{"file_name": "1.png", "text": "mine, too"}\n{"file_name": "elsewhere.png",'
                ' "text": "gone"}\n'
            )
        ),
        encoding="utf-8",
    )
    fixed = ("--captioner", "fixed", "--option", "template=new {filename}", "--output", str(output))
    assert label(*fixed) == 0
    from lora_trainer.dataset.caption_tables import parse_table

    def rows():
        return {row.filename: row.caption for row in parse_table(table, output.read_bytes()).rows}

    assert rows() == {
        "elsewhere.png": "gone",
        "0.png": "my own",
        "1.png": "mine, too",
        "10_zib/2.png": "new 2",
    }
    assert "1 captions written" in (out := capsys.readouterr().out) and "2 left as they were" in out
    assert label(*fixed) == 0 and label(*fixed, "--overwrite") == 0
    assert (
        rows()
        == {
            "elsewhere.png": "gone",
            "0.png": "new 0",
            "1.png": "new 1",
            "10_zib/2.png": "new 2",
        }
        and (folder / "0.txt").read_text() == "my own"
    )


def test_captions_of_kohyas_table_and_caption_files_are_kept(label, folder):
    (folder / "metadata.json").write_text('{"0": {"caption": "of a table"}}', encoding="utf-8")
    (folder / "1.caption").write_text("of a .caption", encoding="utf-8")
    assert label("--captioner", "fixed", "--option", "template=new {filename}") == 0
    assert [path.name for path in folder.rglob("*.txt")] == ["2.txt"]


def test_failures_are_named_and_make_the_exit_status(label, folder, capsys):
    (folder / "bad.png").write_bytes(b"no picture")
    assert label("--captioner", "fixed", "--option", "template=x") == 1
    assert "failed: bad.png: " in capsys.readouterr().err and len(list(folder.rglob("*.txt"))) == 3


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--captioner", "nothing"), "no captioner 'nothing'"),
        (("--option", "threshold"), "not of the form name=value"),
        (("--option", "threshold=9"), "it can be 0 to 1"),
        (("--output", "x.xlsx"), "ends neither with .csv nor"),
        (("--option", "temperature=1"), "no option 'temperature'"),
    ],
)
def test_what_is_wrong_is_said(label, capsys, arguments, says):
    assert label(*arguments) == 1
    assert says in capsys.readouterr().err


def test_an_unreadable_table_is_not_overwritten(label, folder, capsys):
    (folder / "metadata.jsonl").write_text("nonsense\n")
    assert label("--captioner", "fixed", "--output", str(folder / "metadata.jsonl")) == 1
    assert (
        "line 1" in capsys.readouterr().err
        and (folder / "metadata.jsonl").read_text() == "nonsense\n"
    )


def test_no_pictures_and_no_input(tmp_path, capsys):
    assert main(["auto-label", "--data-dir", str(tmp_path)], make_host=StandaloneHost) == 1
    assert "Give --input" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert (
        main(
            ["auto-label", "--input", str(tmp_path / "empty"), "--captioner", "fixed"],
            make_host=StandaloneHost,
        )
        == 1
    )
    assert "no pictures in" in capsys.readouterr().err


def test_the_list_says_what_each_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert (
        main(["auto-label", "--list", "--data-dir", str(tmp_path)], make_host=StandaloneHost) == 0
    )
    out = capsys.readouterr().out
    assert (
        all(name in out for name in ("clip-labels: ", "coca: ", "wd-tagger: ", "fixed: "))
        and "GB" in out
        and "general_threshold=0.35" in out
    )


def test_nothing_heavy_is_imported_to_list_them(tmp_path):
    code = (
        "import sys; from lora_trainer.cli.main import main; from"
        " lora_trainer.hosts.standalone.host import StandaloneHost;main(['auto-label', '--list',"
        f" '--data-dir', {str(tmp_path)!r}], make_host=StandaloneHost);print(sorted({{'open_clip',"
        " 'timm', 'diffusers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.stderr.strip().endswith("[]"), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_keeps_what_is_done(folder, tmp_path):
    for number in range(400):
        os.link(folder / "0.png", folder / f"many-{number}.png")
    command = [
        "-m",
        "lora_trainer",
        "auto-label",
        "--input",
        str(folder),
        "--output",
        str(folder / "metadata.csv"),
        "--device",
        "cpu",
        "--data-dir",
        str(tmp_path / "home"),
        "--option",
        "model=demo",
        "--option",
        "batch_size=1",
    ]
    process = start(command, folder=ROOT)
    deadline = time.monotonic() + 60
    while (
        not (folder / "metadata.csv").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0].decode("utf-8")
    rows = len((folder / "metadata.csv").read_text().splitlines()) - 1
    assert (
        process.returncode == 130
        and "what is done is kept" in out
        and f"{rows} captions written" in out
        and 100 <= rows < 403
    ), out[-2000:]


def test_a_table_with_a_bad_line_is_not_overwritten_either(label, folder, capsys):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "mine"}\nnonsense\n')
    assert label("--captioner", "fixed", "--output", str(folder / "metadata.jsonl")) == 1
    assert "Line 2" in capsys.readouterr().err and (folder / "metadata.jsonl").read_text().endswith(
        "nonsense\n"
    )


@pytest.fixture
def meanwhile(monkeypatch):
    """Do something, as a person would, while the first batch is looked at."""
    from lora_trainer.captioning.models import fixed

    caption = fixed._Filled.caption

    def meanwhile(act):
        todo = [act]

        def watched(self, images, paths):
            if todo:
                todo.pop()()
            return caption(self, images, paths)

        monkeypatch.setattr(fixed._Filled, "caption", watched)

    return meanwhile


@pytest.mark.parametrize("before", [None, "old"])
def test_a_caption_typed_while_it_runs_is_left_alone(label, folder, meanwhile, capsys, before):
    if before:
        (folder / "1.txt").write_text(before)
    meanwhile(lambda: (folder / "1.txt").write_text("typed meanwhile"))
    assert label("--captioner", "fixed", "--option", "template=new", "--overwrite") == 0
    assert (folder / "1.txt").read_text() == "typed meanwhile" and (
        folder / "0.txt"
    ).read_text() == "new\n"
    assert "2 captions written" in (out := capsys.readouterr().out) and "1 left as they were" in out


def test_a_picture_renamed_while_it_runs_costs_no_other_and_leaves_no_file(
    label, folder, meanwhile, capsys
):
    meanwhile(lambda: (folder / "1.png").rename(folder / "renamed.png"))
    assert label("--captioner", "fixed", "--option", "template=new") == 1
    assert sorted(path.name for path in folder.rglob("*.txt")) == ["0.txt", "2.txt"]
    assert (
        "failed: 1.png: it was removed or renamed" in (said := capsys.readouterr()).err
        and "2 captions written" in said.out
    )


@pytest.mark.parametrize(
    "table, before, after, expected",
    [
        (
            "metadata.csv",
            "filename,prompt\n0.png,old\n",
            "filename,prompt\nelsewhere.png,theirs\n1.png,theirs\n0.png,old\n",
            "filename,prompt\nelsewhere.png,theirs\n1.png,theirs\n0.png,new\n10_zib/2.png,new\n",
        ),
        (
            "metadata.csv",
            None,
            "filename,prompt\n1.png,theirs\n",
            "filename,prompt\n1.png,theirs\n0.png,new\n10_zib/2.png,new\n",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "1.png", "text": "old"}\n',
            '{"file_name": "1.png", "text": "theirs", "n": 1}\n',
            (
                '{"file_name": "1.png", "text": "theirs", "n": 1}\n{"file_name": "0.png", "text":'
                ' "new"}\n{"file_name": "10_zib/2.png", "text": "new"}\n'
            ),
        ),
    ],
)
def test_rows_that_a_person_writes_while_it_runs_win(
    label, folder, tmp_path, meanwhile, capsys, table, before, after, expected
):
    output = tmp_path / table
    if before:
        output.write_text(before)
    meanwhile(lambda: output.write_text(after))
    assert (
        label(
            "--captioner",
            "fixed",
            "--option",
            "template=new",
            "--overwrite",
            "--output",
            str(output),
        )
        == 0
    )
    assert output.read_text() == expected
    assert "2 captions written" in (out := capsys.readouterr().out) and "1 left as they were" in out


def test_captions_are_not_lost_when_the_table_becomes_unreadable(
    label, folder, tmp_path, meanwhile, capsys
):
    output, theirs = tmp_path / "metadata.csv", 'filename,prompt\n"half'
    (tmp_path / "metadata-auto.csv").write_text("of another day")
    meanwhile(lambda: output.write_text(theirs))
    assert label("--captioner", "fixed", "--option", "template=new", "--output", str(output)) == 1
    assert (
        output.read_text() == theirs
        and (tmp_path / "metadata-auto.csv").read_text() == "of another day"
    )
    assert (
        tmp_path / "metadata-auto-2.csv"
    ).read_text() == "filename,prompt\n0.png,new\n1.png,new\n10_zib/2.png,new\n"
    said = capsys.readouterr()
    assert (
        "Line 2 of" in said.err
        and "metadata-auto-2.csv" in said.err
        and "3 captions written to" in said.out
    )


def test_other_columns_and_the_order_of_rows_stay(label, folder, tmp_path):
    output = tmp_path / "metadata.csv"
    rows = (
        'id;filename;prompt;note;note\r\n7;elsewhere.png;"a;'
        ' b";NA;x\r\n8;C:\\old\\1.png;mine;001;\r\n9;0.png;;"two ""quoted""";1.0\r\n'
    )
    output.write_bytes(("\ufeff" + rows).encode("utf-8"))
    fixed = ("--captioner", "fixed", "--output", str(output), "--option")
    assert label(*fixed, "template=new") == 0
    expected = rows.replace("0.png;;", "0.png;new;") + ";10_zib/2.png;new;;\r\n"
    assert output.read_bytes() == ("\ufeff" + expected).encode("utf-8")
    (folder / "1.txt").write_text("beside it")  # the row has a caption, which is kept
    assert label(*fixed, "template=newer") == 0 and output.read_bytes() == (
        "\ufeff" + expected
    ).encode("utf-8")
    assert label(*fixed, "template=newer", "--overwrite") == 0
    assert output.read_bytes() == (
        "\ufeff" + expected.replace(";new;", ";newer;").replace("mine", "newer")
    ).encode("utf-8")


def test_other_keys_of_json_lines_stay(label, folder, tmp_path):
    output = tmp_path / "metadata.jsonl"
    output.write_text(
        '{"tags": [1, 2], "text": "", "file_name": "0.png"}\n\n{"file_name": "1.png", "text":'
        ' "mine", "é": null}\n',
        encoding="utf-8",
    )
    assert label("--captioner", "fixed", "--option", "template=new", "--output", str(output)) == 0
    assert (
        output.read_text(encoding="utf-8")
        == '{"tags": [1, 2], "text": "new", "file_name": "0.png"}\n{"file_name": "1.png", "text":'
        ' "mine", "é": null}\n{"file_name": "10_zib/2.png", "text": "new"}\n'
    )
