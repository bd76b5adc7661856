"""Stages: a table that adds up, and exactly those learn that it names."""

from dataclasses import replace

import pytest
from rich.console import Console
from toys import EVERYTHING, make_model

from unimm.models.unified import UnifiedModel
from unimm.training.trainable_parts import Stage, freeze, show, stage_table

ALIGN = Stage("align", {"projector": 1.0, "code_head": 0.5})


def test_exactly_the_named_parts_learn() -> None:
    model = make_model()
    for stage in (ALIGN, EVERYTHING, Stage("none", {}), ALIGN):
        freeze(model.parts(), stage)
        for name, part in model.parts().items():
            assert {p.requires_grad for p in part.parameters()} == {name in stage.lr_scales}


@pytest.mark.parametrize("part", ["text_embedding", "text_head"])
def test_what_two_parts_share_learns_where_either_does(part: str) -> None:
    model = make_model()
    model = UnifiedModel(replace(model.config, trunk={**model.config.trunk, "tie_word_embeddings": True}))
    freeze(model.parts(), Stage("one", {part: 1.0}))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["text.embedding.weight"]


def test_unknown_parts_are_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'typo'.*\['projektor'\].*projector"):
        freeze(make_model().parts(), Stage("typo", {"projektor": 1.0}))


def test_the_table_says_who_learns_and_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    total = sum(p.numel() for p in model.parameters())
    console = Console(record=True, width=100)
    console.print(stage_table(model.parts(), ALIGN, total))
    lines = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.count("│") > 3}
    assert "x 0.5" in lines["code_head"] and "frozen" in lines["trunk"] and f"{total:,}" in lines["all"]
    with pytest.raises(ValueError, match=r"name hold .* in all: name the others in parts\(\)"):
        stage_table(model.parts(), ALIGN, total + 1)
    capsys.readouterr()
    show(stage_table(model.parts(), ALIGN, total), active=False)
    assert capsys.readouterr().out == ""
