"""`unimm encode`: what the data configuration asks for is what is stored, and training can read it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from unimm.checkpoints.image_tokenizer_folder import fingerprint, load_image_tokenizer, save_image_tokenizer
from unimm.cli.app import app
from unimm.cli.builders import build_datasets
from unimm.cli.compose import build, compose_config
from unimm.cli.encode import encode
from unimm.data.records import Dataset, Record
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig

SMALL = ("data.sources.shapes_draw.dataset.dataset.num_records=5", "data.sources.digits_draw.dataset.dataset.num_records=3")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quantizer = QuantizerConfig(codebook_size=32, code_dim=8)
    config = ImageTokenizerConfig(64, 32, (1, 1, 1, 1), num_res_blocks=1, latent_channels=32, quantizer=quantizer)
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    save_image_tokenizer(folder, ImageTokenizer(config))
    return folder


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)


def call(*words: object):
    return CliRunner().invoke(app, ["encode", *(str(word) for word in words)])


def test_the_sources_of_training_find_their_codes(tokenizer_folder: Path) -> None:
    result = call(*SMALL, f"image_tokenizer={tokenizer_folder}", "out=codes")
    assert result.exit_code == 0, result.output
    assert {"codes/shapes", "codes/digits"} <= set(result.stdout.split())
    config = compose_config("train", [*SMALL, f"image_tokenizer={tokenizer_folder}", "codes=codes"])
    dataset = build(config.data.sources.shapes_draw.dataset)
    assert dataset[4].codes.shape == (64,)


def test_a_name_chooses_one_data_set(tokenizer_folder: Path) -> None:
    result = call("digits", *SMALL, f"image_tokenizer={tokenizer_folder}", "out=codes")
    assert result.exit_code == 0, result.output
    assert [path.name for path in Path("codes").iterdir()] == ["digits"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("zebras", "image_tokenizer=x"), "shapes, digits"),
        (("image_tokenizer=nowhere",), "nowhere"),
        ((), "image_tokenizer"),
        (("image_tokenizer=x", "bach_size=3"), "did you mean 'batch_size'?"),
        (("image_tokenizer=x", "data=zebra"), "worlds"),
    ],
)
def test_mistakes_end_in_one_sentence(words: tuple[str, ...], told: str) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stderr.startswith("unimm: ")
    assert result.stderr.count("\n") == 1


def test_data_sets_of_the_same_images_share_their_codes(tokenizer_folder: Path) -> None:
    """Two sources may say different things of the same images; of other images they want a folder of their own."""
    put = "data.sources.put.dataset.dataset"
    words = ("data=worlds/mastery", *SMALL, f"image_tokenizer={tokenizer_folder}", "out=codes", f"{put}.num_records=5")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("codes").iterdir()) == ["digits", "shapes"]
    result = call(*words, f"{put}.seed=1")
    assert result.exit_code == 2, result.output
    assert "Two data sets of different images have the folder of codes 'shapes'" in result.stderr


def test_corrupted_codes_are_encoded_beside_those_that_they_replace(tokenizer_folder: Path) -> None:
    small = [f"data.sources.{name}.dataset.dataset.num_records=5" for name in ("put", "arrange", "relate_draw", "count")]
    small += [f"data.sources.{name}.dataset.corrupted.dataset.num_records=5" for name in ("shapes_draw", "arrange", "count")]
    result = call("data=worlds/corrupted", *SMALL, *small, f"image_tokenizer={tokenizer_folder}", "out=codes")
    assert result.exit_code == 0, result.output
    names = ["arrange", "arrange_recoloured", "count", "count_recoloured", "digits", "shapes", "shapes_recoloured"]
    assert sorted(path.name for path in Path("codes").iterdir()) == names


class Backwards:
    """A data set of a user's own around another one."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        return self.dataset[len(self) - 1 - index]


@pytest.mark.parametrize("is_inside", [False, True])
def test_codes_are_found_and_compared_in_a_wrapper(is_inside: bool, tokenizer_folder: Path) -> None:
    """Whether it is wrapped around the codes, or the codes are of what it gives."""
    config = compose_config("encode", [*SMALL, f"image_tokenizer={tokenizer_folder}", "out=codes", "names=[shapes]"])
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    node = config.data.sources.shapes_draw.dataset
    own = f"{__name__}.Backwards"
    if is_inside:
        node.dataset = {"_target_": own, "dataset": node.dataset}
    else:
        config.data.sources.shapes_draw.dataset = {"_target_": own, "dataset": node}
    encode(config)
    config.codes = "codes"
    config.data.sources = {"shapes_draw": config.data.sources.shapes_draw}
    right = fingerprint(load_image_tokenizer(tokenizer_folder))
    record = build_datasets(config, right)["shapes_draw"][4]
    assert record.key.endswith("/0") and record.codes is not None and record.codes.shape == (64,)
    with pytest.raises(ValueError, match=f"tokenizer_hash {right}, not another"):
        build_datasets(config, "another")
