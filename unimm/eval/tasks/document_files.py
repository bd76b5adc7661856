"""Questions about documents and charts in users' files: DocVQA's (and InfographicVQA's) and ChartQA's, as they are released.

    unimm eval --task "docvqa?questions=val_v1.0_withQT.json&images=spdocvqa_images"
    unimm eval --task "chartqa?paths=test_*.json&images=png"

They are asked as `unimm.eval.tasks.question_files` tells. A model reads such pictures only if it sees large ones
(recipes/large_pictures.md).
"""

from pathlib import Path
from typing import Any

from unimm.data.readers.annotated import read_lists
from unimm.data.readers.paths import Paths
from unimm.eval.scorers.documents import anls, is_relaxed_match
from unimm.eval.task import Example
from unimm.eval.tasks.answer_files import read_entries
from unimm.eval.tasks.question_files import SINGLE_WORD, FileQuestion, FileQuestions

SPLITS = ("human", "augmented")
"""ChartQA's: questions that people wrote, and those that were made from summaries."""


class DocVqaFiles(FileQuestions):
    """ANLS of DocVQA's questions (arXiv 2007.00398); the mean over all.

    questions: the file, {"data": [{"questionId", "question", "image", "answers"}, ...]}; that of the test split has no answers,
    and is refused. images: the folder of images; default: that of the file. The folder that is named before an image in the
    file ("documents/") may be left out.
    """

    def __init__(
        self,
        questions: str,
        images: str | None = None,
        num_items: int | None = None,
        prompt: str = SINGLE_WORD,
        answers: str | None = None,
        name: str = "docvqa",
        **checks: Any,
    ) -> None:
        root = Path(images) if images else Path(questions).parent
        read = [_document_question(one, questions, root) for one in read_lists(Path(questions), ("data",))["data"]]
        super().__init__(name, read, root, num_items, prompt, answers, **checks)

    def judge(self, question: FileQuestion, prompt: str, answer: str) -> Example:
        value = anls(answer, question.answers)
        return Example(question.key, prompt, question.answers[0], answer, value > 0, category=question.category, value=value)


class ChartQaFiles(FileQuestions):
    """Relaxed accuracy of ChartQA's questions (arXiv 2203.10244); by split where files are named so.

    paths: its files, [{"imgname", "query", "label"}, ...]. images: the folder of images; default: that of the files.
    """

    def __init__(
        self,
        paths: Paths,
        images: str | None = None,
        num_items: int | None = None,
        prompt: str = SINGLE_WORD,
        answers: str | None = None,
        name: str = "chartqa",
        **checks: Any,
    ) -> None:
        read: list[FileQuestion] = []
        root = Path(images) if images else None
        for path, entry in read_entries(paths, ("imgname", "query", "label"), "ChartQA's"):
            root = root or path.parent
            split = next((one for one in SPLITS if one in path.stem.lower()), "")
            image, right = str(entry["imgname"]), (str(entry["label"]),)
            read.append(FileQuestion(f"{path.stem}/{len(read)}", str(entry["query"]), image, right, split))
        super().__init__(name, read, root or Path(), num_items, prompt, answers, **checks)

    def judge(self, question: FileQuestion, prompt: str, answer: str) -> Example:
        is_right = is_relaxed_match(answer, question.answers[0])
        return Example(question.key, prompt, question.answers[0], answer, is_right, category=question.category)


def _document_question(entry: Any, questions: str, root: Path) -> FileQuestion:
    """A question of DocVQA's file. ValueError: it has another form."""
    try:
        image, answers = str(entry["image"]), tuple(str(answer) for answer in entry["answers"])
        key, text = str(entry["questionId"]), str(entry["question"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{questions} is none of DocVQA's files with answers ({error} is missing): name that of val."
        ) from None
    if not answers:
        raise ValueError(f"{questions}: question {key} has no answers: name the file of val.")
    bare = Path(image).name
    return FileQuestion(key, text, image if (root / image).is_file() else bare, answers)
