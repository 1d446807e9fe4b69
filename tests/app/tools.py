"""Tools started inside the test's own process: the same command line, without the seconds of a new interpreter."""

import sys


def call(main, monkeypatch, capsys, *arguments, code=0):
    """Run ``main`` as with ``arguments`` on the command line; what it printed, and it must end with ``code``."""
    monkeypatch.setattr(sys, "argv", ["tool.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    ended = 0
    try:
        main()
    except SystemExit as stop:
        ended = stop.code
    captured = capsys.readouterr()
    output = captured.out + captured.err
    assert ended == code, output
    return output
