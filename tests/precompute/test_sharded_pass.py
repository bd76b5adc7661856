"""Codes and features are made part by part: killed or not, by one process or several, they end as the same bytes."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer
from toys import Squares, make_model

from unimm.data.records import Record
from unimm.data.stores.codes import StoredCodes
from unimm.data.stores.features import StoredFeatures, shard_rows
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.vision.tower import VisionTower
from unimm.precompute import bad_images, codes, pass_progress
from unimm.precompute.codes import encode_dataset
from unimm.precompute.features import encode_features
from unimm.precompute.sharded_pass import PassConfig, _Part
from unimm.runtime.rank_sync import Ranks
from unimm.runtime.resumable_folder import ResumableFolder

Make = Callable[..., Any]
"""Of a folder, how to go about it, and a data set."""


@pytest.fixture(autouse=True)
def parts_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 squares are then 5, 5 and 2."""
    monkeypatch.setattr("unimm.precompute.features.shard_rows", lambda *sizes: shard_rows(*sizes, 5 * 4 * 32 * 2))
    monkeypatch.setattr(codes, "PART_RECORDS", 5)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return make_model().pixels.tower.eval()


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return tiny_image_tokenizer()


@pytest.fixture(params=["features", "codes"])
def make(request: pytest.FixtureRequest, tower: VisionTower, tokenizer: ImageTokenizer) -> Make:
    if request.param == "features":
        return lambda folder, work, dataset=None, **words: encode_features(
            tower, dataset or Squares(), folder, work=work, **words
        )
    return lambda folder, work, dataset=None, **words: encode_dataset(
        tokenizer, dataset or Squares(), folder, work=work, **words
    )


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
    make(folder, PassConfig(3, ranks=Ranks(number, count), quiet=True))
    torch.distributed.destroy_process_group()


def dying_at(number: int) -> Callable[..., None]:
    """In place of `ResumableFolder.save`: half of this file is written, then the process is killed."""
    save = ResumableFolder.save

    def half(path: Path, write: Callable[[Path], object]) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:-40])
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(self: ResumableFolder, now: int, write: Callable[[Path], object]) -> None:
        save(self, now, (lambda path: half(path, write)) if now == number else write)

    return dying


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that are saved from now on."""
    saved: list[int] = []
    save = ResumableFolder.save

    def watch(self: ResumableFolder, number: int, write: Callable[[Path], object]) -> None:
        saved.append(number)
        save(self, number, write)

    monkeypatch.setattr(ResumableFolder, "save", watch)
    return saved


def test_killed_it_goes_on_where_it_stopped(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "alone", PassConfig(3, quiet=True))
    with monkeypatch.context() as patch:
        patch.setattr(ResumableFolder, "save", dying_at(1))
        assert ends([fork(lambda: make(tmp_path / "killed", PassConfig(3, quiet=True)))]) == [-signal.SIGKILL]
    assert not (tmp_path / "killed").exists()
    saved = watched(monkeypatch)
    make(tmp_path / "killed", PassConfig(3, quiet=True))
    assert saved == [1, 2]
    assert content(tmp_path / "killed") == content(tmp_path / "alone")
    make(tmp_path / "killed", PassConfig(3, quiet=True))
    assert saved == [1, 2], "what is there is kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "killed"]


def test_another_command_that_makes_the_same_folder_is_refused(make: Make, tmp_path: Path) -> None:
    """Two would remove each other's files."""
    out, begun = tmp_path / "out", tmp_path / "begun"
    work = PassConfig(3, quiet=True)

    def stop(self: ResumableFolder, *_: Any) -> None:
        begun.touch()
        time.sleep(600)

    def make_a_part() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ResumableFolder, "save", stop)
            make(out, work)

    other = fork(make_a_part)
    try:
        deadline = time.monotonic() + 120
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=rf"out.unfinished is being written to by process {other} of .*: wait until"):
            make(out, work)
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        os.kill(other, signal.SIGKILL)
        ends([other])
    make(out, work)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_several_processes_share_the_work(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three has a part that is killed half-way; two go on."""
    make(tmp_path / "alone", PassConfig(3, quiet=True))
    with monkeypatch.context() as patch:
        patch.setattr(ResumableFolder, "save", dying_at(2))
        children = [fork(lambda n=n: share(make, tmp_path / "shared", tmp_path / "first", n, 3)) for n in range(3)]
        assert -signal.SIGKILL in ends(children) and not (tmp_path / "shared").exists()
    proofs = sorted(path.name for path in (tmp_path / ".shared.unfinished").glob("*.sha256"))
    assert proofs == ["00000.sha256", "00001.sha256"]
    children = [fork(lambda n=n: share(make, tmp_path / "shared", tmp_path / "second", n, 2)) for n in range(2)]
    assert ends(children) == [0, 0]
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


def test_what_is_damaged_or_other_is_not_taken(tower: VisionTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(**words: Any) -> StoredFeatures:
        return encode_features(tower, Squares(), tmp_path / "store", work=PassConfig(3, quiet=True), **words)

    def stop(self: ResumableFolder, number: int, write: Any) -> None:
        if number == 2:
            raise RuntimeError("enough")
        save(self, number, write)

    save = ResumableFolder.save
    with monkeypatch.context() as patch:
        patch.setattr(ResumableFolder, "save", stop)
        with pytest.raises(RuntimeError):
            make()
    room = tmp_path / ".store.unfinished"
    with pytest.raises(ValueError, match=r"another dtype \(bfloat16, now float32\): repeat the command .* or remove"):
        make(dtype="float32")
    with pytest.raises(ValueError, match="begun with another precision"):
        make(precision="bf16")
    part = room / "whole" / "features-00000.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    saved = watched(monkeypatch)
    stored = make()
    assert saved == [0, 2] and len(stored) == 12 and not room.exists()
    encode_features(tower, Squares(), tmp_path / "afresh", work=PassConfig(3, quiet=True))
    assert content(tmp_path / "store") == content(tmp_path / "afresh"), "nothing of the damaged part is left"


def test_a_network_is_left_in_the_mode_that_it_was_in(
    tower: VisionTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimm.precompute.features._look", lambda *_: 1 / 0)
    tower.train()
    with pytest.raises(ZeroDivisionError):
        encode_features(tower, Squares(), tmp_path / "store", work=PassConfig(quiet=True))
    assert tower.training
    tower.eval()


class Places(Squares):
    """Squares at these places of Squares; None: an image that cannot be read."""

    def __init__(self, *places: int | None) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        place = self.places[index]
        return Record(f"places/{index}", b"nothing" if place is None else super().__getitem__(place).image)


def rows(folder: Path) -> list[np.ndarray]:
    """What is stored of each record."""
    if (folder / "codes.safetensors").is_file():
        stored = StoredCodes.open(folder)
        return [stored[index] for index in range(len(stored))]
    features = StoredFeatures.open(folder)
    return [features[int(row)] for row in features.rows]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch had that went through the network."""
    batches: list[int] = []
    see = _Part.see

    def watch(self: _Part, batch: np.ndarray, loaded: Any, job: Any) -> None:
        batches.append(len(loaded.identities))
        see(self, batch, loaded, job)

    monkeypatch.setattr(_Part, "see", watch)
    return batches


def test_only_what_has_changed_is_made_again(make: Make, tmp_path: Path, seen: list[int], capsys: Any) -> None:
    """Exchanged, moved, added and taken out; what is the same is kept to the bit, and a file of which all is the same is not
    even written."""
    expected = rows_of_all(make, tmp_path)
    assert all(np.abs(one - other).max() > 0.5 for one, other in combinations(expected, 2)), "no row passes for another"
    store, began = tmp_path / "store", list(range(7))
    before: dict[int, np.ndarray] = {}
    for places, num_new in (
        (began, 7),
        (began, 0),
        ([0, 1, 2, 8, 4, 5, 6], 1),
        ([6, 8, 0, 1, 2, 4, 5], 0),
        ([6, 9, 0, 1, 2, 4, 5, 8, 10, 10], 3),
        ([9, 10], 0),
    ):
        del seen[:]
        make(store, PassConfig(3), Places(*places))
        assert sum(seen) == num_new, places
        now = dict(zip(places, rows(store), strict=True))
        for place, row in now.items():
            np.testing.assert_allclose(row, expected[place], atol=2e-2)  # the batch that it was in rounds
            assert place not in before or np.array_equal(row, before[place]), "what was stored is kept to the bit"
        before = now
    told = capsys.readouterr().err
    assert "it is kept. To make it again, remove it." in told and "6 of 7 images were stored before and are kept" in told
    first = (store / "codes.safetensors").stat().st_ino if (store / "codes.safetensors").exists() else None
    make(store, PassConfig(3, quiet=True), Places(9, 10))
    assert first is None or (store / "codes.safetensors").stat().st_ino == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "store"]


def rows_of_all(make: Make, tmp_path: Path) -> list[np.ndarray]:
    make(tmp_path / "all", PassConfig(3, quiet=True), Squares())
    return rows(tmp_path / "all")


def test_all_bad_images_are_named_at_once_and_the_others_are_kept(make: Make, tmp_path: Path, seen: list[int]) -> None:
    """Also where one is the first, and where they are taken out afterwards; nothing is made twice."""
    told = r"3 of 12 images cannot be used \(places/0, places/3, places/11: it is not a JPEG.*\): mend them or take"
    with pytest.raises(ValueError, match=told):
        make(tmp_path / "store", PassConfig(2, quiet=True), Places(None, 1, 2, None, 4, 5, 6, 7, 8, 9, 10, None))
    assert sum(seen) == 9 and not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match=r"1 of 11 images cannot be used \(places/2"):
        make(tmp_path / "store", PassConfig(2, quiet=True), Places(1, 2, None, 4, 5, 6, 7, 8, 9, 10, 11))
    assert sum(seen) == 10, "only the one that was mended"
    make(tmp_path / "store", PassConfig(2, quiet=True), Places(1, 2, 4, 5, 6, 7, 8, 9, 10, 11))
    assert sum(seen) == 10 and len(rows(tmp_path / "store")) == 10
    expected = rows_of_all(make, tmp_path)
    for ours, place in zip(rows(tmp_path / "store"), (1, 2, 4, 5, 6, 7, 8, 9, 10, 11), strict=True):
        np.testing.assert_allclose(ours, expected[place], atol=2e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "store"]


class Unread(Places):
    """Places whose third record cannot be read at all."""

    def __getitem__(self, index: int) -> Record:
        if index == 2:
            raise ValueError("This line is no record.")
        return super().__getitem__(index)


def test_killed_among_bad_images_it_goes_on_and_knows_them(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where fewer may be bad than when it was begun; then what was mended meanwhile is made."""
    broken = Unread(0, None, 2, 3, 4, 5, None, 7, 8, 9, 10, None)
    make(tmp_path / "alone", PassConfig(3, quiet=True, max_bad=0.5), broken)
    with monkeypatch.context() as patch:
        patch.setattr(ResumableFolder, "save", dying_at(1))
        for name in ("killed", "stricter"):
            kill = fork(lambda name=name: make(tmp_path / name, PassConfig(3, quiet=True, max_bad=0.5), broken))
            assert ends([kill]) == [-signal.SIGKILL]
    make(tmp_path / "killed", PassConfig(3, quiet=True, max_bad=0.5), broken)
    assert content(tmp_path / "killed") == content(tmp_path / "alone")
    listed = (tmp_path / "killed/bad_records.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == ["places/1", "places/11", "places/6", "record 2"]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"of 1[12] images cannot be used \("):
            make(tmp_path / "stricter", PassConfig(3, quiet=True, max_bad=0.1), broken)
    make(tmp_path / "stricter", PassConfig(3, quiet=True, max_bad=0.1), Places(*range(11), None))
    expected = rows_of_all(make, tmp_path)
    for ours, all_of_them in zip(rows(tmp_path / "stricter")[:11], expected, strict=False):
        np.testing.assert_allclose(ours, all_of_them, atol=2e-2)


def test_many_bad_images_are_counted_and_listed(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where nearly all are bad, nobody waits for the end."""
    with pytest.raises(ValueError, match=r"30 of 31 images .* and 10 others, see (\S+bad_images.txt)\): mend") as caught:
        make(tmp_path / "store", PassConfig(2, quiet=True), Places(0, *(30 * [None])))
    assert len(str(caught.value)) < 900
    assert len((tmp_path / ".store.unfinished/bad_images.txt").read_text().splitlines()) == 30
    monkeypatch.setattr(bad_images, "HOPELESS", 5)
    with pytest.raises(ValueError, match="5 of 31 images cannot be used"):
        make(tmp_path / "store", PassConfig(2, quiet=True), Places(*(31 * [None])))


def test_a_pass_within_its_budget_is_never_given_up(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first images are the bad ones."""
    monkeypatch.setattr(bad_images, "HOPELESS", 2)
    first_bad = Places(None, None, None, *range(3, 12))
    make(tmp_path / "store", PassConfig(2, quiet=True, max_bad=0.25), first_bad)
    listed = (tmp_path / "store/bad_records.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["places/0", "places/1", "places/2"]
    with pytest.raises(ValueError, match="3 of 12 images cannot be used"):
        make(tmp_path / "other", PassConfig(2, quiet=True, max_bad=0.2), first_bad)


def test_processes_name_the_bad_images_of_all(make: Make, tmp_path: Path) -> None:
    dataset = Places(0, None, 2, 3, 4, 5, 6, None, 8, 9, 10, 11)

    def told(number: int) -> None:
        with pytest.raises(ValueError, match=r"2 of 12 images cannot be used \(places/1, places/7"):
            share(
                lambda *words: make(*words, dataset),
                tmp_path / "store",
                tmp_path / "m",
                number,
                2,
            )

    assert ends([fork(lambda n=n: told(n)) for n in range(2)]) == [0, 0]


def test_where_output_is_no_terminal_progress_is_told_now_and_then(
    make: Make, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a batch takes long; with rate and time left."""
    monkeypatch.setattr(pass_progress, "SECONDS_BETWEEN_LINES", 0.05)
    see = _Part.see
    monkeypatch.setattr(_Part, "see", lambda self, *words: (time.sleep(0.12), see(self, *words)))
    make(tmp_path / "store", PassConfig(6, quiet=False), Squares())
    lines = capsys.readouterr().err.splitlines()
    assert any(re.search(r"of Squares: 0 of 12 images \(0%\), none yet after 0 s", line) for line in lines)
    assert any(re.search(r"of Squares: \d+ of 12 images \(\d+%\), [\d.e+]+ images/s, \d+ s left", line) for line in lines)
    assert any(re.search(r"of Squares: 12 images in \d+ s", line) for line in lines[-2:]), "a warning may come after it"


def test_a_folder_is_made_to_its_end_in_the_precision_that_it_was_begun_in(
    tower: VisionTower, tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """`auto` would choose otherwise on another kind of CPU; whoever names a precision gets it, or is refused."""
    fast = {"bf16": True}
    monkeypatch.setattr("unimm.runtime.devices.bf16_is_faster", lambda: fast["bf16"])
    makes: dict[str, Callable[..., Any]] = {
        "codes": lambda **words: encode_dataset(tokenizer, Squares(), tmp_path / "codes", **words),
        "features": lambda **words: encode_features(tower, Squares(), tmp_path / "features", **words),
    }
    for name, encode_again in makes.items():
        fast["bf16"] = True
        with monkeypatch.context() as patch:
            patch.setattr(ResumableFolder, "save", dying_at(1))
            assert ends([fork(lambda encode_again=encode_again: encode_again(precision="auto"))]) == [-signal.SIGKILL]
        with pytest.raises(ValueError, match="begun with another precision"):
            encode_again(precision="no")
        fast["bf16"] = False
        for num_proved in (1, 0):
            capsys.readouterr()
            assert encode_again(precision="auto").manifest.precision == "bf16"
            told = capsys.readouterr().err
            assert told.count(f"{name} was begun in bf16 and goes on so, though precision=auto would take float32 here") == 1
            assert told.count(f"{name} of Squares, proving: 1 parts in ") == num_proved, "large parts take long to read"
        assert encode_again(precision="no").manifest.precision == "float32"
        fast["bf16"] = True
        assert encode_again(precision="auto").manifest.precision == "float32"


def test_the_first_process_chooses_the_precision_of_all(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(number: int) -> None:
        monkeypatch.setattr("unimm.runtime.devices.bf16_is_faster", lambda: number == 0)
        share(lambda *words: make(*words, precision="auto"), tmp_path / "store", tmp_path / "meeting", number, 2)

    assert ends([fork(lambda n=n: one(n)) for n in range(2)]) == [0, 0]
    assert json.loads((tmp_path / "store/manifest.json").read_text())["precision"] == "bf16"
