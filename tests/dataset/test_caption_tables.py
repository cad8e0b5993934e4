"""Caption tables as people bring them: encodings, quotes, paths of other machines; what is wrong is
said with its line.
"""

import json

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.base.text import decode, guess_encoding
from lora_trainer.dataset.caption_tables import (
    find_table,
    format_csv,
    format_jsonl,
    look_at_table,
    match_rows,
    parse_table,
    read_table,
)
from lora_trainer.dataset.captions import read_caption

CHINESE = [
    "一只猫，红色背景",
    "少女，长发，蓝色眼睛，微笑，站在樱花树下",
    "黑猫",
    "白色连衣裙, 站立, 海滩",
]  # 猫 alone is è in UTF-8, too
JAPANESE = [
    "赤い背景の猫",
    "少女、長い髪、青い目",
    "猫",
    "東京の夜、雨",
    "a girl, 水着, 海辺",
    "学園",
]
WESTERN = ["café au lait", "Mädchen mit Hut, schön", "señorita, vestido rojo", "éa déjà vu, naïve"]


@pytest.mark.parametrize(
    "encoding, text",
    [
        *(("gb18030", text) for text in CHINESE),
        *(("cp932", text) for text in JAPANESE),
        *(("cp1252", text) for text in WESTERN),
        *((encoding, CHINESE[0]) for encoding in ("utf-8", "utf-8-sig", "utf-16")),
    ],
)
@pytest.mark.parametrize("around", ["{}", "filename,prompt\na.png,{}\n"])
def test_encodings_are_told_apart(encoding, text, around):
    data = around.format(text).encode(encoding)
    assert decode(data) == around.format(text), guess_encoding(data)


def test_bytes_of_no_encoding_are_read_somehow():
    assert len(decode(bytes(range(128, 256)))) > 0 and guess_encoding(b"\x81\xff\x8d") == "latin-1"


def test_an_encoding_named_by_the_user_is_used_or_refused_with_the_line():
    assert decode("ｶﾀｶﾅ".encode("cp932"), "cp932") == "ｶﾀｶﾅ"
    with pytest.raises(Refused, match="line 2"):
        decode("ok\né".encode("cp1252"), "utf-8")
    with pytest.raises(Refused, match="is not known"):
        decode(b"x", "rot13")


def rows(text, name="metadata.csv", **settings):
    table = parse_table(name, text if isinstance(text, bytes) else text.encode(), **settings)
    return [(row.line, row.filename, row.caption) for row in table.rows], [
        (problem.line, problem.message) for problem in table.problems
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("filename,prompt\na.png,x\n", [(2, "a.png", "x")]),
        ("\ufefffilename,prompt\r\na.png,x\r\n", [(2, "a.png", "x")]),
        (
            'filename,prompt\na.png,"say ""hi"", you"\nb.png,"two\nlines"\nc.png,z\n',
            [(2, "a.png", 'say "hi", you'), (3, "b.png", "two\nlines"), (5, "c.png", "z")],
        ),
        (
            '"prompt","extra","filename"\n"x, y",1,"C:\\my pictures\\a.png"\n',
            [(2, "C:\\my pictures\\a.png", "x, y")],
        ),
        ("filename;prompt\na.png;x, y\n", [(2, "a.png", "x, y")]),
        ("filename\tprompt\na.png\tx, y\n", [(2, "a.png", "x, y")]),
        ("\n\nfile_name,text\n\na.png,x\n", [(5, "a.png", "x")]),
        ("filename,prompt\n=1+1.png,=cmd\n", [(2, "=1+1.png", "=cmd")]),
        ("filename,prompt\na.png,\n", [(2, "a.png", "")]),
    ],
)
def test_csv_is_read_right(text, expected):
    assert rows(text) == (expected, [])


@pytest.mark.parametrize(
    "text, read, line, sentence",
    [
        (
            "filename,prompt\na.png,x, y\nb.png,z\n",
            ["b.png"],
            2,
            "has 3 fields, but the header has 2; put captions with commas into double quotes",
        ),
        ("filename,prompt\na.png\nb.png,z\n", ["b.png"], 2, "a field is missing"),
        (
            'filename,prompt\na.png,z\nb.png,"open\nc.png,z\n',
            ["a.png"],
            3,
            "quotation mark is not closed",
        ),
        ("filename,prompt\n,x\nb.png,z\n", ["b.png"], 2, "the file name is empty"),
        ("filename,prompt\na.png," + "x" * 100_001 + "\nb.png,z\n", ["b.png"], 2, "at most 100 kB"),
    ],
)
def test_a_bad_line_costs_that_line_only(text, read, line, sentence):
    found, problems = rows(text)
    assert (
        [row[1] for row in found] == read
        and problems[0][0] == line
        and sentence in problems[0][1]
        and len(problems) == 1
    )


def test_json_lines():
    text = (
        '{"file_name": "a.png", "text": "猫\u2028猫"}\n\n{"prompt": "b", "filename": "b.png"}\nnot'
        ' json\n[1]\n{"file_name": "c.png"}\n{"file_name": 1, "text": "x"}\n{"file_name": "d.png",'
        ' "text": "\\ud800"}\n'
    )
    found, problems = rows(text, "metadata.jsonl")
    assert found == [(1, "a.png", "猫 猫"), (3, "b.png", "b")]
    assert [line for line, _ in problems] == [4, 5, 6, 7, 8] and "not a JSON object" in problems[0][
        1
    ]


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("m.csv", "file,words\na,b\n", "has the columns file, words; expected filename and prompt"),
        ("m.csv", "", r"\(none\)"),
        ("m.csv", "\x00\x01", "expected filename and prompt"),
        ("m.jsonl", "not json\n", "line 1 is not a JSON object"),
    ],
)
def test_what_is_no_table_is_refused(name, text, sentence):
    with pytest.raises(Refused, match=sentence):
        parse_table(name, text.encode())


def match(text, filenames):
    found, problems = match_rows(parse_table("m.csv", text.encode()), filenames)
    return {name: row.caption for name, row in found.items()}, [
        (problem.line, problem.message) for problem in problems
    ]


def test_paths_of_other_machines_mean_the_picture_at_their_end():
    text = "filename,prompt\nC:\\x\\a.png,1\n/home/me/B.PNG,2\nc,3\n20_dog/d.png,4\n"
    assert match(text, ["a.png", "b.png", "c.jpg", "10_cat/d.png", "20_dog/d.png"]) == (
        {"a.png": "1", "b.png": "2", "c.jpg": "3", "20_dog/d.png": "4"},
        [],
    )


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("nothere.png,x", "there is no picture nothere.png here"),
        ("../a.png,x", "leads out of the data set"),
        ("..\\..\\a.png,x", "leads out of the data set"),
        ("/etc/passwd,x", "there is no picture /etc/passwd"),
        ("d.png,x", "may mean 10_cat/d.png or 20_dog/d.png"),
    ],
)
def test_names_that_mean_no_picture(line, sentence):
    found, problems = match(f"filename,prompt\n{line}\n", ["a.png", "10_cat/d.png", "20_dog/d.png"])
    assert found == {} and problems[0][0] == 2 and sentence in problems[0][1]


def test_duplicate_rows_count_once_and_are_named_when_they_differ():
    found, problems = match("filename,prompt\na.png,x\na.png,x\nA.png,y\n", ["a.png"])
    assert found == {"a.png": "x"} and problems == [
        (4, "A.png has another caption already in line 2, which counts.")
    ]


CAPTIONS = {
    "a b.png": 'commas, "quotes" and 猫',
    "10_cat/ü.png": "",
    "=x.png": "@x; y\t'",
    "e.png": "éa\u2028b",
}


@pytest.mark.parametrize(
    "name, form", [("metadata.csv", format_csv), ("metadata.jsonl", format_jsonl)]
)
def test_written_and_read_again_is_the_same(name, form, tmp_path):
    table = parse_table(name, form(CAPTIONS))
    found, problems = match_rows(table, CAPTIONS)
    assert {filename: row.caption for filename, row in found.items()} == {
        name: " ".join(text.split()) for name, text in CAPTIONS.items()
    } and not problems + table.problems


def test_read_table_gives_captions_by_name_and_refuses_with_the_line(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"file_name": "x\\a.png", "text": "猫"}), encoding="utf-8"
    )
    assert read_table(tmp_path / "m.jsonl") == {"a.png": "猫"}
    (tmp_path / "m.csv").write_text("filename,prompt\na.png,b,c\n", encoding="utf-8")
    with pytest.raises(Refused, match="Line 2 of the caption table m.csv"):
        read_table(tmp_path / "m.csv")
    with pytest.raises(Refused, match="cannot be read"):
        read_table(tmp_path / "no.csv")


def test_the_very_name_wins_over_one_in_other_letters():
    assert match("filename,prompt\nA.png,1\na.png,2\n", ["a.png", "A.png"]) == (
        {"A.png": "1", "a.png": "2"},
        [],
    )


def test_a_line_of_deep_json_is_a_bad_line():
    found, problems = rows(
        '{"file_name": "a.png", "text": "x"}\n' + "[" * 100_000 + "\n", "m.jsonl"
    )
    assert len(found) == 1 and problems[0][0] == 2


# --- kohya's .json --------------------------------------------------------------------------------

KOHYA = {
    "cat": {"caption": "a cat\nmycat", "tags": "red,\nsitting", "train_resolution": [512, 512]},
    "/data/img/dog.v2": {"tags": "dog, brown"},
    "C:\\img\\bird.png": {"caption": " a  bird "},
    "none": {"train_resolution": [64, 64]},
}


@pytest.mark.parametrize("name", ["metadata.json", "meta_cap.json", "meta_lat.json", "mine.json"])
def test_kohyas_metadata_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(KOHYA, indent=2), encoding="utf-8")
    expected = {
        "cat": "a cat, red, sitting\nmycat, red, sitting",
        "dog.v2": "dog, brown",
        "bird.png": "a bird",
        "none": "",
    }
    assert find_table(tmp_path, str(path)) == expected and find_table(tmp_path) == (
        {} if name == "mine.json" else expected
    )
    assert [
        read_caption(tmp_path / picture, expected)
        for picture in ("dog.v2.png", "bird.png", "other.png")
    ] == ["dog, brown", "a bird", None]


def test_the_json_of_the_last_step_counts_and_a_csv_before_it(tmp_path):
    for name in ("meta_cap.json", "meta_lat.json"):
        (tmp_path / name).write_text(json.dumps({"cat": {"caption": name}}), encoding="utf-8")
    assert find_table(tmp_path) == {"cat": "meta_lat.json"}
    (tmp_path / "metadata.csv").write_text("filename,prompt\ncat.png,csv\n", encoding="utf-8")
    assert find_table(tmp_path) == {"cat.png": "csv"}


@pytest.mark.parametrize(
    "content",
    [
        '{"version": 3, "pictures": {"a": 1}}',
        "[1, 2]",
        "null",
        "not JSON at all",
        '{"a": {}}',
        "[" * 100_000,
    ],
)
def test_another_programs_metadata_is_left_alone(tmp_path, content):
    (tmp_path / "metadata.json").write_text(content, encoding="utf-8")
    assert find_table(tmp_path) == {} and look_at_table(tmp_path / "metadata.json").reason == ""
    with pytest.raises(Refused):
        find_table(tmp_path, str(tmp_path / "metadata.json"))


def test_what_is_wrong_in_kohyas_metadata_is_said(tmp_path):
    (tmp_path / "metadata.json").write_text(
        json.dumps({"a": {"caption": "x"}, "b": 3, "c": {"caption": ["y"]}}), encoding="utf-8"
    )
    table = look_at_table(tmp_path / "metadata.json")
    assert table.captions == {"a": "x"} and [problem.line for problem in table.lines] == [2, 3]


def test_kohyas_json_lines_are_read(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        '{"image_path": "/d/a.png", "caption": "a cat", "tags": "red"}\n{"image_path": "/d/b.png",'
        ' "caption": "a dog"}\n',
        encoding="utf-8",
    )
    assert find_table(tmp_path) == {"a.png": "a cat, red", "b.png": "a dog"}


def test_the_first_of_two_captions_counts_everywhere(tmp_path, caplog):
    table = tmp_path / "metadata.csv"
    table.write_text("filename,prompt\na.png,one\nb.png,x\nsub/a.png,two\nb.png,x\n")
    assert read_table(table) == {"a.png": "one", "b.png": "x"}
    said = "another caption already in line 2, which counts"
    assert said in caplog.text
    laid = look_at_table(table)
    assert laid.captions == {"a.png": "one", "b.png": "x"}
    assert [problem.line for problem in laid.lines] == [4] and said in laid.reason
    assert match(table.read_text(), ["a.png", "b.png"])[0] == {"a.png": "one", "b.png": "x"}
