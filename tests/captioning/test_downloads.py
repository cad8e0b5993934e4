"""What is found on this machine, and what is said of files that are not."""

import urllib.request

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.downloads import RemoteFile, fetch, find, readiness_of


def get(file, models, on_progress=lambda message, share: None, should_stop=lambda: False):
    return fetch(file, models, on_progress=on_progress, should_stop=should_stop)


def test_without_a_network_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(
        Refused, match="could not be downloaded: .*; or put model.bin into .* by hand"
    ):
        get(RemoteFile(("model.bin",), url="http://127.0.0.1:9/model.bin"), tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = RemoteFile(("model.bin",), "me/mine", size_bytes=1_500_000_000)
    readiness = readiness_of([file], tmp_path)
    assert (
        not readiness.can_start
        and "1.50 GB" in readiness.needs
        and "HF_HUB_OFFLINE" in readiness.needs
        and str(tmp_path / "me--mine") in readiness.needs
    )
    with pytest.raises(Refused, match="HF_HUB_OFFLINE"):
        get(file, tmp_path)


def test_hugging_faces_cache_is_read(tmp_path, monkeypatch):
    """In the layout that huggingface_hub itself writes: refs, snapshots, a link to a blob."""
    import huggingface_hub

    cache = tmp_path / "hub"
    home = cache / "models--me--mine"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "snapshots" / "abc" / "model.bin").write_bytes(b"x")
    real = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: real(repository, name, cache_dir=cache),
    )
    assert (
        find(RemoteFile(("other.bin", "model.bin"), "me/mine"), tmp_path)
        == home / "snapshots" / "abc" / "model.bin"
    )
    assert find(RemoteFile(("other.bin",), "me/mine"), tmp_path) is None


def test_sizes_are_added_up_unless_one_is_unknown(tmp_path):
    known, unknown = (
        RemoteFile(("a",), "me/mine-a", size_bytes=400_000_000),
        RemoteFile(("b",), "me/mine-b"),
    )
    both = readiness_of([known, unknown], tmp_path)
    assert (
        both.download_bytes is None
        and "size unknown" in both.needs
        and both.can_start
        and not both.ready
    )
    assert readiness_of([known, known], tmp_path).download_bytes == 800_000_000
