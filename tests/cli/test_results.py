"""What trainings say at their end, read from the files of a run."""

import json
from pathlib import Path

import pytest

from unimm.cli.compose import compose_config
from unimm.cli.results import print_tokenizer_results, print_training_results
from unimm.runtime.atomic_files import write_json


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a run of 83 steps, without its weights."""
    monkeypatch.chdir(tmp_path)
    for folder in ("run/checkpoints/step-00000083", "run/samples", "run/model", "photos"):
        (tmp_path / folder).mkdir(parents=True)
    write_json(Path("run/checkpoints/step-00000083/state.json"), {"step": 83, "seconds": 150.0})
    return Path("run")


def log(run: Path, *lines: dict[str, float]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def printed_by_tokenizer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    print_tokenizer_results(compose_config("train_tokenizer", ["out=run", *words]))
    return capsys.readouterr().out


VALIDATED = {
    **{"step": 83, "validation/psnr": 21.94, "validation/ssim": 0.751},
    **{"validation/codes/usage": 0.76, "validation/codes/perplexity": 236.4},
}


def test_an_image_tokenizer_says_how_well_it_gives_images_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(run, {"step": 80, "codes/usage": 0.1, "codes/perplexity": 9.0}, VALIDATED)
    (run / "samples/00000083-reconstructions.png").touch()
    text = printed_by_tokenizer(capsys, "images.batch_size=8")
    assert text == (
        "\nImage tokenizer trained: 83 steps of 8 images (664 together), 2.5 minutes\n"
        "  quality    PSNR 21.9 dB, SSIM 0.75, 76 % of 512 codes used (perplexity 236), on 128 validation images\n"
        "  model      run/model\n"
        "  pictures   run/samples/00000083-reconstructions.png\n"
        "\nNext:\n"
        "  unimm encode image_tokenizer=run/model out=run/codes\n"
        "  unimm report run\n"
    )


def test_images_of_ones_own_are_named_again_and_those_that_were_learned_from_are_not_called_others(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "photos/a.png").touch()
    log(run, VALIDATED | {"validation/psnr": 9.9})
    own = ["images=image_folder", "images.folder=photos"]
    text = printed_by_tokenizer(capsys, *own, "images.validation_folder=photos")
    assert "on 1 images that it was trained on\n" in text and "WARNING: under 15 dB" in text
    assert "  unimm encode image_tokenizer=run/model data=image_folder data.folder=photos out=run/codes\n" in text


def test_without_a_validation_the_last_steps_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(run, {"step": 80, "codes/usage": 0.1, "codes/perplexity": 9.0})
    text = printed_by_tokenizer(capsys)
    assert "quality    10 % of 512 codes used (perplexity 9), in the last training steps\n" in text and "PSNR" not in text


def printed_by_training(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    print_training_results(compose_config("train", ["out=run", "image_tokenizer=tok", "codes=codes", *words]))
    return capsys.readouterr().out


def test_losses_stand_beside_what_guessing_gives(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the last report had no codes; and the prompt of the next command is one that was drawn."""
    log(run, {"step": 80, "loss/codes": 5.579, "accuracy/codes": 0.0812}, {"step": 83, "loss/text": 0.41})
    write_json(run / "model/config.json", {"vq_config": {"num_embeddings": 512}})
    (run / "samples/00000080-captions.txt").write_text("a dog's ball\n    -> a red ball\n")
    (run / "samples/00000080-drawings.png").touch()
    text = printed_by_training(capsys, "trainer.num_rows=64", "trainer.num_positions=4096")
    assert "83 steps of 262,144 positions (21.8 million together), 2.5 minutes\n" in text
    assert "  loss       codes 5.579 (guessing: ln 512 = 6.238), 8.1 % right\n             text 0.410\n" in text
    assert "  drawings   run/samples/00000080-drawings.png\n" in text and "validation" not in text
    assert """  unimm generate 'a dog'"'"'s ball' --model run/model\n""" in text


def test_a_tower_is_what_the_next_training_begins_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(run, {"step": 83, "loss/words": 0.4, "accuracy/words": 0.5})
    text = printed_by_training(capsys, "objective=vision_pretraining", "stage=vision", "suite=quick")
    assert "  unimm train stage=pretrain init_from=run/model codes=codes out=...\n" in text
    print_training_results(compose_config("train", ["out=run", "image_tokenizer=tok", "objective=vision_pretraining"]))
    assert "init_from=run/model codes=... out=...\n" in capsys.readouterr().out
    assert "generate" not in text and "scores" not in text  # which are not there yet
    (run / "scores").mkdir()
    write_json(run / "scores/scores.json", {"tasks": {"shapes_answers": {"score": 0.7}}})
    assert "  scores     shapes_answers 0.70; see run/scores\n" in printed_by_training(capsys, "suite=quick")


def test_only_the_first_process_tells(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log(run)
    monkeypatch.setenv("RANK", "1")
    assert not printed_by_training(capsys) and not printed_by_tokenizer(capsys)
