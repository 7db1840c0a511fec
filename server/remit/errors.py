"""The failures that cross modules. A refusal is a value (`model.Refused`), never one of these."""

from __future__ import annotations


class RemitError(Exception):
    """Base of all. `str()` is one plain sentence for an operator and says the fix."""


class StoreUnavailable(RemitError):
    """The audit database cannot take a write now. No effect may be let out; try again later."""


class StoreBusy(StoreUnavailable):
    """More calls wait to be recorded than the queue takes. Nothing was written; try again soon."""


class Held(StoreUnavailable):
    """Another process has kept the audit database to itself for too long. Nothing was written."""


class Interrupted(StoreUnavailable):
    """A transaction came to nothing through no fault of its own. The same may succeed at once."""


class NoAnswer(Interrupted):
    """The database did not answer in time, and who tries again at once would wait as long again."""


class Unsure(StoreUnavailable):
    """The connection broke while a transaction was being committed: it may or may not have been."""


class UnknownRecord(RemitError):
    """No such record, or it is not the asker's: the two look the same on purpose."""


class WrongState(RemitError):
    """The record is not in a state that allows this. Nothing was written; look at it again."""
