"""Questions in users' files: VQAv2's and OK-VQA's, scored by ten annotators' answers, and POPE's, answered by yes or no.

    unimm eval --task "vqa?questions=v2_..._questions.json&annotations=v2_..._annotations.json&images=val2014"
    unimm eval --task "pope?paths=coco_pope_random.json&images=val2014"

Questions are asked as LLaVA, lmms-eval and VLMEvalKit ask them, with SINGLE_WORD behind them; `prompt` writes them otherwise,
"{}" standing for the question. A model that was taught no such instruction is asked with prompt={}. With prompt=janus nothing
is said before them either, whatever the model's system prompt: so VLMEvalKit asks Janus.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimm.data.readers.annotated import VQA_NAME, read_vqa
from unimm.data.readers.paths import Paths
from unimm.data.records import ImageLike
from unimm.eval.score import Score
from unimm.eval.scorers.vqa import vqa_accuracy
from unimm.eval.scorers.yes_no import READINGS, YES, YesNoScores, read_yes_no, yes_no_scores
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.answer_files import digest, find_images, read_answers, read_entries, take
from unimm.eval.tasks.answers import find_checks, set_checks
from unimm.inference.engine import Engine

SINGLE_WORD = "{}\nAnswer the question using a single word or phrase."

JANUS = "janus"

MAX_NEW_TOKENS = 16
"""Of an answer: a word or a phrase."""

ENOUGH_ANSWERS = 4
"""Of annotators: an answer is wholly right where three others gave it."""

STRATEGIES = ("random", "popular", "adversarial")
"""How POPE chose what is not there, from easy to hard."""


@dataclass(frozen=True)
class FileQuestion:
    """A question with the name of its image and what is right: annotators' answers, or one label."""

    key: str
    text: str
    image: str
    answers: tuple[str, ...]
    category: str = ""


class FileQuestions(ItemTask):
    """Questions, asked in batches; or answers of a file in their place.

    Args:
        questions: of which the first `num_items` are asked.
        root: the folder of images.
        prompt: how a question is asked, {} standing for it; or "janus".
        answers: a file of answers to score instead.
        checks: votes and verify, as `Engine.answer` has them; not with the prompt "janus".
    """

    def __init__(
        self,
        name: str,
        questions: list[FileQuestion],
        root: Path,
        num_items: int | None = None,
        prompt: str = SINGLE_WORD,
        answers: str | None = None,
        **checks: Any,
    ) -> None:
        prompt = str(prompt)  # "{}" in the shell is an empty object of JSON
        if "{}" not in prompt and prompt != JANUS:
            raise ValueError(f"prompt says how a question is asked, with {{}} in its place, or is janus, not {prompt!r}.")
        self.name = name
        set_checks(self, **checks)
        if prompt == JANUS and find_checks(self):
            raise ValueError("prompt=janus asks as VLMEvalKit did, without votes and verify: leave one of them out.")
        self.prompt, self.system_prompt = (SINGLE_WORD, "") if prompt == JANUS else (prompt, None)
        self._questions: list[FileQuestion] = take(questions, num_items, "questions")
        self.num_items = len(self._questions)
        self.items = digest(part for one in self._questions for part in (one.key, one.text, one.image, *one.answers))
        keys = [question.key for question in self._questions]
        self._answers = None if answers is None else read_answers(answers, "question_id", "answer", keys)
        self.answers = None if self._answers is None else digest(part for one in self._answers.items() for part in one)
        self.images = str(root)
        self._images: dict[str, ImageLike] = {}
        if answers is None:
            self._images = find_images(root, [question.image for question in self._questions])

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these questions."""
        questions = [self._questions[item] for item in items]
        prompts = [self.prompt.replace("{}", question.text) for question in questions]
        if self._answers is not None:
            answers = [self._answers[question.key] for question in questions]
        else:
            answers = self._ask(engine, [self._images[question.image] for question in questions], prompts)
        for question, prompt, answer in zip(questions, prompts, answers, strict=True):
            yield self.judge(question, prompt, answer)

    def judge(self, question: FileQuestion, prompt: str, answer: str) -> Example:
        """The example of an answer."""
        raise NotImplementedError

    def _ask(self, engine: Engine, images: list[ImageLike], prompts: list[str]) -> list[str]:
        if self.system_prompt is None:
            return engine.answer(images, prompts, max_new_tokens=MAX_NEW_TOKENS, **find_checks(self))
        conversations = [
            [
                {"role": "system", "content": self.system_prompt},
                {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]},
            ]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return [completion.text for completion in engine.complete(conversations, MAX_NEW_TOKENS)]


class VqaFiles(FileQuestions):
    """VQA accuracy of VQAv2's questions, or of files of their form; the mean over all, and by the type of answer.

    questions, annotations: the two files. images: the folder of images; default: that of the questions. image_name: how an
    image is called, by its image_id and by the `subset` that the questions are of.
    """

    def __init__(
        self,
        questions: str,
        annotations: str,
        images: str | None = None,
        image_name: str = VQA_NAME,
        num_items: int | None = None,
        prompt: str = SINGLE_WORD,
        answers: str | None = None,
        name: str = "vqa",
        **checks: Any,
    ) -> None:
        read = [
            FileQuestion(str(one.question_id), one.question, one.image, one.answers, one.answer_type)
            for one in read_vqa(questions, annotations, image_name)
        ]
        fewest = min((len(one.answers) for one in read), default=ENOUGH_ANSWERS)
        if fewest < ENOUGH_ANSWERS:
            raise ValueError(
                f"A question of {annotations} has {fewest} annotators' answers: VQA accuracy asks 3 of the others to agree, so "
                f"it needs {ENOUGH_ANSWERS} or more (VQAv2 has 10)."
            )
        super().__init__(name, read, Path(images) if images else Path(questions).parent, num_items, prompt, answers, **checks)

    def judge(self, question: FileQuestion, prompt: str, answer: str) -> Example:
        value = vqa_accuracy(answer, list(question.answers))
        return Example(
            key=question.key,
            prompt=prompt,
            expected=max(question.answers, key=question.answers.count),
            answer=answer,
            correct=value > 0,
            category=question.category,
            value=value,
        )


class PopeFiles(FileQuestions):
    """POPE's accuracy, and beside it precision, recall, F1 and the ratio of yes; by strategy where files are named so.

    paths: POPE's files, a line each {"question_id", "image", "text", "label"}. images: the folder of images; default: that of
    the files. reading: of READINGS.
    """

    def __init__(
        self,
        paths: Paths,
        images: str | None = None,
        reading: str = READINGS[0],
        num_items: int | None = None,
        prompt: str = SINGLE_WORD,
        answers: str | None = None,
        name: str = "pope",
        **checks: Any,
    ) -> None:
        read_yes_no("", reading)
        self.reading = reading
        entries = list(read_entries(paths, ("question_id", "image", "text", "label"), "POPE's"))
        files = list(dict.fromkeys(path for path, _ in entries))
        read = []
        for path, entry in entries:
            label = str(entry["label"]).strip().lower()
            if label not in ("yes", "no"):
                raise ValueError(f"{path}: question {entry['question_id']} is labelled {entry['label']!r}, not yes or no.")
            strategy = next((one for one in STRATEGIES if one in path.stem.lower()), path.stem if len(files) > 1 else "")
            key = str(entry["question_id"]) if len(files) == 1 else f"{path.stem}/{entry['question_id']}"
            read.append(FileQuestion(key, str(entry["text"]), str(entry["image"]), (label,), strategy))
        super().__init__(name, read, Path(images) if images else files[0].parent, num_items, prompt, answers, **checks)

    def judge(self, question: FileQuestion, prompt: str, answer: str) -> Example:
        return Example(
            key=question.key,
            prompt=prompt,
            expected=question.answers[0],
            answer=answer,
            correct=read_yes_no(answer, self.reading) == question.answers[0],
            category=question.category,
        )

    def score(self, examples: list[Example]) -> Result:
        """POPE's five numbers."""
        return yes_no_result(self.name, examples, lambda example: read_yes_no(example.answer, self.reading))


def yes_no_result(name: str, examples: list[Example], read: Callable[[Example], str | None]) -> Result:
    """Accuracy, and beside it POPE's other four numbers, for all and (F1) for every category.

    read: an example's answer as "yes", "no" or None; `expected` is one of the first two.
    """

    def numbers(some: Iterable[Example]) -> YesNoScores:
        some = list(some)
        return yes_no_scores([read(example) for example in some], [example.expected for example in some])

    scores = numbers(examples)
    asked = sum(example.expected == YES for example in examples)
    others = {
        "precision": Score.share(scores.precision, max(round(scores.yes_ratio * scores.count), 1)),
        "recall": Score.share(scores.recall, max(asked, 1)),
        "f1": Score(scores.f1, scores.count, None),
        "yes_ratio": Score.share(scores.yes_ratio, scores.count),
    }
    for category in sorted({example.category for example in examples} - {""}):
        part = numbers(example for example in examples if example.category == category)
        others[f"f1 {category}"] = Score(part.f1, part.count, None)
    return summarize(name, examples, other_scores=others)
