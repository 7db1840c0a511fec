"""What the pipeline refuses of its own accord: the codes, and the sentences that agents read.

Constants only. What policy, budgets, approvals and the store's own state refuse is said where that is found.
"""

from __future__ import annotations

from remit.model import Remedy, Verdict
from remit_rbac import Rung

STORE_DOWN = Verdict(
    rung=Rung.DENY,
    code="audit_unavailable",
    reason="Calls cannot be recorded at the moment, and nothing runs unrecorded. Nothing was done: wait and "
    "try again in a minute.",
    remedy=Remedy.WAIT,
)
BUSY = Verdict(
    rung=Rung.DENY,
    code="busy",
    reason="More calls wait to be recorded than can be taken. Nothing was done: wait some seconds and try "
    "again.",
    remedy=Remedy.WAIT,
)
NO_PRICE = Verdict(
    rung=Rung.DENY,
    code="no_price",
    reason="What this call costs cannot be computed from its arguments, so it is refused. Check that every "
    "amount is present and is a whole number.",
    remedy=Remedy.CHANGE,
)
NO_SUBJECT = Verdict(
    rung=Rung.DENY,
    code="no_subject",
    reason="Whom this call is about cannot be told from its arguments, so it is refused. Check that they "
    "name a person or an account as its description says.",
    remedy=Remedy.CHANGE,
)
CROWDED = Verdict(
    rung=Rung.DENY,
    code="too_many_at_once",
    reason="Too many calls of yours are running at once. Wait for one to end, then try again.",
    remedy=Remedy.WAIT,
)
IN_DOUBT = Verdict(
    rung=Rung.DENY,
    code="in_doubt",
    reason="An equal call was sent before and nobody knows whether it took effect, so it is not sent again. "
    "Read the current state to find out, or have an operator resolve it.",
    remedy=Remedy.ASK,
)
CANNOT_CONFIRM = Verdict(
    rung=Rung.DENY,
    code="cannot_confirm",
    reason="Your user must confirm exactly this call before it is made, and this client cannot ask them: it "
    "offers no form elicitation, or the call is too long to be read. Tell your user.",
    remedy=Remedy.ASK,
)
NOT_CONFIRMED = Verdict(
    rung=Rung.DENY,
    code="not_confirmed",
    reason="Your user was asked to confirm exactly this call, and did not. Ask them what they want instead.",
    remedy=Remedy.STOP,
)
CANNOT_DEFER = Verdict(
    rung=Rung.DENY,
    code="cannot_defer",
    reason="This call is held back before it is made, and a rule forbids to keep parts of it that long. Tell "
    "your user.",
    remedy=Remedy.ASK,
)
NOT_KEPT = Verdict(
    rung=Rung.DENY,
    code="cannot_defer",
    reason="What it was to be called with is not kept any more.",
    remedy=Remedy.STOP,
)
UNCONFIRMED = Verdict(
    rung=Rung.DENY,
    code="unconfirmed",
    reason="Your user must confirm exactly this call before it is made.",
    remedy=Remedy.WAIT,
)
RESTLESS = Verdict(
    rung=Rung.DENY,
    code="too_many_at_once",
    reason="Other calls of this piece of work kept changing what this one depends on. Make them one after "
    "another, then try again.",
    remedy=Remedy.WAIT,
)
ENDED = Verdict(
    rung=Rung.DENY,
    code="already_ended",
    reason="An equal call has been made before, and its answer is not kept. Do not send it again: read the "
    "current state.",
    remedy=Remedy.STOP,
)
UNDER_WAY = Verdict(
    rung=Rung.DENY,
    code="under_way",
    reason="An equal call is still under way. Wait for its answer instead of sending it again.",
    remedy=Remedy.WAIT,
)
