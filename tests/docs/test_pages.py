"""Every page does what it says: its commands, configurations, policies, calls and queries are run in order.

Each page has a folder of its own (`scene.py`), in which its blocks are carried out as a reader would. How a
block is run is said by its fence; `tests/README.md` tells how.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
import yaml
from tests.docs.likeness import Differs, Seen
from tests.docs.pages import ROOT, RUN, Block, blocks, prose, read
from tests.docs.scene import ACME, Scene, a_scene, acme

from remit.app import adapter
from remit.catalog import build
from remit.cli import cli
from remit.config_file import Loaded, load
from remit.config_problems import ConfigError
from remit.database import reading
from remit.fit import misfits
from remit.policy_tests import read_tests
from remit_adapters.base import Offer
from remit_rbac import PolicyError, load_text

#: What is shown and not run: it serves until it is stopped, or makes what these tests already stand on.
#: A Makefile target, a module or a command of Remit that a test below looks for.
NOT_RUN = (
    "make demo",
    "make demo ONCE=1",
    "make test",
    "make test-slow",
    "python -m tests.crash.run --kills 1000 --servers 3 --database postgresql --every-point",
    "make lint",
    "make venv",
    "make schema",
    "make bench",
    "make bench-policy",
    "make conformance",
    "make fuzz-policy",
    'make fuzz-policy ARGS="--comparisons 1050000 --seed 20261122"',
    "make fuzz-strict",
    "remit serve",
    "remit serve --stdio",
    "remit calls tail --follow",
    "remit demo",
    "remit playbook list",
    "remit playbook run stop-and-take-back --input agent=agent:support-bot --dry-run",
    "remit playbook run stop-and-take-back --input agent=agent:support-bot",
)
#: How a reader comes to where the page begins; the tests are there already.
ON_THE_WAY = (
    ". .venv/bin/activate",
    "cp -r configs/acme ~/acme && cd ~/acme",
    "sqlite3 -readonly remit.db",
)


class Page:
    """One page while it is run: its scene, and what the last block left for the next."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.seen = Seen()
        self._answer: dict[str, Any] | None = None
        #: What was refused, and why; the next block shows it.
        self._refusal: str | None = None

    def run(self, block: Block) -> None:
        if self._refusal is not None:
            assert block.language == "text", "what is refused is followed by the message, as text"
            self.seen.compare(block.text, self._refusal)
            self._refusal = None
            return
        KINDS[block.language](self, block)

    def console(self, block: Block) -> None:
        code = 0
        for command, output in commands(block):
            code, said = self.scene.run(self.seen.real(command))
            if output.strip():
                self.seen.compare(output, said)
            elif code:
                raise Differs(said)
        expected = int(block.words[1]) if block.words else 0
        assert code == expected, f"ended with {code}"

    def yaml(self, block: Block) -> None:
        match block.words:
            case ("refused",):
                with pytest.raises(ConfigError) as refusal:
                    self._load_beside(block.text)
                self._refusal = str(refusal.value)
            case ("part",):
                self._load_beside(_completed(block.text))
            case ("tools",):
                self._fits(block.text)
            case ("tests", name):
                self.scene.write(name, block.text)
                read_tests(self.scene.folder / name, load(self.scene.folder / "remit.yaml").config)
            case (name,):
                self.scene.write(name, block.text)
                path = self.scene.folder / name
                path.with_name("policy.csv").touch()  # a page may show the configuration first
                load(path)
            case _:
                raise AssertionError("say what this is: a file name, part, tools, tests FILE, or refused")

    def csv(self, block: Block) -> None:
        match block.words:
            case ("refused",):
                with pytest.raises(PolicyError) as refusal:
                    load_text(block.text)
                self._refusal = str(refusal.value)
            case (name, *more):
                assert more in ([], ["more"])
                self.scene.write(name, block.text, more=bool(more))
                load_text((self.scene.folder / name).read_text("utf-8"), file=name)
            case _:
                raise AssertionError("say what this is: a file name, a file name and more, or refused")

    def json(self, block: Block) -> None:
        value = json.loads(self.seen.real(block.text))
        match block.words:
            case ("sends",):
                self._answer = self.scene.call(value)
            case ("gets",):
                assert self._answer is not None, "nothing was sent"
                self.seen.compare_json(json.loads(block.text), self._answer)
            case ():
                pass
            case _:
                raise AssertionError("say what this is: sends, gets, or nothing")

    def sql(self, block: Block) -> None:
        match block.words:
            case ("writes", name):
                with closing(sqlite3.connect(self.scene.folder / name)) as db:
                    db.executescript(block.text)
            case () | ("nothing",):
                where = f"{self.scene.database.as_uri()}?mode=ro"
                with reading(self.scene.database):
                    """What was answered a moment ago is in its tables from here on."""
                with _inside(self.scene.folder), closing(sqlite3.connect(where, uri=True)) as db:
                    rows = db.execute(block.text).fetchall()
                assert rows or block.words, "the query finds nothing"
            case _:
                raise AssertionError("say what this is: writes and a file, nothing found, or nothing")

    def sh(self, block: Block) -> None:
        for line in block.text.splitlines():
            command = line.partition(" # ")[0].strip()
            assert not command or command in (*NOT_RUN, *ON_THE_WAY), f"{command!r} is not listed above"

    def python(self, block: Block) -> None:
        self.scene.write("example.py", block.text)
        code, said = self.scene.run("python example.py")
        if code:
            raise Differs(said)

    def text(self, block: Block) -> None:
        """A picture, or words."""

    def _load_beside(self, text: str) -> None:
        """Load a configuration with the scene's policy, under the name that messages show."""
        with tempfile.TemporaryDirectory(dir=self.scene.folder) as folder:
            for name in ("policy.csv", "tls/server.pem", "tls/server.key"):
                path = Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.touch()
            Path(folder, "remit.yaml").write_text(text, "utf-8")
            with _inside(folder):
                load(Path("remit.yaml"))

    def _fits(self, text: str) -> None:
        """Put entries of `tools` in the place of Acme's own, and hold them against what Acme offers."""
        config = acme()
        config["tools"] |= yaml.safe_load(text)["tools"]
        self.scene.write("remit.yaml", json.dumps(config))
        loaded = load(self.scene.folder / "remit.yaml")
        found = misfits(loaded, build(loaded.config, what_acme_offers()))
        assert [str(misfit.problem) for misfit in found if not misfit.warning] == []


@cache
def what_acme_offers() -> Mapping[str, Offer]:
    """Asked once: its tools do not depend on how they are configured."""
    found = load(ACME / "remit.yaml")
    offers: dict[str, Offer] = {}

    async def ask(loaded: Loaded) -> None:
        async with anyio.create_task_group() as tasks:
            source = adapter("acme", loaded.config.sources["acme"], loaded)
            await source.start(tasks, lambda event: None)
            offers["acme"] = await source.offer()
            await source.stop()
            tasks.cancel_scope.cancel()

    with tempfile.TemporaryDirectory() as folder:
        server = (sys.executable, str(ACME / "acme_server.py"), "--db", f"{folder}/acme.db")
        acme_alone = found.config.sources["acme"].model_copy(update={"command": server})
        config = found.config.model_copy(update={"sources": {"acme": acme_alone}})
        anyio.run(ask, replace(found, config=config))
    return offers


KINDS: Mapping[str, Callable[[Page, Block], None]] = {
    "console": Page.console,
    "csv": Page.csv,
    "json": Page.json,
    "python": Page.python,
    "sh": Page.sh,
    "sql": Page.sql,
    "text": Page.text,
    "yaml": Page.yaml,
}


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each `$ ` line, with its `> ` lines, and the output that is shown below."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        first, *lines = part.splitlines()
        words = [first]
        while lines and lines[0].startswith("> "):
            words.append(lines.pop(0)[2:])
        yield "\n".join(words), "\n".join(lines) + "\n"


def _completed(text: str) -> str:
    """A part of a configuration with what every configuration must have."""
    for name, rest in (
        ("version", "version: 1"),
        ("policy", "policy: {files: [policy.csv]}"),
        ("sources", "sources: {acme: {kind: mcp, command: [python, acme_server.py]}}"),
    ):
        if not re.search(rf"^{name}:", text, re.MULTILINE):
            text = f"{text}{rest}\n"
    return text


@contextmanager
def _inside(folder: str | Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.mark.parametrize("name", RUN)
def test_what_a_page_shows_is_what_happens(name: str, tmp_path: Path) -> None:
    with a_scene(tmp_path) as scene:
        page = Page(scene)
        for block in blocks(name):
            wrong = None
            try:
                page.run(block)
            except (AssertionError, ConfigError, PolicyError, ValueError, sqlite3.Error) as error:
                wrong = f"{block.place}: {error}"
            if wrong:
                pytest.fail(wrong, pytrace=False)


def test_every_block_says_in_which_language_it_is() -> None:
    assert [block.place for name in RUN for block in blocks(name) if block.language not in KINDS] == []


def test_every_command_that_is_not_run_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    known = cli.list_commands(None)  # pyright: ignore[reportArgumentType] - the context is not looked at
    for words in map(shlex.split, NOT_RUN):
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), words
        else:
            assert words[1] in (targets if words[0] == "make" else known), words


def test_no_page_talks_of_what_is_still_to_be_done() -> None:
    pending = re.compile(r"\b(TBD|coming soon|work in progress|to be done)\b", re.IGNORECASE)
    assert [
        f"{name}:{number}: {line}"
        for name in RUN
        for number, line in enumerate(read(name).splitlines(), 1)
        if pending.search(line)
    ] == []


def test_every_command_that_a_page_names_exists() -> None:
    assert [
        f"{name}: {command}: {why}"
        for name in RUN
        for command in re.findall(r"`(remit(?: [^`]+)?)`", prose(name))
        if (why := unknown(shlex.split(command)[1:]))
    ] == []


def unknown(words: list[str]) -> str | None:
    """What of a command there is not."""
    command: click.Command = cli
    for word in words:
        if word.startswith("-"):
            options = {each for option in command.params for each in (*option.opts, *option.secondary_opts)}
            if word not in options:
                return f"it has no option {word}"
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                return f"there is no {word}"
            command = found
    return None
