# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that are complete or not there."""

import pytest

from md4_hf.utils.files import check_can_be_written, staging_name, whole_file, whole_folder


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as staging:
        staging.write_text("new")
        assert not path.exists()
    with pytest.raises(OSError, match="disk full"), whole_file(path) as staging:
        staging.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def leave_folder(staging):
    (staging / "nested").mkdir(parents=True)
    (staging / "nested" / "left over").touch()


def leave_link(staging):
    leave_folder(staging.with_name("linked"))
    staging.symlink_to(staging.with_name("linked"), target_is_directory=True)


LEFT_OVER = {
    "nothing": lambda staging: None,
    "a folder": leave_folder,
    "a file": lambda staging: staging.touch(),
    "a link": leave_link,
    "a broken link": lambda staging: staging.symlink_to("nowhere"),
}


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("left_over", LEFT_OVER)
def test_a_folder_begins_empty_and_gets_its_name_when_it_is_complete(tmp_path, is_there, left_over):
    folder = tmp_path / "model"
    if is_there:
        folder.mkdir()
    LEFT_OVER[left_over](staging_name(folder))
    with whole_folder(folder) as staging:
        assert not staging.exists()
        staging.mkdir()
        (staging / "weights").touch()
        assert not (folder / "weights").exists()
    assert [path.name for path in folder.iterdir()] == ["weights"] and not staging.is_symlink()
    assert not staging.exists() and (left_over != "a link" or (tmp_path / "linked" / "nested" / "left over").exists())


@pytest.mark.parametrize("left_over", LEFT_OVER)
def test_a_file_does_not_begin_with_what_was_left(tmp_path, left_over):
    LEFT_OVER[left_over](staging_name(tmp_path / "a.txt"))
    with whole_file(tmp_path / "a.txt") as staging:
        assert not staging.exists()
        staging.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new" and not (tmp_path / "nowhere").exists()


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


def test_a_file_needs_its_folder_and_a_folder_is_made(tmp_path):
    check_can_be_written("output_file", tmp_path / "x.json")
    check_can_be_written("output_dir", tmp_path / "no" / "such", is_folder=True)
    with pytest.raises(ValueError, match="`output_file` must lie in a folder that is there, got .*no/x.json"):
        check_can_be_written("output_file", tmp_path / "no" / "x.json")
