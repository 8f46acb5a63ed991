"""The body of an answer, read piece by piece and never beyond a limit. Pure: the clients hand it what they receive."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import httpx

from redline.errors import AnswerTooLargeError, ProtocolError

# A token takes about 35 bytes: 64 items of 25,000 tokens each.
MAX_ANSWER_BYTES = 64 * 2**20
# What httpx would ask for by itself includes encodings that it inflates without a limit.
ACCEPTED_ENCODINGS = "gzip"
# Inflated at once: bounds what an answer that is too large costs beyond the limit.
_INFLATE_BYTES = 2**20


class Answer(NamedTuple):
    """A whole HTTP answer. ``body`` is inflated."""

    url: str
    status: int
    headers: httpx.Headers
    body: bytearray

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


class AnswerReader:
    """Collects the body of one answer.

    Args:
        response: its status and headers; the body is still to be read.
        max_bytes: of the body, as it is sent and as it is inflated.
        longest_answer: what an answer to this request can take at most, if that is known.

    Raises:
        ProtocolError: the body is compressed in a way that was not asked for.
        AnswerTooLargeError: the headers announce a body larger than ``max_bytes``, or than ``longest_answer``.
    """

    def __init__(self, response: httpx.Response, max_bytes: int, longest_answer: int | None = None) -> None:
        self._url = str(response.request.url)
        self._status = response.status_code
        self._headers = response.headers
        self._max_bytes = max_bytes if longest_answer is None else min(max_bytes, longest_answer)
        self._is_bounded_by_request = self._max_bytes < max_bytes
        self._received = 0
        self._body = bytearray()
        named = [name.strip().lower() for name in response.headers.get("Content-Encoding", "").split(",")]
        encodings = [name for name in named if name not in {"", "identity"}]
        if encodings not in ([], ["gzip"], ["x-gzip"]):
            raise ProtocolError(
                f"{self._url} answered in an encoding that was not asked for: {', '.join(encodings):.60}"
            )
        self._inflater = _new_inflater() if encodings else None
        announced = response.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > self._max_bytes):
            raise self._too_large()
        self._announced = int(announced) if announced.isascii() and announced.isdigit() else None

    @property
    def is_complete(self) -> bool:
        """Whether as much was received as the headers announced; False where they did not."""
        return self._received == self._announced

    def add(self, piece: bytes) -> None:
        """Take what was received. Raises AnswerTooLargeError, and ProtocolError where it cannot be inflated."""
        self._received += len(piece)
        if self._received > self._max_bytes:
            raise self._too_large()
        if self._inflater is None:
            self._keep(piece)
            return
        try:
            while piece:
                if self._inflater.eof:
                    self._inflater = _new_inflater()  # gzip data may have several members
                self._keep(self._inflater.decompress(piece, _INFLATE_BYTES))
                piece = self._inflater.unconsumed_tail or self._inflater.unused_data
        except zlib.error as error:
            raise ProtocolError(f"{self._url} answered with a body that is not gzip, as it says it is") from error

    def add_decoded(self, content: bytes) -> None:
        """Take a body that httpx has read and inflated already, as transports in memory have it."""
        self._inflater = None
        self._keep(content)

    def answer(self) -> Answer:
        """The answer, once everything was received. Raises ProtocolError where a part is missing."""
        if self._inflater is not None and self._received:
            self._keep(self._inflater.flush())
            if not self._inflater.eof:
                raise ProtocolError(f"{self._url} answered with a gzip body that breaks off")
        return Answer(self._url, self._status, self._headers, self._body)

    def _keep(self, piece: bytes) -> None:
        if len(self._body) + len(piece) > self._max_bytes:
            raise self._too_large()
        self._body += piece

    def _too_large(self) -> AnswerTooLargeError:
        if self._is_bounded_by_request:
            return AnswerTooLargeError(
                f"{self._url} answered with more than {self._max_bytes} bytes, which no answer to what was asked takes"
            )
        limit = f"more than {self._max_bytes} bytes (max_answer_bytes)"
        return AnswerTooLargeError(
            f"{self._url} answered with {limit}; raise it, or ask about fewer items in a request"
        )


def _new_inflater() -> zlib._Decompress:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
