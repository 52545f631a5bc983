"""Text of a page while it is decoded, whatever is lost of it on the way."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from app.document import Reading
from app.jobs.live_text import MAX_PIECE_CHARS, LiveText, LiveTexts, Piece, tell_text
from app.jobs.notifications import Notifications, Topic
from app.reader import Restart


class Written:
    """A stream with these pieces."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    async def pieces(self) -> AsyncIterator[str]:
        for piece in self._pieces:
            yield piece

    async def result(self) -> Reading:
        raise NotImplementedError

    def cancel(self) -> None: ...


def told(*pieces: str) -> list[str]:
    names: list[str] = []

    def tell(topic: Topic, some: Sequence[str]) -> None:
        assert topic == "text"
        names.extend(some)

    asyncio.run(tell_text(Written(*pieces), "job", 3, tell))
    return names


def put_together(names: list[str]) -> LiveText:
    text = LiveText()
    for name in names:
        text.add(Piece.read(name))
    return text


def test_what_is_told_is_put_together() -> None:
    assert put_together(told("one ", "", "t\u20acwo\n")).text == "one t\u20acwo\n"


def test_a_long_piece_is_told_in_parts_that_fit_a_notification() -> None:
    text = "\x01" * (3 * MAX_PIECE_CHARS)
    names = told(text)
    assert max(len(name.encode()) for name in names) < 8000
    assert put_together(names).text == text


def test_a_page_that_is_read_again_begins_anew() -> None:
    names = told("loop loop", Restart(), "text")
    assert put_together(names).text == "text"
    assert put_together([*names, names[0]]).text == "text", "whatever comes late"


@pytest.mark.parametrize("lost", [0, 1])
def test_after_a_loss_the_text_stops_until_the_page_is_read_again(lost: int) -> None:
    names = told("one ", "two ", "three")
    del names[lost]
    text = put_together(names)
    assert text.text == ("" if lost == 0 else "one ")
    text.add(Piece("job", 3, 1, 0, "again"))
    assert text.text == "again"


def test_followers_get_the_pieces_of_their_job() -> None:
    async def run() -> None:
        notifications = Notifications()
        texts = LiveTexts(notifications)
        with texts.of("job") as mine, texts.of("other") as other:
            notifications.tell("text", ["no piece", "[1]", str(Piece("job", 0, 0, 0, "text"))])
            assert (await asyncio.wait_for(mine.get(), 10)).text == "text"
            assert other.empty()

    asyncio.run(run())
