"""Which storages there are, and that one taker at a time has the turn."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import make_url

from detectors.ablation.storage import Turn, open_storage
from vfmdistill.errors import DistillError


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "--storage is no URL; expected sqlite:///FILE or postgresql://"),
        ("sqlite://", "is no file, which runs could share"),
        ("sqlite:///:memory:", "is no file, which runs could share"),
        ("mysql://user:secret@host/name", r"storage mysql://user:\*\*\*@host/name is of mysql; expected sqlite"),
        ("postgresql://user:secret@127.0.0.1:1/name", r"cannot open the storage postgresql.*://user:\*\*\*@127"),
    ],
)
def test_what_is_no_storage_is_said_without_its_password(url: str, message: str) -> None:
    with pytest.raises(DistillError, match=message) as raised:
        open_storage(url, heartbeat=3)
    assert "secret" not in str(raised.value)


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match=r"cannot open the storage sqlite:///.*/file/study.db: .*file"):
        open_storage(f"sqlite:///{tmp_path / 'file' / 'study.db'}", heartbeat=3)


def test_one_has_the_turn_until_it_is_given_back(tmp_path: Path) -> None:
    url, entered = make_url(f"sqlite:///{tmp_path / 'study.db'}"), threading.Event()

    def other() -> None:
        with Turn(url, "study"):
            entered.set()

    waiting = threading.Thread(target=other)
    with Turn(url, "study") as turn:
        waiting.start()
        assert not entered.wait(0.3)
        turn.release()
        assert entered.wait(30)
        turn.release()  # a second time does nothing
    waiting.join()


def test_the_turn_is_given_back_after_an_error(tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'study.db'}")
    with pytest.raises(ZeroDivisionError), Turn(url, "study"):
        raise ZeroDivisionError
    with Turn(url, "study"):
        assert (tmp_path / "study.db.lock").exists()


def test_a_turn_that_cannot_be_had_leaves_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), Turn(make_url(f"sqlite:///{tmp_path / 'file' / 'study.db'}"), "study"):
        pass
    with Turn(make_url(f"sqlite:///{tmp_path / 'study.db'}"), "study") as turn:
        assert turn
