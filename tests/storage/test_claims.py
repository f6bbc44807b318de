"""A folder belongs to one configuration, and one of something else is left alone."""

import json

import pytest

from poise.storage.claims import claim


def test_a_folder_belongs_to_the_settings_that_came_first(tmp_path):
    folder = tmp_path / "study"
    claim(folder, {"k": 8, "pools": (1, 5), "model": "a"}, what="study")
    before = (folder / "config.json").read_text()
    claim(folder, {"k": 8, "pools": (1, 5), "model": "b"}, what="study", ignored=["model"])
    for other in ({"k": 9}, {"k": 8, "new": 1}):
        with pytest.raises(ValueError, match=r"holds another study: \w+ is (8|None) there and \d here\. Choose"):
            claim(folder, other, what="study")
    assert (folder / "config.json").read_text() == before
    assert json.loads(before) == {"k": 8, "pools": [1, 5], "model": "a"}


def test_what_is_no_such_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="something that is no study"):
            claim(place, {"k": 8}, what="study")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        claim(tmp_path, {"k": 8}, what="study")
