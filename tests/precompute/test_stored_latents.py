"""Stored latents keep the promises of stored codes: of these images, by this tokenizer, and what is there is not made again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Squares, make_template

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.data.binding import bind
from unimm.data.flow_view import FlowDrawing
from unimm.data.records import DatasetContext, Record
from unimm.data.stores.latents import LatentDataset, StoredLatents
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.precompute import latents as latents_pass
from unimm.precompute.codes import encode_dataset
from unimm.precompute.latents import encode_latents
from unimm.precompute.sharded_pass import PassConfig
from unimm.sequence import Kind

QUIET = PassConfig(batch_size=5, quiet=True)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(ImageTokenizerConfig(16, 32, (1, 1), 1, 32, quantizer=GaussianConfig(2))).freeze()


class Others(Squares):
    """The same keys, other pictures."""

    def __getitem__(self, index: int) -> Record:
        return super().__getitem__(index).with_image(np.full((16, 16, 3), index, np.uint8))


def test_they_are_the_tokenizers_and_of_these_images(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    stored = encode_latents(tokenizer, Squares(), tmp_path / "latents", work=QUIET)
    assert len(stored) == 12 and stored.manifest.shape == (2, 8, 8) and stored.manifest.psnr is not None
    pixels = torch.from_numpy(np.array(Squares()[7].image)).permute(2, 0, 1)[None] / 127.5 - 1
    np.testing.assert_allclose(stored[7], tokenizer.encode_latents(pixels)[0].numpy(), atol=1e-5)
    dataset = bind(LatentDataset(Squares(), tmp_path / "latents"), DatasetContext(latents_hash=fingerprint(tokenizer)))
    assert np.array_equal(dataset[7].images[0].codes["latents"], stored[7]) and np.array_equal(dataset[7].codes, [0, 0, 0, 2])
    with pytest.raises(ValueError, match="were made with tokenizer_hash"):
        bind(dataset, DatasetContext(latents_hash="x"))
    with pytest.raises(ValueError, match="of another image than record"):
        LatentDataset(Others(), tmp_path / "latents")
    with pytest.raises(ValueError, match="has latents, no codes"):
        encode_dataset(tokenizer, Squares(), tmp_path / "codes", work=QUIET)


def test_what_is_there_is_kept_and_what_was_stopped_goes_on(
    tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents_pass, "shard_rows", lambda shape: 5)
    whole = encode_latents(tokenizer, Squares(), tmp_path / "whole", work=QUIET)
    assert len([*(tmp_path / "whole").glob("latents-*")]) == 3
    seen: list[int] = []
    encode = latents_pass._encode

    def stopping(tokenizer: ImageTokenizer, pixels: torch.Tensor, precision: str) -> torch.Tensor:
        seen.append(len(pixels))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return encode(tokenizer, pixels, precision)

    monkeypatch.setattr(latents_pass, "_encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode_latents(tokenizer, Squares(), tmp_path / "parts", work=QUIET)
    parts = encode_latents(tokenizer, Squares(), tmp_path / "parts", work=QUIET)
    assert seen == [5, 5, 5, 2]  # the second batch, which was stopped, and the rest
    assert all(np.array_equal(parts[row], whole[row]) for row in range(12)) and parts.manifest == whole.manifest
    encode_latents(tokenizer, Squares(), tmp_path / "parts", work=QUIET)
    assert len(seen) == 4
    assert StoredLatents.open(tmp_path / "parts", num_records=12).has_identities


def test_a_file_that_was_cut_short_is_told_and_made_again(
    tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(latents_pass, "shard_rows", lambda shape: 5)
    whole = encode_latents(tokenizer, Squares(), tmp_path / "latents", work=QUIET)
    before, damaged = [whole[row] for row in range(12)], tmp_path / "latents" / "latents-00001.safetensors"
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"The latents in .* are damaged .*make them again with `unimm encode`"):
        StoredLatents.open(tmp_path / "latents")
    seen: list[int] = []
    encode = latents_pass._encode
    monkeypatch.setattr(latents_pass, "_encode", lambda *words: (seen.append(len(words[1])), encode(*words))[1])
    mended = encode_latents(tokenizer, Squares(), tmp_path / "latents", work=QUIET)
    assert seen == [5] and all(np.array_equal(mended[row], before[row]) for row in range(12))
    assert "latents-00001.safetensors is damaged or cut short" in caplog.text


def test_the_view_learns_them_with_noise_of_the_samples_own(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    encode_latents(tokenizer, Squares(), tmp_path / "latents", work=QUIET)
    record, template = LatentDataset(Squares(), tmp_path / "latents")[3], make_template()
    template.latent_patch = 2
    one, other, again = (FlowDrawing(drop=0.0)(record, template, np.random.default_rng(seed)) for seed in (0, 1, 0))
    *_, last = one.segments
    assert last.kind == Kind.LATENTS and last.learn and last.content.shape == (17, 8) and one == again
    assert last.content[0, 0] != other.segments[-1].content[0, 0]
    assert np.array_equal(last.content[1], record.images[0].codes["latents"][:, :2, :2].ravel())
    pad = template.tokenizer.special.pad
    assert FlowDrawing(drop=1.0)(record, template, np.random.default_rng(0)) == one.unconditioned(pad)
    with pytest.raises(ValueError, match="has no latents, which this view needs"):
        FlowDrawing()(Squares()[0], template, np.random.default_rng(0))
    template.latent_patch = None
    with pytest.raises(ValueError, match="does not draw by a flow"):
        FlowDrawing()(record, template, np.random.default_rng(0))
