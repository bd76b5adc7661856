"""The prompt template: roles, separators and image placeholders; conversations and drawing prompts -> sequences. No other
file writes prompts.

    chat      <bos>[system\\n\\n]<|User|>: [<boi>IMAGE<eoi>\\n]question\\n\\n<|Assistant|>: answer<eos><|User|>: ...
    drawing   <bos><|User|>: prompt\\n\\n<|Assistant|>:[ 8x12]<boi>CODES; rows and columns are named where they are not the
              model's own. Or, drawn by a flow, LATENTS, in the place of <boi>, too: the time stands there
    editing   <bos><|User|>: <boi>PIXELS<eoi>\\ninstruction\\n\\n<|Assistant|>:<boi>CODES<eoi><boi>CODES; or with
              the codes of the source behind its pixels, as the prompt format has it
    video     [\\n]0.5s: <boi>FRAME<eoi>\\n1.5s: <boi>FRAME<eoi>[\\n], where an image stands in a chat
    text      <bos>text<eos>
    document  <bos>text\\n<boi>IMAGE<eoi>\\ntext ...<eos>
    answer    ...<|Assistant|>: words<boi>CODES<eoi> words<eos>, where it draws; <boi>CODES PIXELS<eoi>, where it looks at that
    tiles     <boi>1IMAGE2IMAGE\\n3IMAGE4IMAGE\\nIMAGE<eoi>

A turn begins and ends without white space, and an image inside one stands between line ends, as in Janus. A large picture
may be seen in tiles (`unimm.data.tiles`): each behind its number, each row of them on a line of its own, the thumbnail last.
NVLM (arXiv 2409.11402) found that numbered tiles are read better than bare ones. Ids are joined,
never strings: what a user typed goes through the tokenizer without its added tokens, so it can not become a special token.
Text between two special ids is encoded in one piece, so ordinary text gets the ids that Janus' own processor gives it.

What is learned: an assistant's answers with their end-of-sentence, all codes of a drawing, all of a plain text; not the begin
and end of an image, and no end after a drawing, as in Janus. An image inside an answer or a document whose codes are learned is
drawn among words: its begin is learned, too, since a model has to choose it. What begins a conversation in which it draws is,
up to the first image, the prompt of a drawing. Source: Janus' conversation.py.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unimm.data.fit import Fit, fit_crop, fit_look
from unimm.data.grids import Grid
from unimm.data.image import crop_uint8, look_uint8
from unimm.data.prompt_format import PromptFormat
from unimm.data.records import ImageLike, SeenImage, Video
from unimm.data.segment_writer import SegmentWriter
from unimm.data.text import TextTokenizer
from unimm.data.tiles import TiledImage
from unimm.data.turns import ImageSegments, Part, Turn, trimmed
from unimm.data.video.choosing import Frames, choose_frames
from unimm.segment import Expected, latent_elements
from unimm.sequence import Kind, Segment, Sequence


class Template:
    """Writes conversations, drawing prompts and plain texts as sequences.

    Args:
        tokenizer: the text tokenizer with its special ids; added tokens that are roles become control tokens of it.
        prompt_format: roles and system prompt.
        image_size: height and width of the pixels that the vision tower looks at.
        num_positions: positions that one such image takes.
        encode: gives the codes of an image that comes without them, where the format sees codes.
        max_positions: the longest sequence that the model was made for; views that may cut do, where it is known.
        latent_patch: side of the patch of latents that is a position, where the model draws by a flow.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_format: PromptFormat,
        image_size: int,
        num_positions: int,
        encode: Callable[[ImageLike], np.ndarray] | None = None,
        max_positions: int | None = None,
        latent_patch: int | None = None,
    ) -> None:
        self.latent_patch = latent_patch
        self.tokenizer = tokenizer.with_control((prompt_format.user, prompt_format.assistant))
        self.prompt_format = prompt_format
        self.image_size = image_size
        self.num_positions = num_positions
        self.encode = encode
        self.max_positions = max_positions
        if prompt_format.tiles is not None and max_positions is not None:
            prompt_format.tiles.check_room(num_positions, max_positions)

    def limited(self, max_positions: int | None) -> "Template":
        """The same template for sequences of at most so many positions, beside those that the model was made for."""
        template = copy.copy(self)
        template.max_positions = smallest(max_positions, self.max_positions)
        return template

    def look(self, image: ImageLike, codes: np.ndarray | None = None) -> ImageSegments:
        """An image inside a conversation, as the prompt format sees it; its pixels unopened. Where it is seen in tiles, its
        size is read.

        Raises:
            ValueError: it sees codes, and there are none; or tiles, and the image cannot be cut into any; or it is a video.
        """
        if isinstance(image, Video):
            raise ValueError("A video is looked at frame by frame, one image is expected here: ask about it by answer or chat.")
        if self.prompt_format.tiles is not None:
            tiled = TiledImage(image, self.prompt_format.tiles, self.image_size)
            return tiled.segments(self.tokenizer.encode, self.num_positions)
        segments = [] if self.prompt_format.sees == "codes" else [self.pixels(image)]
        if self.prompt_format.sees != "pixels":
            if codes is None and self.encode is None:
                raise ValueError("This prompt format sees codes, and the image has none: wrap its data set in CodedDataset.")
            codes = self.encode(image) if codes is None and self.encode is not None else codes
            assert codes is not None
            segments.append(Segment.codes(codes, condition="image"))
        return tuple(segments)

    def fit(self, picture: tuple[int, int]) -> Fit:
        """How a picture of (width, height) pixels lies in the square that the model looks at."""
        return (fit_crop if self.prompt_format.sees == "codes" else fit_look)(picture, self.image_size)

    def watch(self, video: Video) -> Frames:
        """A video inside a conversation: frames, unopened, and their times. ValueError: as `choose_frames`."""
        return choose_frames(video, self.prompt_format.video, self.image_size, self.num_positions)

    def show(self, image: ImageLike | Frames, codes: np.ndarray | None = None) -> ImageSegments | Frames:
        """An image as `look` has it, a video as `watch`, or frames that were chosen before."""
        if isinstance(image, Frames):
            return image
        return self.watch(image) if isinstance(image, Video) else self.look(image, codes)

    def pixels(self, image: ImageLike) -> Segment:
        """An image that is prepared for the vision tower when it is opened; or the features that are stored of it."""
        if isinstance(image, SeenImage):
            return Segment.seen(image.features, self.num_positions, condition="image")
        return Segment.look(partial(look_uint8, image, self.image_size), self.num_positions, condition="image")

    def chat(
        self, turns: list[Turn], limit: int | None = None, system_prompt: str | None = None, draws: bool = False
    ) -> Sequence:
        """A conversation, closed (training), or open for at most `limit` tokens of the assistant's next turn; of the rest of
        its last turn where the conversation ends with one.

        system_prompt: said instead of the format's own.
        draws: the open turn may begin an image, too (`begin_drawing`); then, as where an answer holds a drawing, all words are
            the condition "text", which guidance drops. Without it the begin of an image is never chosen.
        """
        special = self.tokenizer.special
        has_drawing = any(turn.role == "assistant" and not isinstance(part, str) for turn in turns for part in turn.content)
        writer = SegmentWriter(self.tokenizer, condition="text" if draws or has_drawing else None)
        writer.id(special.bos, condition=None)
        system_prompt = self.prompt_format.system_prompt if system_prompt is None else system_prompt
        if system_prompt:
            writer.text(system_prompt + "\n\n")
        for index, turn in enumerate(turns):
            if turn.role == "user":
                self._user(writer, turn)
            elif turn.role == "assistant":
                self._assistant(writer, turn, is_open=limit is not None and index == len(turns) - 1)
            else:
                raise ValueError(f"A turn is the user's or the assistant's, not '{turn.role}'s.")
        if limit is None:
            return writer.sequence()
        if not turns or turns[-1].role != "assistant":
            writer.text(self.prompt_format.assistant, role=True)
            writer.text(":")
        return writer.sequence(self._words(limit, draws))

    def begin_drawing(self, sequence: Sequence, words: Any, num_codes: int) -> Sequence:
        """A chat that is open for words, its answer going on with these (n,) ids and then an image: open for its codes. The
        begin of an image may be the last of the ids."""
        begin = self.tokenizer.special.begin_of_image
        words = [int(one) for one in words if one != begin]
        said = [Segment.text(words, condition="text")] if words else []
        last = (Segment.text([begin]), Segment.blank(Kind.CODES, num_codes))
        return Sequence((*sequence.given.segments, *said, *last))

    def end_drawing(self, sequence: Sequence, codes: Any, image: ImageLike | None, limit: int) -> Sequence:
        """What `begin_drawing` gave, closed by its codes (num_codes,), and open for at most `limit` tokens of what follows.

        image: what the codes show, where the format has the model look at its drawings.
        """
        shown = (*self.drawn(codes, image), Segment.text([self.tokenizer.special.end_of_image]))
        return Sequence((*sequence.given.segments, *shown, self._words(limit, draws=True)))

    def drawn(self, codes: Any, image: ImageLike | None = None, learn: bool = False) -> ImageSegments:
        """An image that is drawn in an answer: its codes, and where the format says so the image behind them, to look at.

        Raises ValueError where that is to be looked at and is not there.
        """
        segment = Segment.codes(codes, learn=learn)
        if not self.prompt_format.looks_at_drawings:
            return (segment,)
        if image is None:
            raise ValueError("This prompt format has drawings looked at: give the image beside its codes.")
        return segment, self.pixels(image)

    def _words(self, limit: int, draws: bool) -> Segment:
        """Open for an answer's text, which may end in the begin of an image, or can never hold one."""
        special = self.tokenizer.special
        if draws:
            return Segment.blank(Kind.TEXT, limit, stop=(special.eos, special.begin_of_image))
        return Segment.blank(Kind.TEXT, limit, stop=(special.eos,), suppressed=(special.begin_of_image,))

    def draw(
        self, prompt: str, codes: np.ndarray | None = None, num_codes: int | None = None, grid: Grid | None = None
    ) -> Sequence:
        """A text-to-image prompt, closed by `codes` (training) or open for `num_codes` codes.

        grid: of the codes, where it is not the model's own: the prompt names it, and guidance leaves it there.

        Raises ValueError where the model was not taught to draw such a grid.
        """
        writer = self._asked(prompt)
        if grid is not None:
            self.prompt_format.check_grid(grid)
            writer.text(f" {grid.name}", condition=None)
        return self._drawn(writer, codes, num_codes if grid is None else grid.num_codes)

    def draw_latents(
        self, prompt: str, latents: np.ndarray | None = None, key: int = 0, num_elements: int | None = None
    ) -> Sequence:
        """A text-to-image prompt for a flow, closed by the `latents` (C, H, W) of its image, learned with the noise of `key`
        (training), or open for `num_elements` elements of LATENTS.

        Raises ValueError where the model does not draw by a flow.
        """
        if self.latent_patch is None:
            raise ValueError("This model does not draw by a flow: it has no port of LATENTS (model.ports.latents).")
        if latents is not None:
            elements = latent_elements(latents, self.latent_patch, key)
            return self._asked(prompt).sequence(Segment.array(Kind.LATENTS, elements, learn=True))
        if num_elements is None:
            raise ValueError("A drawing needs its latents or the number of its elements.")
        return self._asked(prompt).sequence(Segment.blank(Kind.LATENTS, num_elements))

    def _asked(self, prompt: str) -> SegmentWriter:
        """A text-to-image prompt, up to where its image begins."""
        writer = SegmentWriter(self.tokenizer, condition="text")
        writer.id(self.tokenizer.special.bos, condition=None)
        self._user(writer, Turn("user", (prompt,)))
        writer.text(self.prompt_format.assistant, role=True)
        writer.text(":")
        return writer

    def edit(
        self,
        image: ImageLike,
        source: np.ndarray,
        instruction: str,
        codes: np.ndarray | None = None,
        num_codes: int | None = None,
    ) -> Sequence:
        """An image with what to change in it, closed by the `codes` of the changed image (training) or open for `num_codes`.
        What is seen of the image is the square at its centre, which its codes show. With a `source_bias` in the prompt format
        the source's codes are expected where codes are learned.

        source: (num_codes,) the image's codes.

        Raises ValueError where the model was not taught to edit.
        """
        self.prompt_format.check_edits()
        writer, given = SegmentWriter(self.tokenizer, condition="text"), (Segment.codes(source, condition="image"),)
        writer.id(self.tokenizer.special.bos, condition=None)
        is_first = self.prompt_format.edits == "codes_first"
        seen = () if self.prompt_format.sees == "codes" else (self._square(image),)
        seen = (*seen, *given) if is_first else seen
        self._user(writer, Turn("user", (seen, instruction) if seen else (instruction,)))
        writer.text(self.prompt_format.assistant, role=True)
        writer.text(":")
        if not is_first:
            self._image(writer, given)
        sequence = self._drawn(writer, codes, num_codes)
        if codes is None or not self.prompt_format.source_bias:
            return sequence
        *before, learned = sequence.segments
        expected = Expected(tuple(source.tolist()), self.prompt_format.source_bias)
        return replace(sequence, segments=(*before, replace(learned, expected=expected)))

    def _square(self, image: ImageLike) -> Segment:
        """The square at an image's centre, for the vision tower; or the features that are stored of the image."""
        if isinstance(image, SeenImage):
            return self.pixels(image)
        return Segment.look(partial(crop_uint8, image, self.image_size), self.num_positions, condition="image")

    def _drawn(self, writer: SegmentWriter, codes: np.ndarray | None, num_codes: int | None) -> Sequence:
        """What is written, and then an image, closed or open."""
        writer.id(self.tokenizer.special.begin_of_image, condition=None)
        if codes is not None:
            return writer.sequence(Segment.codes(codes, learn=True))
        if num_codes is None:
            raise ValueError("A drawing needs its codes or their number.")
        return writer.sequence(Segment.blank(Kind.CODES, num_codes))

    def plain(self, text: str) -> Sequence:
        """A plain text, learned as a whole."""
        special = self.tokenizer.special
        ids = [*self.tokenizer.encode(text), special.eos]
        return Sequence((Segment.text([special.bos]), Segment.text(ids, learn=True)))

    def document(self, parts: tuple[Part, ...]) -> Sequence:
        """An interleaved document: its texts are learned, and of its images the codes that are to be."""
        writer = SegmentWriter(self.tokenizer)
        writer.id(self.tokenizer.special.bos)
        self._mixed(writer, trimmed(parts), learn=True)
        writer.id(self.tokenizer.special.eos, learn=True)
        return writer.sequence()

    def _user(self, writer: SegmentWriter, turn: Turn) -> None:
        writer.text(self.prompt_format.user, role=True)
        writer.text(": ")
        self._mixed(writer, trimmed(turn.content))
        writer.text("\n\n")

    def _mixed(self, writer: SegmentWriter, parts: list[Part], learn: bool = False) -> None:
        """Texts and images, each image and frame on a line of its own. learn: the texts, and that an image begins which is
        drawn."""
        for index, part in enumerate(parts):
            if isinstance(part, str):
                follows_text = index > 0 and isinstance(parts[index - 1], str)
                writer.text(f" {part}" if follows_text else part, learn)
                continue
            shown = part.shown if isinstance(part, Frames) else (("", part),)
            for place, (time, image) in enumerate(shown):
                writer.text("\n" if index or place else "", learn)
                if time:
                    writer.text(time)
                self._image(writer, image)
            writer.text("\n" if index < len(parts) - 1 else "", learn)

    def _image(self, writer: SegmentWriter, image: ImageSegments) -> None:
        special = self.tokenizer.special
        writer.id(special.begin_of_image, learn=any(segment.learn for segment in image), condition=None)
        for segment in image:
            writer.segment(segment)
        writer.id(special.end_of_image, condition=None)

    def _assistant(self, writer: SegmentWriter, turn: Turn, is_open: bool) -> None:
        writer.text(self.prompt_format.assistant, role=True)
        writer.text(":")
        for part in trimmed(turn.content):
            if isinstance(part, str):
                writer.text(f" {part}", learn=turn.learn)
            elif isinstance(part, Frames) or part[0].kind != Kind.CODES:
                raise ValueError("An assistant's turn in a chat is text, with drawings' codes among it; it looks at no image.")
            else:
                self._image(writer, part)
        if not is_open:
            writer.id(self.tokenizer.special.eos, learn=turn.learn)


def smallest(*limits: int | None) -> int | None:
    """The smallest of the limits that there are; None where there is none."""
    return min((limit for limit in limits if limit is not None), default=None)
