"""An index of images: search finds the nearest; it is extended, shrinks, goes on after kill -9, and serves one model."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_towers import ColourTowers, Embedder, plain
from PIL import Image

from unimm.data.records import Record, Text
from unimm.data.worlds.shapes import ShapesWorld
from unimm.retrieval.index import Hit, Index, rank_texts, read_manifest
from unimm.retrieval.indexing import BAD_IMAGES, PARTS, Indexed, Pass, _alone, build_index
from unimm.retrieval.sheet import write_hits
from unimm.retrieval.sources import images_of, open_images

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


def write_pictures(folder: Path, num_each: int = 3) -> Path:
    """Pictures of three colours, each a little different."""
    folder.mkdir(exist_ok=True)
    for name, colour in COLOURS.items():
        for number in range(num_each):
            red, green, blue = (max(part, 20 * number) for part in colour)
            plain((red, green, blue)).save(folder / f"{name}{number}.png")
    return folder


def make(folder: Path, out: Path, embedder: Embedder | None = None, **work: Any) -> Indexed:
    source = str(folder.resolve())
    how = Pass(**{"batch_size": 2, "part_size": 2, "num_threads": 1, **work})
    return build_index(embedder or Embedder(ColourTowers()), open_images(folder), out, model="colours", source=source, work=how)


def keys(index: Index) -> list[str]:
    return [entry.key for entry in index.entries]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos")


def test_text_and_image_find_the_nearest(photos: Path, tmp_path: Path) -> None:
    made = make(photos, tmp_path / "index")
    assert (made.num_new, made.num_dropped, made.bad) == (9, 0, [])
    embedder = Embedder(ColourTowers())
    index = Index.open(tmp_path / "index", embedder)
    assert len(index) == 9
    found = index.search("blue", k=3)
    assert [hit.key for hit in found] == ["blue0.png", "blue1.png", "blue2.png"]
    assert found[0].path == photos.resolve() / "blue0.png" and found[0].score > 0.99
    assert found == sorted(found, key=lambda hit: -hit.score)
    assert index.search(image=plain(COLOURS["green"]), k=1)[0].key.startswith("green")
    assert len(index.search("red", k=100)) == 9
    every = index.search("red", k=9)
    vectors = embedder.embed_images([hit.path for hit in every])
    assert [hit.score for hit in every] == pytest.approx((vectors @ embedder.embed_texts("red")).tolist(), abs=1e-3)
    texts = rank_texts(embedder, plain(COLOURS["red"]), ["blue", "a red one", "green"], 2)
    assert texts[0] == Hit("a red one", pytest.approx(texts[0].score)) and len(texts) == 2


def test_it_follows_its_folder(photos: Path, tmp_path: Path) -> None:
    """New files are embedded and no others, changed ones again, those that are gone are dropped."""
    make(photos, tmp_path / "index")
    towers = ColourTowers()
    assert make(photos, tmp_path / "index", Embedder(towers)).num_new == 0 and towers.passes == []
    (photos / "red0.png").unlink()
    plain(COLOURS["red"]).save(photos / "blue0.png")
    (photos / "new").mkdir()
    plain(COLOURS["blue"]).save(photos / "new/blue.png")
    made = make(photos, tmp_path / "index", Embedder(towers))
    assert (made.num_new, made.num_dropped, sum(towers.passes)) == (2, 1, 2)
    index = Index.open(tmp_path / "index", Embedder(ColourTowers()))
    assert keys(index) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert index.search("blue", k=1)[0].key == "new/blue.png"
    assert {hit.key for hit in index.search("red", k=3)} == {"red1.png", "red2.png", "blue0.png"}
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        "entries-2.jsonl",
        "manifest.json",
        "vectors-2.faiss",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that fork")
@pytest.mark.parametrize("after", [0, 4])
def test_kill_9_leaves_what_was_done_and_nothing_twice(photos: Path, tmp_path: Path, after: int) -> None:
    """Killed while it embeds: before anything was written, and after two parts."""
    out = tmp_path / "index"

    def kill(done: int, total: int) -> None:
        if done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        make(photos, out, progress=kill)
        os._exit(0)  # not reached
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with pytest.raises(ValueError, match="has not ended"):
        Index.open(out)
    towers = ColourTowers()
    made = make(photos, out, Embedder(towers))
    kept = max(0, after - 2)  # the part that was not written yet is made again
    assert sum(towers.passes) == made.num_new == 9 - kept
    assert keys(made.index) == sorted(path.name for path in photos.iterdir())
    whole = make(photos, tmp_path / "whole")
    assert np.array_equal(*(one.index.vectors.reconstruct_n(0, 9) for one in (made, whole)))
    assert not (out / PARTS).exists()


def test_a_kill_before_the_new_generation_is_named_changes_nothing(photos: Path, tmp_path: Path) -> None:
    """Files of a generation that no manifest names are written over."""
    out = tmp_path / "index"
    make(photos, out)
    (out / "vectors-2.faiss").write_bytes(b"half")
    (out / "entries-2.jsonl").write_text("[")
    assert len(Index.open(out, Embedder(ColourTowers())).search("red")) == 9
    plain(COLOURS["blue"]).save(photos / "more.png")
    assert len(make(photos, out).index) == 10


def test_an_index_is_of_one_model_and_one_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    make(photos, out)
    other = Embedder(ColourTowers(logit_bias=-1.0))
    for ask in (lambda: Index.open(out, other), lambda: make(photos, out, other)):
        with pytest.raises(ValueError, match="is an index of the model colours"):
            ask()
    with pytest.raises(ValueError, match=r"is an index of .*photos, not of"):
        make(write_pictures(tmp_path / "others"), out)
    with pytest.raises(ValueError, match="is no index"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not an index of images"):
        make(photos, photos)


def test_bad_images_are_listed_and_tried_again(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "red0.png").read_bytes()[:40])
    (photos / "text.jpg").write_text("no image")
    out = tmp_path / "index"
    made = make(photos, out)
    assert len(made.index) == 9 and sorted(one.key for one in made.bad) == ["broken.png", "text.jpg"]
    listed = dict(line.split("\t") for line in (out / BAD_IMAGES).read_text().splitlines())
    assert "not a JPEG" in listed["text.jpg"]
    plain(COLOURS["red"]).save(photos / "broken.png")
    (photos / "text.jpg").unlink()
    made = make(photos, out)
    assert len(made.index) == 10 and not made.bad and not (out / BAD_IMAGES).exists()


def test_what_is_no_folder_of_images_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_text("no image")
    with pytest.raises(ValueError, match="There are no images in"):
        open_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="There is no folder or file"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="None of the 1 images"):
        make(tmp_path / "bad", tmp_path / "index")
    (tmp_path / "notes.md").write_text("-")
    with pytest.raises(ValueError, match="put images into a folder"):
        open_images(tmp_path / "notes.md")


def test_records_of_a_file_are_found_with_their_captions(photos: Path, tmp_path: Path) -> None:
    lines = [{"image": f"photos/{name}0.png", "caption": f"all {name}"} for name in COLOURS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = make(tmp_path / "data.jsonl", tmp_path / "index").index
    (hit,) = Index.open(tmp_path / "index", Embedder(ColourTowers())).search("green", k=1)
    assert hit.caption == "all green" and hit.path == photos / "green0.png"
    assert all(entry.path == "" for entry in make(photos, tmp_path / "of_a_folder").index.entries)
    (image,) = images_of(index, [hit._replace(path=None)])
    assert Image.open(str(image)).getpixel((0, 0)) == COLOURS["green"]


class Twice:
    """A data set that gives one key twice."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Record:
        return Record("same", plain("red"), captions=(Text("red"),))


def test_a_key_has_one_entry(tmp_path: Path) -> None:
    embedder = Embedder(ColourTowers())
    made = build_index(embedder, Twice(), tmp_path / "index", model="m", source="s")
    assert keys(made.index) == ["same"] and made.bad[0].reason == "another record has the same key"
    world = build_index(embedder, ShapesWorld("test", 5), tmp_path / "world", model="m", source="s")
    assert len(world.index) == 5


def test_queries_fit_the_index(photos: Path, tmp_path: Path) -> None:
    index = make(photos, tmp_path / "index").index
    with pytest.raises(ValueError, match="vectors of 4 numbers"):
        index.search_vectors(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="one of them"):
        index.search()
    with pytest.raises(ValueError, match="at least 1"):
        index.search_vectors(np.zeros((1, 4), np.float32), 0)


def test_damage_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    make(photos, out)
    manifest = read_manifest(out)
    assert manifest is not None and manifest.generation == 1
    vectors = out / "vectors-1.faiss"
    vectors.write_bytes(vectors.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged or not there"):
        Index.open(out)
    (out / "entries-1.jsonl").write_text("{")
    with pytest.raises(ValueError, match="damaged or not there"):
        Index.open(out)
    content = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(ValueError, match="newer unimm"):
        Index.open(out)


def test_hits_are_shown_as_a_picture_or_a_page(photos: Path, tmp_path: Path) -> None:
    hits = [Hit("a/very/long/path/" * 5, 0.9, photos / "red0.png"), Hit("<b>", 0.5, photos / "blue0.png", "圆 & co")]
    images: list[Any] = [hit.path for hit in hits]
    write_hits(tmp_path / "out/found.png", "two <red> 圆", hits, images)
    assert Image.open(tmp_path / "out/found.png").width > 400
    write_hits(tmp_path / "found.html", "two <red> circles", hits, images)
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 and "<b>" not in page and "two &lt;red&gt;" in page and "圆 &amp; co" in page
    with pytest.raises(ValueError, match="neither a picture"):
        write_hits(tmp_path / "found.txt", "", hits, images)


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_one_process_makes_an_index_where_folders_can_be_locked(tmp_path: Path, monkeypatch, caplog) -> None:
    import fcntl

    with _alone(tmp_path), pytest.raises(ValueError, match="Another process is making the index"), _alone(tmp_path):
        pass

    def nfs(*_: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", nfs)
    with _alone(tmp_path):
        assert "cannot be locked here (Bad file descriptor)" in caplog.text
