"""The model of lmms-eval (EvolvingLMMs-Lab), with several images a request.

    lmms-eval --model unimm --model_args pretrained=FOLDER,prompts=janus --tasks pope,mme --batch_size 64

lmms-eval finds it by the entry point of this package. Its chat model serves all tasks that write; those that compare
log-likelihoods are given to "simple" models alone, so `--force_simple` takes the second class. Image-output tasks (WISE and its
like; of editing, where the model was taught to, GEdit-Bench and ImgEdit-Bench) are asked with `mode=generation`: the answer is
their JSON, {"text": "", "images": [path]}.
"""

# pyright: reportMissingImports=false
# lmms-eval has an environment of its own.

import os
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from tqdm import tqdm

from unimm.eval.harness import janus_prompts
from unimm.eval.harness.conversations import Generation, answer_all, draw_all, edit_all, images_and_text, read_parts
from unimm.eval.likelihood import continuation
from unimm.inference.engine import Engine, load
from unimm.inference.messages import Message, read_messages
from unimm.runtime.number_checks import real_number, whole_number
from unimm.sequence import Segment, Sequence

PROMPTS = ("task", "janus")
MODES = ("understanding", "generation")


class Unimm(lmms):
    """The chat model.

    Args:
        pretrained: a model folder, a hub id, or "demo".
        prompts: "task", or "janus": those that Janus' numbers were asked with (`janus_prompts`).
        mode: "understanding", or "generation", which draws.
        batch_size: requests the engine is given at once; it admits as many as its memory holds.
        max_new_tokens: in place of the tasks' own.
        system_prompt: in place of the model's own; "none" says nothing.
        image_folder, seed, guidance_scale, temperature: of drawings; None: the model's own settings.
        device, dtype, weights: as `unimm.load` takes them.

    Raises ValueError where there is no such model or setting.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "demo",
        prompts: str = "task",
        mode: str = "understanding",
        batch_size: int | str = 64,
        max_new_tokens: int | None = None,
        system_prompt: str | None = None,
        image_folder: str = "unimm_drawings",
        **more: Any,
    ) -> None:
        super().__init__()
        _check_choice("prompts", prompts, PROMPTS)
        _check_choice("mode", mode, MODES)
        self.prompts, self.mode = prompts, mode
        self.batch_size_per_gpu = 64 if batch_size == "auto" else whole_number("batch_size", int(batch_size), 1)
        self.max_new_tokens = max_new_tokens
        if prompts == "janus" and max_new_tokens is None:
            self.max_new_tokens = janus_prompts.MAX_NEW_TOKENS
        self.system_prompt = "" if system_prompt == "none" else system_prompt
        self.image_folder = Path(image_folder)
        self.seed = whole_number("seed", more.pop("seed", 0), 0)
        names = ("guidance_scale", "temperature")
        self.drawing = {name: real_number(name, value) for name in names if (value := more.pop(name, None)) is not None}
        self.engine: Engine = _load(pretrained, more)

    @property
    def batch_size(self) -> int:
        """Requests the engine is given at once."""
        return self.batch_size_per_gpu

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.engine.device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Texts, or in generation the JSON with the paths of drawings; `requests` of chat or simple tasks."""
        answers: list[str] = []
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="unimm")
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            answers += self._draw(batch) if self.mode == "generation" else self._write(batch)
            bar.update(len(batch))
        bar.close()
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """No task of several rounds: each has a protocol of its own."""
        raise NotImplementedError("unimm answers tasks of one round: choose others than generate_until_multi_round.")

    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """How likely every continuation is, and whether the model would write just that: (number, is_greedy) each.

        For tasks of multiple choice lmms-eval chooses the least number (0.7.3: "we return the actual loss"), so they get the
        negative log-likelihood; the others, which take its exponential, the log-likelihood. A plain tuple it would turn into
        its text (0.7.3, `unwrap_generation_output`), and so break every such task.
        """
        pairs, signs = [], []
        for request in requests:
            context, target, *visual = request.args
            wanted = target if isinstance(target, str) else str(target(self._item(request)))
            given = self._given(request, self._simple_messages(context, *visual) if visual else _user([], context))
            pairs.append(continuation(given, self.engine.tokenizer.encode(f" {wanted.strip()}")))
            signs.append(-1 if isinstance(target, str) else 1)
        scored = self.engine.loglikelihood(pairs)
        numbers = [(sign * one.logprob, one.is_greedy) for sign, one in zip(signs, scored, strict=True)]
        return [GenerationResult(pair) for pair in numbers]

    def messages_of(self, request: Any) -> list[Message]:
        """A request as messages, in the prompts that were chosen."""
        doc_to_messages = request.args[1]
        return self._as_asked(request, _plain(doc_to_messages(self._item(request))))

    def settings_of(self, request: Any) -> dict[str, Any]:
        """A request's keywords of generation."""
        return request.args[2]

    def _write(self, requests: list[Any]) -> list[str]:
        conversations = [self.messages_of(request) for request in requests]
        settings = [Generation.read(self.settings_of(request), self.max_new_tokens) for request in requests]
        if self.prompts == "janus":
            settings = [Generation(one.max_new_tokens, until=one.until) for one in settings]
        return answer_all(self.engine, conversations, settings, self.batch_size, self.seed)

    def _draw(self, requests: list[Any]) -> list[str]:
        """Drawings of texts; of one image and a text, an edit, where the model was taught to."""
        answers: dict[int, str] = {}
        asked = [images_and_text(self.messages_of(request)) for request in requests]
        names = [f"{request.task_name}_{request.doc_id}_{request.idx}" for request in requests]
        for number, (images, _) in enumerate(asked):
            if images and (len(images) > 1 or not self.engine.prompt_format.edits):
                how = (
                    f"{len(images)} images, and unimm edits one"
                    if len(images) > 1
                    else "an image, and this model does not edit"
                )
                raise ValueError(f"{requests[number].task_name} asks to change {how}: leave it out.")
        words = (self.image_folder, self.seed)
        draws = [number for number, (images, _) in enumerate(asked) if not images]
        edits = [number for number, (images, _) in enumerate(asked) if images]
        if draws:
            texts, own = [asked[number][1] for number in draws], [names[number] for number in draws]
            answers |= zip(draws, draw_all(self.engine, texts, own, *words, **self.drawing), strict=True)
        if edits:
            sources, texts = [asked[number][0][0] for number in edits], [asked[number][1] for number in edits]
            made = edit_all(self.engine, sources, texts, [names[number] for number in edits], *words, **self.drawing)
            answers |= zip(edits, made, strict=True)
        return [answers[number] for number in range(len(requests))]

    def _as_asked(self, request: Any, messages: list[Message]) -> list[Message]:
        messages = read_parts(messages, self._system(request))
        if self.prompts != "janus" or self.mode == "generation":
            return messages
        images, text = images_and_text(messages)
        asked = janus_prompts.rewrite(request.task_name, self._item(request), text)
        return messages if asked == text else read_parts(_user(images, asked), self._system(request))

    def _system(self, request: Any) -> str | None:
        if self.system_prompt is None and self.prompts == "janus":
            return janus_prompts.system_prompt(request.task_name)
        return self.system_prompt

    def _simple_messages(self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> list[Message]:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        return _user(visuals, context)

    def _item(self, request: Any) -> Any:
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]

    def _given(self, request: Any, messages: list[Message]) -> Sequence:
        """A prompt up to where its answer begins; where it says nothing, the begin of a text."""
        template = self.engine.template
        if all(part["type"] == "text" and not part["text"].strip() for one in messages for part in one["content"]):
            return Sequence((Segment.text([template.tokenizer.special.bos]),))
        asked = read_parts(messages, self._system(request))
        turns, system = read_messages(asked, template, self.engine.decoder.max_positions)
        return template.chat(turns, 1, system)


class UnimmSimple(Unimm):
    """The same for lmms-eval's "simple" tasks: a text with images before it; these alone ask for log-likelihoods."""

    is_simple = True

    def messages_of(self, request: Any) -> list[Message]:
        context, _, doc_to_visual, doc_id, task, split = request.args
        return self._as_asked(request, self._simple_messages(context, doc_to_visual, doc_id, task, split))

    def settings_of(self, request: Any) -> dict[str, Any]:
        return request.args[1]


def _user(images: list[Any], text: str) -> list[Message]:
    return [{"role": "user", "content": [*({"type": "image", "image": one} for one in images), {"type": "text", "text": text}]}]


def _plain(messages: Any) -> Any:
    """Messages as dicts, also where a task makes lmms-eval's own classes."""
    return [one if isinstance(one, dict) else one.model_dump() for one in messages]


def _load(pretrained: str, more: dict[str, Any]) -> Engine:
    options = {name: more.pop(name, None) for name in ("device", "dtype", "weights")}
    more.pop("max_batch_size", None)  # lmms-eval hands it on to every model
    if more:
        raise ValueError(f"The model unimm has no argument {', '.join(more)}: see unimm.eval.harness.lmms_eval.")
    return load(pretrained, _own_device(options["device"]), options["dtype"], weights=options["weights"])


def _own_device(device: str | None) -> str | None:
    """Of several processes, the GPU of this one."""
    rank = os.environ.get("LOCAL_RANK")
    is_gpu = device == "cuda" or (device is None and torch.cuda.is_available())
    return f"cuda:{rank}" if rank is not None and is_gpu else device


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {' or '.join(choices)}, not '{value}'.")
