"""A folder has one owner at a time, and keeps none that could not say who it is."""

import os
import threading
from pathlib import Path

import pytest

from model_opt.errors import FolderInUse
from model_opt.one_owner import OWNER, take


def test_the_second_is_told_who_has_the_folder_and_any_thread_may_give_it_back(tmp_path: Path) -> None:
    owned = take(tmp_path)
    with pytest.raises(FolderInUse, match=f"{tmp_path} is in use by process {os.getpid()} on .* since 20"):
        take(tmp_path)
    (tmp_path / OWNER).write_text("garbage")
    with pytest.raises(FolderInUse, match="in use by another process"):
        take(tmp_path)
    thread = threading.Thread(target=owned.release)
    thread.start()
    thread.join()
    take(tmp_path).release()


def test_who_cannot_say_that_it_is_the_owner_is_none(tmp_path: Path) -> None:
    (tmp_path / OWNER).mkdir()
    with pytest.raises(OSError):
        take(tmp_path)
    (tmp_path / OWNER).rmdir()
    take(tmp_path).release()
