"""The one exception that people see: a sentence that says what is wrong and what to do."""


class MusaeError(Exception):
    """Something the user can mend. The message is one sentence; the command line prints it and exits 2."""
