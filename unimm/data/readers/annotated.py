"""Data sets whose images and texts lie in files of their own: COCO's captions, VQAv2's questions, MMC4's documents.

    COCO    captions_train2017.json        {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    VQAv2   v2_..._questions.json          {"data_subtype": "train2014", "questions": [{"image_id", "question", "question_id"}]}
            v2_..._annotations.json        {"annotations": [{"question_id", "multiple_choice_answer", "answers"}]}
    MMC4    docs_....jsonl                 {"text_list": [...], "image_info": [{"image_name", "matched_text_index"}]}

The JSON of the first two is read once, whole; images are opened when they are needed. What has no partner (an annotation of an
image that is not listed, a question without an answer) is an error, unless its file says that it is of a test set.
Source: cocodataset.org/#format-data; visualqa.org/download.html; allenai/mmc4, README.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.paths import Paths, check_index, image_at, read_first, short
from unimm.data.records import Question, Record, Text

VQA_NAME = "COCO_{subset}_{image_id:012}.jpg"
"""How VQAv2's images are called: those of COCO 2014."""


class ByImage:
    """Records, one an image: its name below a folder, and what is said of it. A key is the name."""

    def __init__(self, root: Path, said: dict[str, list[Any]]) -> None:
        self.root = root
        self._names, self._said = list(said), list(said.values())
        read_first(self)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        name = self._names[index]
        return self.record(name, self._said[index], image_at(self.root, name, f"record {name}"))

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        check_index(index, len(self))
        return self._names[index]

    def record(self, name: str, said: list[Any], image: Any) -> Record:
        """The record of an image."""
        raise NotImplementedError


class CocoCaptions(ByImage):
    """COCO's captions: an image is a record with all of its captions.

    Args:
        annotations: the file of annotations. images: the folder of images; default: that of the file.
        language: of the captions.

    Raises ValueError, at once where the file is none of COCO's, or no image of the first is there; else when it is read.
    """

    def __init__(self, annotations: str | Path, images: str | Path | None = None, language: str = "en") -> None:
        self.language = language
        said: dict[str, list[str]] = {}
        for one in read_coco_captions(annotations):
            said.setdefault(one.name, []).extend(one.captions)
        super().__init__(Path(annotations).parent if images is None else Path(images), said)

    def record(self, name: str, said: list[str], image: Any) -> Record:
        """An image with its captions."""
        texts = [text.strip() for text in said if text.strip()]
        if not texts:
            raise ValueError(f"record {name} has no caption: write one, or take the image out.")
        return Record(name, image, tuple(Text(text, self.language) for text in texts))


@dataclass(frozen=True)
class CocoImage:
    """An image of COCO with its captions, perhaps none. name: of its file."""

    image_id: str
    name: str
    captions: tuple[str, ...]


def read_coco_captions(annotations: str | Path) -> list[CocoImage]:
    """The images of a file of COCO's captions, in its order.

    Raises ValueError where the file is none of COCO's, or holds no captions.
    """
    held = read_lists(Path(annotations), ("images", "annotations"))
    try:
        names = {one["id"]: str(one["file_name"]) for one in held["images"]}
        said: dict[Any, list[str]] = {image_id: [] for image_id in names}
        for one in held["annotations"]:
            said[one["image_id"]].append(str(one["caption"]))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations}: an annotation or image lacks {error}: COCO's captions have image_id and caption."
        ) from None
    if not any(said.values()):
        raise ValueError(f"{annotations} holds no captions: name captions_....json.")
    return [CocoImage(str(image_id), names[image_id], tuple(captions)) for image_id, captions in said.items()]


class VqaQuestions(ByImage):
    """VQAv2's questions: an image is a record with all of its questions, which do not lean on each other.

    Args:
        questions, annotations: the two files. images: the folder of images; default: that of the questions.
        name: how an image is called, by its image_id and by the `subset` that the questions are of.

    Raises ValueError, at once where a question has no answer or the files are others, else when an image is not there.
    """

    def __init__(
        self, questions: str | Path, annotations: str | Path, images: str | Path | None = None, name: str = VQA_NAME
    ) -> None:
        asked = read_lists(Path(questions), ("questions",))
        answered = read_lists(Path(annotations), ("annotations",))
        try:
            answers = {one["question_id"]: _answer(one) for one in answered["annotations"]}
            subset = asked.get("data_subtype", answered.get("data_subtype", ""))
            said: dict[str, list[tuple[str, str, str]]] = {}
            for one in asked["questions"]:
                image = name.format(subset=subset, image_id=one["image_id"])
                said.setdefault(image, []).append((str(one["question"]), *answers[one["question_id"]]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{questions} and {annotations} do not belong together, or are none of VQAv2's ({error})."
            ) from None
        super().__init__(Path(questions).parent if images is None else Path(images), dict(said))

    def record(self, name: str, said: list[tuple[str, str, str]], image: Any) -> Record:
        """An image with its questions."""
        return Record(name, image, questions=tuple(Question(asked, answer, kind) for asked, answer, kind in said))


@dataclass(frozen=True)
class VqaItem:
    """A question of VQAv2 with the answers of all its annotators. image: its name. answer_type: "yes/no", "number", "other"."""

    question_id: int | str
    question: str
    image: str
    answers: tuple[str, ...]
    answer_type: str


def read_vqa(questions: str | Path, annotations: str | Path, name: str = VQA_NAME) -> list[VqaItem]:
    """The questions of VQAv2's two files, or of files of their form (OK-VQA), in their order; arguments as of `VqaQuestions`.

    Raises ValueError where a question has no answers or the files are others.
    """
    asked = read_lists(Path(questions), ("questions",))
    answered = read_lists(Path(annotations), ("annotations",))
    try:
        by_id = {one["question_id"]: one for one in answered["annotations"]}
        subset = asked.get("data_subtype", answered.get("data_subtype", ""))
        return [
            VqaItem(
                one["question_id"],
                str(one["question"]),
                name.format(subset=subset, image_id=one["image_id"]),
                tuple(str(answer["answer"]) for answer in by_id[one["question_id"]]["answers"]),
                str(by_id[one["question_id"]].get("answer_type", "")),
            )
            for one in asked["questions"]
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{questions} and {annotations} do not belong together, or are none of VQAv2's ({error}).") from None


def _answer(one: Mapping[str, Any]) -> tuple[str, str]:
    """The answer that most gave, and of which type the question is."""
    return str(one.get("multiple_choice_answer") or one["answers"][0]["answer"]), str(one.get("question_type", ""))


def read_lists(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that has a list under each of these names. ValueError: the file is none such."""
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}: name the file of annotations.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): copy or download it again.") from None
    lacking = [name for name in names if not isinstance(held, dict) or not isinstance(held.get(name), list)]
    if lacking:
        there = ", ".join(sorted(held)) if isinstance(held, dict) else short(held)
        raise ValueError(f"{path} has no list '{lacking[0]}', there is {there}: name another file.")
    return held


class Mmc4(JsonLines):
    """MMC4's documents, in .jsonl files: sentences, and images that belong to one of them and stand before it.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        root: the folder of images; default: that of the file.
        language: of the texts.

    Raises ValueError, at once where there is nothing or the first entries are bad, else when the bad entry is read: also where
    an image was not downloaded.
    """

    def __init__(self, paths: Paths, root: str | Path | None = None, language: str = "en") -> None:
        super().__init__(paths, Fields(image="images", texts="texts", default_language=language), root)

    def entry(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """The document as lists of texts and images, null where the other stands."""
        texts, images = item.get("text_list"), item.get("image_info")
        if not isinstance(texts, list) or not isinstance(images, list):
            raise ValueError(f"{where} has no lists text_list and image_info, there is {', '.join(sorted(item)) or 'nothing'}.")
        before: dict[int, list[Any]] = {}
        for one in images:
            at = one.get("matched_text_index") if isinstance(one, dict) else None
            if not isinstance(at, int) or not 0 <= at < len(texts) or not one.get("image_name"):
                raise ValueError(
                    f"{where}: an image has image_name and matched_text_index below {len(texts)}, not {short(one)}."
                )
            before.setdefault(at, []).append(one["image_name"])
        places = [
            pair for number, text in enumerate(texts) for pair in (*((None, i) for i in before.get(number, ())), (text, None))
        ]
        return {"texts": [text for text, _ in places], "images": [image for _, image in places]}
