"""WebSockets that send what happens to jobs. jobs/events.py makes the messages; here is who may
listen, and when they are sent.

Nothing is queued for a listener: new messages are made when the last ones have been sent, so a slow
one gets fewer and newer ones.
"""

import asyncio
import logging
from collections.abc import Callable

from fastapi import APIRouter, HTTPException, WebSocket
from starlette.concurrency import run_in_threadpool

from ..base.errors import Refused
from ..jobs.events import JobEvents, Message, ServiceEvents
from ..jobs.service import TrainingService
from .guard import Guard, refuse_other_sites
from .json import to_json

log = logging.getLogger(__name__)
EVERY_SECONDS = 0.2
LONGEST_SEND_SECONDS = 30.0  # after that a listener counts as gone
# RFC 6455, 7.4.1; before the handshake the server answers HTTP 403
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
Events = JobEvents | ServiceEvents


def create_router(service: TrainingService, guard: Guard, *, prefix: str) -> APIRouter:
    """Return the WebSocket routes. Each asks the guard itself: FastAPI 0.94 has no dependencies for
    them.
    """
    router = APIRouter(prefix=prefix)

    @router.websocket("/events")
    async def everything(websocket: WebSocket) -> None:
        await _serve(websocket, guard, lambda: ServiceEvents(service))

    @router.websocket("/jobs/{job_id}/events")
    async def one_job(websocket: WebSocket, job_id: str, since: int = 0) -> None:
        await _serve(websocket, guard, lambda: JobEvents(service, job_id, since))

    return router


async def _serve(websocket: WebSocket, guard: Guard, make_events: Callable[[], Events]) -> None:
    """Check who asks before accepting, then send changes until the listener has gone."""
    try:
        refuse_other_sites(websocket)
        guard(websocket)
        events = await run_in_threadpool(make_events)
    except (HTTPException, Refused):
        await websocket.close(POLICY_VIOLATION)
        return
    try:
        await websocket.accept()
        await _send_changes(websocket, events)
    except Exception as error:  # an entry point; servers have many words for "gone"
        log.debug("a listener was lost: %s: %s", type(error).__name__, error)


async def _send_changes(websocket: WebSocket, events: Events) -> None:
    gone = asyncio.ensure_future(_until_gone(websocket))
    try:
        while not gone.done():
            if events.has_changed():
                try:
                    messages = await run_in_threadpool(events.messages)
                except Refused:  # the job was deleted
                    await websocket.close()
                    return
                except Exception:  # a fault of ours; the page asks by HTTP then
                    log.exception("what happens to the jobs cannot be read")
                    await websocket.close(INTERNAL_ERROR)
                    return
                await _send(websocket, messages)
            await asyncio.wait({gone}, timeout=EVERY_SECONDS)
    finally:
        gone.cancel()


async def _send(websocket: WebSocket, messages: list[Message]) -> None:
    for message in messages:
        await asyncio.wait_for(websocket.send_text(to_json(message).decode()), LONGEST_SEND_SECONDS)


async def _until_gone(websocket: WebSocket) -> None:
    """Read, and forget, what a listener says, until it leaves."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
