"""Write the pages of docs/reference that follow from the program: commands, experiment file, error messages.

    python website/reference.py

tests/study/test_documentation.py fails where a page differs from what this script writes.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from acuity.study.cli import main
from acuity.study.config import schema

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
GENERATED = "<!-- website/reference.py writes this page. Do not edit it. -->\n"
SECTIONS = {
    "": "The first lines of the file, before any section.",
    "data": "The image set, and which of its images are used. See [Use your own images](../image-sets.md).",
    "search": "The search space and its budget. See [How the search works](../search.md).",
    "training": "The training of every trial.",
    "confirm": "The confirmation on test patients. See [Reading the answer](../answer.md).",
    "workers": "Limits of the workers. See [Use several hosts](../several-hosts.md).",
    "cluster": "The Slurm resources of each worker, for `--cluster slurm`. See [Use Slurm](../slurm.md).",
    "tracking": "Trackers that keep each trial as a run. See [MLflow, W&B or TensorBoard](../tracking.md).",
}
"""Section of the experiment file -> its introduction."""


TECHNICAL_LIMIT = 100_000
"""Limits from here on are technical, such as that of 32-bit numbers. The page leaves them out."""
ERRORS = {"InputError", "OwnFunctionError", "StorageError", "UsageError"}
MESSAGES = {
    "study/*.py": "Commands",
    "study/cli/*.py": "Command line",
    "study/config/*.py": "Experiment file",
    "objectives/tables/*.py": "Table of images",
    "objectives/index/*.py": "Index of images",
    "objectives/split/*.py": "Split",
    "objectives/images/*.py": "Image files and arrays",
    "objectives/device/*.py": "Devices",
    "objectives/training/*.py": "Networks and training",
    "objectives/statistics/*.py": "Statistics",
    "study/dataset/*.py": "Selected images",
    "study/search/*.py": "Search",
    "study/registry/*.py": "Experiments in the storage",
    "study/worker/*.py": "Workers",
    "study/fleet/*.py": "Launches and Slurm",
    "study/confirmation/*.py": "Confirmation",
    "study/tracking/*.py": "Trackers",
    "study/results/*.py": "Results",
    "study/report/*.py": "Report and export",
    "study/dashboard/*.py": "Dashboard",
    "storage/**/*.py": "Postgres and checkpoints",
}
"""Files -> heading of their error messages."""


def commands_page() -> str:
    """Every command with its usage, its options and its example."""
    lines = [GENERATED, "# Commands", ""]
    lines += ["Results are printed to stdout, everything else to stderr.", ""]
    lines += ["Exit status 0: done. 1: failed, with one line that says why. 2: wrong usage.", ""]
    commands = list(_commands(main.acuity, "acuity"))
    everywhere = set.intersection(*(set(_options(command)) for _, command in commands))
    lines += ["Every command has these options:", "", *_options_table(_options(commands[0][1]), everywhere), ""]
    for path, command in commands:
        lines += _command(path, command, left_out=everywhere)
    return "\n".join(lines)


def experiment_file_page() -> str:
    """Every key of the experiment file with its type, its rule, its default and its meaning."""
    json_schema = TypeAdapter(schema.Experiment).json_schema()
    lines = [GENERATED, "# Experiment file", ""]
    lines += ["An experiment is one TOML file. `acuity new FILE` writes one with comments.", ""]
    lines += ["Relative paths start at the file's folder. An unknown key is an error.", ""]
    for section, introduction in SECTIONS.items():
        name = f"[{section}]" if section else "Top level"
        properties, owner = json_schema["properties"], schema.Experiment
        required = json_schema["required"]
        if section:
            reference = properties[section]
            definition = _resolve(reference.get("allOf", [reference])[0], json_schema)
            properties, required = definition["properties"], definition.get("required", [])
            owner = getattr(schema, definition["title"])
        meanings = _field_docstrings(owner)
        lines += [f"## {name}", "", introduction, "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for key, value in properties.items():
            if not section and key in SECTIONS:
                continue
            default = "required" if key in required else _toml(value.get("default"))
            lines.append(f"| `{key}` | {_type(value, json_schema)} | {default} | {_cell(meanings[key])} |")
        lines.append("")
    return "\n".join(lines)


def messages_page() -> str:
    """Every error message with its remedy, by the folder that raises it."""
    lines = [GENERATED, "# Error messages", ""]
    lines += [
        "A mistake ends a command with exit status 1 and one line: the value, the rule and the next step.",
        "",
    ]
    lines += ["This page lists the lines. An ellipsis (…) replaces values.", ""]
    for folder, title in MESSAGES.items():
        messages = {message for file in sorted(ROOT.glob(folder)) for message in _messages(file)}
        lines += [f"## {title}", "", *(f"- {_escaped(message)}" for message in sorted(messages, key=_sort_key)), ""]
    return "\n".join(lines)


def _messages(file: Path) -> Iterator[str]:
    """The texts of the file's errors that users see. Texts that only repeat a value are left out."""
    shown = ERRORS | ({"ValueError"} if file.parent.name == "config" else set())  # pydantic's checks raise ValueError
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=error), args=[text, *_])):
                pass
            case ast.Return(value=ast.Call(func=ast.Name(id=error), args=[text, *_])):
                pass
            case _:
                continue
        if error in shown:
            message = _template_text(text)
            if len(re.sub(r"\W|\d", "", message)) >= 12:
                yield message


def _template_text(node: ast.expr) -> str:
    """The text of a string, with an ellipsis for each value in it. Empty if the node is no string."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_template_text(node.left) or "…") + (_template_text(node.right) or "…")
    return ""


def _sort_key(message: str) -> tuple[str, str]:
    return re.sub(r"\W", "", message).casefold(), message


def _escaped(message: str) -> str:
    return re.sub(r"([<>*_\[\]|`])", r"\\\1", re.sub(r"\s+", " ", message))


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _command(path: str, command: click.Command, *, left_out: set[str]) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=path)))
    lines = [f"## {path}", "", inspect.cleandoc(command.help or ""), "", "```", f"{path} {usage}", "```", ""]
    options = _options(command)
    if not options.keys() <= left_out:
        lines += [*_options_table(options, options.keys() - left_out), ""]
    if command.epilog:
        example = re.sub(r"^\s*Examples?:\s*", "", inspect.cleandoc(command.epilog).replace("\b", ""))
        lines += ["Example:", "", "```", inspect.cleandoc(example), "```", ""]
    return lines


def _options(command: click.Command) -> dict[str, str]:
    """Option -> its meaning. Arguments without a meaning are left out: the usage has them."""
    context = click.Context(command, parent=click.Context(main.acuity, **main.acuity.context_settings))
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    return {option: meaning for option, meaning in filter(None, records) if meaning}


def _options_table(options: Mapping[str, str], shown: Set[str]) -> list[str]:
    rows = [f"| `{_cell(option)}` | {_cell(meaning)} |" for option, meaning in options.items() if option in shown]
    return ["| option | meaning |", "| --- | --- |", *rows]


def _field_docstrings(owner: type) -> dict[str, str]:
    """Field -> the string below it in the class."""
    (body,) = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    docstrings = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                docstrings[name] = inspect.cleandoc(docstring)
    return docstrings


def _resolve(value: Mapping[str, Any], json_schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return json_schema["$defs"][value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else value


def _type(value: Mapping[str, Any], json_schema: Mapping[str, Any]) -> str:
    value = _resolve(value, json_schema)
    if "anyOf" in value:
        return " or ".join(_type(option, json_schema) for option in value["anyOf"] if option.get("type") != "null")
    if "enum" in value:
        return ", ".join(f"`{_literal(choice)}`" for choice in value["enum"])
    if "const" in value:
        return f"`{_literal(value['const'])}`"
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            first, second = (_type(item, json_schema) for item in value["prefixItems"])
            assert first == second
            return f"list of two {_plural(first)}"
        return f"list of {_plural(_type(value['items'], json_schema))}"
    if value.get("format") == "path":
        return "path"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    return words.get(str(kind), "table") + _limits(value)


def _plural(words: str) -> str:
    return re.sub(r"^(text|(?:whole )?number)", r"\1s", words)


def _limits(value: Mapping[str, Any]) -> str:
    names = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    known = {sign: value[name] for name, sign in names.items() if name in value}
    limits = [f"{sign} {limit:g}" for sign, limit in known.items() if limit < TECHNICAL_LIMIT]
    if "multipleOf" in value:
        limits.append(f"a multiple of {value['multipleOf']}")
    return f" ({', '.join(limits)})" if limits else ""


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _toml(default: object) -> str:
    if default is None or default in ([], {}):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, list):
        return "`[" + ", ".join(_literal(item) for item in default) + "]`"
    return f"`{_literal(default)}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


PAGES = {"commands.md": commands_page, "experiment-file.md": experiment_file_page, "messages.md": messages_page}
"""File in docs/reference -> the function that writes its text."""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
