"""The engine: images and strings in, images and strings out. Everything a user asks of a model goes through it.

It prepares images, writes prompts as open sequences, has the decode loop fill them, and turns ids back into text and codes
back into images. It knows no HTTP and no files but the model's own folder.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unimm.checkpoints.bundle import ModelBundle
from unimm.data.records import ImageLike
from unimm.data.template import Template, Turn
from unimm.data.views import DESCRIBE
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Branch, Request, requests_for
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.drawing import DrawingProgress, adraw, draw, drawing_requests, finish
from unimm.inference.image_codec import ImageCoder
from unimm.inference.input_validation import check_text, check_weights, pair, read_stop
from unimm.inference.messages import Message, continues_answer, read_messages
from unimm.inference.text_stream import Completion, astream, awrite, write
from unimm.inference.text_stream import stream as write_stream
from unimm.inference.vqa_score import ask_whether_shown, check_best_of, choose_best, probability_of_yes
from unimm.runtime.number_checks import whole_number
from unimm.sequence import Sequence


class Engine:
    """A model ready to use. Made by `unimm.load`.

    Args:
        bundle: the model with its tokenizers and conventions, in eval mode, on its device.
        limits: how much it decodes at once, and how much may wait.
        weights, deterministic: as `Decoder` and `ImageCoder` have them.
        is_stopped: called before every step of decoding; once it returns True, whatever is being filled ends with `Stopped`.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        limits: Limits | None = None,
        weights: str | None = None,
        deterministic: bool = False,
        is_stopped: Callable[[], bool] | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = model = bundle.model
        self.image_tokenizer = bundle.image_tokenizer
        self.prompt_format = bundle.prompt_format
        self.drawing = bundle.drawing
        self.deterministic = deterministic
        self.coder = ImageCoder(self.image_tokenizer, alone=deterministic, weights=weights)
        vision = model.config.vision
        self.template = Template(
            bundle.tokenizer,
            self.prompt_format,
            vision.image_size,
            model.num_image_positions,
            lambda image: self.encode_image(image).numpy(),
        )
        self.tokenizer = self.template.tokenizer  # it shows no roles
        self.decoder = Decoder(model, bundle.tokenizer.special.pad, limits, weights, deterministic, is_stopped)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def save(
        self,
        path: str | Path,
        max_shard_size: int | str = "5GB",
        notes: str = "",
        write_more: Callable[[Path], object] = lambda folder: None,
    ) -> list[str]:
        """Write the model as one folder: `ModelBundle.save`, with its arguments, result and errors."""
        return self.bundle.save(path, max_shard_size, notes, write_more)

    def push_to_hub(self, repo_id: str, private: bool | None = None) -> str:
        """Save the model and upload it to the Hugging Face hub: `ModelBundle.push_to_hub`."""
        return self.bundle.push_to_hub(repo_id, private)

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy new values into the model's parameters, by name; running requests go on with them.

        Raises:
            ValueError: a name or shape is none of the model's; then nothing has changed.
        """
        own, new = dict(self.model.named_parameters(remove_duplicate=False)), dict(tensors)
        check_weights(own, new)
        self.decoder.swap_weights(lambda: [own[name].copy_(tensor) for name, tensor in new.items()])

    # -- text out -----------------------------------------------------------------------------------------------------

    def caption(
        self, image: ImageLike | list, max_new_tokens: int = 128, temperature: float = 0.0, language: str = "en", **sampling
    ) -> Any:
        """Describe an image, or each of a list of images.

        Args:
            image: a path, bytes, a file, a PIL image, an array, a tensor (all forms: `unimm.data.image_forms`); or a list.
            language: "en" or "zh": the language of the request.
            sampling: `stop` as in `complete`; `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed` of `Sampling`.

        Returns:
            A string, or a list of strings for a list.
        """
        if language not in DESCRIBE:
            raise ValueError(f"Captions can be asked for in {', '.join(DESCRIBE)}, not in '{language}'.")
        question = DESCRIBE[language][0]
        return self.answer(image, question, max_new_tokens=max_new_tokens, temperature=temperature, **sampling)

    def answer(
        self,
        image: ImageLike | list,
        question: str | list[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        **sampling,
    ) -> Any:
        """Answer a question about an image; lists are paired, a single one goes with every one of the other.

        Returns:
            A string, or a list of strings where image or question is a list.
        """
        images, questions, is_list = pair(image, question)
        settings, limit = Sampling(temperature, **sampling), whole_number("max_new_tokens", max_new_tokens, 1)
        for text in questions:
            check_text(text, "question")
        asked = [Turn("user", (self.template.look(one), text)) for one, text in zip(images, questions, strict=True)]
        requests = [Request(self.template.chat([turn], limit).opened(), settings) for turn in asked]
        texts = [one.text for one in write(self.decoder, self.tokenizer, requests, read_stop(stop))]
        return texts if is_list else texts[0]

    def alignment(self, image: ImageLike | list, prompt: str | list[str]) -> Any:
        """How probable the model finds that an image shows what a prompt says, from 0 to 1 (VQAScore, arXiv 2404.01291).

        Lists are paired as in `answer`, and give a list.
        """
        images, prompts, is_list = pair(image, prompt)
        sequences = [ask_whether_shown(self.template, one, text) for one, text in zip(images, prompts, strict=True)]
        found = probability_of_yes(self.model, self.tokenizer, sequences, self.deterministic)
        return found if is_list else found[0]

    def chat(
        self,
        messages: list[Message],
        stream: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        **sampling,
    ) -> str | Iterator[str]:
        """The assistant's next turn of a conversation with any number of images.

        Args:
            messages: as `transformers`, OpenAI or DeepSeek write them (`unimm.inference.messages`). A first one of role
                "system" replaces the model's own system prompt; a last one of the assistant's is what its answer begins with,
                and the text goes on where that ends.
            stream: return an iterator over the pieces of the text, as they come.
            stop: as in `complete`.
        """
        if not stream:
            return self.complete(messages, max_new_tokens, temperature, stop, **sampling).text
        request, *stops = self._chat_request(messages, max_new_tokens, temperature, stop, **sampling)
        return write_stream(self.decoder, self.tokenizer, request, *stops)

    def complete(
        self,
        messages: list[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        logprobs: bool = False,
        **sampling,
    ) -> Completion:
        """As `chat`, with all there is to know: why the text ended, its tokens, their log-probabilities.

        Args:
            stop: the text ends before the first of these strings.
            logprobs: keep the log-probability of every token.
            sampling: `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed` of `Sampling`.
        """
        request, *stops = self._chat_request(messages, max_new_tokens, temperature, stop, logprobs, **sampling)
        return write(self.decoder, self.tokenizer, [request], *stops)[0]

    async def acomplete(
        self,
        messages: list[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        logprobs: bool = False,
        **sampling,
    ) -> Completion:
        """As `complete`, for coroutines; so are `astream_chat` and `astream_images`, which are read with `async for`.

        They start a thread of the engine's own that makes the steps: requests of all tasks are decoded together, and the event
        loop is never blocked. A task that is cancelled, or an iterator that is closed, takes its requests with it.
        """
        settings = (messages, max_new_tokens, temperature, stop, logprobs)
        request, *stops = await asyncio.to_thread(self._chat_request, *settings, **sampling)
        return (await awrite(self.decoder, self.tokenizer, [request], *stops))[0]

    async def astream_chat(self, messages: list[Message], **settings: Any) -> AsyncGenerator[str]:
        """As `chat` with `stream=True`, for coroutines: `async for piece in engine.astream_chat(messages)`."""
        request, *stops = await asyncio.to_thread(self._chat_request, messages, **settings)
        async with aclosing(astream(self.decoder, self.tokenizer, request, *stops)) as pieces:
            async for piece in pieces:
                yield piece

    def _chat_request(
        self,
        messages: list[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        logprobs: bool = False,
        **sampling: Any,
    ) -> tuple[Request, Any, Any]:
        """The request, its stop strings, and whether it continues an answer: as `write` and `stream` take them."""
        limit, settings = whole_number("max_new_tokens", max_new_tokens, 1), Sampling(temperature, **sampling)
        turns, system_prompt = read_messages(messages, self.template, self.decoder.max_positions)
        request = Request(self.template.chat(turns, limit, system_prompt).opened(), settings, logprobs=logprobs)
        return request, read_stop(stop), continues_answer(messages)

    # -- images out ---------------------------------------------------------------------------------------------------

    def generate_images(
        self,
        prompt: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        callback: Callable[[DrawingProgress], None] | None = None,
        **more,
    ) -> Any:
        """Draw images from a prompt, or from each of a list of prompts.

        Args:
            num_images: images a prompt. Image i is keyed by (seed, i): in float32 the same codes alone and in any batch, and
                on a CPU the same pixels.
            seed: of all prompts (their images are a little alike then), or a list or array, one for each.
            guidance_scale: 1.0 is off. None, here and below: what the model's own generation_config.json says, and where it
                does not, as in Janus: guidance 5, temperature 1, all codes.
            temperature: 0.0 takes the likeliest code every time.
            callback: gets a `DrawingProgress` after every code, with `best_of` of all images it is to choose from; what it
                raises stops the drawing.
            more: `best_of`: draw each image as often as this says, and return the one that aligns best with the prompt
                (`alignment`); the time grows by a little more than that factor. `min_p` of `Sampling`, `guidance_interval` of
                `Request`.

        Returns:
            A list of PIL images; a list of such lists for a list of prompts.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        num_images = whole_number("num_images", num_images, 1)
        best_of = check_best_of(more.pop("best_of", 1), self.model, self.template, prompts)
        settings = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p, **more}
        drawing = draw(self.decoder, self._requests(prompt, num_images, seed, settings, best_of), self.coder)
        images = finish(drawing, callback).images or []
        if best_of > 1:
            each = [text for text in prompts for _ in range(num_images * best_of)]
            images = choose_best(images, self.alignment(images, each), best_of)
        starts = range(0, len(images), num_images)
        return images if isinstance(prompt, str) else [images[start : start + num_images] for start in starts]

    def stream_images(
        self, prompt: str | list[str], num_images: int = 1, seed: int | list[int] = 0, preview_every: int = 64, **settings
    ) -> Iterator[DrawingProgress]:
        """Draw images and tell how far they are after every code; the same images as `generate_images`.

        Args:
            preview_every: codes an image between previews. They are made beside the drawing, and left out when they are late.
            settings: as in `generate_images`, but for `best_of`: the best one is known when all are there.

        Returns:
            An iterator; where `images` is not None it holds previews, and at the end (`is_final`) the images of all prompts.
        """
        return draw(self.decoder, self._requests(prompt, num_images, seed, settings), self.coder, preview_every)

    async def astream_images(
        self, prompt: str | list[str], num_images: int = 1, seed: int | list[int] = 0, preview_every: int = 64, **settings
    ) -> AsyncGenerator[DrawingProgress]:
        """As `stream_images`, for coroutines: `async for progress in engine.astream_images(prompt)`."""
        requests = await asyncio.to_thread(self._requests, prompt, num_images, seed, settings)
        async with aclosing(adraw(self.decoder, requests, self.coder, preview_every)) as drawing:
            async for progress in drawing:
                yield progress

    def generate_codes(
        self,
        prompt: str | list[str],
        num_images: int = 1,
        seed: int | list[int] = 0,
        *,
        callback: Callable[[DrawingProgress], None] | None = None,
        **settings,
    ) -> torch.Tensor:
        """The codes that `generate_images` decodes, without `best_of`: (num_images, num_codes) long on the CPU, or of a list of
        prompts (num_prompts, num_images, num_codes)."""
        num_images = whole_number("num_images", num_images, 1)
        requests = self._requests(prompt, num_images, seed, settings)
        if not requests:
            return torch.empty(0, num_images, self.image_tokenizer.num_codes, dtype=torch.long)
        codes = finish(draw(self.decoder, requests), callback).codes
        return codes if isinstance(prompt, str) else codes.unflatten(0, (len(prompt), num_images))

    def _requests(self, prompt: str | list[str], num_images: int, seed: Any, settings: dict, best_of: int = 1) -> list[Request]:
        num_codes, count = self.image_tokenizer.num_codes, (whole_number("num_images", num_images, 1), best_of)
        return drawing_requests(self.template, num_codes, prompt, count, seed, self.drawing, settings)

    def decode_codes(self, codes: torch.Tensor) -> list[Image.Image]:
        """codes (num_images, num_codes) or (num_codes,) -> PIL images; with the errors of `ImageCoder.decode`."""
        return self.coder.decode(codes)

    def encode_image(self, image: ImageLike | list) -> torch.Tensor:
        """An image -> its codes (num_codes,) long on the CPU, n images -> (n, num_codes); short side to size, centre crop."""
        return self.coder.encode(image) if isinstance(image, list) else self.coder.encode([image])[0]

    # -- the general call ---------------------------------------------------------------------------------------------

    def fill(
        self,
        sequences: list[Sequence],
        sampling: Sampling | list[Sampling] | None = None,
        guidance_scale: float = 1.0,
        branches: tuple[Branch, ...] | list[tuple[Branch, ...]] = (),
    ) -> list[Sequence]:
        """Open sequences in, closed sequences out, texts and drawings mixed in one batch.

        Args:
            sampling: for all of them, or a list with one for each.
            branches: guidance by other prompts than `guidance_scale` has it for, as `Request` takes them; or a list of those.
        """
        requests = requests_for([sequence.opened() for sequence in sequences], sampling, guidance_scale, branches)
        return [sequence.fill(ids) for sequence, ids in zip(sequences, self.decoder.fill(requests), strict=True)]
