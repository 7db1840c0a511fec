"""The style that matters, as tests: who may import whom, who may call what, what no file may hold.

Read from the source, nothing is run. Each test collects all that breaks its rule, with file and line.
"""

import ast
import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCES = ("server", "adapters", "rbac")
PIPELINE = "server/remit/pipeline.py"
FRONT = "server/remit/front/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One Python file, read and parsed. `name` is its path in the repository."""

    name: str
    text: str
    tree: ast.Module = field(repr=False)

    def at(self, node: ast.stmt | ast.expr | ast.excepthandler, what: str) -> str:
        return f"{self.name}:{node.lineno}: {what}"


@cache
def tracked() -> tuple[str, ...]:
    """Every file of the project, also those that are not committed yet."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, so nobody says which files are the project's")
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@cache
def modules(*folders: str) -> tuple[Module, ...]:
    names = [name for name in tracked() if name.endswith(".py") and name.startswith(folders)]
    return tuple(
        Module(name=name, text=text, tree=ast.parse(text, name))
        for name in names
        for text in [(ROOT / name).read_text(encoding="utf-8")]
    )


def must_be_none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def imports(module: Module) -> Iterator[tuple[ast.stmt, str, str]]:
    """Each import as statement, module and name in it (`""` for the module itself)."""
    package = ".".join(Path(module.name).parts[1:-1])
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *filter(None, [origin])])
            for alias in node.names:
                yield node, origin, alias.name


def reach(origin: str, name: str, module: str) -> bool:
    """Whether importing `name` from `origin` brings in `module` or something below it."""
    return f"{origin}.{name}.".startswith(f"{module}.") or f"{origin}.".startswith(f"{module}.")


def importing(folder: str, *forbidden: str) -> list[str]:
    return [
        module.at(node, f"imports {origin}")
        for module in modules(folder)
        for node, origin, name in imports(module)
        if any(reach(origin, name, each) for each in forbidden)
    ]


def test_policies_and_adapters_know_nothing_else_of_remit() -> None:
    found = importing("rbac/", "remit", "remit_adapters")
    must_be_none(found + importing("adapters/", "remit", "remit_rbac"))


def test_the_product_knows_nothing_of_its_tests_and_examples() -> None:
    outside = ("tests", "configs", "benchmarks")
    must_be_none([each for folder in SOURCES for each in importing(f"{folder}/", *outside)])


def test_only_the_policy_package_knows_casbin() -> None:
    must_be_none(importing("server/", "casbin") + importing("adapters/", "casbin"))


def test_only_the_front_knows_the_sdks_server() -> None:
    found = importing("server/", "mcp.server") + importing("adapters/", "mcp.server")
    found += importing("rbac/", "mcp")
    must_be_none([each for each in found if not each.startswith(FRONT)])


def test_only_the_pipeline_makes_requests_to_adapters() -> None:
    # `run` takes a Request, so nobody else can call it; importing the module would be a way around.
    must_be_none(
        [
            module.at(node, "imports the adapters' Request")
            for module in modules("server/")
            for node, origin, name in imports(module)
            if module.name != PIPELINE
            and (
                (origin, name) == ("remit_adapters.base", "Request")
                or (origin, name) == ("remit_adapters", "base")
            )
        ]
    )


def test_only_the_pipeline_runs_adapters() -> None:
    """`x.run(...)` elsewhere is a module's function (`anyio.run`), or the front running the SDK's server."""
    found: list[str] = []
    for module in modules("server/"):
        named = {name or origin.partition(".")[0] for _, origin, name in imports(module)}
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Attribute(attr="run", value=receiver)):
                    owner = ast.unparse(receiver)
                    of_front = module.name.startswith(FRONT) and owner.split(".")[-1] == "server"
                    if module.name != PIPELINE and owner not in named and not of_front:
                        found.append(module.at(node, f"calls {owner}.run"))
                case _:
                    pass
    must_be_none(found)


def test_every_module_says_what_it_is() -> None:
    must_be_none(
        [
            module.name
            for module in modules(*SOURCES, "tests/", "benchmarks/", "configs/")
            if module.text.strip() and not ast.get_docstring(module.tree)
        ]
    )


def test_only_the_command_line_prints() -> None:
    allowed = ("server/remit/cli/", "server/remit/demo")
    must_be_none(
        [
            module.at(node, "prints")
            for module in modules(*SOURCES)
            if not module.name.startswith(allowed)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    )


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|managers?|services?|common|misc)(_|$)")
    must_be_none([name for name in tracked() if name.endswith(".py") and vague.search(Path(name).stem)])


def test_no_class_is_named_after_having_no_name() -> None:
    vague = re.compile(r"(Manager|Helper|Util|Utils|Service)$")
    must_be_none(
        [
            module.at(node, node.name)
            for module in modules(*SOURCES)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef) and vague.search(node.name)
        ]
    )


def comments(module: Module) -> dict[int, str]:
    """Comments by line."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def has_reason(comment: str) -> bool:
    """Whether a comment says something beside switching a checker off."""
    said = re.sub(r"(noqa(: *[A-Z]+\d+(, *[A-Z]+\d+)*)?|(pyright|type): *ignore(\[[^]]*\])?)", "", comment)
    return re.search(r"[A-Za-z]{3,}", said) is not None


def test_catching_everything_has_a_reason() -> None:
    found: list[str] = []
    for module in modules(*SOURCES):
        said = comments(module)
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else "everything"
            ends_in_raise = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if re.search(r"\b(Base)?Exception\b|everything", caught) and not ends_in_raise:
                # Beside the word, above it, or as the first thing in its block.
                lines = range(node.lineno - 1, node.body[0].lineno + 1)
                if not any(has_reason(said.get(line, "")) for line in lines):
                    found.append(module.at(node, f"catches {caught} and does not say why"))
    must_be_none(found)


def test_every_switched_off_check_has_a_reason() -> None:
    must_be_none(
        [
            f"{module.name}:{line}: {comment}"
            for module in modules(*SOURCES)
            for line, comment in comments(module).items()
            if re.search(r"noqa|(pyright|type): *ignore", comment) and not has_reason(comment)
        ]
    )


def test_events_are_only_ever_appended() -> None:
    changing = re.compile(
        r"\b(update|delete\s+from|replace\s+into|drop\s+table|truncate(\s+table)?)\s+[\"'`]?events\b"
        r"|\bevents\s*\.\s*(update|delete)\b|\b(update|delete)\(\s*(tables\.)?events\b",
        re.IGNORECASE,
    )
    must_be_none(
        [
            f"{module.name}:{module.text.count(chr(10), 0, found.start()) + 1}: {found[0]}"
            for module in modules("server/")
            for found in changing.finditer(module.text)
            if "/migrations/" not in module.name
        ]
    )


def texts() -> Iterator[tuple[str, str]]:
    for name in tracked():
        if name == "tests/test_tidy.py":
            continue
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {found[0]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        for found in pattern.finditer(line)
    ]


def test_no_file_says_where_packages_come_from() -> None:
    """Whoever installs says it: a mirror, a proxy or the public registry are all the same to the project."""
    names = ("pypi", "pythonhosted", "npmjs", "yarnpkg", "golang", "crates", "rubygems")
    host = re.compile(rf"\b([\w-]+\.)*({'|'.join(names)})\.(org|com|io)\b", re.IGNORECASE)
    must_be_none(lines_with(host))


def test_no_file_holds_what_belongs_elsewhere() -> None:
    """Work to be done, merge conflicts, tickets, and the path of somebody's checkout."""
    stray = re.compile(
        r"\b(TODO|FIXME|XXX|HACK)\b|^(<{7}|>{7}) |\b(issue|ticket|PR) #?\d+\b"
        rf"|{re.escape(str(ROOT))}(?=[/\s\"'`]|$)|{re.escape(str(Path.home()))}/"
    )
    must_be_none(lines_with(stray))


def test_every_document_that_a_text_names_exists() -> None:
    names = {Path(name).name for name in tracked()}
    mentioned = re.compile(r"(?<![\w/.*{:-])[\w./-]+\.md\b(?!\w)")
    must_be_none([each for each in lines_with(mentioned) if Path(each.split(": ", 1)[1]).name not in names])


def project() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by the list it stands in."""
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lists = {"dependencies": held["project"]["dependencies"], "build": held["build-system"]["requires"]}
    lists |= held["project"]["optional-dependencies"] | held["dependency-groups"]
    return {name: [Requirement(each) for each in requirements] for name, requirements in lists.items()}


def test_every_dependency_says_why_it_is_there() -> None:
    wanted = {canonicalize_name(each.name) for requirements in project().values() for each in requirements}
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = re.findall(r"^- \*\*([\w.-]+)\*\*: .{20,}", text, re.MULTILINE)
    assert {canonicalize_name(name) for name in explained} == wanted


def test_the_constraints_pin_every_dependency_to_a_version_that_is_allowed() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    must_be_none([line for line in lines if not re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][\w.+]*", line)])
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    must_be_none(
        [
            str(each)
            for requirements in project().values()
            for each in requirements
            if not each.specifier.contains(pins.get(canonicalize_name(each.name), "0"))
        ]
    )


def test_the_changelog_has_a_place_for_what_is_not_released() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
