from pathlib import Path

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.caption_affixes import CaptionAffixes, build_caption


@pytest.mark.parametrize(
    "template, trigger, path, caption",
    [
        ("{trigger}, {filename}", "zib", "/x/10_my cat/a b.png", "zib, a b"),
        ("{trigger}, a photo of {folder}", "", "/x/10_my cat/a.png", "a photo of my cat"),
        ("{folder}, {trigger}, red", "", "/x/pics/a.png", "pics, red"),
        ("cat, cat", "", "/x/a.png", "cat, cat"),
    ],
)
def test_the_template_is_filled(load, template, trigger, path, caption):
    loaded = load("fixed", template=template, trigger_word=trigger)
    assert (
        build_caption(
            loaded.caption([None], [Path(path)])[0],
            CaptionAffixes(trigger_word=trigger),
            sentences=loaded.sentences,
        )
        == caption
    )


@pytest.mark.parametrize(
    "template, says", [("{name}", "has {name}"), (" ", "is empty"), ("{}", "has {}")]
)
def test_a_bad_template_is_refused_before_anything_starts(captioners, template, says):
    with pytest.raises(Refused, match=says) as caught:
        captioners.readiness("fixed", {"template": template})
    assert caught.value.field == "template"
