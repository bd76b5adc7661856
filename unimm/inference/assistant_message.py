"""An assistant's turn with words and images: as a whole, as a message of the conversation, and piece by piece as it comes."""

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class DrawnImage:
    """An image of an answer. codes: (num_codes,) of it, which the next turn reads as they are."""

    image: Image.Image
    codes: tuple[int, ...]


@dataclass(frozen=True)
class AssistantMessage:
    """An assistant's turn with words and images.

    parts: texts and images in their order.
    finish_reason: "stop" where the model ended its turn or a stop string came, or "length": at `max_new_tokens`, or where it
        began an image that would have been one too many, or for which the model had no room.
    num_prompt_positions: of the conversation before. num_tokens: of its words, those that end them included.
    """

    parts: tuple[str | DrawnImage, ...]
    finish_reason: str = "stop"
    num_prompt_positions: int = 0
    num_tokens: int = 0

    @property
    def text(self) -> str:
        """Its words; those before and behind an image on lines of their own."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Image.Image]:
        """Its images in order."""
        return [part.image for part in self.parts if isinstance(part, DrawnImage)]

    @property
    def message(self) -> dict[str, Any]:
        """As `chat` takes it among the messages of the next turn."""
        content: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image", "image": part.image, "codes": part.codes})
        return {"role": "assistant", "content": content}

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ChatPiece:
    """A piece of an answer as it is written and drawn.

    text: the next piece of its words. preview: of the image that is being drawn, so far. image: one that is done.
    step, num_steps: with a preview, how many of its codes are chosen.
    message: with the last piece, all of it.
    """

    text: str = ""
    preview: Image.Image | None = None
    image: Image.Image | None = None
    step: int = 0
    num_steps: int = 0
    message: AssistantMessage | None = None
