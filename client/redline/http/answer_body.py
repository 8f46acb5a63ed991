"""Collects and decompresses the body of an HTTP answer within a size limit. Does no I/O itself."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import httpx

from redline.errors import AnswerTooLargeError, ProtocolError

# About 35 bytes per token: enough for 64 items of 25,000 tokens each.
MAX_ANSWER_BYTES = 64 * 2**20
# httpx's default also accepts encodings that it decompresses without a limit.
ACCEPTED_ENCODINGS = "gzip"
# Decompressed at a time: bounds the memory beyond the limit for an answer that is too large.
_INFLATE_BYTES = 2**20


class Answer(NamedTuple):
    """A complete HTTP answer. ``body`` is decompressed."""

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
        response: status and headers; the body has not been read yet.
        max_bytes: maximum size of the body, both compressed and decompressed.
        longest_answer: maximum size of an answer to this request, if known.

    Raises:
        ProtocolError: the body has an encoding that was not requested.
        AnswerTooLargeError: the headers announce a body larger than ``max_bytes``, or than ``largest_answer_bytes``.
    """

    def __init__(self, response: httpx.Response, max_bytes: int, largest_answer_bytes: int | None = None) -> None:
        self._url = str(response.request.url)
        self._status = response.status_code
        self._headers = response.headers
        self._max_bytes = max_bytes if largest_answer_bytes is None else min(max_bytes, largest_answer_bytes)
        self._is_bounded_by_request = self._max_bytes < max_bytes
        self._receive = 0
        self._body = bytearray()
        named = [name.strip().lower() for name in response.headers.get("Content-Encoding", "").split(",")]
        encodings = [name for name in named if name not in {"", "identity"}]
        if encodings not in ([], ["gzip"], ["x-gzip"]):
            raise ProtocolError(
                f"{self._url} answered in an encoding that was not requested: {', '.join(encodings):.60}"
            )
        self._inflater = _new_inflater() if encodings else None
        announced = response.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > self._max_bytes):
            raise self._size_error()
        self._announced = int(announced) if announced.isascii() and announced.isdigit() else None

    @property
    def is_complete(self) -> bool:
        """Whether the announced length was received; False if the headers announce none."""
        return self._receive == self._announced

    def add(self, piece: bytes) -> None:
        """Add received bytes. Raises AnswerTooLargeError, and ProtocolError if they cannot be decompressed."""
        self._receive += len(piece)
        if self._receive > self._max_bytes:
            raise self._size_error()
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
            raise ProtocolError(f"{self._url} answered with a body that is not gzip, contrary to its header") from error

    def add_decoded(self, content: bytes) -> None:
        """Add a body that httpx has already read and decompressed, as in-memory transports do."""
        self._inflater = None
        self._keep(content)

    def answer(self) -> Answer:
        """The answer, once everything was received. Raises ProtocolError if a part is missing."""
        if self._inflater is not None and self._receive:
            self._keep(self._inflater.flush())
            if not self._inflater.eof:
                raise ProtocolError(f"{self._url} answered with an incomplete gzip body")
        return Answer(self._url, self._status, self._headers, self._body)

    def _keep(self, piece: bytes) -> None:
        if len(self._body) + len(piece) > self._max_bytes:
            raise self._size_error()
        self._body += piece

    def _size_error(self) -> AnswerTooLargeError:
        if self._is_bounded_by_request:
            return AnswerTooLargeError(
                f"{self._url} answered with more than {self._max_bytes} bytes, the most that a valid answer can have"
            )
        limit = f"more than {self._max_bytes} bytes (max_answer_bytes)"
        return AnswerTooLargeError(
            f"{self._url} answered with {limit}; raise the limit, or send fewer items per request"
        )


def _new_inflater() -> zlib._Decompress:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
