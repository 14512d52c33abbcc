"""The one exception that is meant for a person."""


class UserError(Exception):
    """A mistake the user can mend, told in one sentence; the command line prints it and exits with status 2.

    >>> raise UserError("corpus.jsonl, line 3: no field 'text'; its fields are 'title' and 'body'")
    Traceback (most recent call last):
    jaxgpt.core.errors.UserError: corpus.jsonl, line 3: no field 'text'; its fields are 'title' and 'body'
    """
