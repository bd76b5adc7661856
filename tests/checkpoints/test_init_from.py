"""Models to start from, changed in place."""

import re

import pytest
from conftest import tiny_model

from unimm.checkpoints.init_from import lengthen


def test_positions_that_depend_on_their_number_are_not_lengthened() -> None:
    model = tiny_model(300)
    model.trunk.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match=re.escape("max_position_embeddings=4096 cannot be had")):
        lengthen(model, 4096)
    assert model.config.max_positions < 4096
