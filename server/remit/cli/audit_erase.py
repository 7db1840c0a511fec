"""`remit audit erase`: destroy what is kept about somebody; the proof that it was as it was stays."""

from __future__ import annotations

from pathlib import Path

import click

from remit.cli.options import as_option, asks, config_option, json_option, print_json


@click.command()
@config_option
@json_option
@as_option
@click.option(
    "--subject",
    required=True,
    metavar="SUBJECT",
    help="Whom: user:alice, or what a tool's `subject` makes, such as customer:42.",
)
@click.option("--tenant", metavar="TENANT", help="In which tenant, instead of yours.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.option(
    "--yes", "-y", is_flag=True, help="Do not ask: it cannot be taken back. Needed without a terminal."
)
def erase(
    config_path: Path,
    as_json: bool,
    as_user: str | None,
    subject: str,
    tenant: str | None,
    reason: str,
    yes: bool,
) -> None:
    """Erase what calls about somebody carried: arguments, answers, before-images, what people were shown.

    Their keys are destroyed, so nobody can open it any more. That the calls were made, when, by whom and what
    became of them stays, and so does every proof. The calls cannot be undone any more.
    """
    import anyio

    from remit.cli.acting import journal_of, person
    from remit.cli.output import when
    from remit.config_file import load
    from remit.erasing import Erasure, finish
    from remit.records import open_records

    ask = asks(as_json=as_json, yes=yes)
    loaded = load(config_path)
    who = person(loaded, as_user, tenant)
    path = loaded.config.store.location
    with open_records(path):
        pass
    if ask:
        click.confirm(f"Erase what is kept about {subject} in tenant {who.tenant}, for ever?", abort=True)

    async def run() -> tuple[Erasure, int]:
        async with journal_of(loaded) as journal:
            done = await journal.erase(tenant=who.tenant, subject=subject, reason=reason, by=who.user)
            cleared = [
                await finish(journal, key_id, tenant=who.tenant, subject=subject) for key_id in done.uncleared
            ]
            return done, sum(cleared)

    done, count = anyio.run(run)
    if as_json:
        print_json({"subject": subject, "tenant": who.tenant, "erased_us": done.erased_us, "calls": count})
    elif done.uncleared:
        click.echo(f"Erased: what {count} calls about {subject} carried cannot be opened any more.")
    else:
        click.echo(f"{subject} was erased at {when(done.erased_us)}; nothing is kept since.")
