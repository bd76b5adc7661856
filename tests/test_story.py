"""The shortest story: a model learns one caption and one drawing, and gives both back through the engine."""

from pathlib import Path

import numpy as np
from conftest import tiny_image_tokenizer
from toys import Squares, make_config, make_template, make_trainer

import unimm
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.mixture import Mixture, Source
from unimm.data.records import Record
from unimm.data.views import Conversation, Drawing
from unimm.inference.engine import Engine
from unimm.training.logbook import read_numbers

CODES = [7, 30, 2, 19]


class One:
    """One picture with one caption and its codes."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        whole = Squares()[5]
        return Record("one", whole.image, whole.captions[:1], codes=np.array(CODES))


def test_one_caption_and_one_drawing_are_learned_and_given_back(tmp_path: Path) -> None:
    sources = [Source("talk", One(), Conversation(caption_share=1.0)), Source("draw", One(), Drawing(drop=0.1))]
    mixture = Mixture(sources, make_template())
    trainer = make_trainer(tmp_path / "run", make_config(120, report_every=10), mixture)
    trainer.fit()
    lines = read_numbers(tmp_path / "run" / "metrics.jsonl")
    for name in ("loss/text", "loss/codes"):
        assert lines[-1][name] < 0.05 * lines[0][name]
    record = One()[0]
    assert record.image is not None
    engine = Engine(ModelBundle(trainer.model.eval(), {DEFAULT: tiny_image_tokenizer()}, make_template().tokenizer))
    engine.save(tmp_path / "model")
    for teller in (engine, unimm.load(tmp_path / "model", device="cpu", dtype="float32")):
        prompt = record.captions[0].text
        assert teller.caption(record.image) == prompt
        for guidance_scale in (1.0, 3.0):
            codes = teller.generate_codes(prompt, temperature=0.0, guidance_scale=guidance_scale)
            assert codes.tolist() == [CODES]
        (drawing,) = teller.generate_images(prompt, temperature=0.0)
        assert drawing.size == (16, 16)
