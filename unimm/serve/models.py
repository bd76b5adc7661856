"""/v1/models: the names that requests may ask for, what the model reads and writes, and the check of a request's `model`."""

from typing import Any

from fastapi import APIRouter, Request

from unimm.serve.errors import ApiError
from unimm.serve.service import Service, service_of

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="The models")
async def list_models(request: Request) -> dict[str, Any]:
    """One entry for each name that the model is served under."""
    service = service_of(request)
    return {"object": "list", "data": [describe(service, name) for name in service.settings.served_model_names]}


@router.get("/{name:path}", summary="One model")
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """What is known of one name."""
    if not name:  # of /v1/models/, which is the list
        return await list_models(request)
    service = service_of(request)
    check_model(service, name)
    return describe(service, name)


def describe(service: Service, name: str) -> dict[str, Any]:
    """An entry of the list: OpenAI's, with OpenRouter's `architecture`."""
    engine = service.engine
    reads = ["text", "image", *(["video"] if engine.prompt_format.video is not None else [])]
    writes = ["text", *(["image"] if engine.bundle.drawing_ways else [])]
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "unimm",
        "context_length": engine.decoder.max_positions,
        "architecture": {"input_modalities": reads, "output_modalities": writes},
    }


def check_model(service: Service, name: str | None) -> None:
    """ApiError 404: the model is served under other names. None and "" mean whichever is here."""
    names = service.settings.served_model_names
    if name and name not in names:
        listed = ", ".join(names)
        sentence = f"There is no such model here: ask for {listed}, or start the server with --served-model-name."
        raise ApiError(404, sentence, param="model", code="model_not_found")
