"""Where embedded servers put their sockets: in a folder of their own, whoever was there before."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from standalone.servers import ServerFailed, Valkey


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose path is too long for a socket, so that this one goes to the temporary folder."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    return tmp_path / ("long" * 30) / "valkey"


def test_a_link_in_place_of_the_folder_of_sockets_is_not_followed(far: Path) -> None:
    folder = Valkey(far).socket.parent
    folder.rmdir()
    elsewhere = far.parent / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    with pytest.raises(ServerFailed, match="belongs to another user; remove it"):
        Valkey(far)


def test_a_folder_of_sockets_that_is_open_to_others_is_closed(far: Path) -> None:
    folder = Valkey(far).socket.parent
    folder.chmod(0o777)
    assert Valkey(far).socket.parent == folder
    assert folder.stat().st_mode & 0o777 == 0o700
