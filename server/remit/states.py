"""The states of a call. Apart from the tables, which take long to import."""

STATES = (
    "denied",
    "awaiting_approval",
    "rejected",
    "expired",
    "withdrawn",
    "scheduled",
    "cancelled",
    "dispatched",
    "succeeded",
    "failed",
    "in_doubt",
)
