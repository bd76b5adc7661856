"""Preferences as users hold them: two answers to a prompt, or two images of it, and which one is better; or one of them, and
whether it is good.

    TRL              {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "images": ["1.png"]}
    ... of turns     {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    ... implicit     {"chosen": [user, assistant], "rejected": [user, assistant]}, whose turns begin alike; two texts, too
    LLaMA-Factory    {"conversations": [...], "chosen": {"from": "gpt", ...}, "rejected": {...}}
    ms-swift         {"messages": [..., {"role": "assistant", ...}], "rejected_response": "A dog."}
    RLHF-V           {"question": "...", "chosen": "...", "rejected": "...", "image": ...}, or these as JSON under "text"
    HPDv2            {"prompt": "...", "image_path": ["a.jpg", "b.jpg"], "human_preference": [1, 0]}
    ImageReward      {"prompt": "...", "images": ["a.jpg", "b.jpg"], "rank": [2, 1]}, of two or more: the best and the worst
    Pick-a-Pic       {"caption": "...", "jpg_0": ..., "jpg_1": ..., "label_0": 1.0, "label_1": 0.0}
    TRL, unpaired    {"prompt": "What is it?", "completion": "A cat.", "label": true, "images": ["1.png"]}
    ... of turns     {"messages": [..., {"role": "assistant", ...}], "label": false}, ms-swift's; LLaMA-Factory's "kto_tag"
    unimm, unpaired  {"prompt": "...", "image": "a.png", "label": true, "codes": [...]}
    unimm            {"prompt": "...", "chosen_image": "a.png", "rejected_image": "b.png", "chosen_codes": [...], ...}

The last is what `unimm data prefer` writes, with the codes that were sampled: encoding a drawing again would give others. All
others need `unimm encode` before drawings are learned from them. A tie prefers nothing and is refused, as is what lacks a half.
Source: TRL, dataset_formats; openbmb/RLHF-V-Dataset; tgxs002/HPSv2; THUDM/ImageRewardDB; yuvalkirstain/pickapic_v2.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unimm.data.readers.conversations import ASSISTANT, USER, read_talk
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.paths import Paths, short
from unimm.data.records import DEFAULT_CODES, DatasetContext, ImageLike, Record, RecordImage, Text

IMAGES = ("image", "images", "image_path", "image_paths")
ASKED = ("prompt", "question", "caption", "query", "instruction")
TURNS = ("conversations", "messages")
LABELS = ("label", "kto_tag")
PAIRED = {"chosen", "rejected", "rejected_response", "chosen_image", "rejected_image", "jpg_0", "jpg_1"}
HIGHER, LOWER = ("human_preference", "preference"), ("rank", "ranking")
"""Numbers of images: of which the highest is the best one, and the lowest."""

Open = Callable[[Any], ImageLike]


class PreferenceFields:
    """How an entry of any of these forms becomes a record: what `Fields` is for captions.

    language: of entries that name none.
    """

    image = "image"
    names = frozenset(
        [
            *(
                *IMAGES,
                *ASKED,
                *TURNS,
                *LABELS,
                *HIGHER,
                *LOWER,
                "completion",
                "codes",
                "chosen",
                "rejected",
                "rejected_response",
                "text",
                "language",
                "system",
            ),
            *("jpg_0", "jpg_1", "label_0", "label_1"),
            *(f"{one}_{what}" for one in ("chosen", "rejected") for what in ("image", "codes")),
        ]
    )
    optional = tuple(sorted(names))

    def __init__(self, language: str = "en") -> None:
        self.language = language

    def record(self, item: Mapping[str, Any], key: str, where: str, open_image: Open) -> Record:
        """The record of an entry, for the view `Preference`; arguments and errors as `Fields.record` has them."""
        item = {name: value for name, value in item.items() if value is not None}
        if "chosen" not in item and isinstance(item.get("text"), str):
            item |= _inner(item["text"], where)
        language = item.get("language", self.language)
        if not isinstance(language, str):
            raise ValueError(f"{where}: 'language' is a word such as \"en\", not {short(language)}.")
        if any(name in item for name in LABELS) and not {*PAIRED, *HIGHER, *LOWER} & item.keys():
            return _labelled(item, key, where, open_image, language)
        drawings = _drawings(item, where)
        if drawings is not None:
            prompt = next((item[name] for name in ASKED if name in item), None)
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(f"{where}: two images are compared by a prompt, and it has none: give it a 'prompt'.")
            one, other = (RecordImage(open_image(image), codes) for image, codes in drawings)
            codes = one.codes.get(DEFAULT_CODES)
            return Record(key, one.image, prompts=(Text(prompt.strip(), language),), codes=codes, others=(other,))
        return _answers(item, key, where, open_image, language)


class PreferenceJson(JsonLines):
    """Preferences in .jsonl or .json files.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        root: the folder that image paths start from; default: that of the file.
        language: of entries that do not name theirs.

    Raises ValueError, at once where there is nothing or the first entry is bad, else when the bad entry is read.
    """

    def __init__(self, paths: Paths, root: str | Path | None = None, language: str = "en") -> None:
        super().__init__(paths, PreferenceFields(language), root)  # pyright: ignore[reportArgumentType] - it does what Fields does

    def bind(self, context: DatasetContext) -> "PreferenceJson":
        """The same, if the codes that it holds are those of the image tokenizer that is used.

        Raises:
            ValueError: they are another one's.
        """
        items, number, _ = self.files.find(0)
        own = items[number].get("image_tokenizer")
        if own and context.tokenizer_hash and own != context.tokenizer_hash:
            raise ValueError(
                f"The drawings in {items.path} are codes of another image tokenizer ({own}) than the one that is used "
                f"({context.tokenizer_hash}): make them again with this model (unimm data prefer)."
            )
        return self


class PreferenceTables(Parquet):
    """Preferences in .parquet or .arrow files, as Hugging Face keeps them; arguments and errors as `PreferenceJson` and
    `Parquet` have them."""

    def __init__(
        self, paths: Paths, root: str | Path | None = None, language: str = "en", num_groups: int = 4, max_bad: float = 0.0
    ) -> None:
        super().__init__(paths, PreferenceFields(language), root, num_groups, max_bad)  # pyright: ignore[reportArgumentType]


def _inner(text: str, where: str) -> dict[str, Any]:
    """RLHF-V on the hub: question and answers as JSON in a text."""
    try:
        inner = json.loads(text)
    except ValueError:
        inner = None
    if not isinstance(inner, dict):
        raise ValueError(f"{where} holds no preference, but {short(text)} under 'text': give it chosen and rejected.")
    return inner


def _answers(item: Mapping[str, Any], key: str, where: str, open_image: Open, language: str) -> Record:
    """Two answers, about images or none."""
    turns, chosen, rejected = _parted(item, where)
    if not rejected.strip():
        raise ValueError(f"{where}: the rejected answer is empty: write one, or take the entry out.")
    return _talk(item, key, where, open_image, language, turns, chosen, rejected)


def _talk(
    item: Mapping[str, Any],
    key: str,
    where: str,
    open_image: Open,
    language: str,
    turns: list[Any],
    answer: str,
    rejected: str = "",
) -> Record:
    """A conversation that ends in an answer, with a worse one beside it where there is one."""
    held = [one for name in IMAGES for one in _listed(item.get(name))]
    talk = read_talk([*turns, {"role": ASSISTANT, "content": answer}], held, where, language)
    questions = list(talk.questions)
    vars(questions[-1])["rejected"] = rejected.strip()  # fresh from the reader, and not out of our hands yet
    opened = [open_image(one) for one in talk.images]
    return Record(
        key,
        image=opened[0] if opened else None,
        questions=tuple(questions),
        is_dialogue=True,
        others=tuple(RecordImage(one) for one in opened[1:]),
        system=str(item.get("system") or "") or talk.system,
    )


def _labelled(item: Mapping[str, Any], key: str, where: str, open_image: Open, language: str) -> Record:
    """One answer, or one image of a prompt, and whether it is good."""
    label = next(item[name] for name in LABELS if name in item)
    if label not in (True, False):
        raise ValueError(f"{where}: a label is true or false, not {short(label)}.")
    completion = item.get("completion")
    before = next((item[name] for name in (*TURNS, *ASKED) if name in item), None)
    if completion is None and isinstance(before, list) and len(before) > 1:
        *before, completion = before
    if completion is not None and before is not None:
        talk = _talk(item, key, where, open_image, language, _turns_of(before, where), _last_words(completion, where))
        return replace(talk, label=bool(label))
    images = [one for name in IMAGES for one in _listed(item.get(name))]
    if len(images) != 1 or not isinstance(before, str) or not before.strip():
        raise ValueError(
            f"{where} has {', '.join(sorted(item))}: what is labelled is a 'completion' of a 'prompt', or one image of it."
        )
    codes = _codes(item.get("codes"), where).get(DEFAULT_CODES)
    return Record(key, open_image(images[0]), prompts=(Text(before.strip(), language),), codes=codes, label=bool(label))


def _parted(item: Mapping[str, Any], where: str) -> tuple[list[Any], str, str]:
    """The turns before, and the two answers."""
    chosen, rejected = item.get("chosen"), item.get("rejected", item.get("rejected_response"))
    before = next((item[name] for name in (*TURNS, *ASKED) if name in item), None)
    if chosen is None and isinstance(before, list) and before:
        *before, chosen = before  # the last turn is the chosen answer
    if chosen is None or rejected is None:
        raise ValueError(f"{where} has {', '.join(sorted(item)) or 'nothing'}: a preference has 'chosen' and 'rejected'.")
    if before is None:
        before, chosen, rejected = _implicit(chosen, rejected, where)
    return _turns_of(before, where), _last_words(chosen, where), _last_words(rejected, where)


def _turns_of(before: Any, where: str) -> list[Any]:
    """What stands before an answer, a text or turns, as turns."""
    if isinstance(before, str):
        return [{"role": USER, "content": before}]
    if not isinstance(before, list):
        raise ValueError(f"{where}: a prompt is a text or a list of turns, not {short(before)}.")
    return list(before)


def _implicit(chosen: Any, rejected: Any, where: str) -> tuple[Any, Any, Any]:
    """The prompt that both begin with, and what is left of them."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise ValueError(f"{where}: chosen and rejected are two texts or two lists of turns, without a prompt beside them.")
    same = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        same = chosen[:same].rfind(" ") + 1  # words stay whole
    if not chosen[:same].strip() if isinstance(chosen, str) else not same:
        raise ValueError(f"{where}: there is no prompt, and chosen and rejected do not begin alike: give it a 'prompt'.")
    return chosen[:same], chosen[same:], rejected[same:]


def _last_words(answer: Any, where: str) -> str:
    """An answer as a text, of a text, a turn, or a list of one turn."""
    turns = answer if isinstance(answer, list) else [answer]
    if len(turns) != 1:
        raise ValueError(f"{where}: of {len(turns)} turns one is compared: write those before into the prompt.")
    words = turns[0]
    if isinstance(words, Mapping):
        words = words.get("content", words.get("value"))
    if isinstance(words, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in words):
        words = "\n".join(str(part.get("text")) for part in words)
    if not isinstance(words, str):
        raise ValueError(f"{where}: an answer is a text, not {short(words)}.")
    return words


def _drawings(item: Mapping[str, Any], where: str) -> tuple[tuple[Any, dict[str, np.ndarray]], ...] | None:
    """The better and the worse image with the codes that are known; None where answers are compared."""
    if "chosen_image" in item and "rejected_image" in item:
        return tuple((item[f"{one}_image"], _codes(item.get(f"{one}_codes"), where)) for one in ("chosen", "rejected"))
    numbers: list[Any]
    if "jpg_0" in item and "jpg_1" in item:
        images, numbers = [item["jpg_0"], item["jpg_1"]], [item.get("label_0"), item.get("label_1")]
    else:
        name = next((name for name in (*HIGHER, *LOWER) if name in item), None)
        if name is None:
            return None
        images = next((item[name] for name in IMAGES if isinstance(item.get(name), list)), [])
        numbers = item[name] if isinstance(item[name], list) else []
        numbers = [-one for one in numbers] if name in LOWER and all(map(_is_number, numbers)) else numbers
    if len(images) < 2 or len(images) != len(numbers) or not all(map(_is_number, numbers)):
        raise ValueError(f"{where}: {len(images)} images are compared by {short(numbers)}: give each image a number.")
    best, worst = numbers.index(max(numbers)), numbers.index(min(numbers))
    if best == worst:
        raise ValueError(f"{where} prefers nothing: its images have the same number, {numbers[0]}.")
    return (images[best], {}), (images[worst], {})


def _codes(held: Any, where: str) -> dict[str, np.ndarray]:
    if held is None:
        return {}
    if not isinstance(held, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in held):
        raise ValueError(f"{where}: codes are a list of whole numbers, not {short(held)}.")
    return {DEFAULT_CODES: np.array(held, dtype=np.int64)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
