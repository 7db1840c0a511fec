"""A report of some time for an auditor: what was decided, by whom, what went wrong, whether the record holds.

Everything is counted from the audit database, and verification runs while the report is made. It is one HTML
page that loads nothing and can be printed. What others wrote is escaped where it is put in.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from remit import verifying
from remit.audit import Progress, ignored, verify_balances
from remit.escaping import escaped
from remit.ids import first_id
from remit.records import Records

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Rows of a table that lists single things; how many more there are is said.
_LISTED_MAX = 200
_FINDINGS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table of the report, and a sentence about what it is."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    #: Rows beyond those, the later ones.
    more: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    from_us: int
    to_us: int
    made_us: int
    tenant: str | None
    events: int
    findings: tuple[str, ...]
    sections: tuple[Section, ...]


def report(
    records: Records,
    *,
    from_us: int,
    to_us: int,
    tenant: str | None,
    now_us: int,
    advance: Progress = ignored,
) -> Report:
    """Count what happened from `from_us` to `to_us`, and verify the whole record. Reads one snapshot."""
    shut = verifying.shut(records)
    findings = [
        str(finding)
        for found in (
            [shut] if shut else [],  # it explains what else cannot be
            verifying.verify(records, payloads=not shut, progress=advance),
            verify_balances(records),
        )
        for finding in found
    ]
    return Report(
        from_us=from_us,
        to_us=to_us,
        made_us=now_us,
        tenant=tenant,
        events=records.count("events"),
        findings=tuple(findings),
        sections=tuple(_sections(records, from_us, to_us, tenant)),
    )


def _sections(records: Records, from_us: int, to_us: int, tenant: str | None) -> Iterable[Section]:
    within = "c.id >= ? AND c.id < ?" + (" AND c.tenant = ?" if tenant else "")
    about: list[Any] = [first_id(from_us), first_id(to_us), *([tenant] if tenant else [])]
    then = "at_us >= ? AND at_us < ?" + (" AND tenant = ?" if tenant else "")
    when: list[Any] = [from_us, to_us, *([tenant] if tenant else [])]

    def asked(sql: str, values: Sequence[Any] = about) -> list[list[Any]]:
        return [list(row) for row in records.rows(sql, values)]

    yield Section(
        title="Calls",
        about="What agents asked for, how far each was let go, and what became of it. What was made to undo a"
        " call, or to look before and after one, is not counted.",
        columns=("verdict", "state", "calls"),
        rows=asked(
            f"SELECT verdict, state, COUNT(*) AS calls FROM calls AS c WHERE {within} AND kind = 'call'"  # noqa: S608 - the conditions are ours
            " GROUP BY verdict, state ORDER BY calls DESC"
        ),
    )
    yield Section(
        title="Agents",
        about="Who made those calls, and how often they were refused.",
        columns=("tenant", "agent", "calls", "denied"),
        rows=asked(
            "SELECT tenant, agent, COUNT(*) AS calls, COUNT(CASE state WHEN 'denied' THEN 1 END)"  # noqa: S608 - the conditions are ours
            f" FROM calls AS c WHERE {within} AND kind = 'call' GROUP BY tenant, agent ORDER BY calls DESC"
        ),
    )
    yield Section(
        title="Why calls were refused",
        about="A code that appears often is a policy or an agent to look at. Refused undos are told, too, by"
        " their kind.",
        columns=("kind", "code", "calls"),
        rows=asked(
            f"SELECT kind, code, COUNT(*) AS calls FROM calls AS c WHERE {within} AND state = 'denied'"  # noqa: S608 - the conditions are ours
            " GROUP BY kind, code ORDER BY calls DESC"
        ),
    )
    yield Section(
        title="Approvals, by whom",
        about="Human oversight: who decided on which tools.",
        columns=("person", "vote", "tool", "times"),
        rows=asked(
            'SELECT v."user", v.vote, c.tool, COUNT(*) AS times FROM calls AS c'  # noqa: S608 - the conditions are ours
            " JOIN approvals AS a ON a.call_id = c.id JOIN votes AS v ON v.approval_id = a.id"
            f' WHERE {within} GROUP BY v."user", v.vote, c.tool ORDER BY times DESC'
        ),
    )
    yield _listing(
        title="Overrides and other acts of people",
        about="Switches, safe mode, resolved doubts, policies put into force, erasures, holds, keys.",
        columns=("when", "what", "of what", "by", "why", "tenant", "call"),
        rows=[
            [at_us, kind, *_told(json.loads(body)), tenant_id, call_id]
            for at_us, kind, body, tenant_id, call_id in asked(
                f"SELECT at_us, kind, body, tenant, call_id FROM events WHERE {then} AND ("  # noqa: S608 - the conditions are ours
                "kind LIKE 'switch.%' OR kind LIKE 'key.%' OR kind IN ('audit.erased', 'audit.held',"
                " 'audit.released', 'call.resolved', 'policy.activated', 'policy.pushed', 'log.key'))",
                when,
            )
        ],
    )
    yield _listing(
        title="Incidents",
        about="Calls in doubt; answers that came later and say otherwise than what others had concluded; "
        "undos in doubt, failed or in conflict; policies that a server would not take; gaps in which reads "
        "went through unrecorded.",
        columns=("when", "what", "tool", "call"),
        rows=[
            *asked(
                "SELECT c.created_us, 'in doubt: ' || COALESCE(error_code, ''), tool, id FROM calls AS c"  # noqa: S608 - the conditions are ours
                f" WHERE {within} AND (state = 'in_doubt' OR resolution IS NOT NULL)"
            ),
            *asked(
                "SELECT c.created_us, 'undo: ' || u.state, c.tool, c.id FROM calls AS c"  # noqa: S608 - the conditions are ours
                f" JOIN undos AS u ON u.call_id = c.id WHERE {within}"
                " AND u.state IN ('failed', 'indeterminate')"
            ),
            *asked(
                "SELECT MIN(c.created_us), 'undo: conflict', o.tool, o.id FROM calls AS c"  # noqa: S608 - the conditions are ours
                f" JOIN calls AS o ON o.id = c.of_call WHERE {within} AND c.kind = 'undo'"
                " AND 'undo_conflict' IN (c.code, c.error_code) GROUP BY o.tool, o.id"
            ),
            *asked(
                "SELECT at_us, kind, COALESCE((SELECT tool FROM calls WHERE id = call_id), ''),"  # noqa: S608 - the conditions are ours
                " COALESCE(call_id, '') FROM events"
                f" WHERE {then} AND kind IN ('policy.rejected', 'store.gap', 'call.contradicted')",
                when,
            ),
        ],
    )
    yield Section(
        title="Undone",
        about="Calls that were taken back, and by whom. The state tells where that failed, or is in doubt.",
        columns=("tool", "by", "state", "calls"),
        rows=asked(
            'SELECT c.tool, b."user", u.state, COUNT(*) AS calls FROM calls AS c'  # noqa: S608 - the conditions are ours
            " JOIN undos AS u ON u.call_id = c.id JOIN calls AS b ON b.id = u.undo_call"
            f" WHERE {within} AND u.state NOT IN ('ready', 'void')"  # those that did nothing
            ' GROUP BY c.tool, b."user", u.state ORDER BY calls DESC'
        ),
    )
    yield Section(
        title="Spent",
        about="What calls cost, undos among them, by unit, less what was given back.",
        columns=("tenant", "agent", "unit", "calls", "spent"),
        rows=asked(
            "SELECT tenant, agent, unit, COUNT(*), CAST(SUM(spent) AS BIGINT) FROM ("  # noqa: S608 - the conditions are ours
            "SELECT c.tenant, c.agent, h.unit, MAX(h.posted - h.refunded) AS spent FROM calls AS c"
            " JOIN holds AS h ON h.call_id = c.id"
            f" WHERE {within} GROUP BY c.id, c.tenant, c.agent, h.unit) AS costs"
            " GROUP BY tenant, agent, unit ORDER BY tenant, agent, unit"
        ),
    )
    yield Section(
        title="Policies that decided",
        about="Each can be looked up: remit policy show. Every call is counted, whatever it was made for.",
        columns=("policy version", "calls"),
        rows=asked(
            f"SELECT policy_version, COUNT(*) AS calls FROM calls AS c WHERE {within}"  # noqa: S608 - the conditions are ours
            " AND policy_version <> '' GROUP BY policy_version ORDER BY calls DESC"
        ),
    )


def _listing(*, title: str, about: str, columns: tuple[str, ...], rows: list[list[Any]]) -> Section:
    """A table of single things, each of which begins with its time (µs): the oldest, and how many more."""
    rows.sort(key=lambda row: row[0])
    return Section(
        title=title,
        about=about,
        columns=columns,
        rows=[[_moment(at_us), *rest] for at_us, *rest in rows[:_LISTED_MAX]],
        more=max(0, len(rows) - _LISTED_MAX),
    )


def _told(facts: dict[str, Any]) -> tuple[str, str, str]:
    """What somebody did something to, who, and why."""
    of_what = [
        str(facts[name])
        for name in ("state", "scope", "target", "subject", "hold", "key_id", "agent", "how")
        if facts.get(name)
    ]
    of_what += [facts["version"][:12]] if "version" in facts else []
    return " ".join(of_what), facts.get("by") or "", facts.get("reason") or facts.get("note") or ""


def page(it: Report) -> str:
    """The report as one HTML page."""
    sound = not it.findings
    verified = f"All {it.events} events, and every call, vote and balance, are as they were written."
    if not sound:
        verified = f"Not everything is as it was written, or can be verified: {len(it.findings)} found."
    if len(it.findings) > _FINDINGS_MAX:
        verified += f" These are the first {_FINDINGS_MAX}."
    listed = "".join(f"<li>{_text(each)}</li>" for each in it.findings[:_FINDINGS_MAX])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Report of AI agents' calls</title><style>{_STYLE}</style></head><body>"
        "<h1>What agents did, and who let them</h1>"
        f"<p>From {_moment(it.from_us)} to {_moment(it.to_us)}, "
        f"{'tenant ' + _text(it.tenant) if it.tenant else 'every tenant'}. Made {_moment(it.made_us)}.</p>"
        f'<section class="{"sound" if sound else "flawed"}"><h2>Is the record sound?</h2><p>{verified}</p>'
        f"{f'<ul>{listed}</ul>' if listed else ''}</section>"
        + "".join(_section(each) for each in it.sections)
        + "</body></html>\n"
    )


def _section(it: Section) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in it.columns)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in it.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    table = table if it.rows else "<p>None.</p>"
    more = f"<p>And {it.more} more, which are not listed.</p>" if it.more else ""
    return f"<section><h2>{_text(it.title)}</h2><p>{_text(it.about)}</p>{table}{more}</section>"


def _cell(value: Any) -> str:
    number = ' class="number"' if isinstance(value, int) else ""
    return f"<td{number}>{_text('' if value is None else value)}</td>"


def _text(value: object) -> str:
    return html.escape(escaped(str(value)))


def _moment(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%d %H:%M:%SZ")


_STYLE = """
body{font:15px/1.5 ui-sans-serif,system-ui,sans-serif;color:#1c1917;max-width:60rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:0 0 .2rem}section{margin:1.6rem 0;break-inside:avoid}
section p{margin:.1rem 0 .5rem;color:#57534e}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #e7e5e4;overflow-wrap:anywhere}
th{font-weight:600;color:#57534e}.number{text-align:right;font-variant-numeric:tabular-nums}
.sound,.flawed{padding:.8rem 1rem;border-left:4px solid #16a34a;background:#f0fdf4}
.flawed{border-color:#dc2626;background:#fef2f2}
@media print{body{margin:0;max-width:none;font-size:11px}section{margin:.8rem 0}}
"""
