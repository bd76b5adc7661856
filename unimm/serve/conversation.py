"""The messages of a request: how much they may hold, and what the engine reads of them. A string in them is never a path."""

from typing import Any

from unimm.serve.drawing import check_characters
from unimm.serve.errors import ApiError
from unimm.serve.media import read_image_part
from unimm.serve.protocol import ChatRequest, ImagePart, Message, TextPart, VideoPart
from unimm.serve.service import Service
from unimm.serve.videos import read_video_part


def check_conversation(service: Service, body: ChatRequest) -> None:
    """ApiError 400: there is too much of something; before any of it is read."""
    settings = service.settings
    texts = [len(part.text) for message in body.messages for part in parts(message) if isinstance(part, TextPart)]
    check_characters(service, sum(texts), "messages")
    num_images = sum(isinstance(part, ImagePart) for message in body.messages for part in parts(message))
    num_images += sum(len(message.images) for message in body.messages) if body.images != "never" else 0
    if num_images > settings.max_images:
        raise ApiError(400, f"At most {settings.max_images} images are looked at, not {num_images}.", param="messages")
    num_videos = sum(isinstance(part, VideoPart) for message in body.messages for part in parts(message))
    if num_videos > settings.max_videos:
        raise ApiError(400, f"At most {settings.max_videos} videos are looked at, not {num_videos}.", param="messages")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    if len(stops) > settings.max_stops or any(len(stop) > settings.max_stop_characters for stop in stops):
        most = f"At most {settings.max_stops} stop strings of {settings.max_stop_characters} characters are looked for."
        raise ApiError(400, most, param="stop")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: set it to true.", param="top_logprobs")


def parts(message: Message) -> list[TextPart | ImagePart | VideoPart]:
    """What a message consists of."""
    content = message.content
    return [TextPart(type="text", text=content)] if isinstance(content, str) else content


def last_user_text(body: ChatRequest) -> str:
    """What to draw: the texts of the last message of the user's.

    Raises:
        ApiError: 400, there is none, or it has an image: the model draws from words.
    """
    asked = next((message for message in reversed(body.messages) if message.role == "user"), None)
    if asked is None:
        raise ApiError(400, "There is nothing to draw: say it in a message of role user.", param="messages")
    found = parts(asked)
    if any(isinstance(part, ImagePart | VideoPart) for part in found):
        sentence = "The model draws from words alone: leave the image out, or change one with a mask by /v1/images/edits."
        raise ApiError(400, sentence, param="messages", code="unsupported")
    return " ".join(part.text for part in found if isinstance(part, TextPart))


async def for_engine(service: Service, body: ChatRequest, drawn: bool = False) -> list[dict[str, Any]]:
    """The conversation as the engine reads it: system messages at its beginning are one; images, and the frames of videos that
    the model is shown, are decoded.

    drawn: `images` of the assistant's messages, which its answers came with, are read, too, before their words.

    Raises:
        ApiError: 400, an image or video cannot be read or fetched; 429, too much of them is held.
        ValueError: the model does not take such a video.
    """
    settings = service.settings
    read: list[dict[str, Any]] = []
    for message in body.messages:
        role = "system" if message.role == "developer" else message.role
        content: list[dict[str, Any]] = []
        own = message.images if drawn and role == "assistant" else []
        for part in (*own, *parts(message)):
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, VideoPart):
                url = part.video_url if isinstance(part.video_url, str) else part.video_url.url
                frames = await read_video_part(url, part.num_frames, settings, service.engine)
                content.append({"type": "video", "video": frames})
            else:
                url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
                content.append({"type": "image", "image": await read_image_part(url, settings)})
        if role == "system" and len(read) == 1 and read[0]["role"] == "system":
            read[0]["content"] += [{"type": "text", "text": "\n\n"}, *content]
        else:
            read.append({"role": role, "content": content})
    return read
