"""Which picture it was: exchanged ones are noticed, whatever the times of their files say, and unchanged ones are not read."""

import base64
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from users_files import make_parquet, make_shards, picture_bytes

from unimm.data.readers.fields import Fields
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.stores import digests
from unimm.data.stores.digests import HALF, UNKNOWN, image_digest, image_identity, image_stamp, is_same


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this test count as long at rest."""
    monkeypatch.setattr(digests, "REST_NS", -(10**18))


def picture(path: Path, number: int) -> Path:
    """Random pixels without compression: all such files have one size."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "BMP")
    return path


def has_stamp(identity: np.ndarray) -> bool:
    return identity[HALF:].tobytes() != UNKNOWN


def test_an_image_is_told_by_what_it_holds(tmp_path: Path) -> None:
    content = picture_bytes(0)
    (tmp_path / "a.png").write_bytes(content)
    array = np.asarray(Image.open(tmp_path / "a.png"))
    forms = [content, array, array[:, :8], array.astype(np.int16), Image.fromarray(array), Image.fromarray(array).convert("P")]
    told = {image_digest(form) for form in (*forms, picture_bytes(1), array[::-1], 255 - array)}
    assert len(told) == len(forms) + 2, "a picture of one colour is the same upside down"
    assert image_digest(tmp_path / "a.png") == image_digest(str(tmp_path / "a.png")) == image_digest(content)
    assert is_same(content, image_identity(content)) and not is_same(array, image_identity(content))
    with pytest.raises(ValueError, match=r"Cannot read the file .*no such file"):
        image_digest(tmp_path / "nobody.png")


def test_other_forms_have_the_digest_of_what_they_hold() -> None:
    content = picture_bytes(0)
    array = np.asarray(Image.open(io.BytesIO(content)))
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    files = io.BytesIO(content), uri, {"bytes": content, "path": "a.png"}, {"type": "image_url", "image_url": {"url": uri}}
    assert {image_digest(form) for form in files} == {image_digest(content)}
    tensor = torch.from_numpy(array.copy())
    assert image_digest(tensor) == image_digest(tensor.permute(2, 0, 1) / 255) == image_digest(array)
    assert all(is_same(form, image_identity(form)) for form in (*files, tensor))
    with pytest.raises(ValueError, match="not valid base64"):
        image_digest("data:image/png;base64,%")


def test_an_unchanged_file_is_not_read(tmp_path: Path, at_rest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = image_identity(picture(tmp_path / "a.bmp", 0))
    copy = Path(shutil.copy2(tmp_path / "a.bmp", tmp_path / "copy.bmp"))
    assert has_stamp(identity) and is_same(copy, identity), "a copy has another stamp and the same digest"
    monkeypatch.setattr(digests, "image_digest", lambda image: pytest.fail(f"{image} was read"))
    assert is_same(tmp_path / "a.bmp", identity)


def test_exchanged_files_are_noticed_whatever_their_times_say(tmp_path: Path, at_rest: None) -> None:
    """Renamed, overwritten, or another one in their place: of the same size, and with the time of writing set back."""
    paths = [picture(tmp_path / f"{number}.bmp", number) for number in range(4)]
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    identities = [image_identity(path) for path in paths]
    assert all(has_stamp(identity) for identity in identities)
    paths[0].rename(tmp_path / "away")
    paths[1].rename(paths[0])
    (tmp_path / "away").rename(paths[1])
    picture(paths[2], 7)
    picture(tmp_path / "new.bmp", 8).replace(paths[3])
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    assert len({path.stat().st_size for path in paths}) == 1
    assert not any(is_same(path, identity) for path, identity in zip(paths, identities, strict=True))
    assert is_same(paths[0], identities[1])


def test_what_was_written_a_moment_ago_has_no_stamp(tmp_path: Path) -> None:
    assert not has_stamp(image_identity(picture(tmp_path / "a.bmp", 0)))


def test_pieces_of_files_have_stamps_where_the_file_holds_them(tmp_path: Path, at_rest: None) -> None:
    tables, shards = make_parquet(tmp_path / "tables"), make_shards(tmp_path / "shards")
    (tmp_path / "0.png").write_bytes(picture_bytes(0))
    rows = pyarrow.table(
        {"image": [{"bytes": None, "path": "0.png"}, {"bytes": picture_bytes(1), "path": None}], "text": ["a", "b"]}
    )
    pyarrow.parquet.write_table(rows, tmp_path / "mixed.parquet")
    fields = Fields(image="image", caption="text")
    for dataset in (Parquet(tables, fields), WebDataset(shards)):
        images = [dataset[index].image for index in range(4)]
        assert len({image_stamp(image) for image in images if image is not None} - {None}) == 4
        assert all(image is not None and has_stamp(image_identity(image)) for image in images)
    elsewhere, here = (Parquet(tmp_path / "mixed.parquet", fields)[index].image for index in (0, 1))
    assert elsewhere is not None and here is not None
    assert not has_stamp(image_identity(elsewhere)) and has_stamp(image_identity(here))
    assert image_digest(elsewhere) == image_digest(picture_bytes(0))
