"""Codes and features are made part by part: killed or not, by one process or several, they end as the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer
from toys import Squares, make_model

from unimm.data.features import StoredFeatures, shard_rows
from unimm.inference import encode
from unimm.inference.encode import encode_dataset
from unimm.inference.encode_features import encode_features
from unimm.inference.in_parts import Work
from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.vision import VisionTower
from unimm.ranks import Ranks
from unimm.unfinished import Unfinished

Make = Callable[[Path, Work], Any]


@pytest.fixture(autouse=True)
def parts_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 squares are then 5, 5 and 2."""
    monkeypatch.setattr("unimm.inference.encode_features.shard_rows", lambda *sizes: shard_rows(*sizes, 5 * 4 * 32 * 2))
    monkeypatch.setattr(encode, "PART_RECORDS", 5)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return make_model().pixels.tower.eval()


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return tiny_image_tokenizer()


@pytest.fixture(params=["features", "codes"])
def make(request: pytest.FixtureRequest, tower: VisionTower, tokenizer: ImageTokenizer) -> Make:
    if request.param == "features":
        return lambda folder, work: encode_features(tower, Squares(), folder, work=work)
    return lambda folder, work: encode_dataset(tokenizer, Squares(), folder, work=work)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fork(action: Callable[[], object]) -> int:
    """Do it in a process of its own, which it ends; gives its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def ends(children: list[int]) -> list[int]:
    """Exit codes; of a signal, its number below zero."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def share(make: Make, folder: Path, meeting: Path, number: int, count: int) -> None:
    """As one process of several."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=count)
    make(folder, Work(3, ranks=Ranks(number, count), quiet=True))
    torch.distributed.destroy_process_group()


def dying_at(number: int) -> Callable[..., None]:
    """In place of `Unfinished.save`: half of this file is written, then the process is killed."""
    save = Unfinished.save

    def half(path: Path, write: Callable[[Path], object]) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:-40])
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(self: Unfinished, now: int, write: Callable[[Path], object]) -> None:
        save(self, now, (lambda path: half(path, write)) if now == number else write)

    return dying


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that are saved from now on."""
    saved: list[int] = []
    save = Unfinished.save

    def watch(self: Unfinished, number: int, write: Callable[[Path], object]) -> None:
        saved.append(number)
        save(self, number, write)

    monkeypatch.setattr(Unfinished, "save", watch)
    return saved


def test_killed_it_goes_on_where_it_stopped(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "alone", Work(3, quiet=True))
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save", dying_at(1))
        assert ends([fork(lambda: make(tmp_path / "killed", Work(3, quiet=True)))]) == [-signal.SIGKILL]
    assert not (tmp_path / "killed").exists()
    saved = watched(monkeypatch)
    make(tmp_path / "killed", Work(3, quiet=True))
    assert saved == [1, 2]
    assert content(tmp_path / "killed") == content(tmp_path / "alone")
    make(tmp_path / "killed", Work(3, quiet=True))
    assert saved == [1, 2], "what is there is kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "killed"]


def test_several_processes_share_the_work(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three has a part that is killed half-way; two go on."""
    make(tmp_path / "alone", Work(3, quiet=True))
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save", dying_at(2))
        children = [fork(lambda n=n: share(make, tmp_path / "shared", tmp_path / "first", n, 3)) for n in range(3)]
        assert -signal.SIGKILL in ends(children) and not (tmp_path / "shared").exists()
    proofs = sorted(path.name for path in (tmp_path / ".shared.unfinished").glob("*.sha256"))
    assert proofs == ["00000.sha256", "00001.sha256"]
    children = [fork(lambda n=n: share(make, tmp_path / "shared", tmp_path / "second", n, 2)) for n in range(2)]
    assert ends(children) == [0, 0]
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


def test_what_is_damaged_or_other_is_not_taken(tower: VisionTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(**words: Any) -> StoredFeatures:
        return encode_features(tower, Squares(), tmp_path / "store", work=Work(3, quiet=True), **words)

    def stop(self: Unfinished, number: int, write: Any) -> None:
        if number == 2:
            raise RuntimeError("enough")
        save(self, number, write)

    save = Unfinished.save
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save", stop)
        with pytest.raises(RuntimeError):
            make()
    room = tmp_path / ".store.unfinished"
    with pytest.raises(
        ValueError, match=r"another dtype, shard_rows \(bfloat16, now float32\): give the same words .* or remove"
    ):
        make(dtype="float32")
    with pytest.raises(ValueError, match="begun with another precision"):
        make(precision="bf16")
    part = room / "whole" / "features-00000.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    saved = watched(monkeypatch)
    stored = make()
    assert saved == [0, 2] and len(stored) == 12
    assert not np.array_equal(stored[0], stored[11]) and not room.exists()


def test_a_network_is_left_in_the_mode_that_it_was_in(
    tower: VisionTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimm.inference.encode_features._look", lambda *_: 1 / 0)
    tower.train()
    with pytest.raises(ZeroDivisionError):
        encode_features(tower, Squares(), tmp_path / "store", work=Work(quiet=True))
    assert tower.training
    tower.eval()
