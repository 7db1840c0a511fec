"""The command line itself: its help, its reference, its exit codes, completion, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from tests.server.acme import REPOSITORY, Story, Terminal, a_place

from remit.cli import SECTIONS, cli, reference

COMMANDS = [name for names in SECTIONS.values() for name in names]
REMIT = [sys.executable, "-m", "remit"]


def started(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`remit` as a process of its own."""
    return subprocess.run(
        [*REMIT, *words], capture_output=True, text=True, env={**os.environ, **environ}, timeout=60
    )


def test_the_reference_is_what_the_commands_say_of_themselves() -> None:
    assert (REPOSITORY / "docs" / "cli.md").read_text() == reference.text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_is_in_the_reference(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    remit = Terminal(tmp_path / "remit.yaml")
    for path, help_ in reference.pages(name):
        asked = remit(*path.split()[1:], "--help")
        assert (asked.code, asked.out) == (0, f"{help_}\n")


def test_the_list_of_commands_says_of_each_what_it_says_of_itself() -> None:
    """The list is kept apart, so that showing it imports no command."""
    listed = {name: purpose for names in SECTIONS.values() for name, (_, purpose) in names.items()}
    for name, purpose in listed.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.get_short_help_str(limit=1000) == purpose


def imported_by(*words: str) -> set[str]:
    """The modules in memory when the command has ended."""
    program = (
        "import sys\nfrom remit.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.split())


def test_help_imports_nothing_that_is_slow() -> None:
    assert not imported_by("--help") & {"pydantic", "sqlalchemy", "mcp", "rich", "remit_rbac", "httpx2"}


def test_reading_imports_neither_servers_nor_the_database_toolkit(remit: Terminal) -> None:
    modules = imported_by("calls", "list", "--config", str(remit.config))
    assert not modules & {"alembic", "sqlalchemy", "mcp", "aiohttp", "casbin"}


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert version("remit") in started("--version").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("calls",),
        ("calls", "list", "--limit", "0"),
        ("calls", "show"),
        ("switch", "on", "all"),
    ],
)
def test_wrong_use_ends_with_64_and_says_how_to_use_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = Terminal(tmp_path / "remit.yaml")(*words)
    assert ran.code == 64
    assert "Usage: remit" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("calls", "list", "-n", f"{2**63}"), "is not in the range 1<=x<=1000000000"),
        (("calls", "tail", "-n", f"{2**63}"), "is not in the range 0<=x<=1000000000"),
        (("approvals", "list", "-n", f"{2**63}"), "is not in the range 1<=x<=1000000000"),
        (("doubt", "list", "-n", f"{2**63}"), "is not in the range 1<=x<=1000000000"),
        (("calls", "list", "--cost-over", f"eur_cent={2**63}"), f"a whole number of up to {2**63 - 1}"),
        (("calls", "show", "\udcff"), "'\\udcff' is not text in UTF-8"),
        (("calls", "list", "--run", "\udcff"), "'\\udcff' is not text in UTF-8"),
        (("approvals", "deny", "0", "--comment", "\udcff"), "'\\udcff' is not text in UTF-8"),
        (("doubt", "resolve", "0", "--happened", "--reason", "\udcff"), "'\\udcff' is not text in UTF-8"),
        (
            ("doubt", "resolve", "0", "--happened", "--did-not-happen", "--reason", "x"),
            "say --happened or --did-not-happen, and not both",
        ),
        (
            ("doubt", "resolve", "0", "--happened", "--force", "--reason", "x"),
            "--force is for --did-not-happen: what happened may be said at any time",
        ),
        *(
            (words, f"{words[-1]} is too far off: a time can be in the years 0002 to 9998")
            for words in (
                ("calls", "list", "--since", "0001-01-01"),
                ("calls", "list", "--until", "9999-12-31T23:59"),
                ("report", "--from", "999999d"),
                ("policy", "can", "user:ann", "acme.refund", "--at", "0001-01-01"),
            )
        ),
    ],
    ids=lambda said: " ".join(said[:2]) if isinstance(said, tuple) else "",
)
def test_what_cannot_be_is_told_with_what_can(remit: Terminal, words: tuple[str, ...], why: str) -> None:
    refused = remit(*words)
    assert (refused.code, refused.out) == (64, ""), refused
    assert why in refused.err


def test_the_largest_numbers_there_are_find_what_there_is(anywhere: tuple[Terminal, Story]) -> None:
    remit, _ = anywhere
    every = len(remit.json("calls", "list"))
    assert len(remit.json("calls", "list", "-n", "1000000000")) == every
    assert remit("calls", "tail", "-n", "1000000000").code == 0
    assert remit("approvals", "list", "-n", "1000000000").code == 0
    assert remit.json("calls", "list", "--cost-over", f"eur_minor={2**63 - 1}") == []
    assert len(remit.json("calls", "list", "--since", "0002-01-01", "--until", "9998-12-31")) == every


def test_a_time_without_a_zone_is_in_the_one_of_this_machine(remit: Terminal) -> None:
    """Here it is one that is two hours ahead."""
    words = ("calls", "list", "--json", "--config", str(remit.config), "--until")
    earlier = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
    later = (datetime.now(UTC) + timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M")
    for said, some in (earlier, False), (later, True), (f"{later}Z", True), (f"{earlier}Z", False):
        assert bool(json.loads(started(*words, said, TZ="X-2").stdout)) == some


def test_a_configuration_with_mistakes_is_told_with_file_and_line(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    config.write_text(config.read_text().replace("version: 1", "version: 1\nsourcs: {}"))
    ran = started("calls", "list", "--config", str(config))
    assert ran.returncode == 1
    assert f"{config}:2:1: sourcs: is not a setting; did you mean sources?" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_policy_with_mistakes_is_told_with_file_and_line(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    (tmp_path / "policy.csv").write_text("p, role:x, acme, a.b, excute, 1 == 1, allow\n")
    ran = started("policy", "can", "agent:a", "acme.refund", "--config", str(config))
    assert ran.returncode == 78
    assert f"{tmp_path}/policy.csv:1:" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_no_configuration_is_told_in_one_sentence(tmp_path: Path) -> None:
    ran = Terminal(tmp_path / "remit.yaml")("calls", "list")
    there = f"{tmp_path}/remit.yaml: there is no such file"
    fix = "write it, or name another with --config (or REMIT_CONFIG)"
    assert (ran.code, ran.err) == (1, f"remit: {there}; {fix}\n")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("call list", 64, "No such command 'call'. Did you mean `remit calls`?"),
        ("frobnicate", 64, "No such command 'frobnicate'.\n"),
        ("calls list --stat denied", 64, "'--state'"),
        ("calls list --since yesterday", 64, "say 30s, 15m, 24h or 7d for so long ago, or a time as 2026-"),
        ("calls list --until 2026-13-40", 64, "or a time as 2026-01-31T09:00"),
        ("calls list --since 2027-01-01 --until 2026-01-01", 64, "--since must be before --until"),
        ("audit export --since 2027-01-01 --until 2026-01-01", 64, "--since must be before --until"),
        ("audit hold add --from 1h --to 2h --reason x", 64, "--from must be before --to"),
        ("calls list --agent bot", 64, "'bot' is not of the form agent:ID; write agent:bot"),
        ("calls list --user agent:bot", 64, "'agent:bot' is not of the form user:ID\n"),
        ("calls list --cost-over 5", 64, "--cost-over takes UNIT=AMOUNT, not '5'"),
        ("calls list --arg foo", 64, "--arg takes NAME=VALUE, not 'foo'"),
        ("calls list --config {place}", 1, "is not a file; name the file itself"),
        ("calls show ffff", 1, "there is no call ffff: `remit calls list` shows those there are"),
        ("calls show ''", 1, "there is no call without an id: `remit calls list` shows"),
        ("approvals show ffff", 1, "there is no approval ffff: `remit approvals list --all` shows"),
        ("policy show ffff", 1, "there is no policy version ffff: `remit policy versions` shows"),
        ("policy test {place}", 1, "is a folder; name the files in it"),
        ("audit hold release ffff --reason x", 1, "no legal hold ffff: `remit audit hold list` shows"),
        ("agents key revoke ffff", 1, "there is no valid key ffff: `remit agents key list` shows"),
        ("audit verify --db {place}", 64, "is a directory"),
        ("audit verify --db nothing.db", 64, "File 'nothing.db' does not exist"),
        ("audit verify --checkpoint nothing", 64, "File 'nothing' does not exist"),
        ("audit export --db nothing.db", 64, "File 'nothing.db' does not exist"),
        ("tools suggest nowhere", 64, "no source is called nowhere: there is acme"),
        ("tools prove nothing", 64, "no source offers nothing: `remit tools list` shows every tool"),
    ],
)
def test_what_is_misspelt_or_not_there_is_told_with_what_to_do(
    remit: Terminal, words: str, code: int, told: str
) -> None:
    ran = remit(*shlex.split(words.format(place=remit.folder)))
    assert (ran.code, told in ran.err) == (code, True), ran.err


def test_a_shell_that_completes_what_is_no_command_yet_is_not_refused() -> None:
    completion = ShellComplete(cli, {}, "remit", "_REMIT_COMPLETE")
    assert "calls" in {each.value for each in completion.get_completions([], "cal")}
    assert "--help" in {each.value for each in completion.get_completions(["frobnicate"], "--")}


def test_a_demonstration_whose_example_cannot_be_copied_names_the_file(tmp_path: Path) -> None:
    example = tmp_path / "example"
    example.mkdir()
    (example / "remit.yaml").write_text("version: 1\n")
    (example / "policy.csv").symlink_to(tmp_path / "nothing")
    ran = started("demo", "--once", "--dir", str(tmp_path / "new"), "--example", str(example))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{example}/policy.csv cannot be copied: " in ran.stderr


def test_a_demonstration_that_has_no_place_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = started("demo", "--once", "--dir", str(tmp_path / "file" / "folder"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "not a directory; name another folder with --dir" in ran.stderr


def test_a_folder_in_the_place_of_the_database_is_told_of_what_it_is(tmp_path: Path) -> None:
    remit = Terminal(a_place(tmp_path))
    (tmp_path / "remit.db").mkdir()
    for words in ("calls list", "db upgrade", "audit verify", "switch on all --reason x"):
        ran = remit(*words.split())
        assert ran.code == 1
        assert f"{tmp_path}/remit.db cannot be used: it is not a file; name the file itself" in ran.err


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which nobody can make a file")
def test_where_nobody_may_write_is_told_in_one_sentence(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    config.write_text(config.read_text().replace("path: remit.db", "path: /sys/remit.db"))
    ran = started("db", "upgrade", "--config", str(config))
    assert ran.returncode == 1
    assert re.fullmatch(r"remit: /sys/remit\.db\.lock: [a-z -]+: run this as the user .*\n", ran.stderr)


def test_the_environment_may_name_the_configuration(remit: Terminal) -> None:
    assert started("switch", "list", REMIT_CONFIG=str(remit.config)).stdout == "No switch is on.\n"


def test_a_reader_that_has_seen_enough_is_no_error(remit: Terminal) -> None:
    export = f"{sys.executable} -m remit audit export --config {remit.config}"
    many = f"for i in 1 2 3 4 5 6 7 8; do {export} || exit 9; done | head -n 1"
    ran = subprocess.run(["bash", "-c", many], capture_output=True, text=True, timeout=60)
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""


def completed(remit: Terminal, words: str) -> list[str]:
    """What bash would offer after `words`."""
    said = started(
        _REMIT_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
        REMIT_CONFIG=str(remit.config),
    )
    assert said.stderr == ""
    return [line.partition(",")[2] for line in said.stdout.split()]


def test_commands_options_and_ids_are_completed(remit: Terminal, story: Story) -> None:
    assert completed(remit, "remit a") == ["audit", "approvals", "agents"]
    assert completed(remit, "remit calls ") == ["list", "show", "tail"]
    assert completed(remit, "remit calls list --verdict a") == ["approve", "advise"]
    assert story.refund in completed(remit, "remit calls show 0")
    assert completed(remit, "remit approvals approve 0") == [story.approval]
    assert completed(remit, "remit doubt resolve 0") == [story.in_doubt]
    assert completed(remit, "remit calls list --tool acme.r") == ["acme.refund"]


def test_completion_stays_silent_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert completed(Terminal(tmp_path / "remit.yaml"), "remit calls show 0") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(tmp_path: Path, shell: str) -> None:
    script = Terminal(tmp_path / "remit.yaml")("completion", shell)
    assert script.code == 0
    assert f"{shell}_complete" in script.out


def test_a_damaged_database_is_found(remit: Terminal) -> None:
    assert remit.json("db", "check")["findings"] == []
    database = remit.folder / "remit.db"
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("DROP TRIGGER events_no_update")
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("INSERT INTO votes VALUES ('gone', 'user:x', 'approve', 'local', 1, '')")
    database.chmod(0o644)
    checked = remit("db", "check", "--json")
    assert checked.code == 1
    said = " ".join(checked.json["findings"])
    assert "events_no_update is missing" in said
    assert "of votes refers to a row of approvals that is not there" in said
    assert "other users may open" in said


def test_a_file_that_is_no_database_is_told_in_one_sentence(remit: Terminal) -> None:
    (remit.folder / "remit.db").write_bytes(b"x" * 4096)
    ran = remit("calls", "list")
    assert ran.code == 1
    assert ran.err.endswith("cannot be read: file is not a database\n")


def test_a_copy_that_is_no_audit_database_is_told_with_what_to_do(tmp_path: Path) -> None:
    remit, copy = Terminal(tmp_path / "remit.yaml"), tmp_path / "copy.db"
    copy.touch()
    ran = remit("audit", "verify", "--db", str(copy))
    assert (ran.code, "it is empty: name the file that Remit writes" in ran.err) == (1, True)
    with closing(sqlite3.connect(copy)) as db:
        db.execute("CREATE TABLE orders (id)")
    ran = remit("audit", "verify", "--db", str(copy))
    assert (ran.code, "it is not an audit database: name the file" in ran.err) == (1, True)


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE orders (id)",
        "CREATE TABLE calls (id)",
        "CREATE TABLE alembic_version (version_num)",
        "CREATE TABLE alembic_version AS SELECT '27c6a30d7c24' AS version_num",
    ],
)
def test_nothing_is_put_into_another_programs_database(tmp_path: Path, made: str) -> None:
    remit, file = Terminal(a_place(tmp_path)), tmp_path / "remit.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute(made)
        db.commit()
    before = file.read_bytes()
    for command in (("db", "upgrade"), ("safe", "on", "--reason", "x", "--as", "user:sue")):
        ran = remit(*command)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran
        assert "is another program's database, not an audit database: give Remit its own" in ran.err
    assert file.read_bytes() == before


def test_a_database_is_made_with_its_folder_or_why_it_cannot_be_is_told(tmp_path: Path) -> None:
    config = a_place(tmp_path)
    text = config.read_text()
    config.write_text(text.replace("remit.db", "data/remit.db"))
    assert Terminal(config)("db", "upgrade").code == 0
    config.write_text(text.replace("remit.db", "policy.csv/remit.db"))
    ran = Terminal(config)("db", "upgrade")
    assert (ran.code, ran.err.count("\n"), "cannot be used: File exists" in ran.err) == (1, 1, True), ran


@pytest.mark.parametrize(
    "url", ["postgresql://remit:sek/ret@db/remit", "postgresql://remit:sekret@db:port/remit", "sekret"]
)
def test_what_is_no_url_of_a_database_is_told_in_one_sentence_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REMIT_DB_URL", url)
    shell = Terminal(a_place(tmp_path, "env:REMIT_DB_URL"))
    for words in (("calls", "list"), ("db", "upgrade")):
        refused = shell(*words)
        assert refused.code == 1
        assert refused.err.startswith("remit: env:REMIT_DB_URL is not the URL of a database: write postgres")
        assert "sek" not in refused.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("audit", "export"), 1),
        (("audit", "verify"), 1),
        (("calls", "list"), 1),
        (("calls", "list", "--json"), 1),
        (("report", "--from", "30d"), 1),
        (("policy", "can", "user:sue", "acme.refund"), 78),
        (("--help",), 1),
    ],
)
def test_what_cannot_be_printed_because_the_disk_is_full_is_told_in_one_sentence(
    remit: Terminal, words: tuple[str, ...], code: int
) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [*REMIT, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "REMIT_CONFIG": str(remit.config)},
            timeout=60,
        )
    assert (ran.returncode, ran.stderr) == (
        code,
        "remit: not all of this could be written: no space left on device: "
        "make room, and look at what was done before you do it again\n",
    )
