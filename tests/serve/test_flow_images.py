"""Image requests to a model that draws by codes and by a flow, and what other routes say to a flow."""

import base64
import io

import httpx
import numpy as np
from flows import make_engine
from PIL import Image

from serve.conftest import running
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings


def test_a_request_names_the_way_the_passes_and_the_solver() -> None:
    engine = make_engine()
    app = create_app(engine, ServerSettings(page=False, served_model_names=("tiny",)))
    with running(app) as address, httpx.Client(base_url=address, timeout=120) as client:

        def draw(**more: object) -> httpx.Response:
            return client.post("/v1/images/generations", json={"prompt": "a circle", "seed": 3, **more})

        few = {"drawing": "latents", "steps": 3, "solver": "heun"}
        data = base64.b64decode(draw(**few).json()["data"][0]["b64_json"])
        own = engine.generate_images("a circle", seed=3, **few)[0]
        drawn = np.asarray(Image.open(io.BytesIO(data))).astype(int)
        assert abs(drawn - np.asarray(own)).max() <= 1, "but for a level of 255, where rows share products"
        for way in ("codes", "latents"):
            told = draw(drawing=way).json()["usage"]["output_tokens"]
            assert told == engine.num_drawn_positions(way) and (told == 16) == (way == "latents")
        events = draw(**few, stream=True, partial_images=1).text
        assert "image_generation.partial_image" in events and "image_generation.completed" in events

        for wrong, sentence in (
            ({"drawing": "codes", "steps": 3}, "steps is of a flow"),
            ({**few, "temperature": 0.5}, "no temperature"),
            ({**few, "steps": 0}, "steps"),
            ({"solver": "rk4"}, "solver"),
        ):
            refused = draw(**wrong)
            assert refused.status_code == 400 and sentence in refused.json()["error"]["message"], refused.text
        painted = client.post(
            "/v1/images/edits", data={"prompt": "a", "right": "8", "steps": "3"}, files={"image": ("a.png", data, "image/png")}
        )
        assert painted.status_code == 400 and painted.json()["error"]["param"] == "steps"
        asked = {"messages": [{"role": "user", "content": "draw"}], "images": "always", "drawing": "latents"}
        chat = client.post("/v1/chat/completions", json=asked)
        assert chat.status_code == 400 and "drawing" in chat.json()["error"]["message"], chat.text
