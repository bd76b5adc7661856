"""Captions of users' images against references, in COCO's files and by COCO's scores: CIDEr-D, BLEU, ROUGE-L.

    unimm eval --task "captions?annotations=captions_val2017.json&images=val2017"

One caption an image, all references of it. CIDEr-D is as pycocoevalcap gives it, from 0 to 10; papers write 100 times as much.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimm.data.readers.annotated import CocoImage, read_coco_captions
from unimm.eval.score import Score
from unimm.eval.scorers.captions import rouge_l, score_captions, tokenize
from unimm.eval.task import Example, ItemTask, Result, result_of
from unimm.eval.tasks.answer_files import digest, find_images, read_answers, take
from unimm.eval.tasks.answers import find_checks, set_checks
from unimm.inference.engine import Engine

MAX_NEW_TOKENS = 64


class CaptionFiles(ItemTask):
    """CIDEr-D of captions, and beside it BLEU-1 to 4 and ROUGE-L.

    Args:
        annotations: COCO's file of captions. images: the folder of images; default: that of the file.
        num_items: of the images, the first ones.
        prompt: how a caption is asked for; default: as the model was taught to describe an image.
        answers: a file of captions to score instead, COCO's [{"image_id", "caption"}].
        checks: votes and verify, as `Engine.caption` has them.

    Raises ValueError where a file is of another form, or an image or an answer is not there.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        num_items: int | None = None,
        prompt: str | None = None,
        answers: str | None = None,
        name: str = "captions",
        **checks: Any,
    ) -> None:
        self.name, self.prompt = name, prompt
        set_checks(self, **checks)
        read = [one for one in read_coco_captions(annotations) if one.captions]
        self._items: list[CocoImage] = take(read, num_items, "images with captions")
        self.num_items = len(self._items)
        self.items = digest(part for one in self._items for part in (one.image_id, one.name, *one.captions))
        ids = [one.image_id for one in self._items]
        self._answers = None if answers is None else read_answers(answers, "image_id", "caption", ids)
        self.answers = None if self._answers is None else digest(part for one in self._answers.items() for part in one)
        root = Path(annotations).parent if images is None else Path(images)
        self.images = str(root)
        self._images = {} if answers is not None else find_images(root, [one.name for one in self._items])
        self._references = {one.image_id: list(one.captions) for one in self._items}

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these images."""
        asked = [self._items[item] for item in items]
        images = [self._images.get(one.name) for one in asked]
        if self._answers is not None:
            captions = [self._answers[one.image_id] for one in asked]
        elif self.prompt is None:
            captions = engine.caption(images, max_new_tokens=MAX_NEW_TOKENS, **find_checks(self))
        else:
            captions = engine.answer(images, self.prompt, max_new_tokens=MAX_NEW_TOKENS, **find_checks(self))
        for one, caption in zip(asked, captions, strict=True):
            value = rouge_l(tokenize(caption), [tokenize(text) for text in one.captions])
            yield Example(one.image_id, self.prompt or "", one.captions[0], caption, bool(caption.strip()), value=value)

    def score(self, examples: list[Example]) -> Result:
        """The scores of the whole set: what is rare, all references say together."""
        scores = score_captions([example.answer for example in examples], [self._references[one.key] for one in examples])
        others = {name: Score(value, len(examples), None) for name, value in scores.measures().items() if name != "cider_d"}
        others["rouge_l"] = Score.mean([example.mark for example in examples], "share")
        return result_of(self.name, Score.mean(list(scores.each), "CIDEr-D"), examples, other_scores=others)
