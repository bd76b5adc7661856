"""Text <-> token ids, with one rule: what a user types is text, and can never become a special token.

Any fast `transformers` tokenizer serves, wrapped as `TextTokenizer`. User text goes through a copy of its backend that
does not match control tokens, so that a typed `<begin_of_image>` becomes ordinary pieces; special tokens enter a
sequence by id only, resolved by name because their ids differ between Janus checkpoints. `train_byte_bpe` makes the
small byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; on bytes as in GPT-2) of the built-in worlds.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIAL_NAMES = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "image_placeholder": "<image_placeholder>",
    "begin_of_image": "<begin_of_image>",
    "end_of_image": "<end_of_image>",
    "user": "<|User|>",
    "assistant": "<|Assistant|>",
}
"""Janus' special tokens (deepseek-ai/Janus), by the name that the code calls them."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MOST_BYTES = 4  # of a character in UTF-8


def _letters_of_bytes() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2): printable ones are themselves, the others follow
    from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _letters_of_bytes()


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens. user and assistant are None where a checkpoint writes roles as plain text."""

    bos: int
    eos: int
    pad: int
    image_placeholder: int
    begin_of_image: int
    end_of_image: int
    user: int | None = None
    assistant: int | None = None


SHORT, REMEMBERED = 200, 10_000
"""Characters of texts whose ids are remembered, and how many of them: prompts and roles come again and again in training."""


class TextTokenizer:
    """A `transformers` tokenizer, seen as the two functions that we need of it and its special ids.

    special: the ids of Janus' special tokens (`SpecialIds`).
    control_ids: ids that `encode` never gives, and `decode` leaves out. Added tokens that are not special, as
        `tokenizer.add_tokens` makes them, are text: encoded to their ids and shown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, add_missing: bool = False, control: Iterable[str] = ()):
        """Wrap a fast tokenizer; add_missing adds the Janus tokens that it lacks (the embedding must then grow).

        control: added tokens that steer a model though they are not declared special, such as a prompt format's roles.

        ValueError if the tokenizer has no fast backend, or lacks a special token.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(f"{type(tokenizer).__name__} has no fast backend: use a tokenizer with a tokenizer.json.")
        if add_missing:
            _add_missing(tokenizer)
        self.tokenizer = tokenizer
        self.special = _resolve_special_ids(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._added = {token.content: i for i, token in added.items()}
        self._control = frozenset(control)
        steering = {*tokenizer.all_special_ids, *(getattr(self.special, field.name) for field in fields(SpecialIds))}
        is_text = {i: _is_text(token) and i not in steering and token.content not in control for i, token in added.items()}
        self.control_ids = frozenset(i for i in added if not is_text[i])
        self._backend = _without_control_tokens(tokenizer.backend_tokenizer, self.control_ids)
        self._spelled = _spell_misread(self._backend, {i: token.content for i, token in added.items() if is_text[i]})
        # a vocabulary without bytes answers a strange character with its unknown token, which is no harm
        self._never = frozenset(i for i in self.control_ids if added[i].content != tokenizer.unk_token)
        self._remember = lru_cache(REMEMBERED)(self._encode)
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(self._backend.to_str())["decoder"])

    def __len__(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def __reduce__(self):
        # The backend forgets `encode_special_tokens` when pickled: a data worker must build its own copy.
        return TextTokenizer, (self.tokenizer, False, tuple(sorted(self._control)))

    def with_control(self, names: Iterable[str]) -> "TextTokenizer":
        """The same tokenizer, for which added tokens of these names steer the model: no text becomes one of them."""
        ids = {self._added.get(name) for name in names} - {None}
        return self if ids <= self.control_ids else TextTokenizer(self.tokenizer, control={*self._control, *names})

    def added_id(self, name: str) -> int | None:
        """The id of an added token by its exact name, for templates; None if the tokenizer has no such token."""
        return self._added.get(name)

    def encode(self, text: str) -> list[int]:
        """Ids of user text, nothing added before or after. ValueError for text that is not valid Unicode."""
        return list(self._remember(text)) if isinstance(text, str) and len(text) <= SHORT else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        try:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            if not isinstance(text, str):
                raise
            raise ValueError("The text holds half a surrogate pair: decode it from valid UTF-8 or UTF-16.") from error
        if not self._never.isdisjoint(ids):
            raise ValueError("This tokenizer's vocabulary spells a control token as plain text: use a byte-level one.")
        return ids

    def sentence(self, text: str, max_ids: int | None = None) -> list[int]:
        """A text by itself, as a text tower reads it: begin, ids, end; what is longer than `max_ids` loses its last words."""
        ids = self.encode(text)
        return [self.special.bos, *(ids if max_ids is None else ids[: max(0, max_ids - 2)]), self.special.eos]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids, without control tokens unless skip_special is False; broken UTF-8 reads as U+FFFD."""
        plain = [piece for i in ids for piece in self._spelled.get(int(i), (int(i),))]
        return self._backend.decode(plain, skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """What one id stands for, in UTF-8: perhaps a part of a character; of a control token its name."""
        piece = self._backend.id_to_token(int(token_id))
        if piece is None:  # a row of the embedding that no token has
            return b""
        if piece not in self._added and self._is_byte_level and all(letter in _BYTES for letter in piece):
            return bytes(_BYTES[letter] for letter in piece)
        if token_id in self.control_ids or piece in self._added or self._is_byte_level:
            return (piece if token_id in self.control_ids else self.decode([token_id])).encode()
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)  # SentencePiece's bytes, and its spaces
        return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()

    def spell(self, other: "TextTokenizer") -> list[list[int]]:
        """How this tokenizer writes each id of another: for each, the ids here; none where they are not known.

        A special token is the one that does the same, a piece that both have is itself, another is its text.
        """
        own, theirs = self.tokenizer.get_vocab(), {i: piece for piece, i in other.tokenizer.get_vocab().items()}
        added = {*self._added, *other._added}
        roles = {getattr(other.special, field.name): getattr(self.special, field.name) for field in fields(SpecialIds)}
        spelled: list[list[int]] = []
        for i in range(len(other)):
            piece = theirs.get(i)
            if i in roles:
                spelled.append([] if roles[i] is None else [roles[i]])
            elif piece is None or i in other.control_ids:
                spelled.append([])
            elif piece in own and piece not in added:  # an added "ü" is a letter, any other is the byte 0xFC
                spelled.append([own[piece]])
            else:
                text = other.decode([i])
                spelled.append([] if _BROKEN in text else self.encode(text))
        return spelled

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into a folder, for `load` and for `transformers`' JanusProcessor."""
        _for_janus_processor(self.tokenizer, self.special).save_pretrained(str(path))

    @classmethod
    def load(cls, path: str | Path, add_missing: bool = False) -> "TextTokenizer":
        """From a folder or a hub id; code that ships with a checkpoint is never run. ValueError if there is none."""
        try:
            if (Path(path) / "tokenizer.json").is_file():
                # The file itself, whatever class the config beside it names: DeepSeek's say LlamaTokenizer, which would put
                # SentencePiece's rules in place of the file's byte-level ones.
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
            else:
                tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        except Exception as error:  # a damaged folder fails in many ways, the remedy is the same
            remedy = "name a folder with tokenizer.json, or a hub id"
            raise ValueError(f"No tokenizer can be read from {str(path)!r}: {remedy}.") from error
        return cls(tokenizer, add_missing)


class StreamDecoder:
    """Text of a growing list of ids, piece by piece, never half a character.

    The pieces, `finish()` included, join to what `decode` gives for all ids at once.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._context: list[int] = []  # the last ones given out: some decoders space a piece by its left neighbour
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty while a character lacks bytes."""
        if token_id in self._tokenizer.control_ids:
            return ""
        self._pending.append(int(token_id))
        text = self._text(self._pending)
        if text and not text.endswith(_BROKEN):
            return self._give(len(self._pending), text)
        if len(self._pending) < 2 * _MOST_BYTES:
            return ""
        # A character that may still come has begun with the last few ids; what stands before them stays as it is.
        size = len(self._pending) - _MOST_BYTES
        return self._give(size, self._text(self._pending[:size]))

    def _give(self, size: int, text: str) -> str:
        self._context, self._pending = self._pending[:size], self._pending[size:]
        return text

    def finish(self) -> str:
        """What is still held back, bytes that never became a character as U+FFFD."""
        text = self._text(self._pending)
        self._context, self._pending = [], []
        return text

    def _text(self, ids: list[int]) -> str:
        """What these ids add to those that were given out last."""
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + ids)[len(known) :]


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Learn a byte-level BPE of at most vocab_size ids: Janus' special tokens first, then the 256 bytes, then merges.

    Tokens end with words, and every Chinese character is one by itself. Chinese has no spaces: left to itself, a small BPE
    joins the end of one word to the first byte of the next, so the same word is written now one way and now another, and
    some ways so seldom that a model never learns them ("purple" before "square", in recipes/LOG.md).

    The same texts give the same tokenizer. ValueError if vocab_size cannot hold the special tokens and the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_NAMES)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}: make it at least {smallest}, the bytes and the special tokens.")
    backend = Tokenizer(models.BPE())
    characters = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([characters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL_NAMES.values()],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    names = {f"{noun}_token": SPECIAL_NAMES[noun] for noun in ("bos", "eos", "pad")}
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names))


def _for_janus_processor(tokenizer: PreTrainedTokenizerFast, special: SpecialIds) -> PreTrainedTokenizerFast:
    """The tokenizer as `transformers`' JanusProcessor wants it: image tokens by its names, a pad token, and prompts that get
    their begin-of-sentence from the tokenizer.
    """
    token = tokenizer.convert_ids_to_tokens
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if backend.encode("a").ids[:1] != [special.bos]:
        bos = token(special.bos)
        first = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special.bos)]
        )
        rest = [backend.post_processor] if backend.post_processor is not None else []
        backend.post_processor = processors.Sequence([*rest, first])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=token(special.bos),
        eos_token=token(special.eos),
        pad_token=token(special.pad),
        extra_special_tokens={
            "image_token": token(special.image_placeholder),
            "boi_token": token(special.begin_of_image),
            "eoi_token": token(special.end_of_image),
        },
        model_max_length=tokenizer.model_max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _is_text(token: AddedToken) -> bool:
    """Is this added token ordinary text? Some vocabularies add letters and white space (DeepSeek-LLM adds "ü"), people words of
    their own (<loc_1>). DeepSeek does not declare all of its control tokens: they are known by their wide bars.
    """
    steers = token.content in SPECIAL_NAMES.values() or (token.content.startswith("<｜") and token.content.endswith("｜>"))
    return not token.special and not steers


def _add_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    roles = {SPECIAL_NAMES["user"], SPECIAL_NAMES["assistant"]}
    known = tokenizer.get_added_vocab()
    own = {SPECIAL_NAMES[noun]: getattr(tokenizer, f"{noun}_token") for noun in ("bos", "eos", "pad")}
    names = [name for name in SPECIAL_NAMES.values() if name not in known and name not in roles and not own.get(name)]
    for name in names:
        tokenizer.add_tokens(name, special_tokens=True)


def _resolve_special_ids(tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
    """Ids by Janus' names; bos, eos and pad of other families by what their tokenizer declares."""
    known = tokenizer.get_added_vocab()
    ids = {noun: known.get(name) for noun, name in SPECIAL_NAMES.items()}
    for noun in ("bos", "eos", "pad"):
        if ids[noun] is None:
            ids[noun] = getattr(tokenizer, f"{noun}_token_id")
    for field in fields(SpecialIds):
        if ids[field.name] is None and field.name not in ("user", "assistant"):
            name = SPECIAL_NAMES[field.name]
            raise ValueError(f"The tokenizer lacks {name}: use a Janus tokenizer, or load it with add_missing=True.")
    return SpecialIds(**ids)  # pyright: ignore[reportArgumentType]


def _without_control_tokens(backend: Tokenizer, control_ids: frozenset[int]) -> Tokenizer:
    """A copy of the backend that reads control tokens as plain text, whether or not they were declared "special"."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["id"] in control_ids
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True  # tokenizers' name for: special tokens in the input are encoded as text
    copy.no_truncation()
    copy.no_padding()
    return copy


def _spell_misread(backend: Tokenizer, added: dict[int, str]) -> dict[int, list[int]]:
    """Ordinary ids for added text that the byte-level decoder misreads as bytes ("ü" as 0xFC)."""
    spelled = {}
    for i, text in added.items():
        if backend.pre_tokenizer is not None and backend.decode([i]) != text:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
            ids = [token.id for piece in pieces for token in backend.model.tokenize(piece)]
            if backend.decode(ids) == text:
                spelled[i] = ids
    return spelled
