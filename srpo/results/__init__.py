"""The result files that every stage writes and every table reads."""


class ResultError(Exception):
    """Result files that cannot be used: broken, against their schema, contradictory, or incomplete."""
