"""The public contract: names, arguments with their defaults, commands with their options. Users' scripts rely on them.

More may be added: further names, and further optional arguments behind the ones that are listed.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import unimm
import unimm.data
import unimm.eval
from unimm.cli.app import app
from unimm.cli.choices import conf_folder

SIGNATURES = {
    "load": "path, device=None, dtype=None, *, adapter=None",
    "Limits": "max_rows=128, max_waiting=None, max_positions=None, max_cache_bytes=None, prefill_positions=None",
    "Engine.caption": (
        "self, image, max_new_tokens=128, temperature=0.0, language='en', *, votes=1, verify=False, details=False"
    ),
    "Engine.answer": (
        "self, image, question, max_new_tokens=128, temperature=0.0, stop=None, *, examples=None, votes=1, verify=False, "
        "details=False"
    ),
    "Engine.chat": "self, messages, stream=False, max_new_tokens=256, temperature=0.0, stop=None",
    "Engine.complete": "self, messages, max_new_tokens=256, temperature=0.0, stop=None, logprobs=False, top_logprobs=0",
    "Engine.acomplete": "self, messages, max_new_tokens=256, temperature=0.0, stop=None, logprobs=False, top_logprobs=0",
    "Engine.stream_complete": "self, messages",
    "Engine.astream_complete": "self, messages",
    "Engine.astream_chat": "self, messages",
    "Engine.astream_images": "self, prompt, num_images=1, seed=0, preview_every=64",
    "Engine.generate_images": (
        "self, prompt, num_images=1, seed=0, guidance_scale=None, temperature=None, top_k=None, top_p=None, callback=None"
    ),
    "Engine.stream_images": "self, prompt, num_images=1, seed=0, preview_every=64",
    "Engine.generate_codes": "self, prompt, num_images=1, seed=0, *, callback=None",
    "Engine.inpaint": "self, image, mask, prompt, num_images=1, seed=0, callback=None",
    "Engine.ainpaint": "self, image, mask, prompt, num_images=1, seed=0",
    "Engine.stream_inpaint": "self, image, mask, prompt, num_images=1, seed=0, preview_every=64",
    "Engine.astream_inpaint": "self, image, mask, prompt, num_images=1, seed=0, preview_every=64",
    "Engine.decode_codes": "self, codes",
    "Engine.encode_image": "self, image",
    "Engine.trace": "self, sequence, hidden=False, attention=False, logits=False",
    "Engine.trace_answer": "self, image, question, max_new_tokens=128, temperature=0.0",
    "Engine.trace_drawing": "self, prompt, codes",
    "Engine.trace_guidance": "self, prompt, codes, guidance_scale=None",
    "Engine.alignment": "self, image, prompt",
    "Engine.embed_images": "self, images",
    "Engine.embed_texts": "self, texts",
    "Engine.classify": "self, image, labels, templates=None",
    "load_towers": "path, device=None, dtype=None",
    "Engine.fill": "self, sequences, sampling=None, guidance_scale=1.0",
    "Engine.locate": "self, image, phrase",
    "Engine.heat_map": "self, image, phrase",
    "Engine.loglikelihood": "self, sequences",
    "Engine.save": "self, path, max_shard_size='5GB', notes=''",
    "Engine.push_to_hub": "self, repo_id, private=None",
    "Engine.update_weights": "self, tensors",
    "write_image": "image, target, provenance=None, format=None",
    "read_provenance": "source",
    "Sequence": "segments",
    "Sequence.spans": "self",
    "Sequence.unconditioned": "self, pad_id, drop=frozenset({'text'})",
    "Sequence.fill": "self, ids",
    "Sequence.show": "self",
    "eval.evaluate": "engine, tasks, out_folder=None, progress=True, console=None",
    "eval.load_task": "name",
    "eval.build_suite": "name='quick'",
    "eval.collect": "examples, progress",
    "eval.summarize": "name, examples, measures=None, mean_of_categories=False",
    "eval.Example": (
        "key, prompt, expected, answer, correct, reason='', category='', language='', drawn=False, image=None, original=None, "
        "codes=None"
    ),
    "eval.Result": "name, score, count, interval, details, examples",
}
"""Public callables by their names below `unimm`."""

DOCUMENTED = {
    "load": ("limits", "weights", "deterministic"),
    "Engine.generate_images": ("best_of", "min_p", "guidance_interval", "first_index"),
    "Engine.inpaint": ("guidance_scale", "temperature", "top_k", "top_p", "min_p", "guidance_interval"),
    "Engine.caption": ("stop", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
}
"""What goes through `**`: the docstring names it."""

OPTIONS = {
    "demo": "--out --seed --device --show",
    "quickstart": "--out --seed --minutes --from-nothing --device",
    "caption": "--model --language --max-new-tokens --temperature --votes --verify --device --dtype --weights",
    "answer": "--model --example --max-new-tokens --temperature --votes --verify --device --dtype --weights",
    "generate": (
        "--model --num-images --out --seed --guidance-scale --temperature --top-k --top-p --min-p --guidance-interval "
        "--best-of --device --dtype --weights --from"
    ),
    "edit": (
        "--mask --model --num-images --out --seed --guidance-scale --temperature --top-k --top-p --min-p --device --dtype "
        "--weights"
    ),
    "locate": "--out --heat-map --json --model --device --dtype --weights",
    "serve": (
        "--host --port --api-key --served-model-name --page --no-page --device --dtype --weights --max-rows --cache-gb "
        "--prefix-cache-gb --max-queue --deadline --stuck-after --allowed-media-domain --allowed-origin"
    ),
    "classify": "--model --template --json --device --dtype",
    "index": "--out --model --batch-size --device --dtype",
    "search": "--index -k --image --texts --rerank --out --json --model --device --dtype",
    "export": (
        "--prompts --out --scores --partial --model --num-images --num-prompts --seed --guidance-scale --temperature --top-k "
        "--top-p --batch --shard --name --device --dtype --weights"
    ),
    "score": "--reference --captions --reconstruct --model --size --inception --clip --limit --batch --out --device --dtype",
    "eval": (
        "--model --suite --task --out --overwrite --seed --guidance-scale --temperature --best-of --batch-size --num-processes "
        "--shard --device --precision --dtype --weights --list"
    ),
    "report": "--out",
    "compare": "--task --metric --out",
    "scaling": "--predict --out",
    "convert": "--dtype --adapter --from-pickle --push-to-hub --guidance-scale --temperature",
    "average": "--out",
    "join": "--trunk --vision --image-tokenizer --out",
    "doctor": "--json",
    "train": "",
    "train-tokenizer": "",
    "plan": "",
    "data": "",
    "encode": "",
    "encode-features": "",
    "reproduce": "",
    "bench": "",
}
"""The shell's commands, and the options that scripts use."""

KEYS = {
    "train": (
        "model data stage objective lora trainer seed out device image_tokenizer codes features ratio text_tokenizer "
        "prompt_format init_from init_parts fresh_parts held_out suite validation trackers tracking"
    ),
    "train_tokenizer": "tokenizer images tokenizer_trainer seed out init_from device trackers tracking",
    "encode": "data seed out device image_tokenizer precision",
    "encode_features": "data seed out device init_from precision",
    "data_inspect": "data seed out sample open_images init_from text_tokenizer num_positions num_workers",
    "data_convert": "data to out source leave_out shard_megabytes max_bad num_workers",
    "reproduce": "init_from out seed dtype device batch num_items figures_of prompt_format geneval dpg pope mmbench",
}
"""Top-level keys that overrides name, by command."""


def find(name: str) -> Callable[..., Any]:
    """A public thing by its name below `unimm`."""
    found: Any = unimm
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_and_defaults(name: str) -> None:
    expected = inspect.signature(eval(f"lambda {SIGNATURES[name]}: None")).parameters
    real = inspect.signature(find(name)).parameters
    assert find(name).__doc__
    by_place = [one.name for one in expected.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert [*real][: len(by_place)] == by_place
    for key, argument in expected.items():
        assert key in real, key
        assert real[key].kind is argument.kind or argument.kind is argument.KEYWORD_ONLY, key
        assert real[key].default == argument.default, key
    for key in real.keys() - expected.keys():  # what came later is optional
        assert real[key].default is not inspect.Parameter.empty or real[key].kind in (real[key].VAR_KEYWORD,), key


@pytest.mark.parametrize("name", DOCUMENTED)
def test_further_settings_are_documented(name: str) -> None:
    said = find(name).__doc__ or ""
    for setting in DOCUMENTED[name]:
        assert f"`{setting}`" in said, setting


def test_public_names() -> None:
    assert {*unimm.__all__} >= {"Engine", "Kind", "Limits", "Segment", "Sequence", "__version__", "load"}
    assert all(getattr(unimm.Kind, name) is not None for name in ("TEXT", "PIXELS", "CODES"))
    for package, names in (
        (
            unimm.eval,
            "Task ItemTask Result Example Judgement Score evaluate collect summarize split_batches load_task build_suite",
        ),
        (unimm.data, "Record Dataset View Conversation Dialogue Drawing PlainText JsonLines ImageFolder Parquet WebDataset"),
    ):
        for name in names.split():
            assert name in package.__all__ and getattr(package, name) is not None, name


def test_commands_and_options() -> None:
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for name, options in OPTIONS.items():
        known = {word for parameter in commands[name].params for word in (*parameter.opts, *parameter.secondary_opts)}
        assert {*options.split()} <= known, name
        assert (commands[name].help or "").strip(), name
    told = CliRunner().invoke(app, ["--help"]).output
    assert all(f"  {name} " in told for name in OPTIONS)


@pytest.mark.parametrize("root", KEYS)
def test_keys_of_the_configurations(root: str) -> None:
    content = yaml.safe_load((conf_folder() / f"{root}.yaml").read_text(encoding="utf-8"))
    groups = {group for entry in content["defaults"] if isinstance(entry, dict) for group in entry}
    assert {*KEYS[root].split()} <= {*content, *groups}


def test_launchers_enter_where_the_command_does() -> None:
    from unimm import train
    from unimm.cli import encode, encode_features
    from unimm.cli.train import main

    assert train.main is main and callable(encode.main) and callable(encode_features.main)
    assert Path(train.__file__ or "").name == "train.py"
