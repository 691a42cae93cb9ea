"""The teacher: any server that speaks OpenAI's chat completions. Keeps to a budget, and to the record.

A request that fails (429, 5xx, a timeout) is sent again with exponential back-off, or after what `Retry-After` says. An
error that stays ends the run: a refused key, an unknown model, a spent budget. Requests under way are waited for then, so
that no answer is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from nextgpt.errors import UserInputError, first_line
from nextgpt.train.instruct_data.jobs import Dropped
from nextgpt.train.instruct_data.protocol import (
    Outcome,
    error_message,
    most_tokens,
    read_response,
    retry_after,
    short,
    without_files,
)
from nextgpt.train.instruct_data.record import Record, Stopped, key_of

logger = logging.getLogger(__name__)

KEY_VARIABLE = "NEXTGPT_TEACHER_API_KEY"
OPENAI_HOST, OPENAI_VARIABLE = "api.openai.com", "OPENAI_API_KEY"  # that key goes there alone
AGAIN = (408, 409, 425, 429)  # and 5xx
LONGEST_WAIT = 600.0  # seconds; a server that wants more is left for later
LONGEST_BACK_OFF = 60.0
CUT_OFF = {
    "length": "an answer longer than --max-answer-tokens, cut off",
    "content_filter": "an answer that the server's filter cut off",
}
USELESS_IN_A_ROW = 5  # refusals, or answers of another protocol; then something is wrong with all of them
SHORTEST_SECRET = 6  # characters; a shorter key is a word that stands in answers, too
GO_ON = "what was answered is kept: the same command goes on from there"


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is asked.

    Args:
        url: of the API, as `http://localhost:8000/v1`.
        model: its name there.
        temperature, max_answer_tokens: of the answers.
        concurrency: requests at a time.
        timeout: seconds until a request counts as failed.
        retries: how often a request that failed is sent again.
        first_wait: seconds before the first retry; each wait after it is twice as long.
        option: its name on the command line, for errors.
        max_requests, max_tokens: budget of all runs on one result together; None: no limit. Retries count as requests;
            tokens are those of requests and answers as the server counts them.
    """

    url: str
    model: str
    temperature: float = 1.0
    max_answer_tokens: int = 2048
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    first_wait: float = 1.0
    max_requests: int | None = None
    max_tokens: int | None = None
    option: str = "teacher"

    def check(self) -> None:
        """Raises UserInputError where nothing can be asked: no address, no key that can be sent, no `openai` client."""
        _key(_address(self)[1])
        least = {"concurrency": 1, "max_answer_tokens": 1, "retries": 0, "temperature": 0, "timeout": 0.001}
        for name, bound in least.items():
            if not bound <= (given := getattr(self, name)) < math.inf:
                raise UserInputError(f"--{name.replace('_', '-')} is {given:g}, expected {bound:g} or more")
        try:
            import openai  # noqa: F401
        except ImportError:
            raise UserInputError(f"a {self.option} is asked by openai's client: pip install 'nextgpt[teacher]'") from None


class Teacher:
    """Asks a model; what stands in the record is not asked again.

    Args:
        settings: the API, the model and the limits.
        record: of what was asked and answered.

    Attributes:
        stopped: why nothing more is asked, once there is a reason.
    """

    def __init__(self, settings: TeacherSettings, record: Record):
        self.settings, self.record = settings, record
        self.name, host = _address(settings)
        self._variable, self._key = _key(host)
        self.stopped: Stopped | None = None
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._under_way: list[int] = []  # the most tokens that each request under way may use
        self._not_before = 0.0  # by the monotonic clock: when the server wants to be asked again
        self._renamed: dict[str, str] = {}  # parameters that the model takes by another name; "": not at all
        self._answers = self._useless = 0

    async def ask(self, job: int, step: str, prompt: str | list[dict]) -> str:
        """The answer to a prompt.

        Args:
            job: whose request it is; another job asks the same prompt anew.
            step: what it is for; stands in the record.
            prompt: text, or OpenAI's parts of a message. The record keeps files in it by their hash.

        Raises:
            Dropped: there is no whole answer to it.
            Stopped: the run cannot go on.
        """
        request = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_answer_tokens,
        }
        key = key_of(job, request)
        if key not in self.record.answers:
            async with self._slots:
                try:
                    await self._answer({"key": key, "job": job, "step": step, "request": without_files(request)}, request)
                except Stopped as stop:
                    self.stopped = self.stopped or stop
                    raise
        found = self.record.answers[key]
        if found["problem"]:
            raise Dropped(found["problem"])
        if found["finish_reason"] in CUT_OFF:
            raise Dropped(CUT_OFF[found["finish_reason"]])
        return found["answer"]

    @cached_property
    def _client(self) -> Any:
        """Made when the first request is sent, for that takes a while."""
        from openai import AsyncOpenAI

        url, key = self.settings.url, self._key or "none"
        client = AsyncOpenAI(base_url=url, api_key=key, timeout=self.settings.timeout, max_retries=0)
        if _address(self.settings)[1] != OPENAI_HOST:  # they come from the environment, and are for OpenAI alone
            client.organization = client.project = None
        return client

    async def close(self) -> None:
        """Ends the connections."""
        if "_client" in vars(self):
            await self._client.close()

    async def _answer(self, entry: dict[str, Any], request: dict[str, Any]) -> None:
        """Sends a request until it is answered, and puts each try into the record.

        Not by the client's `max_retries`: it tells nobody of its tries, which count in the budget, obeys no `Retry-After`
        above a minute, and lets each request wait by itself.
        """
        bound = most_tokens(request) + self.settings.max_answer_tokens
        tries, not_before = 0, 0.0
        at_first = before = self._answers  # of all requests
        while True:
            while seconds := self._seconds_to_wait(not_before, bound):
                await asyncio.sleep(min(seconds, 0.5))
            self._under_way.append(bound)
            try:
                outcome = await self._send(request)
                tries = 1 if outcome.is_busy and self._answers > before else tries + (not outcome.is_changed)
                before, failed = self._answers, outcome.entry.get("failed")
                gives_up = failed and not outcome.stop and tries > self.settings.retries
                if gives_up and self._answers > at_first:  # others are answered
                    outcome = Outcome({"problem": f"failed {tries} times, while others were answered", "said": failed})
                self.record.add(entry | {name: self._hide(value) for name, value in outcome.entry.items()})
            except asyncio.CancelledError:
                self.record.add(entry | {"failed": "broken off"})  # it may have cost something
                raise
            finally:
                self._under_way.remove(bound)
            if outcome.stop:
                raise Stopped(outcome.stop)
            if "failed" not in outcome.entry:
                return self._check_use(outcome.entry)
            if gives_up:
                raise Stopped(f"{self.name}: failed {tries} times in a row, at last with {failed}; {GO_ON}")
            not_before = self._wait_after(outcome, tries)

    def _seconds_to_wait(self, not_before: float, bound: int) -> float:
        """Until a request of at most `bound` tokens may be sent; raises `Stopped` where it never may."""
        if self.stopped:
            raise self.stopped
        seconds = max(not_before, self._not_before) - time.monotonic()
        if seconds > 0:
            return seconds
        requests, tokens = self.settings.max_requests, self.settings.max_tokens
        if requests is not None and self.record.requests + len(self._under_way) >= requests:
            raise Stopped(f"the budget of {requests:,} requests is spent; raise --max-requests; {GO_ON}")
        if tokens is None or self.record.tokens + sum(self._under_way) + bound <= tokens:
            return 0.0
        if not self._under_way:
            left = f"{self.record.tokens:,} are used, and the next request may need {bound:,}"
            raise Stopped(f"the budget of {tokens:,} tokens is spent: {left}; raise --max-tokens; {GO_ON}")
        return 0.05  # those under way mostly need fewer

    async def _send(self, request: dict[str, Any]) -> Outcome:
        import openai

        client, sent = self._client, self._as_taken(request)
        try:
            async with asyncio.timeout(self.settings.timeout):  # the client's own ends between two bytes only
                response = await client.chat.completions.with_raw_response.create(**sent)
            return read_response(response.text, request, self._hide)
        except openai.APIStatusError as error:
            return self._refused(error, is_changed=self._adapt(error, sent, request))
        except (TimeoutError, openai.APITimeoutError):
            return Outcome({"failed": f"no answer within {self.settings.timeout:g} s"})
        except openai.APIConnectionError as error:
            reason = self._hide(first_line(error.__cause__ or error))
            is_refused = type(error.__cause__).__name__ == "ConnectError"  # of whichever HTTP library the client has
            if is_refused and not self._answers:
                check = f"check --{self.settings.option}, and that it runs"
                raise Stopped(f"{self.name}: cannot be reached ({reason}); {check}") from None
            return Outcome({"failed": f"the connection was lost ({reason})"})

    def _refused(self, error: Any, is_changed: bool) -> Outcome:
        """What an HTTP status other than 200 means."""
        status, option = error.status_code, self.settings.option
        said = short(self._hide(error_message(error)))
        entry, wait, stop = {"failed": f"{status}: {said}"}, None, ""
        if is_changed:
            return Outcome(entry, wait=0.0, is_changed=True)
        if status in (401, 403):
            stop = f"refuses the key in {self._variable}" if self._key else f"asks for a key: set {self._variable}"
        elif status == 404:
            stop = (
                f"has no model {self.settings.model!r}; check --{option}-model, and that --{option} is the API's address "
                "(it mostly ends in /v1)"
            )
        elif status == 402 or error.code == "insufficient_quota":
            stop = "the quota is used up"
        elif status in AGAIN or status >= 500:
            wait = retry_after(error.response.headers)
            stop = f"asks to wait {wait:,.0f} s" if wait is not None and wait > LONGEST_WAIT else ""
        else:
            return Outcome({"problem": f"refused by the {option} ({status})", "said": said})
        stop = stop and f"{self.name}: {stop} ({status}: {said}); {GO_ON}"
        return Outcome(entry, wait, stop, is_busy=status == 429)

    def _check_use(self, entry: dict[str, Any]) -> None:
        """Raises `Stopped` when nothing of use comes any more."""
        if "problem" not in entry:
            self._answers, self._useless = self._answers + 1, 0
            return
        self._useless += 1
        if self._useless >= USELESS_IN_A_ROW:
            why = ": ".join(filter(None, (entry["problem"], entry.get("said"))))
            raise Stopped(f"{self.name}: {self._useless} answers in a row were of no use ({why}); {GO_ON}")

    def _as_taken(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request with the parameters that the model takes."""
        named = {self._renamed.get(name, name): value for name, value in request.items()}
        named.pop("", None)
        return named

    def _adapt(self, error: Any, sent: dict[str, Any], request: dict[str, Any]) -> bool:
        """Whether the request has become another one because models differ in what they take."""
        message = str(error) if error.status_code == 400 else ""
        if "max_completion_tokens" in message:
            self._renamed["max_tokens"] = "max_completion_tokens"
        elif "temperature" in message and "temperature" in sent:
            logger.warning("%s takes no temperature of %g; its own is used.", self.settings.model, sent["temperature"])
            self._renamed["temperature"] = ""
        return bool(message) and self._as_taken(request) != sent

    def _wait_after(self, outcome: Outcome, tries: int) -> float:
        """When a request is sent again, by the monotonic clock."""
        now, wait = time.monotonic(), outcome.wait
        if wait is None:
            wait = min(LONGEST_BACK_OFF, self.settings.first_wait * 2 ** (tries - 1))
            return now + wait * random.uniform(0.75, 1.25)
        if wait >= 10:
            logger.warning("%s asks to wait %.0f s.", self.name, wait)
        self._not_before = max(self._not_before, now + wait)  # for all requests
        return now + wait + random.uniform(0, 0.1 * self.settings.first_wait)

    def _hide(self, value: Any) -> Any:
        is_secret = isinstance(value, str) and len(self._key) >= SHORTEST_SECRET
        return value.replace(self._key, "***") if is_secret else value


def run_to_end(work: Coroutine[Any, Any, None]) -> str:
    """Runs what asks a teacher, and gives the reason where it could not go on; empty where it came to its end."""
    try:
        asyncio.run(work)
    except Stopped as stop:
        return str(stop)
    except KeyboardInterrupt:
        logger.warning("Stopped; %s", GO_ON)
        raise
    return ""


def _address(settings: TeacherSettings) -> tuple[str, str]:
    """An address as it may be shown, and its host."""
    try:
        parts = urlsplit(settings.url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UserInputError(f"--{settings.option}: not an address; give that of the API, as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserInputError(f"--{settings.option}: the address holds more than a place; give the key in {KEY_VARIABLE}")
    return f"{parts.scheme}://{parts.netloc}{parts.path}", host


def _key(host: str) -> tuple[str, str]:
    """The variable that a key for this host comes from, and the key."""
    variable = OPENAI_VARIABLE if host == OPENAI_HOST and not os.environ.get(KEY_VARIABLE) else KEY_VARIABLE
    key = os.environ.get(variable, "").strip()
    if any(not "!" <= letter <= "~" for letter in key):
        raise UserInputError(f"{variable}: holds a space, a line break or a letter that no key has; copy the key anew")
    return variable, key
