"""What a checkpoint says beside its weights is followed, or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_text_tokenizer
from janus_cases import CHAT_TEMPLATE, make_tokenizer

from unimm.checkpoints.bundle import (
    DrawingDefaults,
    check_image_preparation,
    read_drawing_defaults,
    read_prompt_format,
)
from unimm.checkpoints.janus_processor import DEFAULT_SYSTEM_PROMPT, chat_template
from unimm.data.template import PromptFormat
from unimm.data.text import TextTokenizer

WITH_ROLES, WITHOUT_ROLES = TextTokenizer(make_tokenizer(1)), TextTokenizer(make_tokenizer(0))
JANUS, DEEPSEEK = {"model_type": "janus"}, {"model_type": "multi_modality"}
PRO = PromptFormat("<|User|>", "<|Assistant|>")
OLD = PromptFormat("User", "Assistant")


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
@pytest.mark.parametrize("roles", [("<|User|>", "<|Assistant|>"), ("User", "Assistant"), ("问", "答")])
def test_roles_are_those_of_the_chat_template(name: str, roles: tuple[str, str], tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("USER", roles[0]).replace("ASSISTANT", roles[1])
    (tmp_path / name).write_text(template if name.endswith("jinja") else json.dumps({"chat_template": template}))
    assert read_prompt_format(tmp_path, JANUS, WITH_ROLES) == PromptFormat(*roles)


def test_the_system_prompt_is_there_only_where_the_processor_has_it(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(chat_template("<|User|>", "<|Assistant|>"))
    for written, system_prompt in ((True, DEFAULT_SYSTEM_PROMPT), (False, "")):
        write(tmp_path, "processor_config.json", use_default_system_prompt=written)
        assert read_prompt_format(tmp_path, JANUS, WITH_ROLES).system_prompt == system_prompt


def test_without_a_chat_template_the_tokenizer_tells_the_roles(tmp_path: Path) -> None:
    assert read_prompt_format(tmp_path, JANUS, WITH_ROLES) == PRO
    assert read_prompt_format(tmp_path, JANUS, WITHOUT_ROLES) == OLD
    assert read_prompt_format(tmp_path, {"model_type": "unimm"}, TextTokenizer(tiny_text_tokenizer().tokenizer)) == PRO


@pytest.mark.parametrize(
    ("name", "tokenizer", "roles"),
    [
        ("deepseek", WITH_ROLES, PRO),
        ("deepseek", WITHOUT_ROLES, PRO),
        ("deepseek_old", WITH_ROLES, OLD),
        ("deepseek_old", WITHOUT_ROLES, OLD),
    ],
)
def test_deepseeks_names_of_formats(name: str, tokenizer: TextTokenizer, roles: PromptFormat, tmp_path: Path) -> None:
    """The name "deepseek" once meant the roles as plain text, which a tokenizer without tokens for them still tells."""
    if name == "deepseek" and tokenizer is WITHOUT_ROLES:
        roles = OLD
    write(tmp_path, "processor_config.json", sft_format=name)
    assert read_prompt_format(tmp_path, DEEPSEEK, tokenizer) == PromptFormat(roles.user, roles.assistant, DEFAULT_SYSTEM_PROMPT)


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "processor_config.json", sft_format="llava")
    with pytest.raises(ValueError, match="unknown sft_format 'llava'"):
        read_prompt_format(tmp_path, DEEPSEEK, WITH_ROLES)
    for template, message in (
        ("[INST] {{ messages[0].content[0].text }}", r"\[INST\] QUESTION"),
        ("{{ nothing.at.all }}", "cannot"),
    ):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(ValueError, match=message):
            read_prompt_format(tmp_path, JANUS, WITH_ROLES)
    with pytest.raises(ValueError, match="anthem"):
        read_prompt_format(tmp_path, {**JANUS, "unimm": {"prompt_format": {"anthem": ""}}}, WITH_ROLES)
    (tmp_path / "processor_config.json").write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        read_prompt_format(tmp_path, JANUS, WITH_ROLES)


def test_drawing_follows_the_generation_config(tmp_path: Path) -> None:
    assert read_drawing_defaults(tmp_path) == DrawingDefaults(5.0, 1.0, 0, 1.0)
    write(tmp_path, "generation_config.json", guidance_scale=3, top_k=20, eos_token_id=1, temperature=None)
    assert read_drawing_defaults(tmp_path) == DrawingDefaults(3.0, 1.0, 20, 1.0)
    write(tmp_path, "generation_config.json", temperature="hot")
    with pytest.raises(ValueError, match="temperature is 'hot', it must be a number"):
        read_drawing_defaults(tmp_path)


def test_other_scales_of_pixels_are_refused(tmp_path: Path) -> None:
    check_image_preparation(tmp_path)
    write(tmp_path, "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], do_normalize=True)
    check_image_preparation(tmp_path)
    write(tmp_path, "preprocessor_config.json", image_mean=[0.48, 0.46, 0.41])
    with pytest.raises(ValueError, match=r"image_mean is \[0.48"):
        check_image_preparation(tmp_path)
    write(tmp_path, "processor_config.json", image_processor={"do_normalize": False})
    with pytest.raises(ValueError, match="do_normalize is false"):
        check_image_preparation(tmp_path)
