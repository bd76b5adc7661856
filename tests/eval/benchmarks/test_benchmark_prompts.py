"""Prompts of every benchmark: read from its own form, images named as its scorer looks for them, other forms refused."""

from pathlib import Path

import pytest
from prompt_files import write_prompts

from unimm.eval.benchmarks.benchmark import Prompt, choose_prompts, mean_and_error, seed_of
from unimm.eval.benchmarks.table import BENCHMARKS


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_prompts(tmp_path / "prompts")


EXPECTED = {
    "geneval": (
        ["a photo of a bench", "a photo of two cows", "a photo of a bench"],
        [f"{prompt:05}/samples/{sample:04}.png" for prompt in range(3) for sample in range(4)],
    ),
    "geneval2": (["two red cats", "a dog"], ["images/00000.png", "images/00001.png"]),
    "dpg": (["A long prompt, the ninth.", "A long prompt, the tenth."], ["images/9.png", "images/10.png"]),
    "wise": (["a round pastry", "ice in the sun"], ["1.png", "761.png"]),
    "oneig": (
        ['a girl, "smiling"', "a plant that bends to light"],
        ["images/anime/janus/000.webp", "images/reasoning/janus/000.webp"],
    ),
    "imgedit": (["Make the shell smooth.", "Paint it as a woodblock print."], ["1082.png", "673.png"]),
    "gedit": (
        ["make it red", "变成红色", "add a hat"],
        [f"janus/fullset/{place}.png" for place in ("color_alter/en/a1", "color_alter/cn/a1", "subject-add/en/b2")],
    ),
    "coco": (["A red bus.", "A cat on a mat."], ["images/000000000004.png", "images/000000000009.png"]),
    "t2i-compbench": (
        ["a green bench and a blue bowl", "a red car", "The red hat was on top of the rack."],
        [
            *(f"color/samples/a green bench and a blue bowl_{number:06}.png" for number in range(10)),
            *(f"color/samples/a red car_{number:06}.png" for number in range(10, 20)),
            *(f"complex/samples/The red hat was on top of the rack._{number:06}.png" for number in range(10)),
        ],
    ),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_are_read_and_images_named(name: str, files: dict[str, Path]) -> None:
    benchmark, (texts, paths) = BENCHMARKS[name], EXPECTED[name]
    prompts = benchmark.read(files[name])
    assert [prompt.text for prompt in prompts] == texts
    assert len({prompt.key for prompt in prompts}) == len(prompts)
    assert [path for prompt in prompts for path in benchmark.files(prompt, benchmark.num_images, "janus")] == paths


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_prompt_file_of_another_form_is_refused(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    """Every other benchmark's, and files that are none."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"prompt": ')
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    others = [path for other, path in files.items() if other != name]
    for path in (*others, tmp_path / "empty", tmp_path / "broken.json", tmp_path / "latin.txt", tmp_path / "nothing"):
        with pytest.raises(ValueError) as refused:
            BENCHMARKS[name].read(path)
        assert str(path).split("/prompts/")[0] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("oneig", "OneIG-Bench.csv", "category,id,prompt_en\nPortrait,../../x,a\n", "cannot name an image's file"),
        ("oneig", "OneIG-Bench.csv", "category,id,prompt_en\nPortrait,1,a\nPortrait,1,b\n", "human/1 is there twice"),
        ("t2i-compbench", "t2i/color_val.txt", "a/b\n", "no '/'"),
        ("t2i-compbench", "t2i/color_val.txt", "a" * 250, "too long"),
        ("geneval", "evaluation_metadata.jsonl", '{"tag": "a", "include": [], "prompt": " "}\n', "line 1: the prompt is empty"),
        ("imgedit", "imgedit/basic_edit.json", '{"1": {"id": "../x.png", "prompt": "a", "edit_type": "add"}}', "leads out of"),
        (
            "imgedit",
            "imgedit/basic_edit.json",
            '{"1": {"id": "x.png", "prompt": "a", "edit_type": "add"}}',
            "there is no image",
        ),
        (
            "imgedit",
            "imgedit/basic_edit.json",
            '{"../1": {"id": "style/2.png", "prompt": "a", "edit_type": "b"}}',
            "cannot name",
        ),
        ("wise", "wise/a_verified.json", '[{"Prompt": "a", "prompt_id": 761}]', "761 is there twice"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(
    name: str, file: str, text: str, told: str, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "prompts" / file).write_text(text)
    with pytest.raises(ValueError, match=told):
        BENCHMARKS[name].read(files[name])


def test_some_prompts_are_always_the_same_ones_and_numbered_anew() -> None:
    prompts = [Prompt(f"{category}/{number}", "a", number) for category in ("color", "shape") for number in range(50)]
    some = choose_prompts(prompts, 30)
    assert {one.key for one in choose_prompts(prompts[::-1], 30)} == {one.key for one in some} and len(some) == 30
    assert {one.key for one in choose_prompts(prompts, 29)} < {one.key for one in some}
    for category in ("color", "shape"):
        mine = [one for one in some if one.key.startswith(category)]
        assert [one.number for one in mine] == [*range(len(mine))]
        assert [int(one.key.split("/")[1]) for one in mine] == sorted(int(one.key.split("/")[1]) for one in mine)
    assert choose_prompts(prompts, None) == choose_prompts(prompts, 100) == prompts


def test_seeds_are_stable_and_apart() -> None:
    """The first is written down: exports that were begun go on with the next version."""
    assert seed_of("geneval", 0, "a photo of a bench", 0, 0) == SEED
    seeds = {seed_of(*one) for one in (("a", 0, "b", 0, 0), ("a", 1, "b", 0, 0), ("a", 0, "b", 1, 0), ("a", 0, "b", 0, 1))}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


SEED = 7750702727814496536


def test_errors_are_of_prompts_and_not_of_images() -> None:
    """Four equal images of a prompt say no more than one; independent ones are as the textbook has them."""
    mean, error, count = mean_and_error([[1.0] * 4, [0.0] * 4])
    assert (mean, count) == (0.5, 8) and error == pytest.approx(0.5)
    mean, error, count = mean_and_error([[value] for value in (1.0, 0.0, 0.0, 1.0, 1.0)])
    assert mean == pytest.approx(0.6) and error == pytest.approx((0.3 / 5) ** 0.5)
    assert mean_and_error([[1.0, 0.0]])[1] is None
