"""The peer of `unimm bench serve`: the server that one writes first around a model of `transformers`.

FastAPI, the same two routes, and a lock around the model, for `generate` takes one batch, and all of it at once: requests are
served one after the other. It knows nothing of streams, seeds or clients that hang up.

    python -m unimm.bench.serve_peer FOLDER DEVICE DTYPE PORT
"""

import base64
import io
import sys
import threading
from typing import Any

import torch
from PIL import Image

from unimm.models.attention import cache_keyword


class Model:
    """A Janus of `transformers` that answers and draws, one request at a time."""

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        from transformers import AutoProcessor, JanusForConditionalGeneration

        self.processor = AutoProcessor.from_pretrained(folder)
        self.dtype, self.device = getattr(torch, dtype), device
        self.model: Any = JanusForConditionalGeneration.from_pretrained(folder, dtype=self.dtype, device_map=device).eval()
        self._lock = threading.Lock()

    def answer(self, messages: list[dict[str, Any]], max_new_tokens: int, temperature: float) -> str:
        """The answer to a conversation in OpenAI's form."""
        images: list[Image.Image] = []
        chat = [{"role": one["role"], "content": _parts(one["content"], images)} for one in messages]
        prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with self._lock, torch.inference_mode():
            inputs = self.processor(text=[prompt], images=images or None, return_tensors="pt").to(self.device, self.dtype)
            ids = self.model.generate(**inputs, generation_mode="text", max_new_tokens=max_new_tokens, **sampling)
        return self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def draw(self, prompt: str, num_images: int) -> list[Image.Image]:
        """Drawings of a prompt, as the model's generation_config.json says."""
        from transformers import DynamicCache

        chat = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        with self._lock, torch.inference_mode():
            inputs = self.processor(text=[text] * num_images, generation_mode="image", return_tensors="pt").to(self.device)
            settings: dict[str, Any] = {"generation_mode": "image", "do_sample": True}
            try:
                codes = self.model.generate(**inputs, **settings)
            except (AttributeError, TypeError):  # its static cache does not work in every version
                codes = self.model.generate(**inputs, **settings, **{cache_keyword(self.model): DynamicCache()})
            pixels = self.model.decode_image_tokens(codes).float()  # (N, H, W, 3), from -1 to 1
        levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return [Image.fromarray(image) for image in levels]


def _parts(content: str | list[dict[str, Any]], images: list[Image.Image]) -> list[dict[str, Any]]:
    """The parts of a message as `transformers` writes them; its images are appended to a list."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "image_url":
            data = part["image_url"]["url"].partition(",")[2]
            images.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
            parts.append({"type": "image"})
        else:
            parts.append({"type": "text", "text": part["text"]})
    return parts


def create_peer(model: Model) -> Any:
    """The FastAPI application."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        text = model.answer(body["messages"], body["max_tokens"], body.get("temperature") or 0.0)
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}

    @app.post("/v1/images/generations")
    def generate(body: dict[str, Any]) -> dict[str, Any]:
        return {"data": [{"b64_json": _png(image)} for image in model.draw(body["prompt"], body.get("n", 1))]}

    return app


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Serve a folder until the process is ended."""
    import uvicorn

    folder, device, dtype, port = sys.argv[1:]
    uvicorn.run(create_peer(Model(folder, device, dtype)), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
