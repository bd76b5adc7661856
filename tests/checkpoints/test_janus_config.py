"""A Janus of transformers opens here with the same numbers, and what we write opens there."""

import json
from dataclasses import replace

import pytest
import torch
from janus_cases import Ids, assert_same, draw_config, make_janus, our_answers, their_answers
from transformers import DynamicCache, JanusConfig, JanusForConditionalGeneration

from unimm.checkpoints import janus_config
from unimm.checkpoints.folder import load_model, save_model
from unimm.checkpoints.weight_names import CODEBOOK, TRANSFORMERS
from unimm.models.attention import cache_keyword
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.unified import UnifiedModel

SEEDS = range(12)


@pytest.fixture(scope="module", params=SEEDS)
def case(request, tmp_path_factory):
    """A Janus, the folder that transformers wrote of it, and what we read from there."""
    theirs = make_janus(request.param)
    folder = tmp_path_factory.mktemp("janus") / "theirs"
    theirs.save_pretrained(folder)
    return theirs, folder, load_model(folder)


def test_reading_gives_the_same_numbers(case):
    theirs, _, loaded = case
    assert_same(our_answers(loaded.model, loaded.image_tokenizer, theirs.config), their_answers(theirs))


def test_writing_opens_in_transformers_with_the_same_numbers(case, tmp_path):
    theirs, _, loaded = case
    assert save_model(tmp_path / "ours", loaded.model, loaded.image_tokenizer, Ids()) == []
    reopened, report = JanusForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert_same(their_answers(reopened), their_answers(theirs))
    tied = reopened.lm_head.weight is reopened.model.language_model.embed_tokens.weight
    assert tied == theirs.config.tie_word_embeddings == reopened.config.text_config.tie_word_embeddings
    assert reopened.generation_config.generation_kwargs == {"boi_token_id": 8}
    assert (reopened.generation_config.top_k, reopened.generation_config.guidance_scale) == (0, 5.0)


def test_written_and_read_again_nothing_has_changed(case, tmp_path):
    loaded = case[2]
    extra = {"prompt_format": {"user": "<|User|>", "assistant": "<|Assistant|>", "system_prompt": "你好"}}
    save_model(tmp_path / "again", loaded.model, loaded.image_tokenizer, Ids(), extra=extra)
    again = load_model(tmp_path / "again")
    assert again.extra == extra
    assert again.image_tokenizer.config == loaded.image_tokenizer.config
    assert replace(again.model.config, trunk={}) == replace(loaded.model.config, trunk={})
    for before, after in ((loaded.model, again.model), (loaded.image_tokenizer, again.image_tokenizer)):
        was, now = before.state_dict(), after.state_dict()
        assert was.keys() == now.keys()
        for name, tensor in was.items():  # normalising what is normal already may move the last bit
            torch.testing.assert_close(now[name], tensor, atol=1e-6 if "codebook" in name else 0, rtol=0)
        buffers = dict(after.named_buffers())
        for name, buffer in before.named_buffers():
            torch.testing.assert_close(buffers[name], buffer)


def test_parameters_are_as_many_as_in_transformers(case):
    theirs, _, loaded = case
    codebook = loaded.image_tokenizer.quantize.codebook.numel()  # learned by averages: no parameter of ours
    ours = sum(p.numel() for part in (loaded.model, loaded.image_tokenizer) for p in part.parameters())
    assert ours + codebook == sum(parameter.numel() for parameter in theirs.parameters())


def test_encoding_is_deepseeks_and_a_saved_codebook_mends_transformers(case, tmp_path):
    """DeepSeek normalises latents and codebook. transformers normalises neither: wrong on a raw codebook, right on ours."""
    theirs, _, loaded = case
    size = loaded.image_tokenizer.image_size
    pixels = torch.rand(4, 3, size, size) * 2 - 1
    ours = loaded.image_tokenizer.encode(pixels)
    vq = theirs.model.vqmodel
    with torch.no_grad():
        latents = torch.nn.functional.normalize(vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1), dim=-1).flatten(1, 2)
        rule = torch.cdist(latents, torch.nn.functional.normalize(vq.quantize.embedding.weight, dim=-1)).argmin(-1)
        raw = vq.encode(pixels).image_tokens.view(4, -1)
        save_model(tmp_path / "ours", loaded.model, loaded.image_tokenizer, Ids())
        reopened = JanusForConditionalGeneration.from_pretrained(tmp_path / "ours")
        mended = reopened.model.vqmodel.encode(pixels).image_tokens.view(4, -1)
    assert torch.equal(ours, rule)
    assert not torch.equal(raw, rule)
    assert torch.equal(mended, rule)


def test_transformers_draws_from_what_we_write(tmp_path):
    theirs = make_janus(1)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    save_model(tmp_path / "ours", loaded.model, loaded.image_tokenizer, Ids())
    reopened = JanusForConditionalGeneration.from_pretrained(tmp_path / "ours")
    theirs.generation_config = reopened.generation_config
    ids = torch.tensor([[1, 20, 21, 8]])
    greedy = {"attention_mask": torch.ones_like(ids), "generation_mode": "image", "do_sample": False}
    drawn = [model.generate(ids, **greedy, **{cache_keyword(model): DynamicCache()}) for model in (reopened, theirs)]
    assert drawn[0].shape == (1, loaded.image_tokenizer.num_codes)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("width", "layers", "heads", "mlp"), [(2048, 24, 16, 5632), (4096, 30, 32, 11008)])
def test_names_and_shapes_at_the_true_sizes(width, layers, heads, mlp):
    text = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp}
    text |= {"model_type": "llama", "vocab_size": 102400, "max_position_embeddings": 16384, "tie_word_embeddings": False}
    vq = {"projection_dim": width, "image_token_embed_dim": width}
    config = JanusConfig(text_config=text, vision_config={"projection_dim": width}, vq_config=vq, tie_word_embeddings=False)
    with torch.device("meta"):
        theirs = JanusForConditionalGeneration(config)
        unified, tokenizer = janus_config.from_janus_config(config.to_dict())
        ours = dict(UnifiedModel(unified).state_dict())
        ours |= {f"image_tokenizer.{k}": v for k, v in ImageTokenizer(tokenizer).state_dict().items() if "quantize." not in k}
    ours[CODEBOOK] = torch.empty(16384, 8, device="meta")
    entries = [TRANSFORMERS.entries(name, tuple(tensor.shape)) for name, tensor in ours.items()]
    assert {k: v for e in entries for k, v in e.items()} == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert sum(len(entry) for entry in entries) == len(theirs.state_dict())


def test_a_config_lives_through_json():
    unified, tokenizer = janus_config.from_janus_config(draw_config(0).to_dict())
    tokenizer = replace(tokenizer, quantizer=replace(tokenizer.quantizer, decay=0.9, rotation_trick=False))
    written = json.loads(json.dumps(janus_config.to_janus_config(unified, tokenizer, Ids(), torch.float32)))
    again, tokenizer_again = janus_config.from_janus_config(written)
    assert tokenizer_again == tokenizer
    assert (again.vision, again.codes, again.projector) == (unified.vision, unified.codes, unified.projector)
    assert again.trunk_config().hidden_size == unified.trunk_config().hidden_size
    assert written["text_config"]["bos_token_id"] == 1


def test_what_a_janus_cannot_express_is_named():
    unified, tokenizer = janus_config.from_janus_config(draw_config(0).to_dict())
    assert janus_config.why_not_janus(unified, tokenizer) == []
    other_grid = replace(tokenizer, image_size=tokenizer.image_size * 2)
    simvq = replace(tokenizer, quantizer=replace(tokenizer.quantizer, kind="simvq"))
    gpt2 = replace(unified, trunk={"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50})
    qformer = replace(unified, projector=replace(unified.projector, kind="qformer"))
    cases = [(unified, other_grid, "grid"), (unified, simvq, "simvq"), (gpt2, tokenizer, "embed_tokens")]
    for config, tokenizer_config, word in [*cases, (qformer, tokenizer, "qformer")]:
        (reason,) = janus_config.why_not_janus(config, tokenizer_config)
        assert word in reason
    with pytest.raises(ValueError, match="simvq"):
        janus_config.to_janus_config(unified, simvq, Ids(), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {"use_qk_norm": True}}, "use_qk_norm"),
        ({"vision_config": {"projection_dim": 5}}, "projection_dim is 5"),
        ({"vq_config": {"double_latent": True}}, "double_latent"),
        ({"vision_config": {"patch_size": 0}}, "not a usable Janus config"),
        ({"vision_config": {"image_size": 1001}}, "1001 px cannot be cut into patches"),
        ({"text_config": {"model_type": "nonsense"}}, "nonsense"),
    ],
)
def test_a_config_that_we_cannot_read_is_refused(change, message):
    config = draw_config(0).to_dict()
    for section, values in change.items():
        config[section] |= values
    with pytest.raises(ValueError, match=message):
        janus_config.from_janus_config(config)
