"""What the documentation shows works: its Python runs, and its command lines are commands that exist."""

import re
import shlex
import textwrap
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w-]*)")
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
SHELLS = {"bash", "sh", "shell"}
OPERATORS = {"|", "||", "&&", ";", ">", ">>", "<", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code without indentation, the line of its first line, and whether it is to run."""

    language: str
    code: str
    line: int
    runs: bool


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text. An HTML comment ``not run: reason`` on the line before says not to run one."""
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        opening = FENCE.match(lines[index])
        start = index + 1
        index = start
        if opening is None:
            continue
        while index < len(lines) and not lines[index].strip().startswith(opening["fence"]):
            index += 1
        runs = start < 2 or NOT_RUN.fullmatch(lines[start - 2].strip()) is None
        yield Block(opening["language"], textwrap.dedent("\n".join(lines[start:index])), start + 1, runs)
        index += 1


def run_python(text: str, name: str) -> dict[str, Any]:
    """Runs the Python blocks of a text one after the other in one namespace; a traceback shows the line of the document."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language == "python" and block.runs:
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
    return namespace


def command_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The arguments of every ``bitalloc`` call in the shell blocks of a text, and the line where it begins."""
    for block in blocks(text):
        if block.language == "console":
            yield from _calls(block, lambda line: line.removeprefix("$ ") if line.startswith("$ ") else "")
        elif block.language in SHELLS:
            yield from _calls(block, lambda line: line)


def _calls(block: Block, typed: Callable[[str], str]) -> Iterator[tuple[int, list[str]]]:
    lines = iter(enumerate(block.code.splitlines(), block.line))
    for number, line in lines:
        command = typed(line)
        while command.endswith("\\"):
            command = command[:-1] + next(lines, (0, ""))[1].removeprefix("> ")
        words = shlex.shlex(command, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        yield from ((number, arguments) for arguments in _bitalloc_arguments(list(words)))


def _bitalloc_arguments(words: list[str]) -> Iterator[list[str]]:
    call: list[str] | None = None
    for word in [*words, ";"]:
        if word in OPERATORS:
            if call is not None:
                yield call
            call = None
        elif call is not None:
            call.append(word)
        elif word == "bitalloc" or word.endswith("/bitalloc"):
            call = []


def check_command_line(app: Any, arguments: list[str]) -> None:
    """Parses the arguments as the command line would, without running anything or looking for the files.

    Raises whatever the parser raises, or LookupError for a subcommand or an argument that is missing.
    """
    from typer.main import get_command

    command: Any = get_command(app)
    path = "bitalloc"
    while True:
        context = command.context_class(command, info_name=path)
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
        missing = [parameter.name for parameter in command.params if parameter.required and values.get(parameter.name) is None]
        # With --help nothing is required, not even a subcommand.
        if values.get("help"):
            return
        if missing:
            raise LookupError(f"`{path}` lacks {', '.join(missing)}")
        if not hasattr(command, "commands"):
            if rest:
                raise LookupError(f"`{path}` takes no argument {rest[0]!r}")
            return
        if not rest:
            raise LookupError(f"`{path}` lacks a subcommand")
        if rest[0] not in command.commands:
            raise LookupError(f"`{path}` has no subcommand {rest[0]!r}; it has {', '.join(command.commands)}")
        path, command, arguments = f"{path} {rest[0]}", command.commands[rest[0]], rest[1:]


def test_the_readme_is_among_the_documents() -> None:
    assert "README.md" in DOCUMENTS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_of_the_documentation_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python((ROOT / document).read_text(encoding="utf-8"), document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_command_lines_of_the_documentation_exist(document: str) -> None:
    from bitalloc.cli import app

    for line, arguments in command_lines((ROOT / document).read_text(encoding="utf-8")):
        try:
            check_command_line(app, arguments)
        except Exception as error:
            pytest.fail(f"{document}:{line}: `bitalloc {shlex.join(arguments)}`: {error}")


SAMPLE = """\
# Sample

```python
values = [1]
```

- in a list:

  ```python
  for value in values[:]:
      values.append(value + 1)
  ```

<!-- not run: it needs a data set -->
```python
raise AssertionError("this block is not to run")
```

```text
bitalloc is not called here
```

```console
$ make demo && .venv/bin/bitalloc run recipe.toml \\
>     --out "runs/a b" > log.txt
bitalloc prints this line
```

```bash
# bitalloc in a comment
bitalloc describe recipe.toml; bitalloc search
```
"""


def test_blocks_run_in_order_in_one_namespace() -> None:
    assert run_python(SAMPLE, "sample")["values"] == [1, 2]


def test_an_error_names_the_line_of_the_document() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_python("text\n\n```python\nx = 0\n1 / x\n```\n", "sample.md")
    last = traceback.extract_tb(caught.tb)[-1]
    assert (last.filename, last.lineno) == ("sample.md", 5)


def test_a_comment_without_a_reason_does_not_skip_a_block() -> None:
    assert run_python("<!-- not run: -->\n```python\nx = 1\n```", "sample")["x"] == 1


def test_command_lines_are_found_where_they_are_typed() -> None:
    assert list(command_lines(SAMPLE)) == [
        (24, ["run", "recipe.toml", "--out", "runs/a b"]),
        (31, ["describe", "recipe.toml"]),
        (31, ["search"]),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run recipe.toml --out runs/x", None),
        ("--quiet run recipe.toml --out=runs/x", None),
        ("run --help", None),
        ("--help", None),
        ("run --out runs/x", "lacks recipe"),
        ("run recipe.toml", "lacks out"),
        ("run recipe.toml more --out runs/x", "more"),
        ("run recipe.toml --out runs/x --fast", "--fast"),
        ("fly recipe.toml", "no subcommand 'fly'"),
        ("--quiet", "lacks a subcommand"),
    ],
)
def test_a_wrong_command_line_is_found(line: str, message: str | None) -> None:
    app = _sample_app()
    if message is None:
        check_command_line(app, line.split())
        return
    with pytest.raises(Exception, match=re.escape(message)):
        check_command_line(app, line.split())


def _sample_app() -> Any:
    from typing import Annotated

    import typer

    app = typer.Typer()

    @app.callback()
    def main(quiet: bool = False) -> None: ...

    @app.command()
    def run(recipe: Path, out: Annotated[Path, typer.Option()]) -> None: ...

    @app.command()
    def search(out: Path) -> None: ...

    return app
