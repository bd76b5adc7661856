"""Plain text is cut, and nothing of it is lost."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from users_files import write_lines

from unimm.data.readers.plain_text import PlainTextFiles, cut

TEXTS = st.text(st.sampled_from("ab \n\t。，é正\r\u3000"), max_size=200)


@given(TEXTS, st.integers(1, 30))
def test_pieces_together_are_the_text(text: str, max_characters: int) -> None:
    pieces = [text[start:stop] for start, stop in cut(text, max_characters)]
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= max_characters for piece in pieces)


@given(st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=40))
def test_words_are_not_cut_where_there_is_white_space(words: list[str]) -> None:
    text = " ".join(words)
    assert [word for start, stop in cut(text, 9) for word in text[start:stop].split()] == words
    chinese = "。".join(words)
    assert all(chinese[start:stop].endswith("。") or stop == len(chinese) for start, stop in cut(chinese, 9))


@pytest.mark.parametrize("documents", ["blank_line", "line", "file"])
@given(text=TEXTS, max_characters=st.integers(1, 30))
@example(text="a\r\na", max_characters=1)
@example(text="aaaa\r\na", max_characters=5)
def test_files_lose_nothing(documents: str, text: str, max_characters: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same text from a .txt file, with or without a mark of its encoding, and from JSON."""
    folder = tmp_path_factory.mktemp("texts")
    normal = text.replace("\r\n", "\n")
    if not text.strip():
        return
    for encoding in ("utf-8", "utf-8-sig"):
        (folder / "a.txt").write_bytes(text.encode(encoding))
        dataset = PlainTextFiles(folder / "a.txt", documents, max_characters=max_characters)
        texts = [record.text.text for record in (dataset[i] for i in range(len(dataset))) if record.text is not None]
        assert "".join("".join(texts).split()) == "".join(text.split())
        assert all(len(piece) <= max_characters for piece in texts)
    whole = PlainTextFiles(write_lines(folder / "b.jsonl", [{"text": text}]), max_characters=max_characters)
    joined = "".join(record.text.text for record in (whole[i] for i in range(len(whole))) if record.text is not None)
    assert joined == normal.strip()
    if documents == "file":
        assert "".join(texts) == normal.strip()


def test_documents_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\nOne\nand a half.\n \n\n Two.\n\n")
    for documents, expected in {
        "blank_line": ["One\nand a half.", "Two."],
        "line": ["One", "and a half.", "Two."],
        "file": ["One\nand a half.\n \n\n Two."],
    }.items():
        dataset = PlainTextFiles(tmp_path, documents)
        records = [dataset[index] for index in range(len(dataset))]
        assert [record.text.text for record in records if record.text is not None] == expected
        assert [record.key for record in records] == [f"a.txt/{number}" for number in range(len(expected))]
