"""What can be known to be wrong before agents find out: `check`, `tools` and `policy`."""

from __future__ import annotations

import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.server.acme import CONFIG, Terminal, a_place
from tests.server.witnessing import WitnessKey


@pytest.fixture
def acme(tmp_path: Path) -> Terminal:
    return Terminal(a_place(tmp_path))


def test_a_sound_place_shows_what_it_exports_to_whom(acme: Terminal) -> None:
    checked = acme("check")
    assert checked.code == 0, checked.out
    line = next(line for line in checked.out.splitlines() if "acme.refund" in line)
    assert re.search(
        r"acme\.refund +acme +reversible +eur_minor args\.amount_minor +acme\.cancel_refund, 1 d"
        r" +agent:support-bot +[0-9a-f]{12}$",
        line,
    )
    assert "irreversible (undeclared)" in checked.out
    assert checked.out.endswith("No problem found.\n")


def test_the_same_for_programs(acme: Terminal) -> None:
    told = acme.json("check")
    assert told["problems"] == []
    refund = next(tool for tool in told["tools"] if tool["name"] == "acme.refund")
    assert refund["visible_to"] == [{"tenant": "acme", "agent": "agent:support-bot"}]
    assert refund["undo_within_s"] == 86400
    assert refund["price"] == {"eur_minor": "args.amount_minor"}
    assert len(refund["digest"]) == 64


ANCHORS = """\
audit:
  anchors:
    - file: absent/kept
    - file: folder
    - file: kept
    - timestamp: {url: 'http://tsa.example/tsr', roots: remit.yaml, folder: stamps}
"""


def test_where_checkpoints_cannot_go_is_found_without_the_network(acme: Terminal) -> None:
    acme.config.write_text(CONFIG + ANCHORS)
    (acme.folder / "folder").mkdir()
    checked = acme("check", "--offline", "--json")
    assert checked.code == 1
    wrong, looked_at = checked.json["problems"], checked.json["warnings"]
    lines = (CONFIG + ANCHORS).splitlines()
    for said, at, message in (
        (wrong, "absent/kept", "there is no folder"),
        (wrong, "- file: folder", "is not a file"),
        (looked_at, "- file: kept", "is on the same volume as the database"),
        (wrong, "roots", "remit.yaml cannot be read as certificates in PEM"),
        (wrong, "roots", "there is no folder"),
    ):
        line = next(number for number, text in enumerate(lines, 1) if at in text)
        assert any(message in each["text"] and each["line"] == line for each in said), (message, said)
    (acme.folder / "remit.db.log-key").write_text("")
    (acme.folder / "remit.db.log-key").chmod(0o644)
    assert "remit.db.log-key must belong to you alone" in acme("check", "--offline").out
    acme.config.write_text(CONFIG + "audit: {anchors: [{file: kept}]}\n")
    (acme.folder / "remit.db.log-key").chmod(0o600)
    assert acme("check", "--offline").code == 0


def test_a_folder_that_may_not_be_looked_into_is_found(
    acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme.config.write_text(CONFIG + "audit: {anchors: [{file: shut/kept}]}\n")
    is_dir = Path.is_dir

    def shut(self: Path) -> bool:
        if self.name == "shut":
            raise PermissionError(13, "Permission denied")  # root is never told so
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", shut)
    assert "shut' cannot be looked into by this user" in acme("check", "--offline").out


@pytest.mark.parametrize("url", ["https://", "https:///remit", "https://witness.example:0", "https://[::1"])
def test_a_witness_without_a_host_is_refused(acme: Terminal, url: str) -> None:
    acme.config.write_text(f"{CONFIG}audit: {{anchors: [{{witness: '{url}', key: {WitnessKey().key}}}]}}\n")
    assert "this URL names no host" in acme("check", "--offline").out


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "give the key of a witness, as NAME+ID+KEY, with the witness"),
        (", key: w+c74f20a3+AAAA", "'w+c74f20a3+AAAA' is not a key, or damaged"),
    ],
)
def test_a_witness_without_a_sound_key_is_refused(acme: Terminal, key: str, says: str) -> None:
    acme.config.write_text(f"{CONFIG}audit: {{anchors: [{{witness: 'https://witness.example'{key}}}]}}\n")
    assert says in acme("check", "--offline").out


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        (
            f"{CONFIG}  - {{scope: agent, unit: eur_minor, window: total, limt: 5}}\n",
            "limt",
            "budgets[2].limt: is not a setting; did you mean limit?",
        ),
        (CONFIG.replace("acme_server.py", "no_such_server.py"), "acme:", "sources.acme:"),
        (
            CONFIG.replace("resource: args.order_id", "resource: args.order"),
            "resource:",
            "tools.acme.refund.resource: the tool has no argument order",
        ),
    ],
)
def test_a_problem_is_found_at_its_line(acme: Terminal, text: str, at: str, message: str) -> None:
    acme.config.write_text(text)
    checked = acme("check", "--json")
    assert checked.code == 1
    problems = [problem["text"] for problem in checked.json["problems"]]
    line = text[: text.index(at)].count("\n") + 1
    assert [one for one in problems if one.startswith(f"{acme.config}:{line}:") and message in one], problems


def test_problems_are_shown_after_the_tools_and_counted(acme: Terminal) -> None:
    acme.config.write_text(CONFIG.replace("resource: args.order_id", "resource: args.order"))
    shown = acme("check")
    assert shown.code == 1
    *_, problem, count = shown.out.splitlines()
    assert "tools.acme.refund.resource: the tool has no argument order" in problem
    assert count == "1 found."


def test_a_source_that_is_down_does_not_hide_the_rest(acme: Terminal) -> None:
    acme.config.write_text(
        CONFIG.replace("sources:\n", "sources:\n  gone: {kind: mcp, command: [/no/such/program]}\n")
        + "  - {scope: agent, unit: calls, window: day, limit: 5}\n"
    )
    checked = acme("check", "--json")
    assert checked.code == 1
    assert len(checked.json["problems"]) == 1
    assert "sources.gone:" in checked.json["problems"][0]["text"]
    assert any(tool["name"] == "acme.refund" for tool in checked.json["tools"])


def test_an_optional_source_that_is_down_is_a_warning(acme: Terminal) -> None:
    gone = "  gone: {kind: mcp, command: [/no/such/program], optional: true}\n"
    acme.config.write_text(CONFIG.replace("sources:\n", f"sources:\n{gone}"))
    told = acme.json("check")
    assert any("sources.gone:" in warning["text"] for warning in told["warnings"])


@pytest.mark.parametrize(
    "source",
    [
        "{kind: mcp, command: [x], env: {TOKEN: env:REMIT_TEST_NOT_SET}}",
        '{kind: mcp, url: "http://127.0.0.1:9/mcp", bearer: env:REMIT_TEST_NOT_SET}',
    ],
)
def test_a_secret_that_is_not_there_is_named(acme: Terminal, source: str) -> None:
    acme.config.write_text(CONFIG.replace("sources:\n", f"sources:\n  crm: {source}\n"))
    checked = acme("check", "--json")
    assert checked.code == 1
    (problem,) = checked.json["problems"]
    assert "env:REMIT_TEST_NOT_SET: is not set" in problem["text"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p, role:support, acme, acme.refund, excute, 1 == 1, allow", "[bad-action]"),
        ("p, role:support, acme, acme.refund, execute, r.args.amont < 5, allow", "[unknown-argument]"),
        ("p, role:support, acme, acme.refund, execute, r.ctx.weather == 'fine', allow", "[unknown-context]"),
    ],
)
def test_a_policy_is_held_against_the_tools_and_shown_with_its_row(
    acme: Terminal, row: str, message: str
) -> None:
    file = acme.folder / "policy.csv"
    line = file.read_text().count("\n") + 1
    file.write_text(f"{file.read_text()}{row}\n")
    checked = acme("check", "--json")
    assert checked.code == 1
    (problem,) = checked.json["problems"]
    assert (problem["file"], problem["line"]) == (str(file), line)
    assert message in problem["text"]
    assert row in problem["text"]


def test_offline_connects_to_nothing(acme: Terminal) -> None:
    acme.config.write_text(CONFIG.replace("acme_server.py", "no_such_server.py"))
    assert acme("check", "--offline").code == 0
    (acme.folder / "policy.csv").write_text("p, nonsense\n")
    assert acme("check", "--offline").code == 1


def test_a_configuration_that_cannot_be_read_is_a_problem_too(acme: Terminal) -> None:
    acme.config.write_text("sources: [\n")
    checked = acme("check", "--json")
    assert checked.code == 1
    assert checked.json["problems"][0]["line"] is not None


def test_tools_are_listed_as_an_agent_sees_them(acme: Terminal) -> None:
    everything = {tool["name"] for tool in acme.json("tools", "list")}
    seen = {tool["name"] for tool in acme.json("tools", "list", "--as", "agent:support-bot")}
    assert "acme.refund" in seen <= everything
    nobody = acme("tools", "list", "--as", "agent:stranger", "--for", "user:alice")
    assert nobody.out == "No tool is exported.\n"
    unclear = acme("tools", "list", "--as", "agent:stranger")
    assert unclear.code == 64
    assert "say --for whom agent:stranger acts" in unclear.err


def test_one_tool_is_shown_with_its_way_back_and_schema(acme: Terminal) -> None:
    shown = acme("tools", "show", "acme.refund").out
    for expected in (
        "way back  acme.cancel_refund, for 1 d",
        "refund_id: result.refund_id",
        "proved by  acme.get_refund: result.status == 'cancelled'",
        "visible to  agent:support-bot (acme)",
        '"amount_minor": {',
    ):
        assert expected in shown, shown
    assert acme.json("tools", "show", "acme.refund")["definition"]["name"] == "acme.refund"
    unknown = acme("tools", "show", "acme.refnd")
    assert unknown.code == 1
    assert "no tool acme.refnd is exported" in unknown.err


@pytest.mark.parametrize(
    ("amount", "verdict", "code"),
    [(8000, "execute", 0), (40000, "approve", 1), (500_000, "deny", 3)],
)
def test_can_prints_the_verdict_and_exits_with_it(
    acme: Terminal, amount: int, verdict: str, code: int
) -> None:
    words = ("policy", "can", "agent:support-bot", "acme.refund", "--args", f'{{"amount_minor": {amount}}}')
    said = acme(*words)
    assert said.code == code
    assert said.out.startswith(f"{verdict.capitalize()}\n")
    told = acme(*words, "--json")
    assert told.code == code
    assert told.json["verdict"] == verdict
    assert told.json["subject"] == "agent:support-bot for user:alice"
    assert all("policy.csv:" in row for row in told.json["rows"])
    assert told.json["approvers"] == (["user:sue"] if verdict == "approve" else [])
    assert bool(told.json["missing"]) == (verdict != "execute")


def test_can_says_advise_where_only_advice_is_granted(acme: Terminal) -> None:
    with (acme.folder / "policy.csv").open("a") as file:
        file.write("p, role:support, acme, acme.delete_order, advise, 1 == 1, allow\n")
    said = acme("policy", "can", "agent:support-bot", "acme.delete_order")
    assert said.code == 2
    assert said.out.startswith("Advise\n")


def test_can_answers_for_a_person_too(acme: Terminal) -> None:
    words = ("policy", "can", "user:sue", "acme.refund", "--args", '{"amount_minor": 40000}', "--json")
    told = acme(*words)
    assert told.code == 3
    assert told.json["may"] == ["approve", "undo"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("sue", "acme.refund"), "write agent:ID or user:ID"),
        (("agent:support-bot", "shop.buy"), "no source exports 'shop.buy': the sources are acme"),
        (("agent:support-bot", "acme.re fund"), "is not the name of a tool"),
        (("agent:support-bot", "acme.refund", "--args", "[1]"), "arguments are a JSON object"),
        (("agent:support-bot", "acme.refund", "--args", "{"), "this is not JSON"),
        (("agent:support-bot", "acme.refund", "--args", '{"amount_minor": 1, "amount_minor": 2}'), "twice"),
        (("agent:support-bot", "acme.refund", "--args", '{"amount_minor": NaN}'), "JSON"),
        (("agent:support-bot", "acme.refund"), "--args does not give what the price"),
        (("agent:x y", "acme.list_orders", "--for", "user:alice"), "an agent is named by agent:"),
        (("agent:nobody", "acme.refund"), "say --for whom agent:nobody acts"),
    ],
)
def test_can_says_how_to_ask(acme: Terminal, words: tuple[str, ...], why: str) -> None:
    asked = acme("policy", "can", *words)
    assert asked.code == 64
    assert why in asked.err


def test_a_policy_is_checked_alone(acme: Terminal) -> None:
    assert acme("policy", "check").out.startswith("The policy is sound: version ")
    (acme.folder / "policy.csv").write_text("p, role:x, acme, a.b, execute, 1 ==, allow\n")
    refused = acme("policy", "check")
    assert refused.code == 1
    assert "policy.csv:1:" in refused.out
    assert acme("policy", "can", "agent:a", "acme.refund").code == 78


def a_table(at: Path, *rows: str, name: str = "casbin_rule") -> None:
    """The rows as Casbin's SQLAlchemy adapters keep them, written last first."""
    with closing(sqlite3.connect(at)) as database, database:
        database.execute(f"DROP TABLE IF EXISTS {name}")
        values = ", ".join(f"v{number} VARCHAR(255)" for number in range(6))
        database.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, ptype VARCHAR(255), {values})")
        for number, row in reversed(list(enumerate(rows, start=1))):
            cells = row.split(", ")
            database.execute(
                f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a test's own name
                (number, *cells, *[None] * (7 - len(cells))),
            )


def with_table(acme: Terminal, monkeypatch: pytest.MonkeyPatch, name: str = "casbin_rule") -> Path:
    """Acme, with a table of rows beside its files."""
    at = acme.folder / "rows.db"
    monkeypatch.setenv("CASBIN_URL", f"sqlite:///{at}")
    table = "files: [policy.csv], table: {url: env:CASBIN_URL, name: NAME}".replace("NAME", name)
    acme.config.write_text(acme.config.read_text().replace("files: [policy.csv]", table))
    return at


NO_REFUNDS = "p, *, acme, acme.refund, *, 1 == 1, deny"


def test_the_rows_of_a_table_decide_with_those_of_the_files(
    acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("policy", "can", "agent:support-bot", "acme.refund", "--args", '{"amount_minor": 8000}')
    assert acme(*asked).code == 0
    at = with_table(acme, monkeypatch)
    a_table(at, "g, user:zoe, role:support, acme", NO_REFUNDS)
    denied = acme(*asked)
    assert denied.code == 3
    assert f"casbin_rule:2: {NO_REFUNDS}" in denied.out
    assert acme("policy", "check").code == 0
    a_table(at, NO_REFUNDS, "p, *, acme, acme.refund, execute, 1 == 1, Deny")
    for words in (("policy", "check"), ("check",)):
        refused = acme(*words)
        assert refused.code == 1
        assert "casbin_rule:2:43: error: an effect is allow or deny [bad-effect]" in refused.out


def test_a_table_without_rows_is_told_of(acme: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    a_table(with_table(acme, monkeypatch, "rules_of_others"), name="rules_of_others")
    checked = acme("policy", "check")
    assert checked.code == 0
    assert "rules_of_others:1:1: warning: there is no row here" in checked.out


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "env:CASBIN_URL: is not set"),
        ("sqlite:///rows.db", "no such table: casbin_rule"),
        ("ridiculous:hunter2@", "env:CASBIN_URL leads to no URL that SQLAlchemy can use"),
        ("no+such://me:hunter2@127.0.0.1/x", "env:CASBIN_URL leads to no URL that SQLAlchemy can use"),
        ("mssql+pyodbc://me:hunter2@127.0.0.1/x", "its driver is missing; pip install pyodbc"),
        ("postgresql+asyncpg://me:hunter2@127.0.0.1/x", "write a URL whose driver is synchronous"),
    ],
)
def test_a_table_that_cannot_be_read_refuses_the_policy_and_gives_no_secret_away(
    acme: Terminal, monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    with_table(acme, monkeypatch)
    monkeypatch.chdir(acme.folder)
    monkeypatch.setenv("CASBIN_URL", url)
    checked = acme("policy", "check")
    assert checked.code == 1
    assert why in checked.err
    assert "hunter2" not in checked.err
    assert acme("policy", "can", "agent:support-bot", "acme.list_orders").code == 78


def test_a_duty_that_does_not_fit_is_told_before_it_leaks(acme: Terminal) -> None:
    policy = acme.folder / "policy.csv"
    sound = policy.read_text()
    row = "p2, *, acme, acme.refund, *, 1 == 1, "
    line = sound.count("\n") + 1
    for duty in ("redcat=args.reason", "redact=r.args.reason", "redact=args.lines[0].card"):
        policy.write_text(f"{sound}{row}{duty}\n")
        for words in (("policy", "check"), ("check", "--offline")):
            refused = acme(*words)
            assert refused.code == 1
            assert f"policy.csv:{line}:38: error: " in refused.out
            assert "[bad-duty]" in refused.out
    policy.write_text(f"{sound}{row}redact=args.reason|args.nosuch\n")
    assert acme("policy", "check").code == 0
    refused = acme("check")
    assert refused.code == 1
    assert f"policy.csv:{line}:57: error: acme.refund has no argument nosuch" in refused.out
    policy.write_text(f"{sound}{row}redact=args.reason\n")
    assert acme("check").code == 0


def test_what_fails_is_never_taken_for_an_answer_of_can(
    acme: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("policy", "can", "agent:support-bot", "acme.list_orders")
    written = acme.config.read_text()
    acme.config.write_text(written.replace("version: 1", "version: 1\nsourcs: {}"))
    failed = acme(*asked)
    assert (failed.code, failed.out) == (78, "")
    assert "did you mean sources?" in failed.err
    acme.config.write_text(written.replace("files: [policy.csv]", "adapters: ['no_such_module:adapter']"))
    failed = acme(*asked)
    assert (failed.code, failed.out) == (78, "")
    assert "the policy adapter no_such_module:adapter failed" in failed.err
    acme.config.write_text(written)
    monkeypatch.setattr("remit.policies.load_policy", lambda settings: 1 / 0)  # pyright: ignore[reportUnknownLambdaType]
    failed = acme(*asked)
    assert (failed.code, failed.out) == (78, "")
    assert "ZeroDivisionError" in failed.err


def test_a_certificate_that_is_none_is_found_before_a_client_finds_it(acme: Terminal) -> None:
    acme.config.write_text(f"{CONFIG}http:\n  tls: {{certificate: policy.csv, key: policy.csv}}\n")
    checked = acme("check", "--offline")
    assert checked.code == 1
    assert ": http.tls: TLS cannot be served with " in checked.out
    served = acme("serve")
    assert (served.code, served.out) == (1, "")
    assert served.err.startswith("remit: TLS cannot be served with ")


def test_a_server_whose_address_is_taken_says_so_in_one_sentence(acme: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        served = acme("serve", "--http", taken)
    assert (served.code, served.out) == (1, "")
    assert served.err == (
        f"remit: cannot listen on {taken}: address already in use; end what uses it, or name another with"
        " --http or http.bind\n"
    )


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        ("8420", "'8420' is refused; write an address and a port, for example 127.0.0.1:8420"),
        (
            "0.0.0.0:8420",
            "bind is not loopback: set tls, or behind_tls_proxy: true when a proxy terminates TLS",
        ),
    ],
)
def test_an_address_that_is_none_is_refused_in_the_words_of_the_file(
    acme: Terminal, bind: str, why: str
) -> None:
    served = acme("serve", "--http", bind)
    assert served.code == 64
    assert served.err.endswith(f"Error: --http: {why}\n")
