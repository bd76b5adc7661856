"""Perplexity of held-out text: how much of its language a unified model has kept, or lost to images.

    unimm eval --task "perplexity?paths=held_out.jsonl"

The score is bits a byte (the lower the better), which models of different tokenizers have in common; the perplexity a token
stands beside it. A document begins with the model's begin-of-sentence and is read in windows of the model's length, every token
scored once, as lm-evaluation-harness does. Take text that the model was not trained on.
"""

import hashlib
import math
from collections.abc import Iterator

from unimm.data.readers.paths import Paths
from unimm.data.readers.plain_text import PlainTextFiles
from unimm.data.records import Dataset
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval.likelihood import text_sequences
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.answer_files import digest
from unimm.inference.engine import Engine
from unimm.runtime.number_checks import whole_number

SHOWN = 80
"""Characters of a document that stand in its example."""

WHOLE = 2**30
"""Characters that no document exceeds: none is cut."""

NUM_SENTENCES = 200


class Perplexity(ItemTask):
    """Bits a byte over all documents, by file where there are several.

    Args:
        paths: .txt or .jsonl files, a folder, a pattern, or a list of such; default: plain sentences about the shapes world.
        num_items: of the documents, the first ones.
        documents, field: as `unimm.data.PlainTextFiles` takes them: "blank_line", "line" or "file"; and of .jsonl files.
        max_length: positions of a window; default: what the model was made for.

    Raises ValueError where there is no text.
    """

    def __init__(
        self,
        paths: Paths | None = None,
        num_items: int | None = None,
        documents: str = "file",
        field: str = "text",
        max_length: int | None = None,
        name: str = "perplexity",
    ) -> None:
        self.name = name
        self.max_length = None if max_length is None else whole_number("max_length", max_length, 2)
        if paths is None:
            self._texts: Dataset = ShapesWorld("test", num_items or NUM_SENTENCES)
        else:
            self._texts = PlainTextFiles(paths, documents, field, max_characters=WHOLE)
        there = len(self._texts)
        files = self._texts.files if isinstance(self._texts, PlainTextFiles) else []
        self._has_files = len(files) > 1
        self.documents, self.field = documents, field
        self.items = digest(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)
        self.num_items = there if num_items is None else whole_number("num_items", num_items, 1)
        if self.num_items > there:
            raise ValueError(f"num_items is at most the {there:,} documents that there are, not {self.num_items:,}.")

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these documents."""
        tokenizer, most = engine.tokenizer, engine.model.config.max_positions
        length = min(most, self.max_length or most)
        records = [self._texts[item] for item in items]
        texts = [record.text.text if record.text else "" for record in records]
        encoded = [tokenizer.encode(text) for text in texts]
        windows = [text_sequences(ids, tokenizer.special.bos, length) for ids in encoded]
        scored = iter(engine.loglikelihood([one for own in windows for one in own]))
        for record, text, own in zip(records, texts, windows, strict=True):
            parts = [next(scored) for _ in own]
            bits = -sum(part.logprob for part in parts) / math.log(2)
            num_bytes = len(text.encode())
            yield Example(
                key=record.key,
                prompt="",
                expected=text[:SHOWN],
                answer=f"{bits / num_bytes:.4f} bits/byte",
                correct=True,
                category=record.key.rpartition("/")[0] if self._has_files else "",
                value=bits / num_bytes,
                numbers={"bits": bits, "bytes": num_bytes, "tokens": sum(part.num_targets for part in parts)},
            )

    def score(self, examples: list[Example]) -> Result:
        """Bits of all documents over bytes of all of them."""

        def total(name: str) -> float:
            return sum(example.numbers[name] for example in examples)

        measures = {
            "token_perplexity": 2 ** (total("bits") / total("tokens")),
            "byte_perplexity": 2 ** (total("bits") / total("bytes")),
            "num_tokens": total("tokens"),
            "num_bytes": total("bytes"),
        }
        return summarize(self.name, examples, measures, unit="bits/byte", higher_is_better=False, statistic=bits_per_byte)


def bits_per_byte(examples: list[Example]) -> float:
    """Of documents together: longer ones count more."""
    return sum(one.numbers["bits"] for one in examples) / sum(one.numbers["bytes"] for one in examples)
