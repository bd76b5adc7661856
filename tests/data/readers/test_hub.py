"""Data sets of the hub, by its own client against a stand-in that answers on this machine: listing, downloading, errors."""

import errno
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from users_files import CAPTIONS, picture_bytes, read_all

from unimm.data.readers.fields import Fields
from unimm.data.readers.parquet import Parquet

FIELDS = Fields(image="image", caption="text")
SHA = "0123456789abcdef0123456789abcdef01234567"
CONVERTED = "fedcba9876543210fedcba9876543210fedcba98"


def table(*numbers: int) -> bytes:
    images = [{"bytes": picture_bytes(number), "path": None} for number in numbers]
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "text": [CAPTIONS[n] for n in numbers]}), written)
    return written.getvalue()


class StandIn(BaseHTTPRequestHandler):
    """The hub's answers for a few data sets: what it lists, and the files."""

    repos: ClassVar[dict[str, dict[str, dict[str, bytes]]]] = {
        "a/plain": {
            SHA: {
                "README.md": b"",
                "data/train-00000-of-00002.parquet": table(0),
                "data/train-00001-of-00002.parquet": table(1),
            }
        },
        "a/converted": {SHA: {"images.zip": b""}, CONVERTED: {"default/train/0000.parquet": table(2, 3)}},
        "a/subsets": {SHA: {"one/train-0.parquet": table(0), "two/train-0.parquet": table(1), "two/test-0.parquet": table(2)}},
        "a/many": {SHA: {}, CONVERTED: {f"default/train/000{one}.parquet": table(one) for one in range(3)}},
        "a/alike": {SHA: {f"data/{one}-00000-of-00001.parquet": table(0) for one in ("train_sft", "train_gen")}},
        "a/partial": {SHA: {}, CONVERTED: {"default/partial-train/0000.parquet": table(1)}},
        "a/none": {SHA: {"a.csv": b""}},
    }

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)

    def answer(self, has_body: bool) -> None:
        parts = self.path.partition("?")[0].replace("%2F", "/").strip("/").split("/")
        is_api = parts[0] == "api"
        owner, name, *rest = parts[2 if is_api else 1 :]
        repo = f"{owner}/{name}"
        if repo == "a/gated":
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, has_body)
        if repo not in self.repos:
            return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, has_body)
        where = "/".join(rest)
        sha = CONVERTED if "refs/convert/parquet" in where or CONVERTED in where else SHA
        files = self.repos[repo].get(sha)
        if files is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, has_body)
        if rest[:1] == ["tree"]:
            told = [{"type": "file", "path": path, "size": len(held), "oid": "0"} for path, held in files.items()]
            return self.send(200, json.dumps(told).encode(), {}, has_body)
        if is_api:
            siblings = [{"rfilename": path, "size": len(held)} for path, held in files.items()]
            told = {"id": repo, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
            return self.send(200, json.dumps(told).encode(), {}, has_body)
        path = where.split(f"{sha}/", 1)[1]
        tag = hashlib.sha256(files[path]).hexdigest()
        self.send(200, files[path], {"X-Repo-Commit": sha, "ETag": f'"{tag}"'}, has_body)

    def send(self, code: int, body: bytes, headers: dict[str, str], has_body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)

    def download(*args, **words) -> str:
        return api.snapshot_download(*args, cache_dir=tmp_path / "cache", **words)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", api.list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its tries
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def captions(path: str) -> list[str]:
    return [record.captions[0].text for record in read_all(Parquet(path, FIELDS))]


def test_what_is_there_is_downloaded_and_read(hub: ThreadingHTTPServer) -> None:
    assert captions("hf://datasets/a/plain") == list(CAPTIONS[:2])
    assert captions("hf://datasets/a/converted/train") == list(CAPTIONS[2:])
    assert captions("hf://datasets/a/subsets/two/train") == [CAPTIONS[1]]
    assert captions("hf://datasets/a/subsets/test") == [CAPTIONS[2]]
    assert captions("hf://datasets/a/alike/train_sft") == [CAPTIONS[0]], "not those of train_gen"
    assert captions("hf://datasets/a/partial/partial-train") == [CAPTIONS[1]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/gone", "no data set a/gone on the hub, or it is private: mend its name, or log in"),
        ("a/gated", "a/gated of the hub is gated: ask for access"),
        ("a/none", "no Parquet files of a split 'train'"),
        ("a/subsets", r"several subsets \(one, two\): name one, hf://datasets/a/subsets/one/train"),
        ("a/plain/test", "no Parquet files of a split 'test', there is data/train-00000-of-00002.parquet"),
        ("a/alike", "no Parquet files of a split 'train', there is data/train_sft-00000-of-00001.parquet"),
        ("a/partial", "holds only the beginning of its split 'train': .* hf://datasets/a/partial/partial-train"),
        ("a/plain/x/y/z", "names no data set"),
    ],
)
def test_an_error_is_one_sentence(name: str, words: str, hub: ThreadingHTTPServer) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        Parquet(f"hf://datasets/{name}", FIELDS)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")


def test_without_a_network(hub: ThreadingHTTPServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was downloaded is read, if all of it is there; else the reason is said."""
    before = captions("hf://datasets/a/plain")
    hub.shutdown()
    hub.server_close()
    assert captions("hf://datasets/a/plain") == before and "as it was downloaded before" in caplog.text
    with pytest.raises(ValueError, match="the hub does not answer"):
        Parquet("hf://datasets/a/converted", FIELDS)
    next((tmp_path / "cache").rglob("train-00001-of-00002.parquet")).unlink()
    with pytest.raises(ValueError, match="the hub does not answer"):
        Parquet("hf://datasets/a/plain", FIELDS)


@pytest.mark.parametrize("name", ["a/many", "a/plain"])
def test_part_of_a_download_is_never_taken_for_all(
    name: str, hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the connection breaks in the middle, nor later without a network; nor is a full disk called silence."""
    download = huggingface_hub.snapshot_download

    def breaking(error: Exception) -> None:
        def broken(*args, allow_patterns: list[str], **words) -> str:
            found = download(*args, allow_patterns=allow_patterns[:1], **words)
            if words.get("local_files_only"):
                return found
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)

    breaking(RuntimeError("peer closed connection"))
    with pytest.raises(ValueError, match=r"\(peer closed connection\), the hub does not answer"):
        captions(f"hf://datasets/{name}")
    breaking(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match=r"No space left on device\): make room"):
        captions(f"hf://datasets/{name}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **words: download(*args, **words))
    whole = captions(f"hf://datasets/{name}")
    hub.shutdown()
    hub.server_close()
    assert captions(f"hf://datasets/{name}") == whole, "also of the hub's own conversion"
    listed = next((tmp_path / "cache").rglob(".unimm_files.json"))
    content = listed.read_text()
    listed.unlink()
    if name == "a/plain":
        assert captions(f"hf://datasets/{name}") == whole, "its names tell of how many they are"
    else:
        with pytest.raises(ValueError, match="the hub does not answer"):
            captions(f"hf://datasets/{name}")
    listed.write_text(content)
    max((tmp_path / "cache").rglob("*.parquet")).unlink()
    with pytest.raises(ValueError, match="the hub does not answer"):
        captions(f"hf://datasets/{name}")
