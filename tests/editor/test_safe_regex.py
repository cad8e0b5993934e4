"""Regular expressions of strangers: bounded before they are compiled, in their time and in what
they make. Attacked in a process of its own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor.bulk_edits import plan_edit
from lora_trainer.editor.safe_regex import LARGEST_PATTERN, _Size

resource = pytest.importorskip("resource", reason="limits of memory are a matter of POSIX")
REPOSITORY = Path(__file__).parents[2]
NESTED = "(?:" * 3 + "a{999}" + "){999}" * 3


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a{9999}){9999}",
        NESTED,
        f"({NESTED})",
        f"(?i:{NESTED})",
        f"(?>{NESTED})",
        f"(?=({NESTED}))",
        f"a|({NESTED})",
        f"(?P<n>{NESTED})",
        "(?:a{9999}+){9999}+",
        "(?:a{9999}?){9999}?",
        "(?:a{9999,}){9999,}",
        "(?:a{9999,10000}){9999,10000}",
        "(?:[)]a{9999}){9999}",
        r"(?:\)a{9999}){9999}",
        "(?:[]()]a{9999}){9999}",
        r"(?:[^]\])]a{9999}){9999}",
        "(?:(?#)()a{9999}){9999}",
        "(?:(?:a){e<=2}a{9999}){9999}",
        r"(?:\p{Lu}{9999}){9999}",
        "a{99999999999999999999}",
        "(?:a{9999}(?#{){9999}",
        "(?:" * 40 + "a" + "){2}" * 40,
        "(?|(a{9999})|b){9999}",
        "(?:(?(1)a|b)a{9999}){9999}",
        "(?:a{9999})(?#x){9999}",
        "(?:a{9999})(?i){9999}",
        "(?:a{9999})(?-i)(?#){9999}",
        "(?:a{9999}){e<=0}{9999}",
        "(?:a{9999}){e<=0:[a-z]}{9999}",
        r"(?#\)[)(?:a{9999}){9999}]",
        "[[:alpha:][](?:a{9999}){9999}]",
        "[^[:alpha:][](?:a{9999}){9999}]",
        "[[:a b:][](?:a{9999}){9999}]",
    ],
)
def test_repeats_of_repeats_are_refused_before_they_are_compiled(pattern, monkeypatch):
    monkeypatch.setattr(
        "lora_trainer.editor.safe_regex.regex.compile", lambda *_: pytest.fail("compiled")
    )
    with pytest.raises(Refused, match="regular expression cannot be") as caught:
        plan_edit("replace", {"a": "aaaa"}, {"find": pattern, "replace": "", "regex": True})
    assert caught.value.field == "find"


@pytest.mark.parametrize(
    "pattern, sentence",
    [
        ("(?R)", "calls itself"),
        ("(?0)", "calls itself"),
        ("(a)(?1)", "calls itself"),
        ("(?P<n>a)(?&n)", "calls itself"),
        ("(?P<n>a)(?P>n)", "calls itself"),
        ("(?+1)(a)", "calls itself"),
        ("(?V1)[[a)]]", "sets the flag V1"),
        ("(?x)a", "sets the flag x"),
        ("(?ix:a)", "sets the flag x"),
        ("(?xV1)a", "sets the flag"),
        ("(" * 300 + ")" * 300, "more than 200 groups"),
        ("(?:" * 60 + "a" + ")" * 60, "deeper than 50"),
        (r"\L<names>", "cannot be read"),
        ("(a", "not closed"),
        ("a)", "never opened"),
        ("[a", "cannot be read"),
        ("a**", "cannot be read"),
        ("(?<=a", "not closed"),
        ("\\", "cannot be read"),
        ("(?(9)a|b)", "cannot be"),
    ],
)
def test_what_has_no_end_or_no_meaning_gets_a_sentence(pattern, sentence):
    with pytest.raises(Refused, match=sentence):
        plan_edit("replace", {"a": "aaaa"}, {"find": pattern, "replace": "", "regex": True})


@pytest.mark.parametrize(
    "find, replace, after",
    [
        (r"\b(\w{3,12}) hair\b", r"\1-hair", "x, long-hair, y 12-34"),
        (r"\d{2}-\d{2}", "n", "x, long hair, y n"),
        ("(?i)LONG", "short", "x, short hair, y 12-34"),
        ("(?:lomg){e<=1}", "no", "x, no hair, y 12-34"),
        (r"[{}()\[\]x]", "o", "o, long hair, y 12-34"),
        (r"(?P<w>long)", r"\g<w>er", "x, longer hair, y 12-34"),
        ("(?#a comment {99999})x", "z", "z, long hair, y 12-34"),
        (r"\p{L}{4}", "w", "x, w w, y 12-34"),
        ("[[:digit:]]{2}-", "", "x, long hair, y 34"),
        (r"(?#not \) yet)[[:alpha:]]{4}", "w", "x, w w, y 12-34"),
        (r"\p{L}{4} \p{L}{4}, \p{L}{1} \p{N}{2}", "w", "x, w-34"),
        ("l{,5}ong", "m", "x, m hair, y 12-34"),
    ],
)
def test_patterns_that_people_write_do_as_before(find, replace, after):
    assert plan_edit(
        "replace",
        {"a": "x, long hair, y 12-34"},
        {"find": find, "replace": replace, "regex": True, "match_case": True},
    ) == {"a": after}


@pytest.mark.parametrize(
    "pattern, size",
    [
        ("abc", 3),
        ("a{5}", 5),
        ("(ab){3}", 9),
        ("a{2,9}b{,7}c*", 5),
        ("[abc]{3}", 3),
        ("((a{2}){3}){4}", 4 * (3 * 3 + 1)),
        (r"\{5}", 3),
        (r"\({3}", 3),
        ("{e<=3}", 6),
        ("", 0),
    ],
)
def test_the_size_of_a_pattern(pattern, size):
    assert _Size(pattern).whole() == size < LARGEST_PATTERN


def test_a_replacement_that_multiplies_is_refused_before_it_is_made():
    for find, replace in (
        ("(a+)", r"\1" * 2000),
        ("(?=(a+))", r"\1"),
        ("(a*)", r"\g<1>" * 900),
        ("a", "b" * 5000),
        ("(?=(a*))(?=(a*))a", r"\1\2" * 1000),
    ):
        with pytest.raises(Refused, match="longer than 100,000"):
            plan_edit(
                "replace", {"a": "a" * 90_000}, {"find": find, "replace": replace, "regex": True}
            )


def test_a_replacement_of_many_groups_that_stays_short_is_done():
    assert (
        plan_edit(
            "replace", {"a": "a" * 60_000}, {"find": "(a+)", "replace": r"\\\1", "regex": True}
        )["a"]
        == "\\" + "a" * 60_000
    )


ATTACK = """
import random, resource, sys, time
sys.path.insert(0, {repository!r})
from lora_trainer.editor import bulk_edits as edits
from lora_trainer.base.errors import Refused
edits.PATTERN_SECONDS = 0.3
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
draws = random.Random({seed})
parts = ["a", "b", ".", "\\\\w", "\\\\p{{L}}", "[ab]", "[^)(]", "[\\U00000001-\\U0010FFFE]", "(?:", "(", "(?=", "(?>", "(?i:", "(?|", "(?P<n>", "(?<=", "(?#", "(?#)", "(?i)", "{{e<=0}}", "[[:alpha:][]", ")", ")", ")", "){{99}}", "){{9}}",
         "{{99}}", "{{9,}}", "{{1,999}}", "{{,9999}}", "*", "+", "?", "*+", "*?", "|", "^", "$", "\\\\1", "\\\\b", "{{e<=3}}", "{{e}}", "(?R)", "(?1)", "(?&n)", "(?(1)a|b)",
         "(?f)", "(?r)", "(?b)", "(?V1)", "(?x)", "#", "\\\\L<n>", "(*SKIP)", "\\\\K", "\\\\X", "{{9999}}", "\\u00df", "\\ufb03", "\\\\R", "\\\\G"]
worst = 0
for number in range({count}):
    pattern = "".join(draws.choice(parts) for _ in range(draws.randint(1, 14)))
    pattern += ")" * max(0, pattern.count("(") - pattern.count(")") + draws.choice((0, 0, 0, 1)))
    replacement = "".join(draws.choice(("\\\\1", "x", "\\\\g<n>", "\\\\\\\\", "\\\\g<0>")) for _ in range(draws.choice((0, 1, 1500))))[:5000]
    began = time.process_time()
    try:
        edits.plan_edit("replace", {{"a": "ab" * 20000, "b": "aaab, cat" * 30}}, {{"find": pattern, "replace": replacement, "regex": True}})
    except Refused:
        pass
    worst = max(worst, time.process_time() - began)
    assert time.process_time() - began < 1.0, (pattern, replacement[:50], time.process_time() - began)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))       # ru_maxrss is at least the parent's
print(worst, int(peak.split()[1]) // 1024)
"""  # noqa: E501


@pytest.mark.parametrize("seed", range(2))
def test_no_pattern_takes_the_memory_or_the_time_of_the_process(seed):
    """Random patterns under a limit of memory: whatever they do is done or refused within a
    second.
    """
    program = ATTACK.format(repository=str(REPOSITORY), seed=seed, count=400)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert float(done.stdout.split()[1]) < 1200, done.stdout  # MB, most of which is torch
