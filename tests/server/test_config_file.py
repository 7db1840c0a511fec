"""What `remit.yaml` may say, and the exact words that answer everything else."""
# ruff: noqa: E501  # an expected answer stands on one line, as people see it

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from pydantic import BaseModel

from remit import config, config_problems
from remit.config_file import ConfigError, Loaded, load, resolve, stdio_identity
from remit.config_schema import json_schema
from remit.policies import load_policy
from remit_rbac import Question, Rung

ROOT = Path(__file__).parents[2]

# Four lines, so what a row of the table adds begins on line 5.
BASE = """\
version: 1
policy: {files: [policy.csv]}
sources:
  time: {kind: mcp, command: [mcp-server-time]}
"""
FULL = """\
# yaml-language-server: $schema=remit.schema.json
version: 1
store: {path: data/remit.db, durability: relaxed}
policy: {model: model.conf, files: [policy.csv]}
identity:
  stdio: {tenant: acme, agent: agent:helpdesk, user: user:maria}
  cli: {tenant: acme, user: user:sam}
  jwt: {issuer: https://id.example.com, jwks: file:/etc/jwks.json, audience: https://remit.example.com/mcp, algorithms: [ES256]}
http: {bind: "0.0.0.0:8420", tls: {certificate: tls/cert.pem, key: tls/key.pem}}
sources:
  billing: {kind: mcp, url: https://billing.example.com/mcp, bearer: env:BILLING, connect_timeout: 5s}
  shop:
    kind: mcp
    command: [python, shop.py]
    env: {TOKEN: env:SHOP_TOKEN, MODE: plain}
    cwd: shop
    relay: [elicitation]
tools:
  billing.refund:
    effect: reversible
    price: {usd_micro: args.amount, calls: 1}
    undo: {call: billing.cancel, args: {id: result.id}, within: 24h}
  shop.*: {effect: read, timeout: 10s}
budgets:
  - {scope: agent, unit: usd_micro, window: day, limit: 1000000}
approvals: {pending: 15m, use_within: 5m}
context: {env: prod, replicas: 3, canary: true}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("policy.csv", "model.conf", "tls/cert.pem", "tls/key.pem", "shop/shop.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


def loaded(text: str) -> Loaded:
    Path("remit.yaml").write_text(text, encoding="utf-8")
    return load(Path("remit.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    lines = str(caught.value).replace(str(Path.cwd()), "<folder>").splitlines()
    return [line.removeprefix("remit.yaml:").lstrip() for line in lines]


GITHUB_TOKEN = "ghp_" + "a1B2" * 9
DURATION = " is refused: write a duration as a number and a unit, for example 30s, 15m, 24h or 7d"
LEAKED = "; replace it, for it has been in a file, and refer to the new one as env:NAME or file:/path"
NAME = "1 to 128 letters, digits and the signs _ . @ -"
ORIGIN = "write an Origin header exactly, such as https://app.example.com; no path, no wildcards"
TOP_LEVEL = ", ".join(config.Config.model_fields)

# What is wrong, the file, and each line of the answer without the file's name.
# fmt: off
MALFORMED: Mapping[str, tuple[str, ...]] = {
    "an empty file": ("",
        "1:1: the file is empty"),
    "only a comment": ("# nothing yet\n",
        "2:1: the file is empty"),
    "only a document marker": ("---\n",
        "1:1: the file is empty"),
    "a list": ("- version: 1\n",
        "1:1: the file must hold settings, each written as name: value"),
    "a single word": ("remit\n",
        "1:1: the file must hold settings, each written as name: value"),
    "two documents": (BASE + "---\n" + BASE,
        "5:1: a second document begins here; keep one in the file"),
    "a tab": (BASE + "store:\n\tpath: x.db\n",
        "6:1: a tab stands here; YAML is indented with spaces"),
    "a control character": (BASE + "zone: U\x07TC\n",
        "5:8: the character U+0007 cannot stand in YAML; remove it"),
    "a NUL in quotes": (BASE + 'zone: "U\\0TC"\n',
        "5:7: zone: the character U+0000 cannot stand in a value; remove it"),
    "an unclosed quote": (BASE + "zone: 'UTC\n",
        "5:7: the quote that opens here is never closed"),
    "an unclosed bracket": (BASE + "budgets: [\n",
        "6:1: a value or a closing bracket is missing"),
    "an unclosed brace": (BASE + "store: {path: x.db\n",
        "6:1: a ',' or the closing '}' is missing"),
    "wrong indentation": (BASE + "store:\n    path: x.db\n  durability: full\n",
        "7:3: the indentation differs from above"),
    "a colon in plain text": (BASE + "zone: Mars: north\n",
        "5:11: a ':' stands where none can; put text that holds ': ' in quotes"),
    "a sign that begins no value": (BASE + "zone: @home\n",
        "5:7: '@' cannot begin a value; put the value in quotes"),
    "a false escape": (BASE + 'zone: "C:\\qdata"\n',
        "5:10: this '\\' begins no escape; use single quotes, or write '\\\\'"),
    "a tag": (BASE + "zone: !!python/name:os.system UTC\n",
        "5:7: zone: tags are not used here; remove the word that begins with '!'"),
    "a key twice": (BASE + "zone: UTC\nzone: UTC\n",
        "6:1: zone: this key is written twice, first on line 5; keep one"),
    "a source twice": (BASE + "  time: {kind: mcp, command: [other]}\n",
        "5:3: sources.time: this key is written twice, first on line 4; keep one"),
    "a merge key": (BASE + "store: &s {durability: full}\napprovals: {<<: *s}\n",
        "6:13: approvals.<<: merge keys are not used here; write the fields out"),
    "an unknown alias": (BASE + "zone: *home\n",
        "5:7: zone: *home has no &home before it"),
    "an alias inside itself": (BASE + "budgets: &b [*b]\n",
        "5:14: budgets[0]: *b has no &b before it"),
    "an alias bomb": ("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
        "5:8: e[1]: the file holds more than 20,000 values, aliases counted in full"),
    "too deep": ("a: " + "[" * 50 + "\n",
        "1:35: a[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]: values are nested more than 32 deep"),
    "a number as a key": (BASE + "context: {1: x}\n",
        "5:11: context.1: a key is text; write it in quotes: '1'"),
    "a truth value as a key": (BASE + "context: {true: x}\n",
        "5:11: context.true: a key is text; write it in quotes: 'true'"),
    "a list as a key": (BASE + "? [a]\n: b\n",
        "5:3: a key is a word, not a list, a mapping or an alias"),
    "no key": (BASE + "? \n: b\n",
        "5:2: a key is missing before ':'; write one"),
    "not a number": (BASE + "limits: {queue: .nan}\n",
        "5:17: limits.queue: .nan is not a finite number; write one that is"),
    "infinity": (BASE + "limits: {queue: 1e999}\n",
        "5:17: limits.queue: 1e999 is not a finite number; write one that is"),
    "a number beyond 2^53": (BASE + "limits: {queue: 9007199254740993}\n",
        "5:17: limits.queue: 9007199254740993 is too large: whole numbers go up to 9007199254740991"),
    "a number of 5,000 digits": (BASE + "limits: {queue: " + "9" * 5000 + "}\n",
        "5:17: limits.queue: 9999999999999999999999999999999999999... is too large: whole numbers go up to 9007199254740991"),
    "no settings that are needed": ("zone: UTC\n",
        "1:1: version: is missing; write it, for example version: 1",
        "1:1: policy: is missing; write it, for example policy: {files: [policy.csv]}",
        "1:1: sources: is missing; write it, for example sources: {time: {kind: mcp, command: [mcp-server-time]}}"),
    "another version": (BASE.replace("version: 1", "version: 2"),
        "1:1: version: 2 is not a version; write 1"),
    "a version in quotes": (BASE.replace("version: 1", "version: '1'"),
        "1:1: version: '1' is not a version; write 1"),
    "a misspelt setting": (BASE.replace("policy:", "polcy:"),
        "1:1: policy: is missing; write it, for example policy: {files: [policy.csv]}",
        "2:1: polcy: is not a setting; did you mean policy?"),
    "an unknown setting": (BASE + "telemetry: {jaeger: x}\n",
        "5:13: telemetry.jaeger: is not a setting here; known are otlp"),
    "an unknown setting deep inside": (BASE + "identity: {stdio: {tennant: acme, agent: agent:a, user: user:b}}\n",
        "5:12: identity.stdio.tenant: is missing; write it, for example tenant: acme",
        "5:20: identity.stdio.tennant: is not a setting; did you mean tenant?"),
    "no policy files": (BASE.replace("[policy.csv]", "[]"),
        "2:10: policy.files: is empty; write at least one entry"),
    "a policy file that is absent": (BASE.replace("policy.csv", "absent.csv"),
        "2:18: policy.files[0]: there is no file '<folder>/absent.csv'; write it, or name another"),
    "a pattern of policy files that matches none": (BASE.replace("[policy.csv]", "['policy.*.csv']"),
        "2:18: policy.files[0]: no file matches '<folder>/policy.*.csv'; write one, or take the pattern out"),
    "a model that is a folder": (BASE.replace("{files", "{model: tls, files"),
        "2:10: policy.model: there is no file '<folder>/tls'; write it, or name another"),
    "no sources": (BASE.split("sources")[0] + "sources: {}\n",
        "3:1: sources: is empty; write at least one entry"),
    "a source without kind": (BASE.replace("kind: mcp, ", ""),
        "4:3: sources.time.kind: is missing; write it, for example kind: mcp"),
    "an unknown kind": (BASE.replace("kind: mcp", "kind: grpc"),
        "4:10: sources.time.kind: 'grpc' is not a kind; write mcp"),
    "a bad source name": (BASE.replace("  time", "  Time Server"),
        "4:3: sources.Time Server: 'Time Server' is refused; begin with a-z, then up to 31 of a-z, 0-9, _ and -"),
    "command and url": (BASE.replace("command:", "url: https://x.example, command:"),
        "4:3: sources.time: give either command (a list of words) or url, not both and not neither"),
    "an empty command": (BASE.replace("[mcp-server-time]", "[]"),
        "4:3: sources.time: command is empty: give the program and its arguments as a list"),
    "a command as text": (BASE.replace("[mcp-server-time]", "mcp-server-time --utc"),
        "4:21: sources.time.command: 'mcp-server-time --utc' is text; write a list"),
    "a url of another scheme": (BASE.replace("command: [mcp-server-time]", "url: 'ftp://x.example'"),
        "4:3: sources.time: url must begin with https:// (or http:// on a trusted network)"),
    "a url without a host": (BASE.replace("command: [mcp-server-time]", "url: 'https:///mcp'"),
        "4:3: sources.time: this URL names no host, or its port is no number from 1 to 65535"),
    "a url with a port that is none": (BASE.replace("command: [mcp-server-time]", "url: 'https://x.example:99999/mcp'"),
        "4:3: sources.time: this URL names no host, or its port is no number from 1 to 65535"),
    "a source of Remit's own name": (BASE.replace("  time", "  remit"),
        "1:1: remit.* are Remit's own tools: give the source another name, or a prefix"),
    "a bearer beside a command": (BASE.replace("command:", "bearer: env:X, command:"),
        "4:3: sources.time: headers and bearer go with url; a child process takes its secrets from env"),
    "a secret instead of a reference": (BASE.replace("command: [mcp-server-time]", "url: 'https://x.example', bearer: hunter2"),
        "4:47: sources.time.bearer: the value is refused: secrets are references: write env:NAME or file:/path, never the secret itself"),
    "a header that is no reference": (BASE.replace("command: [mcp-server-time]", "url: 'https://x.example', headers: {x-key: hunter2}"),
        "4:57: sources.time.headers.x-key: the value is refused: secrets are references: write env:NAME or file:/path, never the secret itself"),
    "a number in the environment": (BASE.replace("command:", "env: {PIN: 4321}, command:"),
        "4:27: sources.time.env.PIN: the value is a number; write text in quotes"),
    "a secret in the environment": (BASE.replace("command:", "env: {MODE: plain, API_KEY: hunter2}, command:"),
        "4:21: sources.time.env: API_KEY is called like a secret, and secrets are references: write env:NAME or file:/path"),
    "a folder that is absent": (BASE.replace("command:", "cwd: absent, command:"),
        "4:21: sources.time.cwd: there is no folder '<folder>/absent'; make it, or name another"),
    "an unknown relay": (BASE.replace("command:", "relay: [everything], command:"),
        "4:29: sources.time.relay[0]: 'everything' is not a relay; write one of elicitation, sampling, roots, logging"),
    "two sources of one prefix": (BASE + "  clock: {kind: mcp, command: [x], prefix: time}\n",
        "1:1: two sources export under 'time': give one another prefix"),
    "an empty prefix beside another source": (BASE + "  clock: {kind: mcp, command: [x], prefix: ''}\n",
        '1:1: prefix "" on clock needs it to be the only source: give it a prefix'),
    "yes for true": (BASE.replace("command:", "optional: yes, command:"),
        "4:21: sources.time.optional: 'yes' is text; write true or false"),
    "no unit of time": (BASE + "approvals: {pending: 900}\n",
        "5:13: approvals.pending: 900" + DURATION),
    "a sexagesimal time": (BASE + "approvals: {pending: 15:00}\n",
        "5:13: approvals.pending: '15:00'" + DURATION),
    "a duration in words": (BASE + "approvals: {pending: 15 minutes}\n",
        "5:13: approvals.pending: '15 minutes'" + DURATION),
    "a number in quotes": (BASE + "limits: {queue: '16'}\n",
        "5:10: limits.queue: '16' is text; write a whole number"),
    "a number with a fraction": (BASE + "limits: {queue: 16.5}\n",
        "5:10: limits.queue: 16.5 is a number with a fraction; write a whole number"),
    "a number with underscores": (BASE + "limits: {queue: 4_096}\n",
        "5:10: limits.queue: '4_096' is text; write a whole number"),
    "too small a number": (BASE + "limits: {per_agent: 0}\n",
        "5:10: limits.per_agent: 0 is too small; write at least 1"),
    "too large a number": (BASE + "limits: {result_bytes: 0x10000000}\n",
        "5:10: limits.result_bytes: 268435456 is too large; write at most 67108864"),
    "a negative amount": (BASE + "budgets: [{scope: agent, unit: calls, window: day, limit: -1}]\n",
        "5:52: budgets[0].limit: -1 is too small; write at least 0"),
    "an unknown window": (BASE + "budgets: [{scope: agent, unit: calls, window: week, limit: 1}]\n",
        "5:39: budgets[0].window: 'week' is not a window; write one of total, minute, hour, day, month"),
    "a budget without a limit": (BASE + "budgets: [{scope: agent, unit: calls, window: day}]\n",
        "5:11: budgets[0].limit: is missing; write it, for example limit: 60"),
    "budgets as a mapping": (BASE + "budgets: {scope: agent}\n",
        "5:1: budgets: is a mapping; write a list"),
    "an empty section": (BASE + "store:\n",
        "5:1: store: is empty; remove it or write a mapping"),
    "a list for a section": (BASE + "store: [remit.db]\n",
        "5:1: store: is a list; write a mapping"),
    "an unknown durability": (BASE + "store: {durability: on}\n",
        "5:9: store.durability: 'on' is not a durability; write one of full, relaxed"),
    "an agent without its prefix": (BASE + "identity: {stdio: {tenant: acme, agent: bot, user: user:maria}}\n",
        "5:34: identity.stdio.agent: 'bot' is refused; write agent: and then " + NAME),
    "a user without its prefix": (BASE + "identity: {cli: {tenant: acme, user: maria}}\n",
        "5:32: identity.cli.user: 'maria' is refused; write user: and then " + NAME),
    "a tenant with a space": (BASE + "identity: {cli: {tenant: 'a cme', user: user:maria}}\n",
        "5:18: identity.cli.tenant: 'a cme' is refused; use " + NAME),
    "an algorithm that signs nothing": (BASE + "identity: {jwt: {algorithms: [none], issuer: https://a.example, jwks: file:/b, audience: https://c.example/mcp}}\n",
        "5:31: identity.jwt.algorithms[0]: 'none' is not an algorithm; write one of RS256, PS256, ES256, EdDSA"),
    "an unknown time zone": (BASE + "zone: Mars/Olympus\nbudgets: [{scope: agent, unit: calls, window: day, limit: 1, zone: Europe}]\n",
        "5:1: zone: 'Mars/Olympus' is refused: this machine knows no such time zone; write one such as Europe/Berlin, or install tzdata",
        "6:62: budgets[0].zone: 'Europe' is refused: this machine knows no such time zone; write one such as Europe/Berlin, or install tzdata"),
    "bind without a port": (BASE + "http: {bind: localhost}\n",
        "5:8: http.bind: 'localhost' is refused; write an address and a port, for example 127.0.0.1:8420"),
    "a port beyond 65535": (BASE + "http: {bind: 127.0.0.1:70000}\n",
        "5:1: http: bind: a port is at most 65535"),
    "an open bind": (BASE + "http: {bind: 0.0.0.0:8420}\n",
        "5:1: http: bind is not loopback: set tls, or behind_tls_proxy: true when a proxy terminates TLS"),
    "a public url without a scheme": (BASE + "http: {public_url: remit.example.com}\n",
        "5:8: http.public_url: 'remit.example.com' is refused: this must begin with https:// or http://"),
    "a URL for a host": (BASE + "http: {allowed_hosts: ['https://remit.internal']}\n",
        "5:24: http.allowed_hosts[0]: 'https://remit.internal' is refused: write a Host header exactly, such as remit.internal:8420; there are no wildcards"),
    "every origin": (BASE + "http: {allowed_origins: ['*']}\n",
        "5:26: http.allowed_origins[0]: '*' is refused: " + ORIGIN),
    "an origin with a path": (BASE + "http: {allowed_origins: ['https://app.example.com/']}\n",
        "5:26: http.allowed_origins[0]: 'https://app.example.com/' is refused: " + ORIGIN),
    "an issuer without a scheme": (BASE + "identity: {jwt: {issuer: login.example.com, jwks: file:/b, audience: https://c.example/mcp}}\n",
        "5:18: identity.jwt.issuer: 'login.example.com' is refused: this must begin with https:// or http://"),
    "keys over plain http": (BASE + "identity: {jwt: {jwks: 'http://a.example', issuer: https://a.example, audience: https://c.example/mcp}}\n",
        "5:18: identity.jwt.jwks: 'http://a.example' is refused: this must begin with https:// or be file:/path (or http:// on loopback)"),
    "an audience that is no URL": (BASE + "identity: {jwt: {audience: remit, issuer: https://a.example, jwks: file:/b}}\n",
        "5:18: identity.jwt.audience: 'remit' is refused: this must begin with https:// or http://"),
    "an audience with a query": (BASE + "identity: {jwt: {audience: 'https://c.example/mcp?x', issuer: https://a.example, jwks: file:/b}}\n",
        "5:18: identity.jwt.audience: 'https://c.example/mcp?x' is refused: this is the URL of the MCP endpoint, without ? and #"),
    "a collector without a scheme": (BASE + "telemetry: {otlp: 'localhost:4317'}\n",
        "5:13: telemetry.otlp: 'localhost:4317' is refused: this must begin with https:// or http://"),
    "no pause between two seals": (BASE + "audit: {seal_every: 0s}\n",
        "5:9: audit.seal_every: '0s' is refused: this must last 1s at least"),
    "an absent certificate": (BASE + "http: {tls: {certificate: absent.pem, key: tls/key.pem}}\n",
        "5:14: http.tls.certificate: there is no file '<folder>/absent.pem'; write it, or name another"),
    "a bad tool name": (BASE + "tools: {time travel: {effect: read}}\n",
        "5:9: tools.time travel: 'time travel' is refused: name a tool as source.tool, or end with * to mean all that begin so"),
    "an unknown effect": (BASE + "tools:\n  time.refund:\n    effect: reversable\n",
        "7:5: tools.time.refund.effect: 'reversable' is not an effect; write one of read, reversible, restorable, compensable, deferred, irreversible"),
    "an effect that needs undo": (BASE + "tools: {time.set: {effect: reversible}}\n",
        "5:9: tools.time.set: effect reversible needs undo: name the tool that takes the call back"),
    "an effect without undo": (BASE + "tools: {time.set: {effect: read, undo: {call: time.unset}}}\n",
        "5:9: tools.time.set: effect read has no undo: remove undo, or say reversible"),
    "an effect that is not held back": (BASE + "tools: {time.set: {effect: irreversible, hold_back: 5m}}\n",
        "5:9: tools.time.set: effect irreversible is not held back: remove hold_back, or say deferred"),
    "an unknown level of trust": (BASE + "autonomy: {agent:bot: full}\n",
        "5:12: autonomy.agent:bot: 'full' is not an autonomy; write one of observe, read, propose, act_reversible, act"),
    "a restorable effect without before": (BASE + "tools: {time.set: {effect: restorable, undo: {call: time.set}}}\n",
        "5:9: tools.time.set: effect restorable needs before: the read that captures what will be replaced"),
    "an expression that ends early": (BASE + "tools: {time.set: {price: {calls: 'args.amount +'}}}\n",
        "5:28: tools.time.set.price.calls: 'args.amount +' is refused: column 14: something is missing here"),
    "an expression over what is not there": (BASE + "tools: {time.set: {failed_when: env.x == 1}}\n",
        "5:20: tools.time.set.failed_when: 'env.x == 1' is refused: column 1: unknown name `env`"),
    "a price with a fraction": (BASE + "tools: {time.set: {price: {usd: 1.5}}}\n",
        "5:28: tools.time.set.price.usd: 1.5 is a number with a fraction; write text in quotes, a whole number or a mapping"),
    "a price rule without estimate": (BASE + "tools: {time.set: {price: {usd: {actual: result.cost}}}}\n",
        "5:28: tools.time.set.price.usd.estimate: is missing; write it, for example estimate: args.amount"),
    "a price in a bad unit": (BASE + "tools: {time.set: {price: {US$: 1}}}\n",
        "5:28: tools.time.set.price.US$: 'US$' is refused; begin with a-z, then up to 31 of a-z, 0-9 and _"),
    "a fraction as a fact": (BASE + "context: {share: 0.5}\n",
        "5:11: context.share: 0.5 is a number with a fraction; write text in quotes, a whole number or true or false"),
    "a GitHub token": (BASE + f"store: {{path: {GITHUB_TOKEN}}}\n",
        "5:15: store.path: this looks like a GitHub token" + LEAKED),
    "a token in a comment": (BASE + f"# old: {GITHUB_TOKEN}\n",
        "5:8: this looks like a GitHub token" + LEAKED),
    "a token as a bad value": (BASE + f"limits: {{queue: {GITHUB_TOKEN}}}\n",
        "5:10: limits.queue: '[a secret]' is text; write a whole number",
        "5:17: limits.queue: this looks like a GitHub token" + LEAKED),
    "a token as a key": (BASE + f"{GITHUB_TOKEN}: 1\n",
        "5:1: [a secret]: this looks like a GitHub token" + LEAKED,
        "5:1: [a secret]: is not a setting here; known are " + TOP_LEVEL),
    "an AWS key": (BASE + "store:\n  path: " + "AKIA" + "ABCD1234" * 2,
        "6:9: store.path: this looks like an AWS access key" + LEAKED),
    "a Slack token": (BASE + "store:\n  path: " + "xoxb-" + "1234567890-abc",
        "6:9: store.path: this looks like a Slack token" + LEAKED),
    "a Stripe key": (BASE + "store:\n  path: " + "sk_" + "live_" + "a1B2" * 5,
        "6:9: store.path: this looks like a Stripe key" + LEAKED),
    "an API key": (BASE + "store:\n  path: " + "sk-" + "proj-" + "a1B2" * 5,
        "6:9: store.path: this looks like an API key" + LEAKED),
    "a Remit key": (BASE + "store:\n  path: " + "rk_" + "0192f" + "_" + "a1B2" * 8,
        "6:9: store.path: this looks like a Remit agent key" + LEAKED),
    "a JSON Web Token": (BASE + "store:\n  path: " + "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxIn0xx" + ".c2ln",
        "6:9: store.path: this looks like a JSON Web Token" + LEAKED),
    "a private key": (BASE + "context:\n  key: |\n    -----BEGIN " + "PRIVATE KEY-----\n    x\n",
        "7:5: this looks like a private key" + LEAKED),
    "a password in a URL": (BASE.replace("command: [mcp-server-time]", "url: 'https://me:hunter2@x.example'"),
        "4:32: sources.time.url: this looks like a password in a URL" + LEAKED),
    "several things at once": (BASE.replace("1", "'1'",1)+"zone: 5\nstore: {durability: none}\n",
        "1:1: version: '1' is not a version; write 1",
        "5:1: zone: 5 is a number; write text in quotes",
        "6:9: store.durability: 'none' is not a durability; write one of full, relaxed"),
}
# fmt: on


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_is_refused_in_these_words(what: str) -> None:
    text, *expected = MALFORMED[what]
    assert problems(text) == expected


def test_a_complete_file_loads_with_every_path_taken_from_its_folder() -> None:
    result = loaded(FULL)
    assert result.folder == Path.cwd()
    assert result.config.store.path == Path.cwd() / "data" / "remit.db"
    assert result.config.tools["billing.refund"].effect is config.Effect.REVERSIBLE
    assert result.config.context == {"env": "prod", "replicas": 3, "canary": True}
    assert [path for path in paths_in(result.config) if not path.is_absolute()] == []


def paths_in(value: object) -> list[Path]:
    if isinstance(value, Path):
        return [value]
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [path for each in value for path in paths_in(each)] if isinstance(value, list | tuple) else []


def test_the_smallest_file_loads_with_the_defaults() -> None:
    result = loaded(BASE)
    assert result.config.store.path == Path.cwd() / "remit.db"
    assert result.config.http.bind == "127.0.0.1:8420"


def test_a_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/maria")
    assert loaded(BASE + "store: {path: ~/remit.db}\n").config.store.path == Path("/home/maria/remit.db")


def test_a_byte_order_mark_is_no_part_of_the_first_setting() -> None:
    assert loaded("\ufeff" + BASE).config.version == 1


def test_words_and_numbers_are_read_as_yaml_1_2_says() -> None:
    result = loaded(BASE + "context: {no: no, on: off, y: 0644, z: 12:30, o: 0o17, d: 2020-01-01, t: true}\n")
    assert result.config.context == {
        "no": "no", "on": "off", "y": 644, "z": "12:30", "o": 15, "d": "2020-01-01", "t": True,
    }  # fmt: skip


def test_an_alias_repeats_what_its_anchor_holds() -> None:
    result = loaded(BASE + "tools: {time.a: &read {effect: read}, time.b: *read}\n")
    assert result.config.tools["time.a"] == result.config.tools["time.b"]


def test_a_problem_found_later_is_reported_at_its_line() -> None:
    problem = loaded(BASE).problem(("sources", "time", "era"), "the server answers no version")
    assert str(problem) == "remit.yaml:4:3: sources.time.era: the server answers no version"


def test_problems_come_as_data_too() -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(BASE + "limits: {queue: 0}\n")
    assert caught.value.as_dicts() == [
        {
            "file": "remit.yaml",
            "line": 5,
            "column": 10,
            "field": "limits.queue",
            "message": "0 is too small; write at least 1",
        }
    ]


def test_a_file_that_is_not_there_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"^absent\.yaml: there is no such file; write it, or name another with --config"
    ):
        load(Path("absent.yaml"))


def test_a_folder_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^tls: is not a file; name the file itself$"):
        load(Path("tls"))


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no path; name a file"):
        load(Path("remit\0.yaml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so() -> None:
    Path("remit.yaml").write_text(BASE)
    Path("remit.yaml").chmod(0)
    with pytest.raises(ConfigError, match="this user may not read it; let them with chmod or chown"):
        load(Path("remit.yaml"))


def test_text_that_is_not_utf_8_is_refused_at_its_place() -> None:
    Path("remit.yaml").write_bytes(BASE.encode() + b"zone: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load(Path("remit.yaml"))
    assert str(caught.value) == "remit.yaml:5:7: this is not UTF-8 text; save the file as UTF-8"


def test_a_file_beyond_a_mebibyte_is_refused() -> None:
    assert problems(BASE + "#" * 2**20) == [
        "is larger than 1048576 bytes; move what is not configuration out of it"
    ]


def test_every_setting_that_must_be_there_has_an_example() -> None:
    needed = {
        field.alias or name
        for model in models()
        for name, field in model.model_fields.items()
        if field.is_required()
    }
    assert needed == set(config_problems.EXAMPLES)


def test_every_pattern_of_a_setting_is_explained_in_words() -> None:
    schema = json.dumps(json_schema())
    written = re.findall(r'"pattern": "(.*?)"', schema) + re.findall(r'"patternProperties": {"(.*?)"', schema)
    # A duration explains itself: its message comes with the validator.
    found = {json.loads(f'"{pattern}"') for pattern in written} - {r"^(\d{1,6})(s|m|h|d)$"}
    assert found == set(config_problems.FORMS)


def models() -> list[type[BaseModel]]:
    return [
        each for each in vars(config).values() if isinstance(each, type) and issubclass(each, config.Strict)
    ]


def test_a_secret_is_read_from_the_environment_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING", "hunter2")
    assert resolve("env:BILLING", Path("/")) == "hunter2"
    monkeypatch.delenv("BILLING")
    with pytest.raises(ConfigError) as caught:
        resolve("env:BILLING", Path("/"))
    assert str(caught.value) == "env:BILLING: is not set; set this environment variable before Remit starts"


def a_secret(text: str = "hunter2\n", mode: int = 0o600) -> Path:
    path = Path("secret")
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_is_read_from_a_private_file_beside_the_configuration(tmp_path: Path) -> None:
    a_secret()
    assert resolve("file:secret", tmp_path) == "hunter2"
    assert resolve(f"file:{tmp_path}/secret", Path("/")) == "hunter2"


def test_a_child_takes_a_secret_from_a_file_beside_the_configuration() -> None:
    text = BASE.replace("command:", "env: {API_TOKEN: 'file:secrets/token'}, command:")
    source = loaded(text).config.sources["time"]
    assert isinstance(source, config.McpSource)
    assert source.env == {"API_TOKEN": "file:secrets/token"}


def refusal(reference: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(reference, Path.cwd())
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_may_read_is_refused(mode: int) -> None:
    a_secret(mode=mode)
    assert refusal("file:secret") == "file:secret: can be read by other users; run chmod 600 on it"


def test_a_secret_behind_a_link_is_refused() -> None:
    Path("link").symlink_to(a_secret())
    assert refusal("file:link") == "file:link: is a symbolic link; name the file itself"


def test_a_secret_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    a_secret()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert refusal("file:secret") == "file:secret: belongs to another user; make it Remit's own with chown"


def test_a_pipe_is_no_secret_and_holds_nobody_up() -> None:
    os.mkfifo("pipe", 0o600)
    assert refusal("file:pipe") == "file:pipe: is not a file; name the file itself"


def test_a_folder_is_no_secret() -> None:
    assert refusal("file:tls") == "file:tls: is not a file; name the file itself"


def test_an_empty_secret_is_refused() -> None:
    a_secret("\n")
    assert refusal("file:secret") == "file:secret: is empty; write the secret into the file"


def test_a_secret_that_is_absent_not_text_or_huge_is_refused() -> None:
    assert refusal("file:absent") == "file:absent: there is no such file; write it, or name another"
    a_secret("x" * 2**17)
    assert refusal("file:secret") == "file:secret: is larger than 65536 bytes; a secret is not"
    Path("secret").write_bytes(b"hunter2\xff")
    assert refusal("file:secret") == "file:secret: is not UTF-8 text; save it as UTF-8"


def test_a_secret_handed_over_as_a_reference_is_not_repeated() -> None:
    assert refusal("hunter2") == "a secret: is no reference; write env:NAME or file:/path"


IDENTITY = BASE + "identity: {stdio: {tenant: acme, agent: agent:helpdesk, user: user:maria}}\n"


def test_stdio_speaks_for_whom_the_file_says() -> None:
    identity = stdio_identity(loaded(IDENTITY).config, {})
    assert (identity.tenant, identity.agent, identity.user) == ("acme", "agent:helpdesk", "user:maria")


def test_the_environment_replaces_single_parts_of_the_stdio_identity() -> None:
    identity = stdio_identity(loaded(IDENTITY).config, {"REMIT_USER": "user:sam", "REMIT_AGENT": ""})
    assert (identity.tenant, identity.agent, identity.user) == ("acme", "agent:helpdesk", "user:sam")


def test_the_environment_alone_can_say_who_speaks() -> None:
    environ = {"REMIT_TENANT": "acme", "REMIT_AGENT": "agent:bot", "REMIT_USER": "user:sam"}
    assert stdio_identity(loaded(BASE).config, environ).agent == "agent:bot"


def test_an_identity_that_nobody_gave_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        stdio_identity(loaded(BASE).config, {"REMIT_TENANT": "acme", "REMIT_USER": "user:sam"})
    assert str(caught.value) == (
        "REMIT_AGENT: is not set; set it, or write identity.stdio.agent in the configuration"
    )


def test_an_identity_of_the_environment_has_the_form_of_a_name() -> None:
    with pytest.raises(ConfigError) as caught:
        stdio_identity(loaded(IDENTITY).config, {"REMIT_AGENT": "bot"})
    assert str(caught.value) == f"REMIT_AGENT: 'bot' is refused; write agent: and then {NAME}"


PIECES = st.sampled_from(
    ["{", "}", "[", "]", ":", ": ", "- ", "\n", "\t", "'", '"', "&a ", "*a", "!x ", "|", ">", "#", "? ", "%", "\\",
     "~", "no", "1e999", ".nan", "<<: ", "\x00", "\ufeff", "env:", "\n  ", "effect: ", "9" * 30, "\x85", "\u2028"]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = FULL
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        text = text[:start] + draw(PIECES | st.text(max_size=4)) + text[end:]
    return text


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(mutated())
def test_no_file_makes_the_reader_fail_in_another_way(text: str) -> None:
    Path("remit.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load(Path("remit.yaml"))
    except ConfigError as error:
        found = error
    else:
        return
    assert found.problems
    assert all(problem.message and "pydantic" not in str(problem) for problem in found.problems)


def test_the_reader_does_the_same_without_its_c_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit.strict_yaml._LOADER", yaml.SafeLoader)
    assert loaded(FULL).config.http.port == 8420
    # The place of an end that comes too soon is the one thing the two tell differently.
    for what in MALFORMED.keys() - {"an unclosed bracket", "an unclosed brace", "a false escape"}:
        text, *expected = MALFORMED[what]
        assert problems(text) == expected, what


def test_the_schema_for_editors_is_the_one_in_the_repository() -> None:
    written = (ROOT / "configs" / "remit.schema.json").read_text()
    assert json.loads(written) == json_schema(), "run `make schema`"


def test_the_schema_for_editors_accepts_a_complete_file_and_tells_durations_as_text() -> None:
    schema = json_schema()
    validator = validator_for(schema)
    assert validator.is_valid(yaml.safe_load(FULL))
    assert not validator.is_valid(yaml.safe_load(FULL.replace("tools:", "tols:")))
    assert not validator.is_valid(yaml.safe_load(FULL.replace("15m", "900")))
    assert schema["$defs"]["Approvals"]["properties"]["pending"]["default"] == "15m"
    assert "audit database" in schema["$defs"]["Store"]["properties"]["path"]["description"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*remit*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_example_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try:
        load(path)
    except ConfigError as error:
        if all("there is no file" in problem.message for problem in error.problems):
            pytest.skip(f"its files are not written yet: {error}")
        raise


def test_the_minimal_example_lets_its_agent_read_and_nothing_else() -> None:
    example = load(ROOT / "configs" / "minimal" / "remit.yaml").config
    who = stdio_identity(example, {})
    policy = load_policy(example)

    def rung(effect: str) -> Rung:
        question = Question(
            tenant=who.tenant,
            agent=who.agent,
            user=who.user,
            tool="time.get_current_time",
            args={},
            ctx={"effect": effect},
        )
        return policy.decide(question).rung

    assert (rung("read"), rung("irreversible")) == (Rung.EXECUTE, Rung.DENY)


def test_what_a_start_does_not_need_is_not_imported() -> None:
    late = {"remit.config_schema", "difflib", "jsonschema_rs", "mcp"}
    code = f"import sys, remit.config_file; print(sorted({late!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
