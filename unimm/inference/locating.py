"""The engine's calls that say where something is: boxes and points as the model writes them, and heat maps of phrases.

    engine.locate(image, "the red circle")          [Box(12.2, 7.1, 33.0, 27.9, score=0.97, label="the red circle")]
    engine.heat_map(image, "the red circle")        (H, W) float32 in [0, 1]

A model locates where its prompt format says how it was taught to write boxes (`unimm.data.boxes`). Heat maps need no such
training. By "similarity" they are how alike each patch and the phrase are in the common space of contrastive heads: the pool
reads each patch alone, which is what is left of attention pooling in MaskCLIP (arXiv 2112.01071) and what OpenSeg (arXiv
2112.12143) trains. By "attention" they are how much the position that begins the answer looks at each patch, when it
is asked how many there are and whether there is one (arXiv 2502.17422 reads the same position). All pictures are those of the
user: boxes and maps are in their pixels.

Shapes: B pictures, P patches in a square of G x G, H W pixels of a picture, L layers.
"""

import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unimm.batch import collate
from unimm.data.boxes import Box, BoxText, Point, check_box, check_point
from unimm.data.fit import Fit, fit_look
from unimm.data.grounding import LOCATE, POINT, REGION, ask
from unimm.data.image import decode_image, look
from unimm.data.records import ImageLike
from unimm.data.template import Turn
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.input_validation import check_text, pair
from unimm.inference.text_stream import Completion, write
from unimm.inference.trace import TraceCalls
from unimm.models.contrastive import pad_texts
from unimm.models.inspection import attention_of_rows
from unimm.runtime.number_checks import whole_number
from unimm.sequence import Kind, Sequence

WAYS = ("similarity", "attention")
AT_ONCE = 32
"""Rows in one pass, for heat maps: pictures, each with one question where they are made by attention."""

GATHER = (
    {"en": ("How many {} are there?",), "zh": ("有几个{}？",)},
    {"en": ("Is there a {} in the picture?",), "zh": ("图中有{}吗？",)},
)
"""Questions that take all of what a phrase names to answer; on drawn scenes they find it better than "Where is {}?"."""

THERE, NOTHING = "There is {}.", "Nothing."
"""What a patch is compared with: the phrase in a sentence, relative to a text that names nothing."""

MIXED = ("qformer", "perceiver")
"""Projectors whose outputs are no places of the picture."""


@dataclass(frozen=True)
class Located:
    """What a model wrote when it was asked where something is. found: `Box`es, or `Point`s, from left to right; None: the text
    is no list of them."""

    text: str
    found: list[Any] | None


class LocatingCalls(TraceCalls):
    """Images and phrases in, places out."""

    def locate(self, image: ImageLike | list, phrase: str | list[str], language: str | None = None, max_boxes: int = 20) -> Any:
        """Where everything is that a phrase names.

        Args:
            image, phrase: "the red circle", "all cats"; lists are paired, a single one goes with every one of the other.
            language: of the question: "en" or "zh"; default: that of the phrase.
            max_boxes: more are not written.

        Returns:
            Boxes in pixels of the image as it is given (upright), from left to right; [] where the model says that there is
            none. A list of such lists for a list. What is no list of boxes gives [] and a warning.

        Raises:
            ValueError: the model was not taught to locate, or an image or phrase is none.
        """
        return self._told(image, phrase, LOCATE, language, max_boxes)

    def point(self, image: ImageLike | list, phrase: str | list[str], language: str | None = None, max_points: int = 20) -> Any:
        """As `locate`, the centres alone, as `Point`s."""
        return self._told(image, phrase, POINT, language, max_points)

    def describe_at(self, image: ImageLike, place: Any, language: str = "en", max_new_tokens: int = 32) -> str:
        """What is in a box, (x1, y1, x2, y2) or a `Box`, or at a point, (x, y) or a `Point`, in pixels of the image.

        Raises:
            ValueError: the model was not taught to locate, or the place is none of the image.
        """
        boxes, picture = self.prompt_format.boxes, decode_image(image)
        fit = self.template.fit(picture.size)
        given = place.corners if isinstance(place, Box) else (place.x, place.y) if isinstance(place, Point) else place
        if hasattr(given, "__len__") and len(given) == 2:
            written = boxes.write_points([check_point(given, picture.size)], fit)
        else:
            written = boxes.write([check_box(given, picture.size)], fit)
        return self.answer(picture, ask(REGION, language, written), max_new_tokens)

    def located(
        self,
        images: list[ImageLike],
        phrases: list[str],
        wordings: dict[str, tuple[str, ...]] = LOCATE,
        language: str | None = None,
        most: int = 20,
    ) -> list[Located]:
        """What the model writes of each pair, and what that means; `wordings` is `LOCATE`, or `POINT` for points."""
        boxes, most = self.prompt_format.boxes, whole_number("max_boxes", most, 1)
        for phrase in phrases:
            check_text(phrase, "phrase")
        room = len(self.tokenizer.encode(" " + boxes.longest(most))) + 1
        fits, requests = [], []
        for image, phrase in zip(images, phrases, strict=True):
            picture = decode_image(image)
            fits.append(self.template.fit(picture.size))
            question = ask(wordings, language or language_of(phrase), phrase.strip().rstrip(".。"))
            turn = Turn("user", (self.template.look(picture), question))
            limit = max(1, min(room, self.decoder.max_positions - self.template.chat([turn], 1).length + 1))
            requests.append(Request(self.template.chat([turn], limit).opened(), Sampling(0.0), logprobs=True))
        completions = write(self.decoder, self.tokenizer, requests)
        told = zip(completions, fits, phrases, strict=True)
        return [self._read_places(one, boxes, fit, phrase, wordings is POINT) for one, fit, phrase in told]

    def heat_map(self, image: ImageLike | list, phrase: str | list[str], by: str | None = None) -> Any:
        """Where in an image a phrase fits: (H, W) float32 in [0, 1], in pixels of the image as it is given (upright).

        The most fitting place of an image has 1 and the least fitting one 0, also where nothing fits: a map says where, not
        whether. It is as fine as the patches that the model sees.

        Args:
            by: "similarity" of patches and phrase, by contrastive heads; "attention" of the unified model; default: similarity
                where the model has such heads.

        Returns:
            An array, or a list of them where image or phrase is a list.

        Raises:
            ValueError: there is no such way, the model has no contrastive heads for it, or no places to attend to, or a phrase
                takes more positions than the model was made for.
        """
        chosen = ("attention" if self.bundle.contrastive is None else "similarity") if by is None else by
        if chosen not in WAYS:
            raise ValueError(f"A heat map is made by {' or '.join(WAYS)}, not by {chosen!r}.")
        images, phrases, is_list = pair(image, phrase)
        for one in phrases:
            check_text(one, "phrase")
        if chosen == "attention":
            self._check_lengths(phrases)
        maps: list[np.ndarray] = []
        for start in range(0, len(images), AT_ONCE):
            pictures = [decode_image(one) for one in images[start : start + AT_ONCE]]
            texts = phrases[start : start + AT_ONCE]
            grids = self._similarities(pictures, texts) if chosen == "similarity" else self._attentions(pictures, texts)
            size = self.model.config.vision.image_size
            maps += [_spread(grid, fit_look(one.size, size)) for grid, one in zip(grids, pictures, strict=True)]
        return maps if is_list else maps[0]

    def _told(self, image: Any, phrase: Any, wordings: dict, language: str | None, most: int) -> Any:
        images, phrases, is_list = pair(image, phrase)
        found = self.located(images, phrases, wordings, language, most)
        for one, asked in zip(found, phrases, strict=True):
            if one.found is None:
                warnings.warn(f"Asked for {asked!r}, the model wrote no places but {one.text[:80]!r}.", stacklevel=3)
        places = [one.found or [] for one in found]
        return places if is_list else places[0]

    def _read_places(self, told: Completion, boxes: BoxText, fit: Fit, phrase: str, are_points: bool) -> Located:
        text = boxes.cut(told.text) if told.finish_reason == "length" else told.text
        try:
            read: list[Any] = boxes.read_points(text, fit) if are_points else [*boxes.read(text, fit)]
        except ValueError:
            return Located(told.text, None)
        kind: Any = Point if are_points else Box
        found = [kind(*place, self._likelihood(told, start, stop), phrase.strip()) for place, start, stop in read]
        return Located(told.text, sorted(found, key=lambda one: one.centre[0] if isinstance(one, Box) else one.x))

    def _likelihood(self, told: Completion, start: int, stop: int) -> float:
        """The geometric mean of the probabilities of the tokens that write characters [start, stop) of a text: its
        likelihood, made independent of how many tokens it takes."""
        assert told.tokens is not None
        tokens = [one for one in told.tokens if one.id not in self.tokenizer.control_ids]
        whole = "".join(one.text for one in tokens)
        place, logprobs = len(whole.lstrip()) - len(whole), []
        for token in tokens:
            logprobs += [token.logprob] if place < stop and place + len(token.text) > start else []
            place += len(token.text)
        return math.exp(sum(logprobs) / len(logprobs))

    @torch.inference_mode()
    def _similarities(self, pictures: list[Image.Image], phrases: list[str]) -> Tensor:
        """(B, G, G): the square root of the odds that a patch goes with the phrase and not with `NOTHING`: the cosines of all
        patches lie close together, and a map of them would be flat."""
        heads, tower = self.bundle.contrastive, self.model.pixels.tower
        if heads is None:
            raise ValueError(
                "This model has no contrastive heads, which heat maps by similarity need: train some (recipes/contrastive.md), "
                "or ask by='attention'."
            )
        size, dtype = self.model.config.vision.image_size, next(tower.parameters()).dtype
        pixels = torch.from_numpy(np.stack([look(one, size) for one in pictures])).to(self.device, dtype)
        texts = [*(THERE.format(text.strip()) for text in phrases), NOTHING]
        ids = [self.tokenizer.sentence(text, heads.config.text_positions) for text in texts]
        texts_SD = heads.embed_texts(*pad_texts(ids, self.device))
        features_BPC = tower(pixels)
        patches_BPD = heads.embed_features(features_BPC.flatten(0, 1)[:, None]).unflatten(0, features_BPC.shape[:2])
        apart_BP = torch.einsum("bpd,bd->bp", patches_BPD, texts_SD[:-1] - texts_SD[-1])
        return _square((heads.logit_scale.exp() * apart_BP / 2).exp()).float().cpu()

    @torch.inference_mode()
    def _attentions(self, pictures: list[Image.Image], phrases: list[str]) -> Tensor:
        """(B, G, G): how much the model looks at each patch before it answers `GATHER`."""
        if getattr(self.model.config.projector, "kind", "") in MIXED or self.prompt_format.sees == "codes":
            raise ValueError("What this model looks at has no places in the picture, so its attention gives no heat map.")
        pairs = [*zip(pictures, phrases, strict=True)]
        # A question at a time: attention weights are the largest tensors of all, and grow with rows.
        looked = [self._looked_at([self._shown(one, _question(way, text)) for one, text in pairs]) for way in GATHER]
        return _square(torch.stack(looked).mean(0))

    def _check_lengths(self, phrases: list[str]) -> None:
        """ValueError: a question about one of them takes more positions than the model was made for."""
        most, blank = self.model.config.max_positions, Image.new("RGB", (1, 1))
        for phrase in dict.fromkeys(phrases):
            length = max(self._shown(blank, _question(way, phrase)).length for way in GATHER)
            if length > most:
                raise ValueError(
                    f"To ask how many there are of a phrase takes {length} positions, and the model was made for {most}: "
                    "shorten the phrase."
                )

    def _shown(self, picture: Image.Image, question: str) -> Sequence:
        """A picture and a question, up to where the answer begins."""
        turn = Turn("user", ((self.template.pixels(picture),), question))
        return self.template.chat([turn], 1).opened().given

    def _looked_at(self, sequences: list[Sequence]) -> Tensor:
        """(B, P): how much the last position looks at each patch, the mean over heads and layers."""
        spans = [next(span for span in one.spans() if span.segment.kind == Kind.PIXELS) for one in sequences]

        def keep(weights_BHTT: Tensor) -> Tensor:
            rows = zip(weights_BHTT, spans, sequences, strict=True)
            return torch.stack([row[:, one.length - 1, span.start : span.stop].mean(0) for row, span, one in rows])

        batch = collate([[one] for one in sequences]).to(self.device)
        with self.decoder.between_steps():
            layers = attention_of_rows(self.model, batch, keep)
        return torch.stack(layers).mean(0).float().cpu()


def language_of(text: str) -> str:
    """ "zh" for a text with Chinese characters, else "en"."""
    return "zh" if any("\u3400" <= letter <= "\u9fff" for letter in text) else "en"


def _question(way: dict[str, tuple[str, ...]], phrase: str) -> str:
    """One of `GATHER` about a phrase."""
    return ask(way, language_of(phrase), bare(phrase))


def bare(phrase: str) -> str:
    """A phrase without a full stop and an English article: "red circle" of "the red circle."."""
    return re.sub(r"^(the|all|a|an) ", "", phrase.strip().rstrip(".。"), flags=re.IGNORECASE)


def _square(values_BP: Tensor) -> Tensor:
    side = math.isqrt(values_BP.shape[1])
    if side * side != values_BP.shape[1]:
        raise ValueError(f"The model sees {values_BP.shape[1]} patches, which are no square: they have no heat map.")
    return values_BP.unflatten(1, (side, side))


def _spread(grid_GG: Tensor, fit: Fit) -> np.ndarray:
    """A value a patch of the square -> a value a pixel of the picture, from 0 to 1."""
    square = F.interpolate(grid_GG[None, None], size=(fit.size, fit.size), mode="bilinear", align_corners=False)
    left, top = max(int(fit.left), 0), max(int(fit.top), 0)
    inside = square[:, :, top : top + int(fit.height), left : left + int(fit.width)]
    width, height = fit.picture
    whole = F.interpolate(inside, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    low, high = float(whole.min()), float(whole.max())
    return np.zeros_like(whole) if high <= low else ((whole - low) / (high - low)).astype(np.float32)
