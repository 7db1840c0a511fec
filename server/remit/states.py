"""The states of a call, and of its way back. Apart from the tables, which take long to import.

What is stored of a way back is what was done about it. What can be done with it now also depends on the time
and on what others did since: that is worked out when it is asked for, here and nowhere else.
"""

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
#: The states of a call that was let out.
SENT = ("dispatched", "succeeded", "failed", "in_doubt")
#: Those in which it has done something, or may have, or would have.
ACTED = ("scheduled", "cancelled", "dispatched", "in_doubt", "succeeded")

#: `registered`: the call is under way, or in doubt. `running`: an undo is under way. `failed`: the source
#: refused it, or the proof failed. `indeterminate`: nobody knows whether it is undone. `conflict`: the same
#: thing was changed later, and that stays. `impossible`: there is none, or nothing to take back.
WAY_BACK_STATES = (
    "registered",
    "ready",
    "running",
    "done",
    "conflict",
    "failed",
    "expired",
    "impossible",
    "indeterminate",
)


#: SQL: what stands for the thing that the call `c` touched where calls on it are erased; its event knows.
_ERASED = (
    "(SELECT 'erased:' || substr(e.body, instr(e.body, '\"touched\":\"') + 11, 32) FROM events AS e"
    ' WHERE e.call_id = c.id AND instr(e.body, \'"touched":"\') > 0 LIMIT 1)'
)


def changed_since(names: str = f"u.resource, {_ERASED}", only: str = "") -> str:
    """SQL: whether what the call `c` touched, by its way back `u`, was changed later by what stays.

    Or an earlier call was taken back from under it, as people can insist: where only values tell, what that
    put back may look like what this call left, and what this one replaced is gone for good. `names` are those
    of the thing, `only` a condition on the `other` call.
    """
    # Ids are in the order of time: the next call that stays comes soon, most often, however many touched the
    # thing. What was made earlier is looked through only when none came, so for the newest call.
    after, before = (_changed_by(f"t.call_id {than} c.id", names, only) for than in "><")
    return f"(c.dispatched_us IS NOT NULL AND ({after} OR {before}))"


def _changed_by(made: str, names: str, only: str) -> str:
    """The same, by a call that was `made` after `c`, or before it."""
    return (
        f"EXISTS (SELECT 1 FROM touches AS t WHERE t.resource IN ({names}) AND {made}"  # noqa: S608 - all of it is ours
        # A value for each touch, and no join: databases begin with what was touched, and stop at the first.
        " AND (SELECT CASE WHEN (other.dispatched_us, other.id) > (c.dispatched_us, c.id)"
        " THEN other.state IN ('dispatched', 'in_doubt', 'succeeded') AND COALESCE(its.state, '') <> 'done'"
        " ELSE u.best_effort AND back.state IN ('dispatched', 'in_doubt', 'succeeded')"
        " AND (back.dispatched_us, back.id) > (c.dispatched_us, c.id) END FROM calls AS other"
        " LEFT JOIN undos AS its ON its.call_id = other.id LEFT JOIN calls AS back ON back.id = its.undo_call"
        f" WHERE other.id = t.call_id AND other.tenant = c.tenant{only}))"
    )


def way_back(now_us: str) -> str:
    """SQL: the state of the way back `u` of the call `c`, now; null for a call that changed nothing.

    What an outsider wrote is known only once an undo has looked: the last look counts.
    """
    return (
        "CASE WHEN u.call_id IS NULL THEN CASE WHEN c.kind = 'call' AND c.effect <> 'read'"  # noqa: S608 - `now_us` is ours
        " AND c.state IN ('dispatched', 'in_doubt', 'succeeded') THEN 'impossible' END"
        " WHEN u.state = 'void' AND c.effect = 'deferred' AND c.dispatched_us IS NOT NULL THEN 'expired'"
        " WHEN u.state = 'void' THEN 'impossible'"
        " WHEN u.state <> 'ready' THEN u.state"
        f" WHEN c.state <> 'scheduled' AND u.expires_us <= {now_us} THEN 'expired'"
        f" WHEN {changed_since()} OR 'undo_conflict' = ("
        "SELECT CASE tried.error_code WHEN 'undo_conflict' THEN tried.error_code ELSE tried.code END"
        " FROM calls AS tried JOIN calls AS looked ON looked.of_call = tried.id"
        " AND looked.kind = 'after' WHERE tried.of_call = c.id AND tried.kind = 'undo'"
        " ORDER BY tried.created_us DESC LIMIT 1) THEN 'conflict'"
        " ELSE 'ready' END"
    )
