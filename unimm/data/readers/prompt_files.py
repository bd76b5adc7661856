"""Prompts of files as a data set, for models that learn from what they make themselves, or that make pairs of it.

.txt                a prompt a line: what is to be drawn
.jsonl, .json       {"prompt": "a red circle"} to draw; {"image": "cats/1.jpg", "prompt": "What is this?"} to answer, and
                    without a prompt to describe; "language" where it is not the file's; "answer" for rewards that know it
"""

from pathlib import Path
from typing import Any

from unimm.data.readers.json_lines import JsonFiles
from unimm.data.readers.paths import Paths, check_index, find_files, image_at, short, short_names
from unimm.data.records import Question, Record, Text
from unimm.data.views import DESCRIBE

JSON = (".jsonl", ".json")


class PromptFiles:
    """One record a prompt: `prompts` where it is to be drawn, else `image` and a question.

    Args:
        paths: a file, a folder, a pattern, or a list of such. Of one kind: .txt, or JSON lines.
        language: of what does not name its own.

    Raises ValueError where there is no prompt; IndexError outside the records.
    """

    def __init__(self, paths: Paths, language: str = "en") -> None:
        files = find_files(paths, (".txt", *JSON))
        self.language = language
        self._lines: list[tuple[str, str]] = []
        self._items: JsonFiles | None = None
        if all(file.suffix.lower() in JSON for file in files):
            self._items = JsonFiles(paths)
        elif any(file.suffix.lower() in JSON for file in files):
            raise ValueError(f"{paths}: prompts are lines of text or JSON lines, not both at once: give each a data set.")
        else:
            self._lines = [line for file, name in zip(files, short_names(files), strict=True) for line in _lines_of(file, name)]
        if not len(self):
            raise ValueError(f"{paths} holds no prompts: write one a line.")

    def __len__(self) -> int:
        return len(self._lines) if self._items is None else len(self._items)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        if self._items is None:
            key, line = self._lines[index]
            return Record(key, prompts=(Text(line, self.language),))
        items, number, key = self._items.find(index)
        try:
            return self._entry(items[number], items.path.parent, key)
        except ValueError as error:
            raise ValueError(f"{items.where(number)}: {error}") from None

    def key_at(self, index: int) -> str:
        """The key of a record."""
        return self._lines[index][0] if self._items is None else self._items.find(index)[2]

    def _entry(self, item: dict[str, Any], root: Path, key: str) -> Record:
        held, language = item.get("image"), item.get("language") or self.language
        if not isinstance(language, str):
            raise ValueError(f"'language' is a word such as \"en\", not {short(language)}.")
        prompt = item.get("prompt") or (DESCRIBE.get(language, DESCRIBE["en"])[0] if held else None)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("there is no 'prompt': write what to draw, or name an 'image' to describe.")
        if held is None:
            return Record(key, prompts=(Text(prompt.strip(), language),))
        question = Question(prompt.strip(), str(item.get("answer", "")), language=language)
        return Record(key, image=image_at(root, held, f"record {key}"), questions=(question,))


def _lines_of(file: Path, name: str) -> list[tuple[str, str]]:
    """Key and text of each line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start}): convert it.") from None
    return [(f"{name}/{number}", line.strip()) for number, line in enumerate(text.splitlines()) if line.strip()]
