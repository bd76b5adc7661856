import pickle
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from unimm.data.template import PromptFormat, Template, Turn
from unimm.data.text import SPECIAL_NAMES, StreamDecoder, TextTokenizer, train_byte_bpe

TEXTS = [
    "a small red circle left of a large blue square", "is there a green triangle?", "a handwritten digit seven",
    "红色的圆在蓝色的方块左边", "这是手写的数字七", "图中有几个物体？",
]  # fmt: skip
TOKENIZER = train_byte_bpe(TEXTS, 400)

LOOKALIKES = ["<|begin▁of▁sentence|>", "<｜User｜>", "<plain added>", "\u200b", " "]
typed_tokens = st.sampled_from([*SPECIAL_NAMES.values(), *LOOKALIKES])
user_text = st.lists(st.one_of(st.text(), typed_tokens)).map("".join)


@pytest.fixture(scope="module")
def mixed():
    """A tokenizer with added tokens of every sort, among them the letters that DeepSeek-LLM adds."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("üø"))
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    for i, name in enumerate(SPECIAL_NAMES.values()):
        backend.add_special_tokens([AddedToken(name, normalized=bool(i % 2))])
    names = ["<plain added>", "<plain normalized>", "ü", "ø", "\n\n", "<｜fim▁hole｜>"]  # as DeepSeek: not declared special
    backend.add_tokens([AddedToken(name, normalized="added" not in name, special=False) for name in names])
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@settings(max_examples=300, deadline=None)
@given(user_text)
def test_user_text_survives_and_is_never_special(text):
    ids = TOKENIZER.encode(text)
    assert not TOKENIZER.control_ids.intersection(ids)
    assert TOKENIZER.decode(ids) == text == TOKENIZER.decode(ids, skip_special=False)


@settings(max_examples=100, deadline=None)
@given(text=user_text)
def test_user_text_is_never_special_in_a_mixed_tokenizer(mixed, text):
    ids = mixed.encode(text)
    assert not mixed.control_ids.intersection(ids)
    assert mixed.decode(ids) == text


@pytest.mark.parametrize("tokenizer", ["toy", "mixed"])
def test_every_added_token_typed_is_text(tokenizer, mixed):
    tokenizer = TOKENIZER if tokenizer == "toy" else mixed
    for i in tokenizer.control_ids:
        name = tokenizer.tokenizer.convert_ids_to_tokens(i)
        assert tokenizer.tokenizer.encode(name, add_special_tokens=False) == [i]  # the risk is real
        for text in (name, f"a{name}b", f" {name} ", name + name):
            assert not tokenizer.control_ids.intersection(tokenizer.encode(text))
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_added_letters_are_text_and_read_back(mixed):
    ids = mixed.encode("für øre\n\n")
    assert ids == mixed.tokenizer.encode("für øre\n\n", add_special_tokens=False)  # as the checkpoint was trained
    assert mixed.decode(ids) == "für øre\n\n"


WORDS = ["<loc_1>", "<loc_10>", "[SEP]", "für", "北京", AddedToken("<pad me>", lstrip=True, rstrip=True, special=False)]


def test_added_words_are_text_as_in_transformers(tmp_path):
    """`tokenizer.add_tokens([...])`: encoded to their ids, shown, kept by save and load; a stream shows them, too."""
    theirs = AutoTokenizer.from_pretrained(save(TOKENIZER, tmp_path / "before"))
    theirs.add_tokens(WORDS)
    tokenizer = TextTokenizer(theirs)
    for text in ("a <loc_1> b", "<loc_10><loc_1>", "x <pad me> y", "[SEP]", "red<loc_1>red", "für 北京", "<|User|> <loc_1>"):
        ids = tokenizer.encode(text)
        if "<|" not in text:
            assert ids == theirs.encode(text, add_special_tokens=False)
        assert not tokenizer.control_ids.intersection(ids)
        if "<pad" not in text:
            assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special=False) == text
        stream = StreamDecoder(tokenizer)
        assert "".join([stream.push(i) for i in ids]) + stream.finish() == tokenizer.decode(ids)
        for copy in (pickle.loads(pickle.dumps(tokenizer)), TextTokenizer.load(save(tokenizer, tmp_path / "after"))):
            assert copy.encode(text) == ids and copy.decode(ids) == tokenizer.decode(ids)
    assert tokenizer.encode("<loc_1>") == [len(TOKENIZER)] and tokenizer.control_ids == TOKENIZER.control_ids


def save(tokenizer, folder):
    tokenizer.save(folder)
    return folder


def test_added_words_that_steer_are_no_text():
    """An end or a role that is not declared special: declared by its use, by its wide bars, or by a prompt format."""
    backend = Tokenizer.from_str(TOKENIZER.tokenizer.backend_tokenizer.to_str())
    names = ["<end>", "<me>", "<it>", "<｜tool▁call｜>", "<word>"]
    backend.add_tokens([AddedToken(name, special=False) for name in names])
    noun = SPECIAL_NAMES["bos"]
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=noun, eos_token="<end>"))
    template = Template(tokenizer, PromptFormat("<me>", "<it>"), 16, 4)
    assert template.tokenizer is not tokenizer and tokenizer.with_control(["User", noun]) is tokenizer
    for held in (template.tokenizer, pickle.loads(pickle.dumps(template.tokenizer))):
        for name in names[:4]:
            assert held.added_id(name) in held.control_ids and held.decode(held.encode(name)) == name
            assert held.decode([held.added_id(name)]) == ""
        assert held.encode("<word>") == [held.added_id("<word>")]
    ids = [i for segment in template.chat([Turn("user", ("<it>: <word>",))], 3).given.segments for i in segment.ids]
    assert [ids.count(tokenizer.added_id(name)) for name in ("<me>", "<it>", "<word>")] == [1, 1, 1]


def test_pickled_tokenizer_keeps_the_rule():
    copy = pickle.loads(pickle.dumps(TOKENIZER))
    assert copy.encode("<begin_of_image>") == TOKENIZER.encode("<begin_of_image>") != [copy.special.begin_of_image]


def test_special_ids_by_name():
    for noun, name in SPECIAL_NAMES.items():
        assert TOKENIZER.tokenizer.convert_tokens_to_ids(name) == getattr(TOKENIZER.special, noun)
        assert TOKENIZER.added_id(name) == getattr(TOKENIZER.special, noun)
    assert TOKENIZER.added_id("User") is None
    ids = [TOKENIZER.special.bos, *TOKENIZER.encode("red"), TOKENIZER.special.eos]
    assert TOKENIZER.decode(ids) == "red"
    assert TOKENIZER.decode(ids, skip_special=False) == f"{SPECIAL_NAMES['bos']}red{SPECIAL_NAMES['eos']}"


def plain_bpe(*names, **options):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    backend.add_special_tokens(list(names))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def test_roles_may_be_missing_but_image_tokens_may_not():
    names = [name for noun, name in SPECIAL_NAMES.items() if noun not in ("user", "assistant")]
    special = TextTokenizer(plain_bpe(*names)).special
    assert special.user is None and special.assistant is None
    names.remove("<begin_of_image>")
    with pytest.raises(ValueError, match="lacks <begin_of_image>"):
        TextTokenizer(plain_bpe(*names))


def test_another_family_gains_the_image_tokens():
    other = plain_bpe("<eos>", eos_token="<eos>", pad_token="<eos>")
    size = len(other)
    tokenizer = TextTokenizer(other, add_missing=True)
    assert tokenizer.special.eos == tokenizer.special.pad == other.convert_tokens_to_ids("<eos>")
    assert len(tokenizer) == size + 4  # bos and the three image tokens
    assert tokenizer.decode(tokenizer.encode("<image_placeholder><eos>")) == "<image_placeholder><eos>"


@pytest.mark.parametrize("config", [None, '{"model_type": "janus"}', '{"model_type": "unimm-unknown"}'])
def test_saved_tokenizer_loads_the_same(tmp_path, config):
    TOKENIZER.save(tmp_path)
    if config:
        (tmp_path / "config.json").write_text(config)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.special == TOKENIZER.special and len(loaded) == len(TOKENIZER)
    text = "a red circle 红色的圆 <|User|> 🙂  two  spaces ."
    assert loaded.encode(text) == TOKENIZER.encode(text) and loaded.decode(loaded.encode(text)) == text
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert (plain.bos_token_id, plain.eos_token_id, plain.pad_token_id) == (
        loaded.special.bos, loaded.special.eos, loaded.special.pad,
    )  # fmt: skip
    assert (plain.image_token, plain.boi_token, plain.eoi_token) == (
        "<image_placeholder>", "<begin_of_image>", "<end_of_image>",
    )  # fmt: skip


def test_llama_class_in_a_checkpoint_does_not_change_the_pieces(tmp_path):
    """Janus' hub folders declare LlamaTokenizerFast over a byte-level tokenizer.json."""
    TOKENIZER.save(tmp_path)
    config = (tmp_path / "tokenizer_config.json").read_text()
    written = TOKENIZER.tokenizer.__class__.__name__
    assert written in config
    (tmp_path / "tokenizer_config.json").write_text(config.replace(written, "LlamaTokenizerFast"))
    (tmp_path / "config.json").write_text('{"model_type": "janus"}')
    text = "a red circle 红色的圆"
    assert TextTokenizer.load(tmp_path).encode(text) == TOKENIZER.encode(text)


def test_wrong_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"No tokenizer can be read from .*: name a folder with tokenizer.json"):
        TextTokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("<html>")
    with pytest.raises(ValueError, match="No tokenizer can be read"):
        TextTokenizer.load(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="No tokenizer can be read"):
        TextTokenizer.load(tmp_path)


def test_training_is_deterministic_and_compresses():
    again = train_byte_bpe(iter(TEXTS), 400)
    assert again.tokenizer.backend_tokenizer.to_str() == TOKENIZER.tokenizer.backend_tokenizer.to_str()
    assert len(TOKENIZER) <= 400
    assert len(TOKENIZER.encode("a small red circle")) <= 6
    assert len(TOKENIZER.encode("红色的方块")) == 5
    with pytest.raises(ValueError, match="at least 264"):
        train_byte_bpe(TEXTS, 263)


def test_a_chinese_character_is_written_the_same_whatever_is_beside_it():
    for text in ("红色", "蓝色的方块左边", "a红b"):
        alone = [TOKENIZER.encode(letter) for letter in text]
        assert TOKENIZER.encode(text) == [i for ids in alone for i in ids]


def test_another_tokenizer_is_spelled_by_what_its_tokens_say(mixed):
    other = train_byte_bpe(["a triangle is purple", "紫色的圆"], 300)
    spelled = TOKENIZER.spell(other)
    assert len(spelled) == len(other)
    for i, ids in enumerate(spelled):
        if i not in other.control_ids and ids:
            assert TOKENIZER.decode(ids) == other.decode([i])
    (purple,) = other.encode(" purple")
    assert len(spelled[purple]) > 1 and spelled[purple] == TOKENIZER.encode(" purple")
    assert spelled[other.special.eos] == [TOKENIZER.special.eos]
    assert spelled[other.encode("a")[0]] == TOKENIZER.encode("a")
    assert TOKENIZER.spell(TOKENIZER) == [[i] for i in range(len(TOKENIZER))]
    # an added letter or word is text, a control token that does nothing here is nothing
    theirs = TOKENIZER.spell(mixed)
    for text in ("ü", "<plain added>"):
        assert TOKENIZER.decode(theirs[mixed.added_id(text) or 0]) == text
    assert theirs[mixed.added_id("<｜fim▁hole｜>") or 0] == []


@pytest.mark.parametrize("text", ["a red circle", "a red circle " * 50], ids=["remembered", "too long"])
def test_ids_belong_to_who_asked(text):
    """What is done to them changes nothing for the next, also of a text that is remembered."""
    first = TOKENIZER.encode(text)
    kept = list(first)
    first.append(7)
    assert TOKENIZER.encode(text) == kept
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode(text) == kept


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(ValueError, match="surrogate"):
        TOKENIZER.encode("a\ud800")
    assert TOKENIZER.encode("") == [] and TOKENIZER.decode([]) == ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 399), st.integers(8, 263))))  # any ids: broken bytes, special tokens
def test_stream_joins_to_decode(ids):
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(ids)


def test_a_stream_holds_back_no_more_than_a_character():
    """However many broken bytes and control tokens come, each id takes the same time."""
    broken = TOKENIZER.tokenizer.convert_tokens_to_ids("ÿ")
    stream, ids = StreamDecoder(TOKENIZER), [broken, TOKENIZER.special.begin_of_image] * 50
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        assert len(stream._pending) < 8
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(ids) == "\ufffd" * 50


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_stream_of_valid_text_never_shows_a_broken_character(text):
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(i) for i in TOKENIZER.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text and stream.finish() == ""


def test_stream_keeps_spaces_of_word_piece_decoders():
    backend = Tokenizer(models.WordLevel({"▁red": 0, "▁circle": 1, "▁unk": 2}, unk_token="▁unk"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), add_missing=True)
    stream = StreamDecoder(tokenizer)
    assert [stream.push(i) for i in tokenizer.encode("red circle red")] == ["red", " circle", " red"]
