"""Promises of `kodo.loader`: every source of flows gives them as added, or says what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kodo.errors import LoaderError
from kodo.loader import Loader, Source, is_file, is_import, load_flows, read_file
from kodo.models import Flow


@pytest.fixture(autouse=True)
def _imports_undone() -> Iterator[None]:
    """Modules that a test imports from its own folder are forgotten after it."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(source: Any) -> LoaderError:
    """The error with which a source is refused."""
    with pytest.raises(LoaderError) as caught:
        load_flows(source)
    return caught.value


def names(source: Source) -> list[str]:
    """The names of the flows that a source gives."""
    return [flow.name for flow in load_flows(source)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that is not on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


# Loader.add_flow


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (None, "/my-first-flow"),
        ("mytest", "/mytest"),
        ("/mytest", "/mytest"),
        ("/mytest/", "/mytest"),
        ("a/b/", "/a/b"),
        ("/", "/"),
        ("with space", "/with space"),
    ],
)
def test_url_of_a_flow(url: str | None, shown: str) -> None:
    """A missing url is the name with dashes, a leading slash is added, a trailing one removed, "/" stays."""
    loader = Loader()
    loader.add_flow(name="my first flow", url=url)
    assert loader.flows[0].url == shown


def test_add_flow_keeps_every_field() -> None:
    """A flow has the description, author and tags that it was added with."""
    loader = Loader()
    loader.add_flow(name="a", description="d", author="me", tags=["x", "y"])
    assert loader.flows == [Flow(url="/a", name="a", description="d", author="me", tags=("x", "y"))]


@pytest.mark.parametrize(
    ("field", "hint"), [("desc", "did you mean 'description'?"), ("zzz", "expected one of name, url")]
)
def test_add_flow_with_an_unknown_field(field: str, hint: str) -> None:
    """A keyword that `add_flow` does not take is told with the field that was meant, and the line where it stands."""

    def load(loader: Loader) -> None:
        loader.add_flow(**{"name": "a", field: "d"})  # type: ignore[arg-type]

    with pytest.raises(LoaderError) as caught:
        load_flows(load)
    assert f"got an unexpected keyword argument {field!r}, in {__file__}, line " in str(caught.value)
    assert hint in str(caught.value)


def test_duplicates_are_kept() -> None:
    """Flows with the same url all stay in the list, in the order in which they were added."""
    loader = Loader()
    for author in ("one", "two", "three"):
        loader.add_flow(name="a", author=author)
    assert [flow.author for flow in load_flows(loader)] == ["one", "two", "three"]


def test_entry_points_stay_on_the_loader() -> None:
    """An entry point, callable or string, is kept by flow url and is no part of the flow on the wire."""
    loader = Loader()
    loader.add_flow(name="a", entry_point=print)
    loader.add_flow(name="b", entry_point="pkg.mod:serve")
    assert loader.entry_points == {"/a": print, "/b": "pkg.mod:serve"}
    assert "entry_point" not in loader.flows[0].model_dump()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": 5}, ["flow number 1", "name: expected a valid string"]),
        ({"name": None}, ["flow number 1", "name: expected a valid string"]),
        ({"name": ""}, ["flow number 1", "name: expected a text that is not empty"]),
        ({"name": "a\0"}, ["name: expected a text without NUL characters"]),
        ({"name": "a", "url": 5}, ["flow 'a'", "url: expected a valid string"]),
        ({"name": "a", "author": 5}, ["flow 'a'", "author: expected a valid string"]),
        ({"name": "a", "author": "\ud800"}, ["flow 'a'", "author: "]),
        ({"name": "a", "tags": "x"}, ["flow 'a'", "tags: expected a list"]),
        ({"name": "a", "tags": ["x", 5]}, ["flow 'a'", "tags.1: expected a valid string"]),
    ],
)
def test_bad_values_name_flow_and_field(fields: dict[str, Any], expected: list[str]) -> None:
    """A value of the wrong form is a LoaderError that names the flow and the field and keeps its cause."""
    loader = Loader()
    with pytest.raises(LoaderError) as caught:
        loader.add_flow(**fields)
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert caught.value.__cause__ is not None
    assert loader.flows == []


@pytest.mark.parametrize("entry_point", [5, "no colon", "a:b:c", ":f", "m:"])
def test_bad_entry_point(entry_point: Any) -> None:
    """An entry point that is neither callable nor "module:function" is refused, and the flow is not added."""
    loader = Loader()
    with pytest.raises(LoaderError, match="flow 'a': entry_point: expected a callable or"):
        loader.add_flow(name="a", entry_point=entry_point)
    assert (loader.flows, loader.entry_points) == ([], {})


# Sources


def test_none_gives_no_flows() -> None:
    """No loader: no flows."""
    assert load_flows(None) == []


def test_a_list_of_all_kinds() -> None:
    """A list may mix flows, dicts and names; a Flow is taken as it is."""
    flow = Flow(url="as/it/is/", name="f")
    assert load_flows([flow, {"name": "d", "tags": ["t"]}, "some name"]) == [
        flow,
        Flow(url="/d", name="d", tags=("t",)),
        Flow(url="/some-name", name="some name"),
    ]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (5, "flow number 2: expected a Flow, a dict or a name, not int"),
        ({}, "flow number 2: name: expected a text"),
        ({"url": "/x"}, "flow number 2: name: expected a text"),
        ({"name": "x", "autor": "me"}, "flow 'x': unknown field 'autor': did you mean 'author'?"),
        ({"name": "x", "desc": "d"}, "flow 'x': unknown field 'desc': did you mean 'description'?"),
        ({"name": "x", "zzz": 1}, "flow 'x': unknown field 'zzz': expected one of name, url"),
        ({"name": "x", 5: 1}, "flow 'x': unknown field 5"),
        ("", "flow number 2: name: expected a text that is not empty"),
    ],
)
def test_bad_items_of_a_list(item: object, expected: str) -> None:
    """An item that is no flow is refused by name or number, an unknown field with the one that was meant."""
    assert expected in str(refusal(["first", item]))


def test_callable_without_argument() -> None:
    """A callable without parameters is called with none; it returns a Loader or a list."""

    def loader() -> Loader:
        made = Loader()
        made.add_flow(name="made")
        return made

    assert names(loader) == ["made"]
    assert names(lambda: ["a", {"name": "b"}]) == ["a", "b"]
    assert names(lambda: ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize("returned", [None, False, [], {}])
def test_callable_that_fills_its_loader(returned: object) -> None:
    """A callable with a parameter gets a Loader; returning anything falsy means that it filled that one."""

    def loader(given: Loader) -> object:
        given.add_flow(name="filled")
        return returned

    assert names(loader) == ["filled"]


def test_optional_parameter_takes_the_loader() -> None:
    """An optional positional parameter gets the Loader too; keywords and *args do not."""

    def optional(given: Loader | None = None) -> None:
        assert given is not None
        given.add_flow(name="filled")

    def keyword(*rest: object, given: object = "default") -> list[str]:
        return [str(given), *map(str, rest)]

    assert names(optional) == ["filled"]
    assert names(keyword) == ["default"]


def test_callable_object_method_and_partial() -> None:
    """Methods, partial functions, callable objects and classes count their free parameters alone."""

    class Flows:
        def __call__(self, loader: Loader) -> None:
            loader.add_flow(name="called")

        def method(self) -> list[str]:
            return ["method"]

    def named(name: str, loader: Loader) -> None:
        loader.add_flow(name=name)

    assert names(Flows()) == ["called"]
    assert names(Flows().method) == ["method"]
    assert names(partial(named, "partial")) == ["partial"]
    assert names(Loader) == []


def test_what_is_returned_beats_what_was_filled() -> None:
    """A callable that fills its loader and returns a list means the list."""

    def loader(given: Loader) -> list[str]:
        given.add_flow(name="filled")
        return ["returned"]

    assert names(loader) == ["returned"]


def test_no_argument_and_nothing_returned_is_no_flows() -> None:
    """A callable without parameters that returns nothing gives no flows."""
    assert load_flows(lambda: None) == []


async def async_loader() -> list[str]:
    return ["never"]


async def async_filler(loader: Loader) -> None:
    loader.add_flow(name="never")


def returns_coroutine() -> object:
    return async_loader()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", [async_loader, async_filler, partial(async_filler), returns_coroutine])
def test_async_callable_is_refused(source: Callable[..., object]) -> None:
    """An async callable is refused with what to do, however it is wrapped, and no coroutine is left behind."""
    assert "expected a plain function, it is async" in str(refusal(source))


@pytest.mark.parametrize("returned", [5, "name", {"a": 1}, object(), Flow(url="/a", name="a")])
def test_other_results_are_refused(returned: object) -> None:
    """A result that is no Loader, list or falsy value is refused by its type, saying what was expected."""
    text = str(refusal(lambda: returned))
    assert "expected a Loader, a list of flows, or None" in text
    assert type(returned).__name__ in text


@pytest.mark.parametrize("source", [5, {"name": "a"}, object(), Path("flows.txt")])
def test_other_sources_are_refused(source: object) -> None:
    """A source of no known form is refused, saying what was expected."""
    assert "expected a Loader, a list of flows" in str(refusal(source))


def test_callable_that_raises() -> None:
    """A callable that raises is named, with what it raised, and the cause is kept."""

    def broken() -> None:
        raise KeyError("gone")

    error = refusal(broken)
    assert "broken" in str(error)
    assert "KeyError: 'gone'" in str(error)
    assert f"in {__file__}, line {broken.__code__.co_firstlineno + 1}" in str(error)
    assert isinstance(error.__cause__, KeyError)


def test_callable_with_two_parameters() -> None:
    """A callable that needs more than a Loader is refused, and the cause is kept."""
    assert isinstance(refusal(lambda one, two: None).__cause__, TypeError)


def test_error_of_add_flow_comes_through() -> None:
    """A bad flow added inside a callable is reported by flow and field, as if it were added outside."""

    def loader(given: Loader) -> None:
        given.add_flow(name="a", author=5)  # type: ignore[arg-type]

    assert str(refusal(loader)).startswith("flow 'a': author: ")


# "module:function"


def test_module_in_the_current_directory(here: Path) -> None:
    """A module in the current directory is found, and the import path is as before afterwards."""
    (here / "flows_here.py").write_text("def load(loader):\n    loader.add_flow(name='here')\n")
    path = list(sys.path)
    assert names("flows_here:load") == ["here"]
    assert sys.path == path


def test_current_directory_comes_first_during_the_import(here: Path) -> None:
    """While the module is imported the current directory is first on the path, once."""
    (here / "flows_path.py").write_text("import sys\nseen = list(sys.path)\ndef load(): return seen[:1]\n")
    assert names("flows_path:load") == [str(here)]


def test_current_directory_already_on_the_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory that is on the path already stays where it is."""
    (here / "flows_there.py").write_text("import sys\nseen = list(sys.path)\ndef load(): return seen\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(here)])
    assert names("flows_there:load") == sys.path


def test_path_is_restored_after_a_failed_import(here: Path) -> None:
    """An import that fails leaves the import path as it was."""
    path = list(sys.path)
    refusal("no_such_module_here:load")
    assert sys.path == path


def test_dotted_attributes(here: Path) -> None:
    """Both sides of the colon may be dotted."""
    (here / "flows_pkg").mkdir()
    (here / "flows_pkg" / "__init__.py").touch()
    (here / "flows_pkg" / "mod.py").write_text(
        "class A:\n    class B:\n        load = staticmethod(lambda: ['deep'])\n"
    )
    assert names("flows_pkg.mod:A.B.load") == ["deep"]


def test_name_of_a_loader_or_a_list(here: Path) -> None:
    """The name after the colon may also be a Loader or a list; anything else is refused."""
    (here / "flows_list.py").write_text("flows = ['a', 'b']\nnumber = 5\ntext = 'flows_list:flows'\n")
    assert names("flows_list:flows") == ["a", "b"]
    assert "not int" in str(refusal("flows_list:number"))
    assert "not str" in str(refusal("flows_list:text"))


@pytest.mark.parametrize("text", ["", "flows", "flows.load", ":load", "flows:", "a:b:c", "a b:c", ".a:b", "flows.txt"])
def test_strings_of_another_form(text: str) -> None:
    """A string that is neither "module:function" nor a YAML path is refused, saying what to write."""
    assert 'expected "module:function", or a path' in str(refusal(text))


def test_missing_module() -> None:
    """A module that is not there is named, and the cause is kept."""
    error = refusal("no_such_module_here:load")
    assert "'no_such_module_here'" in str(error)
    assert isinstance(error.__cause__, ModuleNotFoundError)


def test_a_file_in_place_of_its_module(here: Path) -> None:
    """Who names the file of a module is told to leave out its ending."""
    (here / "flows_named.py").write_text("load = ['a']\n")
    assert str(refusal("flows_named.py:load")).endswith("did you mean 'flows_named'?")


@pytest.mark.parametrize(("source", "cause"), [("def (", SyntaxError), ("1 / 0", ZeroDivisionError)])
def test_module_that_does_not_import(here: Path, source: str, cause: type[Exception]) -> None:
    """A module that fails while it is imported is named with the reason, and the cause is kept."""
    (here / "flows_broken.py").write_text(source)
    error = refusal("flows_broken:load")
    assert cause.__name__ in str(error)
    assert isinstance(error.__cause__, cause)


def test_missing_function(here: Path) -> None:
    """A function that is not in the module is named, with the one that was meant, and the cause is kept."""
    (here / "flows_missing.py").write_text("class A:\n    def load_all(): ...\n")
    error = refusal("flows_missing:A.load_al")
    assert "'flows_missing' has no 'A.load_al': did you mean 'load_all'?" in str(error)
    assert isinstance(error.__cause__, AttributeError)


def test_forms_are_told_by_their_text() -> None:
    """Files are known by their suffix and imports by their colon, without asking the file system."""
    assert all(is_file(source) for source in ("a.yaml", "/x/B.YML", Path("a.yml")))
    assert not any(is_file(source) for source in ("a:b", "yaml", Path("a.json"), None, print))
    assert is_import("a.b:c.d")
    assert not is_import(print)


# YAML files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a YAML file that does not exist yet."""
    return tmp_path / "mesh.yaml"


def test_file_gives_options_and_flows(file: Path) -> None:
    """A file is a mapping of options, as they stand, and a list of flows as dicts or names."""
    file.write_text(
        "organization: acme\nconnect: [http://a:1]\nnode: yes\n"
        "flows:\n- first flow\n- {name: b, url: x/, tags: [t], entry_point: 'm:f'}\n"
    )
    options, flows = read_file(file)
    assert options == {"organization": "acme", "connect": ["http://a:1"], "node": True}
    assert flows == [Flow(url="/first-flow", name="first flow"), Flow(url="/x", name="b", tags=("t",))]
    assert load_flows(file) == load_flows(str(file)) == flows


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "flows:\n", "flows: []\n"])
def test_file_without_content(file: Path, content: str) -> None:
    """An empty file, and an empty list of flows, give no options and no flows."""
    file.write_text(content)
    assert read_file(file) == ({}, [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b\n", "expected a mapping of options"),
        (b"just text\n", "expected a mapping of options"),
        (b"1: a\n", "expected a mapping of options"),
        (b"node: true\nlog: a\n  url: b\n", "line 3: expected YAML ("),
        (b"node: true\nurl: 'a\n", "line 3: expected YAML ("),
        (b"url: !!python/object/apply:os.getcwd []\n", "line 1: expected YAML ("),
        (b"url: \x00\n", "expected YAML ("),
        (b"url: \xff\xfe\n", "expected YAML ("),
        (b"url: 2024-13-45\n", "expected YAML (ValueError"),
        (b"a: " + b"[" * 20_000, "expected YAML (RecursionError"),
        (b"flows: a\n", "flows: expected a list"),
        (b"flows: {a: b}\n", "flows: expected a list"),
        (b"flows:\n- a\n- 5\n", "flows: flow number 2: expected a Flow"),
        (b"flows:\n- name: a\n  author: 5\n", "flows: flow 'a': author: expected a valid string"),
        (b"flows:\n- name: a\n  autor: b\n", "flows: flow 'a': unknown field 'autor': did you mean 'author'?"),
    ],
)
def test_bad_files_name_file_line_and_field(file: Path, content: bytes, expected: str) -> None:
    """A bad file is refused by its name, with the line where YAML knows it and the field where there is one."""
    file.write_bytes(content)
    text = str(refusal(file))
    assert text.startswith(str(file))
    assert expected in text


@pytest.mark.parametrize("name", ["missing.yaml", "folder.yaml"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    """A file that is missing, or a folder, is refused by its name, and the cause is kept."""
    (tmp_path / "folder.yaml").mkdir()
    error = refusal(tmp_path / name)
    assert f"{name}: cannot be read" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_cause_of_a_bad_file_is_kept(file: Path) -> None:
    """What YAML said, and what the flow's model said, stay reachable as causes."""
    file.write_text("a: [")
    assert refusal(file).__cause__ is not None
    file.write_text("flows: [{name: a, author: 5}]")
    cause = refusal(file).__cause__
    assert isinstance(cause, LoaderError)
    assert cause.__cause__ is not None


def test_yaml_is_off_the_start_up_path() -> None:
    """Importing the loader imports no YAML."""
    code = "import sys, kodo.loader; assert 'yaml' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
