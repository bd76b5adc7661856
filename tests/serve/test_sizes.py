"""`size` of image requests to a model that was taught other forms than its own square."""

import base64
import io
from dataclasses import replace

import httpx
import numpy as np
from PIL import Image

from serve.conftest import running
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings


def test_a_taught_form_is_drawn_and_others_are_refused_with_a_list(tiny_engine: Engine) -> None:
    engine = Engine(replace(tiny_engine.bundle, prompt_format=replace(tiny_engine.prompt_format, sizes=("2x4",))))
    app = create_app(engine, ServerSettings(page=False, served_model_names=("tiny",)))
    with running(app) as address, httpx.Client(base_url=address, timeout=120) as client:

        def draw(size: str) -> httpx.Response:
            return client.post("/v1/images/generations", json={"prompt": "a circle", "seed": 3, "size": size})

        reply = draw("32x16").json()
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["data"][0]["b64_json"]))))
        assert reply["size"] == "32x16" and reply["usage"]["output_tokens"] == 8
        assert np.array_equal(image, engine.generate_images("a circle", seed=3, size="32x16")[0])
        assert draw("auto").json()["size"] == "16x16" and draw("256x256").json()["size"] == "256x256"
        asked = {
            "messages": [{"role": "user", "content": "a circle"}],
            "modalities": ["image"],
            "seed": 3,
            "output_format": "png",
        }
        said = client.post("/v1/chat/completions", json={**asked, "size": "32x16"}).json()
        url = said["choices"][0]["message"]["images"][0]["image_url"]["url"]
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
        assert np.array_equal(drawn, image) and said["usage"]["completion_tokens"] == 8
        refused = draw("16x32")
        assert refused.status_code == 400 and "draws 16x16, 32x16; 256x256" in refused.json()["error"]["message"]
        edited = client.post(
            "/v1/images/edits",
            data={"prompt": "a", "size": "32x16", "right": "8"},
            files={"image": ("a.png", base64.b64decode(reply["data"][0]["b64_json"]), "image/png")},
        )
        assert edited.status_code == 400, "of edits, sizes are squares that are resized"
