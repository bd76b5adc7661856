"""What requests may say: OpenAI's fields, those of vLLM and OpenRouter for sampling and drawings, and what becomes of others.

A field that cannot be honoured is refused with 400, so that nobody waits for what will not come. Exempt are fields that change
nothing (`NEUTRAL`, with the values that clients send by default) and fields that are about the client (`IGNORED`).
"""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import File, UploadFile
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "num_images": (1,),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Fields of a chat, OpenAI's and vLLM's, that say nothing with these values, and are refused with others."""

IGNORED = ("user", "metadata", "name", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
IGNORED += ("moderation", "style")
"""Fields that are read by nobody: they describe the client, or ask for what every answer here has."""

MAX_FIELDS = 100
"""Of an object; each unknown one is an error of its own."""

MAX_SIDE = 65_535
"""Pixels of a side."""

T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True, max_length=1000)]
"""A list whose first wrong element ends its check: a short body can hold a hundred thousand."""

Place = Literal["images", "content"]
Format = Literal["png", "webp", "jpeg"]


class Body(BaseModel):
    """What a client sends. null is the same as nothing: some clients write all fields that they know."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if len(given) > MAX_FIELDS:
            raise ValueError(f"at most {MAX_FIELDS} fields are read")
        return {name: value for name, value in given.items() if value is not None and not cls._says_nothing(name, value)}

    @classmethod
    def _says_nothing(cls, name: str, value: Any) -> bool:
        if name in cls.model_fields:
            return False
        return name in IGNORED or any(type(value) in (type(one), float) and value == one for one in NEUTRAL.get(name, ()))


class ImageUrl(Body):
    """Where an image is: a data: URI, or an address where the server allows that one. `detail` changes nothing: the model
    looks at every image in its one size."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class TextPart(Body):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(Body):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class VideoUrl(Body):
    """Where a video is, as `ImageUrl` has it: "data:video/mp4;base64,...", or an address where the server allows that one."""

    url: str


class VideoPart(Body):
    """A video of a message, in vLLM's form. num_frames: looked at, at most; default: as the model takes videos."""

    type: Literal["video_url"]
    video_url: VideoUrl | str
    num_frames: int | None = Field(None, ge=1, le=4096)


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Body):
    """A message of a conversation. `images` are those that an answer of this server came with: the model is not shown."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Many[Part] = ""
    images: Many[ImagePart] = []

    @classmethod
    def _says_nothing(cls, name: str, value: Any) -> bool:
        return super()._says_nothing(name, value) or (name in ("tool_calls", "annotations") and value == [])


class StreamOptions(Body):
    """include_usage: the last event before [DONE] has the usage. include_obfuscation: ignored."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Drawing(Body):
    """What is said of drawings, in chats and in image requests."""

    model: str = ""
    n: int = Field(1, ge=1, description="Answers or drawings.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="Drawing i is keyed by (seed, i). Default: random.")
    guidance_scale: float | None = Field(None, ge=0, le=100, description="1 is off. Default: the model's own.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the likeliest. Texts: 0; drawings: the model's.")
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 keeps all; so does -1, as vLLM has it.")
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    size: str = Field(
        "auto",
        max_length=20,
        description='"auto", the model\'s own size, or of drawings from a prompt one that it was taught; 256x256, 512x512, '
        "1024x1024 are resized.",
    )
    drawing: Literal["codes", "latents"] | None = Field(
        None, description="latents: by a flow. Default: codes, where it has them."
    )
    steps: int | None = Field(None, ge=1, le=1000, description="Passes of a flow.")
    solver: Literal["euler", "heun"] | None = Field(None, description="Of a flow.")
    output_format: Format | None = Field(None, description="Default: webp in chats, png in image requests.")
    output_compression: int = Field(90, ge=0, le=100, description="The quality of webp and jpeg.")
    stream: bool = False

    @field_validator("top_k")
    @classmethod
    def _keep_all(cls, given: int | None) -> int | None:
        return None if given is None else max(0, given)


class ChatRequest(Drawing):
    """POST /v1/chat/completions."""

    messages: Many[Message] = Field(min_length=1)
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1, description="At most so many; fewer where the model has no room for them.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same, by its newer name.")
    stop: str | Many[str] = []
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    votes: int = Field(1, ge=1, description="Answers that are written, of which the one that most of them give goes out.")
    modalities: Many[Literal["text", "image"]] = Field(
        ["text"], min_length=1, description='With "image" the last user message is drawn; else it is answered.'
    )
    images: Literal["never", "auto", "always"] = Field(
        "never",
        description='"auto": the answer may hold images, where the model begins one; "always": it begins with one; "never": '
        "no image can begin. Unlike modalities, which draw the last message.",
    )
    max_images: int = Field(4, ge=1, description="Of an answer with images.")
    image_placement: Place = Field("images", description="message.images, as OpenRouter; or a list in content, as vllm-omni.")


class ImageRequest(Drawing):
    """POST /v1/images/generations."""

    prompt: str = Field(min_length=1)
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="url is a data: URI.")
    partial_images: int = Field(0, ge=0, le=3, description="Previews in a stream; fewer come where they would be late.")


class EditRequest(ImageRequest):
    """POST /v1/images/edits, as multipart/form-data: the image changed as the prompt says; with a mask, what that leaves open
    drawn anew; with sides, what is around the image. With `size` "auto" the image comes back in its own size."""

    image: Annotated[list[UploadFile], File(description="One image: JPEG, PNG, WEBP or GIF.")] = []
    images: Annotated[list[UploadFile], File(alias="image[]", description="The same, as lists are sent.")] = []
    mask: Annotated[UploadFile | None, File(description="PNG with transparency where to draw.")] = None
    image_guidance_scale: float | None = Field(
        None, ge=0, le=100, description="Without a mask: how closely to follow the image. 1 [default] is off."
    )
    source_bias: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Without a mask: added to the logits of the image's codes. 0 is off. Default: the model's.",
    )
    left: int = Field(0, ge=-MAX_SIDE, le=MAX_SIDE, description="Pixels by which the image grows on the left; below 0: is cut.")
    right: int = Field(0, ge=-MAX_SIDE, le=MAX_SIDE)
    top: int = Field(0, ge=-MAX_SIDE, le=MAX_SIDE)
    bottom: int = Field(0, ge=-MAX_SIDE, le=MAX_SIDE)
    input_fidelity: Literal["high", "low"] = Field("high", description="Ignored: what is kept is kept exactly.")
