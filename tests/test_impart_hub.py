"""What is said when the hub does not give something: one line, with what was wanted and what to do."""

import re
import sys

import pytest

from impart.errors import InputError
from impart.hub import availability, fetch_file, fetch_model, holds_file, is_hub_id, load_rows


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The real client, which refuses to connect and finds an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache, folder: str, file: str, content: str):
    snapshot = cache / folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / folder / "refs").mkdir()
    (cache / folder / "refs" / "main").write_text("a" * 40)
    (snapshot / file).write_text(content)
    return snapshot


@pytest.mark.parametrize("text", ["owner/name", "o-1.x/n_2.v1"])
def test_hub_ids(text):
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["name", "a/b/c", "./name", "../name", "/owner/name", "owner/", "o wner/name", ""])
def test_paths_are_no_hub_ids(text):
    assert not is_hub_id(text)


def test_whatever_is_fetched_the_message_has_one_form(tmp_path):
    with pytest.raises(InputError) as refused:
        fetch_model("owner/none")
    assert str(refused.value).startswith("model 'owner/none': the hub does not give owner/none (")
    assert "hf auth login" in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError) as refused:
        fetch_file("owner/none", "config.json", what="size", remedy="name a folder")
    assert str(refused.value).startswith("size: the hub does not give owner/none/config.json (")
    assert str(refused.value).endswith("; name a folder") and "\n" not in str(refused.value)
    for name in ("owner/none", "owner/no--ne", "owner/none.git"):  # the client refuses the last two before it asks
        assert availability(name, "dataset", "data").startswith(
            f"data: {name} is not in the local cache, and the hub does not give it ("
        )


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """On port 9 of this machine nobody answers; the client's downloads would ask six times, with pauses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("the client waits"))
    assert not holds_file("owner/none", "delta.json")
    with pytest.raises(InputError, match="Connection refused"):
        fetch_model("owner/none")
    with pytest.raises(InputError, match="Connection refused"):
        fetch_file("owner/none", "config.json", what="size", remedy="name a folder")
    assert "Connection refused" in str(availability("owner/none", "dataset", "data"))
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="Connection refused"):
        load_rows("owner/none", split="train", what="text", remedy="do so")


def test_rows_of_a_data_set(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    with pytest.raises(InputError, match=r"text: the hub does not give owner/none \(.*\); check the network, or do so"):
        load_rows("owner/none", split="train", what="text", remedy="do so")


def test_without_the_package_datasets_the_remedies_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="text: the package datasets is missing .*pip install datasets, or do so"):
        load_rows("owner/none", split="train", what="text", remedy="do so")


def test_the_cache_is_enough(offline):
    snapshot = cached(offline, "models--owner--m", "config.json", "{}")
    assert fetch_file("owner/m", "config.json", what="x", remedy="y") == snapshot / "config.json"
    assert fetch_model("owner/m") == snapshot
    assert holds_file("owner/m", "config.json") and not holds_file("owner/m", "delta.json")
    assert availability("owner/m", "model", "model") is None
    assert availability("owner/m", "dataset", "data") is not None


def test_nothing_else_asks_the_hub(modules):
    """huggingface_hub and datasets are imported in one file."""
    asks = re.compile(r"^\s*(from|import) (huggingface_hub|datasets)\b", re.MULTILINE)
    assert [name for name, text in modules.items() if asks.search(text)] == ["impart/hub.py"]
