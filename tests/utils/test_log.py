"""Where messages go."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich.console
from rich.logging import RichHandler

from detkit.utils import log
from detkit.utils.log import close_logging, logger, set_up_logging
from detkit.utils.progress import track


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    close_logging()


def test_the_file_has_everything_and_the_console_what_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(tmp_path)
    logger.debug("a detail")
    logger.info("a message of %d words, with a line that is much longer than the eighty columns of a terminal", 20)
    logger.warning("[red]not markup[/red]")
    close_logging()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(maxsplit=3)[2] for line in lines] == ["DEBUG", "INFO", "WARNING"]
    assert lines[2].endswith("[red]not markup[/red]")
    console = capsys.readouterr().err.splitlines()
    assert len(console) == 2, "long lines stay whole without a terminal"
    assert "a message of 20 words" in console[0]
    assert logger.propagate


def test_a_second_call_replaces_the_first_and_appends(tmp_path: Path) -> None:
    for word in ("one", "two"):
        set_up_logging(tmp_path)
        logger.info(word)
    text = (tmp_path / "log.txt").read_text()
    assert (text.count("one"), text.count("two")) == (1, 1)
    assert len(logger.handlers) == 2


def test_another_process_says_warnings_only_and_has_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "rank", lambda: 2)
    monkeypatch.setattr(log, "is_main", lambda: False)
    set_up_logging(tmp_path)
    logger.info("quiet")
    logger.warning("loud")
    close_logging()
    console = capsys.readouterr().err
    assert "loud" in console
    assert "quiet" not in console
    assert "quiet" in (tmp_path / "log_rank2.txt").read_text()


def test_a_terminal_gets_rich_lines_above_its_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = rich.console.Console(force_terminal=True)
    monkeypatch.setattr("rich.get_console", lambda: terminal)
    set_up_logging()
    (handler,) = logger.handlers
    assert isinstance(handler, RichHandler)
    assert handler.console is terminal
    assert handler.level == logging.INFO


@pytest.mark.parametrize("is_terminal", [False, True])
def test_track_hands_on_every_item(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    console = rich.console.Console(force_terminal=is_terminal, record=True)
    monkeypatch.setattr("rich.get_console", lambda: console)
    assert list(track(iter("abc"), 3, "reading")) == ["a", "b", "c"]
    assert ("reading" in console.export_text()) == is_terminal


def test_a_log_that_cannot_be_written_is_given_up_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself may come to its end all the same."""
    set_up_logging(tmp_path)
    file = next(handler for handler in logger.handlers if isinstance(handler, logging.FileHandler))

    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "stream", type("Full", (), {"write": staticmethod(full), "close": lambda self: None})())
    for i in range(3):
        logger.info("message %d", i)
    lines = [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()]
    told = f"no more is written to {tmp_path / 'log.txt'}: No space left on device"
    assert sorted(lines) == sorted(["message 0", told, "message 1", "message 2"])
