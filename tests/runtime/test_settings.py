"""Settings from mappings: as they are, from names and values, or one sentence."""

import pytest

from unimm.data.tiles import Tiles
from unimm.runtime.settings import read_settings


def test_settings_are_read_or_refused() -> None:
    assert read_settings(Tiles, None, "tiles are set") is None
    assert read_settings(Tiles, {"max_tiles": 4}, "tiles are set") == Tiles(max_tiles=4)
    assert read_settings(Tiles, Tiles(max_tiles=4), "tiles are set") == Tiles(max_tiles=4)
    for given, named in (({"most": 4}, "most"), (4, "4")):
        with pytest.raises(ValueError, match=rf"tiles are set by max_tiles, .*, not by {named}\."):
            read_settings(Tiles, given, "tiles are set")  # pyright: ignore[reportArgumentType]
