"""The engine's calls that give text: captions, answers and chat, about images and videos, and how well an image fits a text."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from unimm.data.records import ImageLike, Video
from unimm.data.video.choosing import Frames, segments_of
from unimm.data.views import DESCRIBE
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine_parts import EngineParts
from unimm.inference.examples import ImageQuestion, read_examples
from unimm.inference.input_validation import check_text, image_or_video, pair, read_stop
from unimm.inference.interleaved import astream_answer, check_images, converse, read_answers, stream_answer
from unimm.inference.messages import Message, continues_answer, list_conversations, read_messages
from unimm.inference.second_look import SecondLook, Verification
from unimm.inference.text_stream import TextChunk, astream, awrite, write
from unimm.inference.text_stream import stream as write_stream
from unimm.inference.vqa_score import ask_whether_shown, probability_of_yes
from unimm.runtime.number_checks import whole_number


class TextCalls(EngineParts):
    """Images and texts in, text out."""

    def caption(
        self,
        image: ImageLike | list,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        language: str = "en",
        *,
        votes: int = 1,
        verify: bool | Verification = False,
        details: bool = False,
        **sampling,
    ) -> Any:
        """Describe an image or a video, or each of a list of them.

        Args:
            image: a path, bytes, a file, a PIL image, an array, a tensor (all forms: `unimm.data.image_forms`); a video, as in
                `answer`; or a list.
            language: "en" or "zh": the language of the request.
            votes, verify, details: as in `answer`. Captions vote on what they say is there, and are also checked as a whole.
            sampling: `num_frames` as in `answer`; `stop` as in `complete`; `top_k`, `top_p`, `min_p`, `repetition_penalty`,
                `seed` of `Sampling`.

        Returns:
            A string, or a list of strings for a list.
        """
        if language not in DESCRIBE:
            raise ValueError(f"Captions can be asked for in {', '.join(DESCRIBE)}, not in '{language}'.")
        checks = {"votes": votes, "verify": verify, "details": details, "is_caption": True}
        return self._look(image, DESCRIBE[language][0], max_new_tokens, checks, temperature=temperature, **sampling)

    def answer(  # noqa: PLR0913 - a setting each
        self,
        image: ImageLike | tuple | list,
        question: str | list[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        *,
        examples: list | None = None,
        votes: int = 1,
        verify: bool | Verification = False,
        details: bool = False,
        **sampling,
    ) -> Any:
        """Answer a question about an image or a video; lists are paired, a single one goes with every one of the other.

        Args:
            image: one, or a tuple of several that one question is about: `answer((first, second), "What differs?")`; or a list
                of such, each with a question of its own. A video is a path with the name of one, its bytes, what
                `unimm.data.open_video` gives; with `num_frames` also an animation, a folder of frames, an array (T, H, W, 3).
            temperature: 0 takes the likeliest tokens; of votes beyond the first it stands for 0.7.
            examples: images with the right answers to the same question, which the model learns from as it reads (few-shot):
                a list of pairs (image, answer), or a list of such lists, one for each question. The model has to have room for
                all images.
            votes: so many answers, the usual one and others that are sampled, of which that counts which most of them give
                (`unimm.inference.second_look`).
            verify: ask for what the answer says is there, and mend it; a `Verification` says how.
            details: return a `CheckedText` in place of a string: drafts, agreement, claims with their probabilities.
            sampling: `num_frames` of a video, at most, where it is not as the model takes videos; and as in `caption`.

        Raises:
            ValueError: an image cannot be read, a question or an answer of an example is empty, lists do not pair, or all of
                it takes more positions than the model has.

        Returns:
            A string, or a list of strings where image or question is a list.
        """
        checks = {"votes": votes, "verify": verify, "details": details}
        sampling |= {"temperature": temperature, "examples": examples}
        return self._look(image, question, max_new_tokens, checks, stop, **sampling)

    def _look(
        self,
        image: ImageLike | tuple | list,
        question: str | list[str],
        max_new_tokens: int,
        checks: dict[str, Any],
        stop: str | list[str] | None = None,
        examples: list | None = None,
        num_frames: int | None = None,
        **sampling: Any,
    ) -> Any:
        images, questions, is_list = pair(image, question)
        limit, details = whole_number("max_new_tokens", max_new_tokens, 1), checks.pop("details")
        second = SecondLook(self, limit, **checks, **sampling)
        for text in questions:
            check_text(text, "question")
        shown, images = images, self._watched(images, num_frames)
        given = read_examples(examples, len(questions))
        asked = [
            ImageQuestion.read(self.template, *one, self.decoder.max_positions)
            for one in zip(images, questions, given, strict=True)
        ]
        found = second.texts(asked, read_stop(stop), shown)
        texts = found if details else [one.text for one in found]
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
        *,
        images: str = "never",
        **sampling,
    ) -> Any:
        """The assistant's next turn of a conversation with any number of images.

        Args:
            messages: as `transformers`, OpenAI or DeepSeek write them (`unimm.inference.messages`). A first one of role
                "system" replaces the model's own system prompt; a last one of the assistant's is what its answer begins with,
                and the text goes on where that ends.
            stream: return an iterator over the pieces of the text, as they come.
            stop: as in `complete`.
            images: "auto": the model may draw in its answer, wherever it begins an image (one that was taught to does);
                "always": its answer begins with an image, also of a model that was not taught when to draw; "never":
                words alone, in which no image can begin (so are all other calls that give text).
            sampling: as in `complete` (of a list of conversations `seed` may be a list), and where there may be images
                `max_images` of an answer [4], `drawing` (a dict of guidance_scale, temperature, top_k, top_p instead of the
                model's own), `preview_every` (codes, with `stream`).

        Returns:
            A string, or with `stream` an iterator over its pieces. Where there may be images, an `AssistantMessage` with
            `text`, `images`, and `message` to put among those of the next turn (a list of them for a list of conversations,
            answered in one batch); with `stream` an iterator over `ChatPiece`s: words, previews, images in their order.

        Raises:
            ValueError: a message cannot be read, or the conversation leaves no room for an answer.
        """
        check_images(images)
        if images != "never":
            answers, is_list = read_answers(self, messages, max_new_tokens, temperature, stop, images, **sampling)
            if stream:
                return stream_answer(self, answers)
            written = converse(self, answers)
            return written if is_list else written[0]
        request, stops, continues = self._chat_request(messages, max_new_tokens, temperature, stop, **sampling)
        if not stream:
            return write(self.decoder, self.tokenizer, [request], stops, [continues])[0].text
        return _pieces(write_stream(self.decoder, self.tokenizer, request, stops, continues))

    def complete(
        self,
        messages: list[Message] | list[list[Message]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        **sampling,
    ) -> Any:
        """As `chat`, with all there is to know: why the text ended, its tokens, their log-probabilities.

        Args:
            messages: of one conversation, or a list of conversations, which are answered in one batch; each gets the answer
                that it gets alone.
            stop: the text ends before the first of these strings.
            logprobs: keep the log-probability of every token, before temperature.
            top_logprobs: and those of the likeliest tokens at every place, so many of them, at most 20.
            sampling: `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed` of `Sampling`; `fit=True`: where the model has no
                room for `max_new_tokens` beside the messages, as many as it has room for.

        Returns:
            A `Completion`, or a list of them for a list of conversations.
        """
        settings = (messages, max_new_tokens, temperature, stop, logprobs, top_logprobs)
        asked, is_list = self._chat_requests(*settings, **sampling)
        completions = write(self.decoder, self.tokenizer, *asked)
        return completions if is_list else completions[0]

    async def acomplete(
        self,
        messages: list[Message] | list[list[Message]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        **sampling,
    ) -> Any:
        """As `complete`, for coroutines; so are the calls whose names begin with `astream`, which are read with `async for`.

        They start a thread of the engine's own that makes the steps: requests of all tasks are decoded together, and the event
        loop is never blocked. A task that is cancelled, or an iterator that is closed, takes its requests with it.
        """
        settings = (messages, max_new_tokens, temperature, stop, logprobs, top_logprobs)
        asked, is_list = await asyncio.to_thread(self._chat_requests, *settings, **sampling)
        completions = await awrite(self.decoder, self.tokenizer, *asked)
        return completions if is_list else completions[0]

    def stream_complete(self, messages: list[Message], **settings: Any) -> Iterator[TextChunk]:
        """As `complete`, with its settings, chunk by chunk: each with a piece of the text and its tokens, the last one with the
        whole `completion`."""
        request, *stops = self._chat_request(messages, **settings)
        return write_stream(self.decoder, self.tokenizer, request, *stops)

    async def astream_complete(self, messages: list[Message], **settings: Any) -> AsyncGenerator[TextChunk]:
        """As `stream_complete`, for coroutines: `async for chunk in engine.astream_complete(messages)`."""
        request, *stops = await asyncio.to_thread(self._chat_request, messages, **settings)
        async with aclosing(astream(self.decoder, self.tokenizer, request, *stops)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def astream_chat(self, messages: list[Message], **settings: Any) -> AsyncGenerator[Any]:
        """As `chat` with `stream=True`, for coroutines: `async for piece in engine.astream_chat(messages)`."""
        images = settings.pop("images", "never")
        check_images(images)
        if images != "never":
            answers, _ = await asyncio.to_thread(read_answers, self, messages, images=images, **settings)
            async with aclosing(astream_answer(self, answers)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        async with aclosing(self.astream_complete(messages, **settings)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    yield chunk.text

    def _watched(self, images: list, num_frames: int | None) -> list:
        """Images, and tuples of them, with videos as their frames: read once, however often one is asked about."""
        most, videos, opened = self.decoder.max_positions, dict[int, Frames](), dict[int, Frames]()

        def choose(one: Any) -> Any:
            if isinstance(one, tuple):
                return tuple(map(choose, one))
            image = image_or_video(one, num_frames)
            if not isinstance(image, Video):
                return image
            if id(one) not in videos:
                videos[id(one)] = self.template.watch(image)
            return videos[id(one)]

        def read(one: Any) -> Any:
            if isinstance(one, tuple):
                return tuple(map(read, one))
            if isinstance(one, Frames) and id(one) not in opened:
                opened[id(one)] = one.opened()
            return opened.get(id(one), one)

        chosen = [choose(one) for one in images]
        for one in chosen:  # before any frame is decoded
            frames = [part for part in (one if isinstance(one, tuple) else (one,)) if isinstance(part, Frames)]
            if (taken := sum(segment.length for part in frames for segment in segments_of(part))) > most:
                raise ValueError(f"The frames of the video take {taken} positions, and there are {most}: show fewer.")
        return [read(one) for one in chosen]

    def _chat_requests(
        self, messages: list[Message] | list[list[Message]], *settings: Any, **sampling: Any
    ) -> tuple[tuple[list[Request], tuple[str, ...], list[bool]], bool]:
        """The requests of one conversation or of a list of them, their stop strings, and which of them continue an answer, as
        `write` takes them; and whether a list goes back."""
        conversations, is_list = list_conversations(messages)
        asked = [self._chat_request(one, *settings, **sampling) for one in conversations]
        return ([request for request, *_ in asked], asked[0][1], [continues for *_, continues in asked]), is_list

    def _chat_request(
        self,
        messages: list[Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: str | list[str] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        fit: bool = False,
        **sampling: Any,
    ) -> tuple[Request, Any, Any]:
        """The request, its stop strings, and whether it continues an answer: as `write` and `stream` take them."""
        limit, settings = whole_number("max_new_tokens", max_new_tokens, 1), Sampling(temperature, **sampling)
        turns, system_prompt = read_messages(messages, self.template, self.decoder.max_positions)
        kept = {"logprobs": logprobs or bool(top_logprobs), "top_logprobs": top_logprobs}
        sequence = self.template.chat(turns, limit, system_prompt)
        if fit and (over := sequence.length - self.decoder.max_positions) > 0:
            sequence = self.template.chat(turns, max(1, limit - over), system_prompt)
        request = Request(sequence.opened(), settings, **kept)
        return request, read_stop(stop), continues_answer(messages)


def _pieces(chunks: Iterator[TextChunk]) -> Iterator[str]:
    return (chunk.text for chunk in chunks if chunk.text)
