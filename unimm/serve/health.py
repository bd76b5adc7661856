"""/health: whether requests are served. It reads two numbers and takes no lock, so it answers also where a step hangs."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from unimm.serve.service import service_of

router = APIRouter(tags=["server"])


class Health(BaseModel):
    """ok: requests are served. dead: the engine's thread has ended. stuck: it has work, and no step ends."""

    status: Literal["ok", "dead", "stuck"]


@router.get("/health", summary="Whether requests are served", responses={503: {"model": Health, "description": "No"}})
async def health(request: Request, response: Response) -> Health:
    """200 while the engine makes steps or has nothing to do; 503 once it has died, or made none for --stuck-after seconds."""
    trouble = service_of(request).trouble
    response.status_code = 200 if trouble is None else 503
    return Health.model_validate({"status": trouble or "ok"})
