"""The one thread that owns the engines: requests go in by a queue, tokens come out to asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import queue
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Sequence

from jaxgpt.chat.errors import ApiError
from jaxgpt.chat.models import Model
from jaxgpt.core.errors import UserError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.request import Finished, Request


class Worker:
    """Runs the engines of several models in turn, a step each, while there is something to do.

    Args:
      make: an engine for a model; called in the thread when a model is asked for the first time.
      most: requests that are in the engines or wait for them; beyond it they are refused.

    Attributes:
      live: answers now in the engines or waiting.
      beside: requests of other kinds, under way or waiting.
      engines: by the model's name.
      tools: threads in which tools run, beside the engines.
    """

    def __init__(self, make: Callable[[Model], Engine], *, most: int):
        self.make, self.most, self.live, self.beside = make, most, 0, 0
        self._beside = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside")
        self.tools = concurrent.futures.ThreadPoolExecutor(max_workers=16, thread_name_prefix="tools")
        self.engines: dict[str, Engine] = {}
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._tickets: dict[tuple[str, int], _Ticket] = {}
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)

    def start(self) -> None:
        """Starts the thread; in the loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step under way."""
        self._inbox.put(None)
        self._thread.join(timeout=30)
        self._beside.shutdown(cancel_futures=True)
        self.tools.shutdown(cancel_futures=True)

    async def run(self, model: Model, requests: Sequence[Request], seconds: float) -> AsyncIterator[tuple[int, object]]:
        """Yields (which answer, Token or Finished) as they come; whoever leaves early frees the slots.

        Args:
          model: whose engine.
          requests: run side by side; their answers are numbered through.
          seconds: for all of it.

        Raises:
          ApiError: the queue is full (429), the time is over (504), or the model could not be loaded or failed.
        """
        count = sum(request.n for request in requests)
        self.admit(count)
        events: asyncio.Queue = asyncio.Queue()
        firsts = itertools.accumulate((request.n for request in requests), initial=0)
        tickets = [_Ticket(model, request, first, events) for first, request in zip(firsts, requests)]
        self.live += count
        running, until = count, asyncio.get_running_loop().time() + seconds
        try:
            for ticket in tickets:
                self._inbox.put(ticket)
            while running:
                async with asyncio.timeout_at(until):
                    found = await events.get()
                for place, event in found:
                    if isinstance(event, Exception):
                        raise event
                    running -= isinstance(event, Finished)
                    yield place, event
        except TimeoutError:
            raise ApiError(504, f"the answer took longer than the {seconds:g} seconds that this server allows; ask for "
                           "fewer tokens", code="timeout") from None
        finally:
            self.live -= count
            for ticket in tickets:
                self._leave(ticket)

    def _leave(self, ticket: _Ticket) -> None:
        if not ticket.left:
            ticket.left = True
            self._inbox.put(ticket)

    async def aside(self, function: Callable, *arguments):
        """What a function returns that is no generation: a score, an embedding. They take turns in their own thread.

        Raises:
          ApiError: too many wait (429).
        """
        if self.beside >= self.most:
            raise ApiError(429, f"{self.beside} requests of this kind wait already; try again in a moment",
                           code="queue_full")
        self.beside += 1
        try:
            return await self._loop.run_in_executor(self._beside, function, *arguments)
        finally:
            self.beside -= 1

    def admit(self, count: int) -> None:
        """Refuses so many requests where there is no room for them to wait."""
        if self.live + count > self.most:
            raise ApiError(429, f"the server has {self.live} answers under way or waiting, and takes {self.most}; "
                           "try again in a moment", code="queue_full")

    def taken(self) -> int:
        """Slots in use now."""
        return sum(engine.active for engine in list(self.engines.values()))

    def total(self, name: str) -> int:
        """A count that engines keep, of all of them."""
        return sum(getattr(engine, name) for engine in list(self.engines.values()))

    # --- in the thread ---

    def _run(self) -> None:
        while True:
            busy = [name for name, engine in self.engines.items() if not engine.idle]
            try:
                first = [self._inbox.get(block=not busy)]
            except queue.Empty:
                first = []
            for ticket in itertools.chain(first, _drain(self._inbox)):
                if ticket is None:
                    return
                self._take(ticket)
            for name, engine in list(self.engines.items()):
                if not engine.idle:
                    self._step(name, engine)

    def _take(self, ticket: _Ticket) -> None:
        name = ticket.model.name
        if ticket.left:
            if ticket.id is not None and self._tickets.pop((name, ticket.id), None) and name in self.engines:
                self.engines[name].cancel(ticket.id)
            return
        try:
            if name not in self.engines:
                self.engines[name] = self.make(ticket.model)
            ticket.id = self.engines[name].submit(ticket.request)
        except UserError as error:
            self._send([(ticket, 0, ApiError(400, str(error)))])
        except Exception as error:
            self._send([(ticket, 0, _internal(error))])
        else:
            self._tickets[name, ticket.id] = ticket

    def _step(self, name: str, engine: Engine) -> None:
        try:
            events = engine.step()
        except Exception as error:  # nothing of this engine can be trusted; the next request has a new one
            failed = [self._tickets.pop(key) for key in list(self._tickets) if key[0] == name]
            del self.engines[name]
            self._send([(ticket, 0, _internal(error)) for ticket in failed])
            return
        sent = []
        for event in events:
            if ticket := self._tickets.get((name, event.request)):
                sent.append((ticket, ticket.place + event.sample, event))
                ticket.running -= isinstance(event, Finished)
                if not ticket.running:
                    del self._tickets[name, event.request]
        self._send(sent)

    def _send(self, events: list[tuple[_Ticket, int, object]]) -> None:
        """Hands each event to the request that waits for it, all at one turn of the loop."""
        by_queue: dict[int, tuple[asyncio.Queue, list]] = {}
        for ticket, place, event in events:
            by_queue.setdefault(id(ticket.events), (ticket.events, []))[1].append((place, event))

        def put():
            for events, found in by_queue.values():
                events.put_nowait(found)
        if by_queue:
            self._loop.call_soon_threadsafe(put)


class _Ticket:
    """A request on its way: `place` of its first answer among those asked together, how many are still `running`, and
    `left` once nobody waits for it any more."""

    def __init__(self, model: Model, request: Request, place: int, events: asyncio.Queue):
        self.model, self.request, self.place, self.events = model, request, place, events
        self.id: int | None = None
        self.running, self.left = request.n, False


def _drain(inbox: queue.SimpleQueue):
    while True:
        try:
            yield inbox.get_nowait()
        except queue.Empty:
            return


def _internal(error: Exception) -> ApiError:
    traceback.print_exception(error, file=sys.stderr)
    return ApiError(500, f"the engine failed ({type(error).__name__}); the server's output says how")
