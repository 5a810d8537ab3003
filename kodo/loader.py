"""Loaders: where the flows of a node come from.

This room owns the way from a source (a callable, a `"module:function"` string, a YAML file, a `Loader`, a
plain list) to a list of `models.Flow`. Its rules:

- Flows are kept as they were added, duplicates included: a registry counts them ("received 4 flows,
  registered 3 flows"), so nobody drops them earlier.
- Whatever goes wrong on the way is a `LoaderError` that says what was expected and what to do, and keeps
  its cause. Nothing is skipped in silence.
- A name is imported, and a file is read, when its flows are asked for, never before. YAML is read with
  `safe_load` alone, and imported on first use: most services start without it.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeGuard

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kodo.errors import LoaderError, in_words, suggestion
from kodo.models import Flow, flow_path

EntryPoint: TypeAlias = Callable[..., object] | str
"""What serves a flow: a callable, or a `"module:function"` string that names one."""

FILE_SUFFIXES = (".yaml", ".yml")
EXPECTED = {
    "float_parsing": "expected a number",
    "int_parsing": "expected a whole number",
    "tuple_type": "expected a list",
    "too_short": "expected a text that is not empty",
    "string_too_short": "expected a text that is not empty",
    "path_type": "expected the path of a file",
}
"""What pydantic's own words would not tell a person who never saw our types, by type of fault."""
FLOW_FIELDS = ("name", "url", "description", "author", "tags", "entry_point")
FIELDS = f"expected one of {', '.join(FLOW_FIELDS)}"


class Loader:
    """Collects the flows of a node, one `add_flow` at a time.

    `flows` are the flows as added; `entry_points` holds, by flow url, what serves them, which never goes
    over the wire. Of several flows with the same url the last entry point wins, as the last flow does.
    """

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self.entry_points: dict[str, EntryPoint] = {}

    def add_flow(  # noqa: PLR0913 (one keyword for each field of a flow)
        self,
        *,
        name: str,
        url: str | None = None,
        description: str | None = None,
        author: str | None = None,
        tags: Sequence[str] | None = None,
        entry_point: EntryPoint | None = None,
    ) -> None:
        """Add a flow; a missing `url` is the name with spaces as `-`, and every url gets its leading `/`.

        Raises `LoaderError` naming the flow and the field for a value of the wrong form; nothing is added then.
        """
        label = f"flow {name!r}" if name and isinstance(name, str) else f"flow number {len(self.flows) + 1}"
        fields = {"name": name, "url": flow_path(name, url), "description": description, "author": author, "tags": tags}
        try:
            flow = Flow.model_validate(fields)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {expectation(fault)}" for fault in error.errors())
            raise LoaderError(f"{label}: {'; '.join(faults)}") from error
        if entry_point is not None:
            self.entry_points[flow.url] = _entry_point(label, entry_point)
        self.flows.append(flow)

    def __repr__(self) -> str:
        return f"Loader({len(self.flows)} flows)"


Source: TypeAlias = Callable[..., object] | str | Path | Loader | Sequence[Flow | Mapping[str, Any] | str] | None
"""Everything that `load_flows` takes."""


def load_flows(source: Source) -> list[Flow]:
    """The flows that a source gives, in its order, duplicates kept; None gives none.

    A source is a callable, a `"module:function"` string, a path to a .yaml or .yml file, a `Loader`, or a list
    of flows (`Flow`, dict, or a str that is the flow's name). A callable is called with no argument, or with a
    `Loader` if it has a positional parameter; what it returns is a `Loader` or a list, and anything falsy
    means that it filled the loader it was given.

    Raises `LoaderError` for a source of another form, an import that fails, a name that is missing, a callable
    that is async or raises, and flows of the wrong form.
    """
    if source is None:
        return []
    if is_file(source):
        return read_file(source)[1]
    found = imported(source) if isinstance(source, str) else source
    result = _called(found) if callable(found) else found
    return _flows_of(result, of=_name_of(source))


def is_file(source: object) -> TypeGuard[str | Path]:
    """Whether a source is a path to a YAML file, by its name alone: the file system is not asked."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in FILE_SUFFIXES


def is_import(source: object) -> TypeGuard[str]:
    """Whether a source has the form `"module:function"`; dots are allowed on both sides of the colon."""
    if not isinstance(source, str) or source.count(":") != 1:
        return False
    return all(part.isidentifier() for side in source.split(":") for part in side.split("."))


def imported(text: str) -> object:
    """What a `"module:function"` string names; modules in the current directory are found too.

    Raises `LoaderError` for another form, a module that does not import and an attribute that is missing.
    """
    if not is_import(text):
        raise LoaderError(
            f'loader {text!r}: expected "module:function", or a path that ends in .yaml or .yml; '
            'write for example "flows:load" for the function load in flows.py'
        )
    name, _, path = text.partition(":")
    module = _module(name)
    try:
        return operator.attrgetter(path)(module)
    except AttributeError as error:
        hint = suggestion(error.name or path, dir(error.obj), otherwise="check its name")
        raise LoaderError(f"loader {text!r}: module {name!r} has no {path!r}: {hint}") from error


def read_file(path: str | Path) -> tuple[dict[str, Any], list[Flow]]:
    """The options and the flows of a YAML file: a mapping of options, with the flows as the list `flows`.

    The options come as they stand in the file; `kodo.options` checks them. Raises `LoaderError` for a file that
    cannot be read, is no YAML or no mapping (naming the file, and the line where YAML says it), and for a flow
    of the wrong form (naming the file, the flow and the field).
    """
    content = _parsed(Path(path))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise LoaderError(f"{path}: expected a mapping of options, such as 'organization: acme', and a list 'flows'")
    flows = content.pop("flows", None)
    if not isinstance(flows, list | None):
        raise LoaderError(f"{path}: flows: expected a list; start each flow with '- name:', or '- ' and its name")
    try:
        return content, _collected(flows or [])
    except LoaderError as error:
        raise LoaderError(f"{path}: flows: {error}") from error


def expectation(fault: ErrorDetails) -> str:
    """What pydantic expected where it found a fault, in the words of our own errors."""
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return EXPECTED.get(fault["type"]) or in_words(fault["msg"])


def _entry_point(label: str, value: object) -> EntryPoint:
    if callable(value) or is_import(value):
        return value
    raise LoaderError(f'{label}: entry_point: expected a callable or a "module:function" string')


def _module(name: str) -> ModuleType:
    with _current_directory():
        # A module written a moment ago is missed by finders that remember the folder as it was.
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        except Exception as error:
            hint = f"check that 'import {name}' works in {Path.cwd()}"
            if name.endswith(".py") and isinstance(error, ModuleNotFoundError):
                hint = f"a module is named without .py; did you mean {name.removesuffix('.py')!r}?"
            raise LoaderError(f"loader module {name!r}: the import failed with {_said(error)}; {hint}") from error


@contextmanager
def _current_directory() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        # The imported module may have changed the path itself.
        if here in sys.path:
            sys.path.remove(here)


def _called(function: Callable[..., object]) -> object:
    given = Loader()
    try:
        return (function(given) if _takes_loader(function) else function()) or given
    except LoaderError:
        raise  # from add_flow: it already names the flow and the field
    except Exception as error:
        hint = _meant(error) or "correct it there"
        raise LoaderError(f"loader {_name_of(function)}: it raised {_said(error)}{_place_of(error)}; {hint}") from error


def _meant(error: Exception) -> str:
    """Which field was probably meant by a keyword that `add_flow` does not take; nothing for another error."""
    unknown = re.search(r"add_flow\(\) got an unexpected keyword argument '(\w+)'", str(error))
    return suggestion(unknown[1], FLOW_FIELDS, otherwise=FIELDS) if unknown else ""


def _takes_loader(function: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins do not say
        return False
    return any(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)


def _flows_of(result: object, *, of: str) -> list[Flow]:
    if isinstance(result, Loader):
        return list(result.flows)
    if isinstance(result, list | tuple):
        return _collected(result)
    if inspect.iscoroutine(result):
        result.close()  # it never ran, and would warn that nobody awaited it
    if inspect.isawaitable(result):
        raise LoaderError(f"loader {of}: expected a plain function, it is async; write it with def alone")
    raise LoaderError(
        f"loader {of}: expected a Loader, a list of flows, or None after filling the Loader it was given, "
        f"not {type(result).__name__}; return one of these"
    )


def _collected(items: Iterable[object]) -> list[Flow]:
    loader = Loader()
    for item in items:
        if isinstance(item, Flow):
            loader.flows.append(item)
        else:
            loader.add_flow(**_fields(item, number=len(loader.flows) + 1))
    return loader.flows


def _fields(item: object, *, number: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"name": item}
    if not isinstance(item, Mapping):
        raise LoaderError(f"flow number {number}: expected a Flow, a dict or a name, not {type(item).__name__}")
    label = f"flow {item['name']!r}" if isinstance(item.get("name"), str) else f"flow number {number}"
    if "name" not in item:
        raise LoaderError(f"{label}: name: expected a text; give every flow a name")
    for field in item:
        if field not in FLOW_FIELDS:
            hint = suggestion(str(field), FLOW_FIELDS, otherwise=FIELDS)
            raise LoaderError(f"{label}: unknown field {field!r}: {hint}")
    return dict(item)


def _parsed(path: Path) -> object:
    import yaml  # noqa: PLC0415 (kept off the start-up path)

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise LoaderError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise LoaderError(f"{path}{line}: expected YAML ({error.problem}); correct it there") from error
    # ValueError: a date that is not in the calendar, a path with NUL. RecursionError: nested too deep.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LoaderError(f"{path}: expected YAML ({_said(error)}); correct it there") from error
    return {} if content is None else content


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _place_of(error: BaseException) -> str:
    """Where a loader raised this, as far as it got into its own code."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix, "<"))]
    return f", in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _name_of(source: object) -> str:
    if isinstance(source, str | Path):
        return repr(str(source))
    return getattr(source, "__qualname__", type(source).__name__)
