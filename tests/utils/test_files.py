# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that are complete or not there."""

import pytest

from md4_hf.utils.files import staging_name, whole_file, whole_folder


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as staging:
        staging.write_text("new")
        assert not path.exists()
    with pytest.raises(OSError, match="disk full"), whole_file(path) as staging:
        staging.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_begins_empty_and_gets_its_name_when_it_is_complete(tmp_path, is_there):
    folder = tmp_path / "model"
    if is_there:
        folder.mkdir()
    staging_name(folder).mkdir()
    (staging_name(folder) / "left over").touch()
    with whole_folder(folder) as staging:
        assert not staging.exists()
        staging.mkdir()
        (staging / "weights").touch()
        assert not (folder / "weights").exists()
    assert [path.name for path in folder.iterdir()] == ["weights"] and not staging.exists()


def test_a_folder_that_fails_leaves_nothing_and_what_was_there(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(OSError, match="disk full"), whole_folder(folder) as staging:
        staging.mkdir()
        raise OSError("disk full")
    folder.mkdir()
    (folder / "precious").touch()
    with pytest.raises(OSError), whole_folder(folder) as staging:
        staging.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "precious"]


def test_what_puts_a_folder_in_its_place_may_be_given(tmp_path):
    def move_all(source, target):
        for path in source.iterdir():
            path.rename(target / path.name)

    (tmp_path / "log").touch()
    with whole_folder(tmp_path, tmp_path / ".new", move_all) as staging:
        staging.mkdir()
        (staging / "weights").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "weights"}
