"""Where the package's lines go: to standard error, unless the user has set the logger up."""

import logging

import pytest

from vramtune.log import show_lines


@pytest.fixture
def logger():
    """The package's logger as in a fresh process."""
    logger = logging.getLogger("vramtune")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:], logger.level, logger.propagate = [], logging.NOTSET, True
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_lines_of_level_info_go_to_standard_error(logger, capsys):
    show_lines()
    show_lines()
    logging.getLogger("vramtune.api").info("a line")
    logging.getLogger("vramtune.api").debug("a detail")
    assert capsys.readouterr() == ("", "a line\n")


def test_a_level_that_the_user_set_stays(logger, capsys):
    logger.setLevel(logging.DEBUG)
    show_lines()
    logging.getLogger("vramtune.api").debug("a detail")
    assert capsys.readouterr().err == "a detail\n"


def test_a_handler_that_the_user_gave_gets_the_lines_alone(logger, capsys):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    show_lines()
    logging.getLogger("vramtune.api").info("a line")
    assert [record.getMessage() for record in records] == ["a line"]
    assert capsys.readouterr().err == ""
