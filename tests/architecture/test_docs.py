"""The documentation is true where a machine can tell: links lead somewhere, and quoted commands exist as quoted."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import typer.main

from sfumato.common import cli

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@cache
def tracked() -> tuple[Path, ...]:
    """Every text file that is, or is about to be, in the project."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the project's files")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return tuple(p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096])


def pages() -> list[Path]:
    return [p for p in tracked() if p.suffix == ".md"]


def without_code(page: Path) -> str:
    return INLINE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors a hosting site gives the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = [re.sub(r"[`*]", "", h) for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


# --- links -------------------------------------------------------------------------------------------------


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(f"{page.relative_to(ROOT)}: {target}")
    return broken


def test_every_relative_link_leads_somewhere() -> None:
    assert [link for page in pages() for link in broken_links(page)] == []


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = ROOT / "docs" / "README.md"
    assert LINK.findall("see [this](nowhere.md#at-all)") == ["nowhere.md#at-all"]
    assert not (page.parent / "nowhere.md").exists()
    assert "nowhere" not in anchors(page)


# --- commands ----------------------------------------------------------------------------------------------


@cache
def command() -> click.Command:
    cli._attach()
    return typer.main.get_command(cli.app)


def quoted_commands(page: Path) -> list[str]:
    """Each `sfumato …` command line on a page: in fences (continued lines joined) and inline."""
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join(body for _, body in FENCE.findall(text)).replace("\\\n", " ")
    lines = [*fenced.splitlines(), *INLINE.findall(FENCE.sub("", text))]
    found = (re.match(r"\s*(?:\$ )?(?:\S*/)?sfumato( [a-z-].*)$", line) for line in lines)
    return [match[1] for match in found if match]


def fault(line: str) -> str | None:
    """What is wrong with a command line's names; None if nothing is. An ellipsis ends what is looked at."""
    at = command()
    words = shlex.split(re.split(r"[…|]|\.\.\.", line, maxsplit=1)[0].split(" #")[0])
    while words and not words[0].startswith("-") and isinstance(at, click.Group):
        name = words.pop(0)
        if name not in at.commands:
            return f"no command {name!r}"
        at = at.commands[name]
    known = {o for p in at.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "-h"}
    for word in words:
        if word.startswith("-") and word.split("=")[0] not in known:
            return f"no option {word!r}"
    return None


def test_every_quoted_command_exists_with_its_options() -> None:
    wrong = {
        f"{page.relative_to(ROOT)}: sfumato{line}": why
        for page in pages()
        for line in quoted_commands(page)
        if (why := fault(line))
    }
    assert wrong == {}


def test_whole_command_lines_parse() -> None:
    """Command lines in the fences of guides and README, with all that is required."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("guide-*.md")]:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(body for _, body in FENCE.findall(text)).replace("\\\n", " ")
        for line in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?sfumato (.*)$", fenced, re.MULTILINE):
            words = [str(7) if w == "RUN" else w for w in shlex.split(line)]
            at, context = command(), click.Context(command())
            while isinstance(at, click.Group):
                at = at.commands[words.pop(0)]
            try:
                at.make_context("sfumato", words, parent=context)
            except click.UsageError as e:
                pytest.fail(f"{page.name}: sfumato {line}: {e.format_message()}")


@pytest.mark.parametrize(
    "line",
    [" branch fly HOME", " job submit JOB --fast", " simulate JOB --contarct C", " coordinator init --x"],
)
def test_a_wrong_command_would_be_seen(line: str) -> None:
    assert fault(line)


def test_commands_are_found() -> None:
    found = [line for page in pages() for line in quoted_commands(page)]
    assert len(found) > 40
    names = {" ".join(w for w in line.split()[:2] if re.fullmatch("[a-z-]+", w)) for line in found}
    root = command()
    assert isinstance(root, click.Group)
    for name, at in root.commands.items():
        subs = [f"{name} {sub}" for sub in at.commands] if isinstance(at, click.Group) else [name]
        assert [s for s in subs if s not in names] == [], "a command that no page shows"


def test_every_quoted_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    quoted = set(re.findall(r"(?:^|`)make ([a-z-]+)(?=`|$)", text, re.MULTILINE))
    assert quoted >= {"demo", "test", "check", "setup"}
    assert quoted - targets == set()


def test_the_architecture_names_every_file_of_privacy() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:[\w/]*/)?(\w+)(?:\.py)?`", text))
    files = {p.stem for p in (ROOT / "privacy" / "sfumato" / "privacy").glob("[a-z]*.py")}
    assert len(files) > 20 and files - named == set()


# --- what must not stand in a committed file ---------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.~/])/(?:root|work|home/\w+|Users/\w+)/[\w.]")
REGISTRY = re.compile(
    r"https?://[^\s\"')]*(?:artifactory|nexus|/simple\b|pypi)[^\s\"')]*|--(?:extra-)?index-url|"
    r"\b(?:index-url|extra-index-url)\s*=",
    re.IGNORECASE,
)


def test_no_machine_path_and_no_registry_is_committed() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) or REGISTRY.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "see /root/x",
        "open('/home/anna/y')",
        "pip install --index-url x",
        "https://nexus.example.org/repository/pypi",
    ],
)
def test_such_a_line_would_be_seen(line: str) -> None:
    assert MACHINE_PATH.search(line) or REGISTRY.search(line)
