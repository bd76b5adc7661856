"""What differs between the prompts of models, and is saved with each: roles, what stands for an image, which further tasks it
was taught."""

from dataclasses import dataclass
from typing import Any

from unimm.data.boxes import BoxText
from unimm.data.grids import Grid
from unimm.data.tiles import Tiles
from unimm.data.video.choosing import VideoFormat
from unimm.runtime.number_checks import real_number
from unimm.runtime.settings import read_settings

SEES = ("pixels", "codes", "both")

EDITS = ("codes_last", "codes_first")
"""Where the codes of an image that is edited stand: behind the instruction, or before it and behind the image's pixels."""


MOST_BIAS = 100.0
"""Of `source_bias`: beyond, no code can be another than the source's."""


def check_source_bias(value: Any) -> float:
    """`source_bias` as a number. ValueError: it is none from 0 to MOST_BIAS."""
    bias = real_number("source_bias", value)
    if not 0.0 <= bias <= MOST_BIAS:
        raise ValueError(f"source_bias is from 0 (off) to {MOST_BIAS:g}, not {bias}.")
    return bias


@dataclass(frozen=True)
class PromptFormat:
    """What differs between the prompts of Janus checkpoints.

    user, assistant: the roles; the name of an added token stands for that token, anything else is plain text.
    system_prompt: said before the first turn of every chat, when not empty.
    sees: what stands for an image in a conversation: "pixels", the features of the vision tower, as in every Janus; "codes",
        those of the image tokenizer, so that one encoder serves both jobs (as in Chameleon, arXiv 2405.09818); or "both", one
        after the other (as in UniToken, arXiv 2504.04423).
    tiles: how a large picture in a conversation is cut into tiles (`Tiles`, or its settings by name); None: every picture is
        looked at as one square.
    video: how videos are taken (`VideoFormat`, or its settings by name); None: the model was not made for them.
    looks_at_drawings: whether the model looks at what it has drawn itself in an answer, as it looks at other pictures, before
        it goes on; else it has the codes alone.
    edits: how the prompt of an edit is written, one of EDITS; empty: the model was not taught to edit. With "codes_last" the
        way from a code of the source to the one that replaces it is always the same, so copying is easily learned.
    source_bias: what is added to the logit of the source's code in each place of an edit, in the loss, and in drawing where a
        call says nothing: then only what changes has to be learned. 0: nothing.
    sizes: grids of codes that the model was taught to draw beside its own, as "ROWSxCOLUMNS"; the prompt of such a drawing
        names its grid behind the assistant's role.

    Raises ValueError where it sees something else, or sees codes and is to look at tiles or at frames of a video.
    """

    user: str = "<|User|>"
    assistant: str = "<|Assistant|>"
    system_prompt: str = ""
    sees: str = "pixels"
    tiles: Tiles | None = None
    box_form: str = ""
    box_bins: int = 0
    video: VideoFormat | None = None
    looks_at_drawings: bool = False
    edits: str = ""
    source_bias: float = 0.0
    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiles", read_settings(Tiles, self.tiles, "tiles are set"))
        object.__setattr__(self, "video", read_settings(VideoFormat, self.video, "video is set"))
        if self.box_form or self.box_bins:
            BoxText(self.box_form, self.box_bins)
        if self.video is not None and self.sees != "pixels":
            raise ValueError(f"Frames of a video are looked at as pixels, and this model sees {self.sees}: leave video out.")
        if self.sees not in SEES:
            raise ValueError(f"A model sees {', '.join(SEES)}, not '{self.sees}'.")
        if self.tiles is not None and self.sees != "pixels":
            raise ValueError(f"Tiles are looked at as pixels, and this prompt format sees {self.sees}: leave tiles out.")
        object.__setattr__(self, "sizes", tuple(Grid.read(one).name for one in self.sizes))
        if self.edits not in ("", *EDITS):
            raise ValueError(f"edits is {', '.join(EDITS)} or empty, not '{self.edits}'.")
        object.__setattr__(self, "source_bias", check_source_bias(self.source_bias))

    def check_grid(self, grid: Grid) -> None:
        """ValueError: the model was not taught to draw it."""
        if grid.name not in self.sizes:
            taught = ", ".join(self.sizes) or "none"
            raise ValueError(f"prompt_format.sizes names no grid {grid.name}: those beside the model's own are {taught}.")

    def check_edits(self) -> None:
        """ValueError: the model was not taught to edit."""
        if not self.edits:
            raise ValueError(
                "This model was not taught to edit images: use one that was, or train one with prompt_format.edits "
                "(recipes/edit.md); a part that a mask names is painted anew by inpaint."
            )

    @property
    def boxes(self) -> BoxText:
        """How boxes are written. ValueError: the format has none."""
        if not self.box_form:
            raise ValueError(
                "This model was not taught to locate, its prompt format writes no boxes: use one that was, or train one with "
                "prompt_format.box_form and box_bins (recipes/locate.md)."
            )
        return BoxText(self.box_form, self.box_bins)
