"""Errors that are the user's to mend: one message that names the cause and the next step."""


class ColqError(Exception):
    """A mistake in the input or the set-up; shown without a traceback, exit code 2."""
