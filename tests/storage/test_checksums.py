"""A folder is as it was written, or it is told what is not."""

import subprocess

import pytest

from poise.storage.checksums import NAME, fault, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.bin").write_bytes(b"first")
    (tmp_path / "deep" / "b  b.txt").write_text("second")
    write_checksums(tmp_path)
    return tmp_path


def test_a_folder_as_it_was_written_has_no_fault_and_later_files_are_not_looked_at(folder):
    assert fault(folder) is None
    (folder / "later").touch()
    assert fault(folder) is None


def test_a_folder_without_digests_was_not_finished(tmp_path):
    assert fault(tmp_path) == f"has no {NAME}: it was not finished"


@pytest.mark.parametrize("name", ["a.bin", "deep/b  b.txt"])
def test_every_changed_byte_and_every_missing_file_is_told_by_name(folder, name):
    content = (folder / name).read_bytes()
    for place in range(len(content)):
        (folder / name).write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert fault(folder) == f"has another {name} than was written"
    (folder / name).unlink()
    assert fault(folder) == f"has no {name}"


def test_every_changed_byte_and_every_cut_of_the_digests_is_a_fault(folder):
    content = (folder / NAME).read_bytes()
    for place in range(len(content)):
        for other in (content[place] ^ 1, 0xFF):
            (folder / NAME).write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            assert fault(folder) is not None, place
        (folder / NAME).write_bytes(content[:place])
        assert fault(folder) is not None, f"cut to {place}"


def test_digests_are_those_of_sha256sum(folder):
    checked = subprocess.run(["sha256sum", "--check", "--strict", NAME], cwd=folder, capture_output=True, text=True)
    assert checked.stdout.splitlines() == ["a.bin: OK", "deep/b  b.txt: OK"]
    assert checked.returncode == 0
