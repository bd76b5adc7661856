"""The model of lm-evaluation-harness (EleutherAI): text alone, so that a unified model's loss of language is seen.

    python -m unimm.eval.harness.lm_eval run --model unimm --model_args pretrained=FOLDER --tasks hellaswag,wikitext

The harness has no entry points for models: this runs its own command with `unimm` among them. In a program it is
`lm_eval.simple_evaluate(model=UnimmLM("demo"), tasks=[...])`. Texts begin with the model's begin-of-sentence and no roles stand
around them, as base models are asked; `chat=true` asks as a user does, with the continuation as the assistant's answer.
"""

# pyright: reportMissingImports=false
# lm-eval is an extra.

import logging
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from unimm.data.template import Turn
from unimm.eval.harness.conversations import Generation, answer_all, batches_of
from unimm.eval.likelihood import continuation, text_sequences
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import load
from unimm.inference.text_stream import write
from unimm.runtime.number_checks import whole_number
from unimm.sequence import Kind, Segment, Sequence

DEFAULT_DEVICE = "cuda:0"
"""The harness', where the user names none."""

DEFAULT_MAX_GEN_TOKS = 256
"""Tokens that are written where a task says nothing, as the harness has it; at most half of what the model has room for."""

LENGTHS = {"max_new_tokens", "max_gen_toks", "max_tokens"}
"""What a task may call them."""

logger = logging.getLogger(__name__)


@register_model("unimm")
class UnimmLM(LM):
    """The model.

    Args:
        pretrained: a model folder, a hub id, or "demo".
        chat: whether a context is a user's message, and what follows it the assistant's.
        batch_size: texts that are written at once.
        max_length: positions of a window of long texts; default: what the model was made for.
        device, dtype, weights: as `unimm.load` takes them.

    Raises ValueError where there is no such model or argument.
    """

    def __init__(
        self,
        pretrained: str = "demo",
        chat: bool = False,
        batch_size: int | str = 64,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        weights: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        more.pop("max_batch_size", None)  # the harness hands it on to every model
        if more:
            raise ValueError(f"The model unimm has no argument {', '.join(more)}: see unimm.eval.harness.lm_eval.")
        self.engine = load(pretrained, _device_there(device), dtype, weights=weights)
        self.chat = chat
        self.batch_size = 64 if batch_size == "auto" else whole_number("batch_size", int(batch_size), 1)
        most = self.engine.decoder.max_positions
        self.max_length = min(most, whole_number("max_length", max_length, 2)) if max_length else most

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-probability of every continuation, and whether the model would write just that."""
        scored = self.engine.loglikelihood([self._pair(*request.args) for request in requests])
        return self._told("loglikelihood", requests, [(one.logprob, one.is_greedy) for one in scored])

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-probability of every text, whole, in windows of `max_length`."""
        tokenizer = self.engine.tokenizer
        texts = [tokenizer.encode(request.args[0]) for request in requests]
        windows = [text_sequences(ids, tokenizer.special.bos, self.max_length) for ids in texts]
        scored = iter(self.engine.loglikelihood([one for own in windows for one in own]))
        sums = [sum(next(scored).logprob for _ in own) for own in windows]
        return self._told("loglikelihood_rolling", requests, sums)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The text behind every context, up to one of the strings that end it."""
        contexts = [request.args[0] for request in requests]
        usual = {"max_gen_toks": min(DEFAULT_MAX_GEN_TOKS, self.max_length // 2)}
        settings = [
            Generation.read(given if given.keys() & LENGTHS else {**usual, **given})
            for given in (one.args[1] for one in requests)
        ]
        if self.chat:
            conversations = [[{"role": "user", "content": context}] for context in contexts]
            texts = answer_all(self.engine, conversations, settings, self.batch_size)
        else:
            texts = self._go_on(contexts, settings)
        return self._told("generate_until", requests, texts)

    def _pair(self, context: str, wanted: str) -> Sequence:
        """A context with its continuation to be scored; white space at the context's end goes to the continuation, as the
        harness has it."""
        tokenizer = self.engine.tokenizer
        if self.chat:
            given = self.engine.template.chat([Turn("user", (context,))], 1)
            return continuation(given, tokenizer.encode(f" {wanted.strip()}"))
        kept = context.rstrip()
        wanted = context[len(kept) :] + wanted
        before = tokenizer.encode(kept)
        both = tokenizer.encode(kept + wanted)
        ids = [tokenizer.special.bos, *both]
        scored = max(1, len(both) - len(before))
        room = max(1, self.max_length - scored)
        return continuation(Sequence((Segment.text(ids[:-scored][-room:]),)), ids[-scored:])

    def _go_on(self, contexts: list[str], settings: list[Generation]) -> list[str]:
        texts: dict[int, str] = {}
        for setting, batch in batches_of(settings, self.batch_size):
            requests = [self._request(contexts[index], setting) for index in batch]
            written = write(self.engine.decoder, self.engine.tokenizer, requests, setting.until, [True] * len(batch))
            texts |= zip(batch, (one.text for one in written), strict=True)
        return [texts[index] for index in range(len(contexts))]

    def _request(self, context: str, setting: Generation) -> Request:
        """A text to go on with; of one that is too long the end, as the harness has it."""
        tokenizer = self.engine.tokenizer
        room = self.max_length - setting.max_new_tokens
        if room < 1:
            raise ValueError(
                f"A task asks for {setting.max_new_tokens} tokens, and the model has {self.max_length} positions for text and "
                f"context together: give it --gen_kwargs max_gen_toks={self.max_length // 2}."
            )
        ids = [tokenizer.special.bos, *tokenizer.encode(context)][-room:]
        blank = Segment.blank(Kind.TEXT, setting.max_new_tokens, stop=(tokenizer.special.eos,))
        return Request(Sequence((Segment.text(ids), blank)), Sampling(setting.temperature, setting.top_k, setting.top_p))

    def _told(self, method: str, requests: list[Any], answers: list[Any]) -> list[Any]:
        """The answers, which are added to the harness' cache, too."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(method, request.args, answer)
        return answers


def _device_there(device: str | None) -> str | None:
    """The device, but for the harness' own default where there is none such."""
    if device == DEFAULT_DEVICE and not torch.cuda.is_available():
        logger.warning(
            f"There is no {DEFAULT_DEVICE}, which lm-eval takes where no --device is given: unimm takes what is here."
        )
        return None
    return device


def main() -> None:
    """The harness' own command, with `unimm` among its models."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
