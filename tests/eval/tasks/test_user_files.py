"""Tasks on users' files: VQAv2, POPE, COCO's captions, text; what they score, and what they say of files of another form."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from unimm.eval import evaluate, load_task
from unimm.eval.fingerprints import describe_task
from unimm.eval.suites import choose_tasks
from unimm.eval.tasks.caption_files import CaptionFiles
from unimm.eval.tasks.perplexity import Perplexity
from unimm.eval.tasks.question_files import SINGLE_WORD, PopeFiles, VqaFiles
from unimm.inference.engine import Engine


class Saying:
    """An engine that says by the question, or by the number of the image, what it was told to."""

    def __init__(self, answers: list[str]) -> None:
        self.answers, self.asked = answers, []

    def answer(self, image, question, max_new_tokens):
        self.asked += zip(map(str, image), question if isinstance(question, list) else [question] * len(image), strict=True)
        return [self.answers.pop(0) for _ in image]

    def caption(self, image, max_new_tokens):
        return self.answer(image, "describe", max_new_tokens)


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    """Three images with questions, statements and captions, in the forms of VQAv2, POPE and COCO."""
    names = [f"COCO_val2014_{number:012}.jpg" for number in (7, 8, 9)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    def write(name: str, content) -> str:
        path = tmp_path / name
        lines = content if isinstance(content, str) else json.dumps(content)
        path.write_text(lines)
        return str(path)

    asked = [{"question_id": 10 + n, "image_id": n, "question": f"What is {n}?"} for n in (7, 8, 9)]
    given = {7: ["red"] * 10, 8: ["two"] * 2 + ["three"] * 8, 9: ["Yes."] * 3 + ["no"] * 7}
    answered = [
        {
            "question_id": 10 + n,
            "answer_type": "other" if n < 9 else "yes/no",
            "answers": [{"answer": one, "answer_id": place} for place, one in enumerate(given[n])],
        }
        for n in (7, 8, 9)
    ]
    pope = [
        {"question_id": n, "image": names[n % 3], "text": f"Is there a {n}?", "label": ("yes", "no")[n % 2]} for n in range(4)
    ]
    return SimpleNamespace(
        folder=tmp_path,
        names=names,
        write=write,
        questions=write("questions.json", {"data_subtype": "val2014", "questions": asked}),
        annotations=write("annotations.json", {"annotations": answered}),
        pope=write("coco_pope_random.json", "".join(json.dumps(one) + "\n" for one in pope)),
        captions=write(
            "captions.json",
            {
                "images": [{"id": n, "file_name": name} for n, name in zip((7, 8, 9), names, strict=True)],
                "annotations": [
                    {"image_id": n, "caption": text}
                    for n, several in {
                        7: ["A red ball.", "A ball on a mat."],
                        8: ["Two cats sleep."],
                        9: ["A dog runs."],
                    }.items()
                    for text in several
                ],
            },
        ),
    )


def test_vqa_is_scored_by_ten_annotators(files: SimpleNamespace) -> None:
    engine = Saying(["Red.", "2", "yes"])
    result = evaluate(engine, [VqaFiles(files.questions, files.annotations)], progress=False)["vqa"]
    assert [example.mark for example in result.examples] == pytest.approx([1.0, 0.6, 0.9])
    assert result.score == pytest.approx(2.5 / 3)
    assert result.details["yes/no"].value == pytest.approx(0.9)
    assert engine.asked[0] == (str(files.folder / files.names[0]), SINGLE_WORD.replace("{}", "What is 7?"))
    evaluate(other := Saying(["x"]), [VqaFiles(files.questions, files.annotations, prompt="{}", num_items=1)], progress=False)
    assert [question for _, question in other.asked] == ["What is 7?"]


def test_pope_has_five_numbers(files: SimpleNamespace) -> None:
    result = evaluate(Saying(["Yes", "Yes, it is.", "No", "no"]), [PopeFiles(files.pope)], progress=False)["pope"]
    assert result.score == 0.5 and result.details["random"].count == 4
    others = {name: score.value for name, score in result.other_scores.items()}
    assert others == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5, "f1 random": 0.5}


def test_janus_is_asked_without_a_system_prompt(files: SimpleNamespace, tiny_engine: Engine) -> None:
    """And else as any model: one that has no system prompt answers the same."""
    tasks = [PopeFiles(files.pope), PopeFiles(files.pope, prompt="janus", name="janus")]
    results = evaluate(tiny_engine, [*tasks], progress=False).results
    usual, janus = ([(one.prompt, one.answer) for one in results[name].examples] for name in ("pope", "janus"))
    assert janus == usual and tiny_engine.prompt_format.system_prompt == ""
    assert (tasks[0].system_prompt, tasks[1].system_prompt) == (None, "")


def test_captions_have_coco_s_scores(files: SimpleNamespace) -> None:
    result = evaluate(Saying(["A red ball.", "Two cats sleep.", "A cow."]), [CaptionFiles(files.captions)], progress=False)
    scores = result["captions"]
    assert scores.unit == "CIDEr-D" and 0 < scores.score < 10
    assert list(scores.other_scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]
    assert scores.other_scores["rouge_l"].value > 0.6


@pytest.mark.parametrize("kind", ["vqa", "pope", "captions"])
def test_answers_of_a_file_are_scored_without_asking(files: SimpleNamespace, kind: str) -> None:
    """As the model's own; no image is looked for."""
    for name in files.names:
        (files.folder / name).unlink()
    said = ["a red ball", "yes", "no"]
    if kind == "vqa":
        answers = files.write("a.json", [{"question_id": 17 + n, "answer": one} for n, one in enumerate(said)])
        task = VqaFiles(files.questions, files.annotations, answers=answers)
    elif kind == "pope":
        lines = [json.dumps({"question_id": n, "answer": one}) for n, one in enumerate([*said, "no"])]
        task = PopeFiles(files.pope, answers=files.write("a.jsonl", "\n".join(lines)))
    else:
        answers = files.write("a.json", [{"image_id": 7 + n, "caption": one} for n, one in enumerate(said)])
        task = CaptionFiles(files.captions, answers=answers)
    result = evaluate(Saying([]), [task], progress=False)[kind]
    assert [example.answer for example in result.examples][:3] == said


def test_wrong_files_are_named_in_a_sentence(files: SimpleNamespace) -> None:
    """A file of another form, images that are missing, answers that are missing."""
    with pytest.raises(
        ValueError, match=r"captions.json has no list 'questions', there is annotations, images: name another file"
    ):
        VqaFiles(files.captions, files.annotations)
    with pytest.raises(ValueError, match="do not belong together, or are none of VQAv2's"):
        VqaFiles(files.questions, files.write("none.json", {"annotations": [{"question_id": 1, "answers": []}]}))
    with pytest.raises(ValueError, match=r"line 1 has no question_id, there is data_subtype, questions: POPE's files have"):
        PopeFiles(files.questions)
    with pytest.raises(ValueError, match="question 3 is labelled 'maybe', not yes or no"):
        PopeFiles(files.write("p.json", '{"question_id": 3, "image": "a.jpg", "text": "Is?", "label": "maybe"}'))
    short = files.write("short.json", [{"question_id": 17, "answer": "red"}])
    with pytest.raises(ValueError, match=r"short.json lacks 2 of 3 answers, such as that of question_id 18: complete it"):
        VqaFiles(files.questions, files.annotations, answers=short)
    with pytest.raises(ValueError, match=r"line 1 has no caption, there is answer, image_id, question_id"):
        CaptionFiles(files.captions, answers=files.write("o.json", [{"question_id": 1, "answer": "x", "image_id": 7}]))
    twice = files.write("twice.json", [{"image_id": 7, "caption": "a"}] * 2)
    with pytest.raises(ValueError, match="answers image_id 7 a second time"):
        CaptionFiles(files.captions, answers=twice)
    with pytest.raises(ValueError, match=r"There is no file of answers nowhere.json"):
        PopeFiles(files.pope, answers="nowhere.json")
    (files.folder / files.names[1]).unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images are not in .*, such as COCO_val2014_000000000008.jpg: put them there"):
        VqaFiles(files.questions, files.annotations)
    assert VqaFiles(files.questions, files.annotations, num_items=1).num_items == 1
    with pytest.raises(ValueError, match="num_items is from 1 to the 3 questions"):
        VqaFiles(files.questions, files.annotations, num_items=4)
    with pytest.raises(ValueError, match=r"with \{\} in its place, or is janus, not 'Answer'"):
        PopeFiles(files.pope, prompt="Answer")


def test_bits_per_byte_are_those_of_a_forward_pass(tiny_engine: Engine, tmp_path: Path) -> None:
    """Of texts shorter than a window, by hand; and in windows no token is lost."""
    texts = ["A small red circle and a large blue square.", "两个大的蓝色正方形。"]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    result = evaluate(tiny_engine, [Perplexity(str(tmp_path / "a.txt"), documents="line")], progress=False)["perplexity"]
    tokenizer = tiny_engine.tokenizer
    from unimm.sequence import Segment, Sequence

    wanted = [
        Sequence((Segment.text([tokenizer.special.bos]), Segment.text(tokenizer.encode(text), learn=True))) for text in texts
    ]
    bits = -sum(one.logprob for one in tiny_engine.loglikelihood(wanted)) / math.log(2)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert result.score == pytest.approx(bits / num_bytes, rel=1e-5)
    assert (result.unit, result.higher_is_better) == ("bits/byte", False)
    assert result.measures["byte_perplexity"] == pytest.approx(2**result.score)
    short = evaluate(tiny_engine, [Perplexity(str(tmp_path), documents="line", max_length=8)], progress=False)["perplexity"]
    assert short.measures["num_tokens"] == result.measures["num_tokens"] and short.measures["num_bytes"] == num_bytes
    with pytest.raises(ValueError, match="There is no file at"):
        Perplexity(str(tmp_path / "none.txt"))


def test_another_file_of_answers_or_folder_or_text_is_another_task(files: SimpleNamespace, tmp_path: Path) -> None:
    """What lies in files counts, not what they are called."""

    def vqa(color: str) -> dict:
        answers = [{"question_id": 10 + n, "answer": color} for n in (7, 8, 9)]
        return describe_task(VqaFiles(files.questions, files.annotations, answers=files.write("answers.json", answers)))

    def text(content: str) -> dict:
        (tmp_path / "text.txt").write_text(content)
        return describe_task(Perplexity(str(tmp_path / "text.txt")))

    blurred = tmp_path / "blurred"
    blurred.mkdir()
    for name in files.names:
        (blurred / name).parent.mkdir(parents=True, exist_ok=True)
        (blurred / name).write_bytes((files.folder / name).read_bytes())
    assert vqa("red") != vqa("blue") and text("One.") != text("Two.")
    assert describe_task(PopeFiles(files.pope)) != describe_task(PopeFiles(files.pope, images=str(blurred)))


def test_too_few_annotators_are_told_of(files: SimpleNamespace) -> None:
    one = [{"question_id": 10 + n, "answer_type": "other", "answers": [{"answer": "red", "answer_id": 0}]} for n in (7, 8, 9)]
    with pytest.raises(ValueError, match="has 1 annotators' answers: VQA accuracy"):
        VqaFiles(files.questions, files.write("few.json", {"annotations": one}))


def test_they_are_named_in_the_shell(files: SimpleNamespace) -> None:
    """By short names with their files as arguments, beside tasks of a suite or alone."""
    task = load_task(f"vqa?questions={files.questions}&annotations={files.annotations}&num_items=2&name=okvqa")
    assert (task.name, task.num_items) == ("okvqa", 2)
    plain = load_task(f"pope?paths={files.pope}&prompt={{}}")
    assert isinstance(plain, PopeFiles) and plain.prompt == "{}"
    assert [task.name for task in choose_tasks([f"pope?paths={files.pope}", "perplexity", "hallucination?ask=questions"])] == [
        "pope", "perplexity", "hallucination_questions",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"does not take these arguments \(missing a required argument: 'questions'\)"):
        load_task("vqa")
    with pytest.raises(ValueError, match="hallucination asks for captions or questions, not 'songs'"):
        load_task("hallucination?ask=songs")


def test_files_are_asked_with_votes_and_verified(files: SimpleNamespace) -> None:
    """As the arguments say; and what is no argument is refused."""
    told = []
    engine = SimpleNamespace(
        answer=lambda image, question, **settings: told.append(settings) or ["yes"] * len(image),
        caption=lambda image, **settings: told.append(settings) or ["A dog."] * len(image),
    )
    names = (f"pope?paths={files.pope}", f"captions?annotations={files.captions}")
    for name in names:
        evaluate(engine, [load_task(f"{name}&votes=3&verify=true")], progress=False)  # type: ignore[arg-type]
    assert [(one["votes"], one["verify"]) for one in told] == [(3, True)] * 2
    for wrong, words in (("vote=3", "does not take vote"), ("votes=0", "votes"), ("votes=3&prompt=janus", "without votes")):
        with pytest.raises(ValueError, match=words):
            load_task(f"{names[0]}&{wrong}")
