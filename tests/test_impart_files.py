"""Files that are whole or not there."""

import hashlib
import os
import shutil
import stat
from collections import namedtuple

import pytest

from impart.errors import InputError
from impart.files import free_space, give_default_mode, replace_folder, sha256_of, sync_file, write_atomically

Usage = namedtuple("Usage", "total used free")


def folder(path, text):
    path.mkdir()
    (path / "a.txt").write_text(text)
    return path


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_writing_replaces_the_whole_file_and_leaves_no_temporary_one(tmp_path):
    file = tmp_path / "x.json"
    for data in (b"old and long", b"new"):
        write_atomically(file, data)
        assert file.read_bytes() == data
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    write_atomically(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_folder_gets_its_name(tmp_path):
    replace_folder(folder(tmp_path / "new.partial", "new"), tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_an_older_folder_or_file_of_that_name_is_replaced(tmp_path):
    folder(tmp_path / "out", "old")
    (tmp_path / "out" / "only_in_old").touch()
    replace_folder(folder(tmp_path / "new.partial", "new"), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["a.txt"] and os.listdir(tmp_path) == ["out"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("a file")
    replace_folder(folder(tmp_path / "new.partial", "new"), tmp_path / "out")
    assert (tmp_path / "out").is_dir() and os.listdir(tmp_path) == ["out"]


def test_a_folder_of_the_user_beside_it_is_left_alone(tmp_path):
    folder(tmp_path / "out.old", "kept by hand")
    folder(tmp_path / "out", "old")
    replace_folder(folder(tmp_path / "new.partial", "new"), tmp_path / "out")
    assert (tmp_path / "out.old" / "a.txt").read_text() == "kept by hand"
    assert sorted(os.listdir(tmp_path)) == ["out", "out.old"]


def test_what_a_crash_between_the_two_renames_left_is_cleared_by_the_next_run(tmp_path, monkeypatch):
    folder(tmp_path / "out", "old")
    new, rename = folder(tmp_path / "new.partial", "new"), os.rename

    def crash(source, target):
        if source == new:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, tmp_path / "out")
    monkeypatch.undo()
    assert any((path / "a.txt").read_text() == "old" for path in tmp_path.iterdir() if path != new)
    replace_folder(new, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out" / "a.txt").read_text() == "new"


def test_too_little_space_is_an_input_error_with_both_numbers(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return Usage(10**12, 0, 3 * 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    target = tmp_path / "not" / "yet" / "there"
    free_space(target, 3 * 10**9, "the delta")
    with pytest.raises(
        InputError, match=r"the delta needs 3.50 GB at '.*there', but the disk has 3.00 GB free; make room"
    ):
        free_space(target, 3_500_000_000, "the delta")
    assert asked == [tmp_path, tmp_path]


def test_files_get_the_mode_that_the_umask_allows(tmp_path):
    file = tmp_path / "x"
    file.touch(mode=0o600)
    old = os.umask(0o027)
    try:
        give_default_mode(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)


def test_folders_and_files_can_be_synced(tmp_path):
    sync_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "none")
