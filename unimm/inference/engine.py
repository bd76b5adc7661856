"""The engine: images and strings in, images and strings out. Everything a user asks of a model goes through it.

It prepares images, writes prompts as open sequences, has the decode loop fill them, and turns ids back into text and codes
back into images. It knows no HTTP and no files but the model's own folder.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimm.data.image import crop, to_pil
from unimm.data.records import ImageLike
from unimm.data.template import PromptFormat, Template, Turn
from unimm.data.text import StreamDecoder, TextTokenizer
from unimm.data.views import DESCRIBE
from unimm.inference.conventions import DrawingDefaults
from unimm.inference.decode import Decoder
from unimm.inference.inputs import Message, check_text, pair, read_messages
from unimm.inference.rows import Request
from unimm.inference.sampling import Sampling
from unimm.models.folder import save_model
from unimm.models.hub import upload_model
from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.unified import UnifiedModel
from unimm.sequence import Sequence


@dataclass(frozen=True)
class DrawingProgress:
    """What a `callback` is told while images are drawn: `step` of `num_steps` codes an image are there, on average.

    codes: (num_images of all prompts, most that any has) long; -1 where one has not come so far.
    """

    step: int
    num_steps: int
    codes: torch.Tensor

    @classmethod
    def of(cls, filled: list[list[int]], num_steps: int) -> "DrawingProgress":
        """From the codes of each image so far."""
        longest = max(len(codes) for codes in filled)
        padded = [codes + [-1] * (longest - len(codes)) for codes in filled]
        return cls(sum(len(codes) for codes in filled) // len(filled), num_steps, torch.tensor(padded))


class Engine:
    """A model ready to use. Made by `unimm.load`.

    Args:
        model: the unified model, in eval mode, on its device.
        image_tokenizer: its image tokenizer, on the same device.
        tokenizer: its text tokenizer.
        prompt_format: how its prompts are written.
        drawing: how it draws where a call does not say.
        max_rows: rows that are decoded together; more requests than that are taken in turns. Guidance takes two rows.
    """

    def __init__(
        self,
        model: UnifiedModel,
        image_tokenizer: ImageTokenizer,
        tokenizer: TextTokenizer,
        prompt_format: PromptFormat | None = None,
        drawing: DrawingDefaults | None = None,
        max_rows: int = 128,
    ) -> None:
        self.model = model
        self.image_tokenizer = image_tokenizer
        self.tokenizer = tokenizer
        vision = model.config.vision
        self.prompt_format = prompt_format or PromptFormat()
        self.drawing = drawing or DrawingDefaults()
        self.template = Template(tokenizer, self.prompt_format, vision.image_size, vision.num_patches)
        self.max_rows = max_rows
        self.decoder = Decoder(model, tokenizer.special.pad, max_rows)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def save(self, path: str | Path, max_shard_size: int | str = "5GB") -> list[str]:
        """Write the model as one folder: whole or not there. `unimm.load` opens it, and `transformers` where it is a Janus.

        Returns:
            Why `transformers` cannot open it, part by part; empty where it can.

        Raises:
            ValueError: the path holds something else than a model.
        """
        return save_model(
            path,
            self.model,
            self.image_tokenizer,
            self.tokenizer.special,
            extra={"prompt_format": asdict(self.prompt_format)},
            drawing=asdict(self.drawing),
            save_tokenizer=self.tokenizer.save,
            max_shard_size=max_shard_size,
        )

    def push_to_hub(self, repo_id: str, private: bool | None = None) -> str:
        """Save the model and upload it to the Hugging Face hub ("user/name"), made there if need be; gives its address.

        Raises:
            ValueError: nobody is logged in, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return upload_model(Path(folder) / "model", repo_id, private)

    # -- text out -----------------------------------------------------------------------------------------------------

    def caption(
        self, image: ImageLike | list, max_new_tokens: int = 128, temperature: float = 0.0, language: str = "en", **sampling
    ) -> Any:
        """Describe an image, or each of a list of images.

        Args:
            image: a path, bytes, a PIL image or an array (H, W, 3) uint8; or a list of these.
            language: "en" or "zh": the language of the request.
            sampling: `top_k`, `top_p`, `seed` of `Sampling`.

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
        **sampling,
    ) -> Any:
        """Answer a question about an image; lists are paired, a single one goes with every one of the other.

        Returns:
            A string, or a list of strings where image or question is a list.
        """
        images, questions, is_list = pair(image, question)
        settings = Sampling(temperature=temperature, **sampling)
        sequences = []
        for one, text in zip(images, questions, strict=True):
            check_text(text, "question")
            sequences.append(self.template.chat([Turn("user", (self.template.look(one), text))], max_new_tokens))
        texts = self._texts([Request(sequence, settings) for sequence in sequences])
        return texts if is_list else texts[0]

    def chat(
        self,
        messages: list[Message],
        stream: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        **sampling,
    ) -> str | Iterator[str]:
        """The assistant's next turn of a conversation with any number of images.

        Args:
            messages: `transformers`-style messages; images as {"type": "image", "image" | "path" | "url": ...}. A first one of
                role "system" replaces the model's own system prompt.
            stream: give the text piece by piece as it comes.

        Returns:
            The text, or an iterator over its pieces.
        """
        turns, system_prompt = read_messages(messages, self.template)
        sequence = self.template.chat(turns, max_new_tokens, system_prompt)
        request = Request(sequence, Sampling(temperature=temperature, **sampling))
        if not stream:
            return self._texts([request])[0]
        return self._pieces(self.decoder.steps([request]))  # a request that cannot be filled is refused before the first piece

    # -- images out ---------------------------------------------------------------------------------------------------

    def generate_images(
        self,
        prompt: str | list[str],
        num_images: int = 1,
        seed: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        callback: Callable[[DrawingProgress], None] | None = None,
    ) -> Any:
        """Draw images from a prompt, or from each of a list of prompts.

        Args:
            num_images: images a prompt. Image i is keyed by (seed, i): the same alone and in any batch (in float32).
            guidance_scale: 1.0 is off. None, here and below: what the model's own generation_config.json says, and where it
                does not, as in Janus: guidance 5, temperature 1, all codes.
            temperature: 0.0 takes the likeliest code every time.
            callback: is told a `DrawingProgress` after every code; what it raises stops the drawing.

        Returns:
            A list of PIL images; a list of such lists for a list of prompts.
        """
        codes = self.generate_codes(
            prompt,
            num_images,
            seed,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            callback=callback,
        )
        if isinstance(prompt, str):
            return self.decode_codes(codes)
        images = self.decode_codes(codes.flatten(0, 1)) if len(prompt) else []
        return [images[start : start + num_images] for start in range(0, len(images), num_images)]

    def generate_codes(
        self,
        prompt: str | list[str],
        num_images: int = 1,
        seed: int = 0,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        callback: Callable[[DrawingProgress], None] | None = None,
    ) -> torch.Tensor:
        """The codes that `generate_images` decodes: (num_images, num_codes) long on the CPU.

        A list of prompts gives (num_prompts, num_images, num_codes).
        """
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}.")
        given = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        drawing = replace(self.drawing, **{name: value for name, value in given.items() if value is not None})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        num_codes = self.image_tokenizer.num_codes
        requests = []
        for text in prompts:
            check_text(text, "prompt")
            sequence = self.template.draw(text, num_codes=num_codes)
            for index in range(num_images):
                settings = Sampling(drawing.temperature, drawing.top_k, drawing.top_p, seed, index)
                requests.append(Request(sequence, settings, drawing.guidance_scale))
        filled = self._fill(requests, callback)
        codes = torch.tensor(filled, dtype=torch.long).view(len(prompts), num_images, num_codes)
        return codes[0] if isinstance(prompt, str) else codes

    @torch.inference_mode()
    def decode_codes(self, codes: torch.Tensor) -> list[Image.Image]:
        """codes (num_images, num_codes) or (num_codes,) -> PIL images.

        Raises:
            ValueError: a code is outside the codebook, or their number is not that of an image.
        """
        codes = torch.as_tensor(codes, dtype=torch.long)
        codes = codes[None] if codes.dim() == 1 else codes
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.image_tokenizer.codebook_size:
            raise ValueError(
                f"Codes lie in [0, {self.image_tokenizer.codebook_size}), not {int(codes.min())} to {int(codes.max())}."
            )
        images = []
        for part in codes.split(2 if self.device.type == "cpu" else self.max_rows // 2 or 1):
            pixels = self.image_tokenizer.decode(part.to(self.device)).float().clamp(-1, 1).cpu().numpy()
            images += [to_pil(image) for image in pixels]
        return images

    @torch.inference_mode()
    def encode_image(self, image: ImageLike | list) -> torch.Tensor:
        """An image -> its codes (num_codes,) long on the CPU; short side to size, centre crop.

        A list of n images gives (n, num_codes).
        """
        images = image if isinstance(image, list) else [image]
        size, dtype = self.image_tokenizer.image_size, next(self.image_tokenizer.parameters()).dtype
        codes = [torch.empty(0, self.image_tokenizer.num_codes, dtype=torch.long)]
        step = self.max_rows // 2 or 1
        for start in range(0, len(images), step):
            pixels = torch.from_numpy(np.stack([crop(one, size) for one in images[start : start + step]]))
            codes.append(self.image_tokenizer.encode(pixels.to(self.device, dtype)).cpu())
        together = torch.cat(codes)
        return together if isinstance(image, list) else together[0]

    # -- the general call ---------------------------------------------------------------------------------------------

    def fill(
        self, sequences: list[Sequence], sampling: Sampling | list[Sampling] | None = None, guidance_scale: float = 1.0
    ) -> list[Sequence]:
        """Open sequences in, closed sequences out, texts and drawings mixed in one batch."""
        settings = sampling if isinstance(sampling, list) else [sampling or Sampling()] * len(sequences)
        requests = [Request(sequence, one, guidance_scale) for sequence, one in zip(sequences, settings, strict=True)]
        return [sequence.fill(ids) for sequence, ids in zip(sequences, self._fill(requests), strict=True)]

    def _fill(self, requests: list[Request], callback: Callable[[DrawingProgress], None] | None = None) -> list[list[int]]:
        filled: list[list[int]] = [[] for _ in requests]
        for new in self.decoder.steps(requests):
            for index, token in new.items():
                filled[index].append(token)
            if callback is not None:
                callback(DrawingProgress.of(filled, requests[0].blank.limit or 0))
        return filled

    def _texts(self, requests: list[Request]) -> list[str]:
        return [self.tokenizer.decode(ids).strip() for ids in self._fill(requests)]

    def _pieces(self, steps: Iterator[dict[int, int]]) -> Iterator[str]:
        decoder = StreamDecoder(self.tokenizer)
        started = False
        for new in steps:
            piece = decoder.push(new[0])
            piece = piece if started else piece.lstrip()
            if piece:
                started = True
                yield piece
        if rest := decoder.finish():
            yield rest
