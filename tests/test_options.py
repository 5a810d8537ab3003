"""Promises of `kodo.options`: where each option comes from, what is refused, and how it is said."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kodo.errors import LoaderError, OptionError
from kodo.loader import Loader
from kodo.options import MIB, Options, load_options, misspelt, with_port
from kodo.runtime import PAGE_LIMIT


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No option is set in the environment, and the current directory is empty."""
    for name in os.environ:
        if name.upper().startswith("KODO_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a YAML file that does not exist yet."""
    return tmp_path / "mesh.yaml"


def refusal(**kwargs: object) -> str:
    """The text with which options are refused."""
    with pytest.raises(OptionError) as caught:
        load_options(**kwargs)
    return str(caught.value)


# Defaults and sources


def test_defaults() -> None:
    """Without any source the options are those of the protocol's table, the limits and the times."""
    assert load_options().model_dump() == {
        "url": "http://localhost:3366",
        "organization": None,
        "connect": (),
        "node": True,
        "registry": True,
        "provider": False,
        "loader": None,
        "cache": None,
        "reset": False,
        "reload": False,
        "log": None,
        "lease": 30,
        "retention": 86_400,
        "beacon": 10,
        "grace": 14 * 86_400,
        "body_limit": 16 * MIB,
        "peer_body_limit": 64 * MIB,
        "trace": False,
    }


def test_every_option_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option can be set as KODO_<NAME>, lists comma-separated, bools as pydantic reads them."""
    for name, value in {
        "URL": "http://example.org:80",
        "ORGANIZATION": "acme",
        "CONNECT": "http://a:1, http://b:2,",
        "NODE": "off",
        "REGISTRY": "1",
        "PROVIDER": "yes",
        "LOADER": "pkg.mod:load",
        "CACHE": "c.db",
        "RESET": "TRUE",
        "RELOAD": "t",
        "LOG": "x/y.log",
        "LEASE": "1",
        "RETENTION": "2.5",
        "BEACON": "0.5",
        "GRACE": "4",
        "BODY_LIMIT": "1",
        "PEER_BODY_LIMIT": "2097152",
        "TRACE": "true",
    }.items():
        monkeypatch.setenv(f"KODO_{name}", value)
    assert load_options().model_dump() == {
        "url": "http://example.org:80",
        "organization": "acme",
        "connect": ("http://a:1", "http://b:2"),
        "node": False,
        "registry": True,
        "provider": True,
        "loader": "pkg.mod:load",
        "cache": Path("c.db"),
        "reset": True,
        "reload": True,
        "log": Path("x/y.log"),
        "lease": 1,
        "retention": 2.5,
        "beacon": 0.5,
        "grace": 4,
        "body_limit": 1,
        "peer_body_limit": 2 * MIB,
        "trace": True,
    }


def test_precedence(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """A kwarg beats the environment, the environment beats the file, the file beats the default."""
    file.write_text("organization: file\nbody_limit: 1\npeer_body_limit: 1048576\nreset: true\nflows: [a]\n")
    monkeypatch.setenv("KODO_ORGANIZATION", "environment")
    monkeypatch.setenv("KODO_BODY_LIMIT", "2")
    options = load_options(loader=file, organization="kwarg")
    assert (options.organization, options.body_limit, options.peer_body_limit) == ("kwarg", 2, MIB)
    assert (options.reset, options.reload, options.loader) == (True, False, file)


def test_file_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """The file counts also when the environment names it, and not when a kwarg names another loader."""
    file.write_text("organization: file\n")
    monkeypatch.setenv("KODO_LOADER", str(file))
    assert load_options().organization == "file"
    assert load_options(loader="pkg:load").organization is None


def test_options_of_a_file(file: Path) -> None:
    """In a file `connect` is a list or a text, and an option without a value is not given."""
    file.write_text("connect: [http://a:1, http://b:2]\nlog:\nloader:\ncache: c.db\nnode: no\n")
    options = load_options(loader=str(file))
    assert (options.connect, options.log, options.cache, options.node) == (
        ("http://a:1", "http://b:2"),
        None,
        Path("c.db"),
        False,
    )
    file.write_text("connect: http://a:1,http://b:2\n")
    assert load_options(loader=file).connect == ("http://a:1", "http://b:2")


def test_none_is_not_given_where_none_is_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    """None for an optional option means "not given": the next source speaks."""
    values = {"ORGANIZATION": "acme", "CONNECT": "http://a:1", "LOADER": "p:f", "CACHE": "c", "LOG": "l"}
    for name, value in values.items():
        monkeypatch.setenv(f"KODO_{name}", value)
    options = load_options(organization=None, connect=None, loader=None, cache=None, log=None)
    assert (options.organization, options.connect, options.loader) == ("acme", ("http://a:1",), "p:f")
    assert (options.cache, options.log) == (Path("c"), Path("l"))


@pytest.mark.parametrize(
    "name", ["url", "node", "registry", "provider", "reset", "reload", "body_limit", "peer_body_limit", "trace"]
)
def test_none_is_refused_elsewhere(name: str) -> None:
    """None for an option that always has a value is an error that names it."""
    assert refusal(**{name: None}).startswith(f"{name}: expected a valid ")


def test_foreign_and_empty_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names that begin with KODO_ are not ours to refuse, and an empty value is no value."""
    monkeypatch.setenv("KODO_SERVICE_HOST", "10.0.0.1")
    for name in Options.model_fields:
        monkeypatch.setenv(f"KODO_{name.upper()}", "")
    assert load_options() == Options()


def test_misspelt_variables_are_told() -> None:
    """A variable that looks like an option names the one that was meant; what looks like none is left alone."""
    given = ["KODO_LEESE", "kodo_conect", "KODO_LEASE", "KODO_SERVICE_HOST", "KODO_HOST", "KODO_HOME", "HOME"]
    assert list(misspelt(given)) == [
        "KODO_LEESE in the environment is no option, and is ignored: did you mean KODO_LEASE?",
        "kodo_conect in the environment is no option, and is ignored: did you mean KODO_CONNECT?",
    ]


def test_no_env_file_is_read(tmp_path: Path) -> None:
    """A .env in the current directory changes nothing."""
    (tmp_path / ".env").write_text("KODO_ORGANIZATION=acme\n")
    assert load_options().organization is None


# url


@pytest.mark.parametrize(
    "url", ["http://localhost:3366", "https://h:1/", "http://[::1]:80", "http://H:0", "http://h:1/p"]
)
def test_good_urls_are_shown_as_given(url: str) -> None:
    """An own url with scheme, host and port is taken, port 0 included, and shown as it was given."""
    assert load_options(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "http://localhost:",
        "http://localhost/",
        "http://:3366",
        "ftp://localhost:3366",
        "//localhost:3366",
        "http://localhost:65536",
        "http://localhost:x",
        "http://local host:3366",
        "http://h:1?a=b",
        "http://h:1/#x",
        5,
    ],
)
def test_bad_urls(url: object) -> None:
    """A url of another scheme, or without host or port, is refused with what was expected and an example."""
    text = refusal(url=url)
    assert text.startswith("url: expected a")
    assert text.endswith("give for example url=http://localhost:3366")


@pytest.mark.parametrize("name", ["url", "connect"])
@pytest.mark.parametrize("given", ["localhost:3380", ":3380", "3380", "http:/localhost:3380", "http:localhost:3380"])
def test_a_url_without_its_beginning(name: str, given: str) -> None:
    """Who gives a host and a port, or half a url, is told which url was probably meant."""
    assert refusal(**{name: given}).endswith("; did you mean http://localhost:3380?")


def test_host_and_port() -> None:
    """Host and port are what to listen on: no brackets, lower case."""
    assert (load_options(url="http://[::1]:80").host, load_options(url="http://[::1]:80").port) == ("::1", 80)
    assert (load_options(url="http://LocalHost:0").host, load_options(url="http://LocalHost:0").port) == (
        "localhost",
        0,
    )


def test_cache_path() -> None:
    """Without a cache the path is data/<host>_<port>.db, with one it is that one; no folder is made."""
    assert load_options(url="http://Localhost:3366/").cache_path == Path("data/localhost_3366.db")
    assert load_options(cache="x/y.json", log="z/w.log").cache_path == Path("x/y.json")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["cache", "log"])
@pytest.mark.parametrize("path", ["", ".", "/", "a\0b", 5])
def test_paths_that_name_no_file(name: str, path: object) -> None:
    """A path that cannot be a file's is refused."""
    assert refusal(**{name: path}).startswith(f"{name}: expected the path of a file")


@pytest.mark.parametrize("name", ["cache", "log"])
@pytest.mark.parametrize("path", ["flows.py", "flows.YAML", "x/flows.yml"])
def test_flows_are_not_written_over(name: str, path: str) -> None:
    """A file in which flows may stand was named by mistake: neither is it a cache, nor a log."""
    assert refusal(**{name: path}).startswith(f"{name}: expected the path of a file that kodo may write, not .")


# connect


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ([], ()),
        ("", ()),
        ("http://a:1", ("http://a:1",)),
        ("http://a:1, http://b/", ("http://a:1", "http://b/")),
        (["http://a:1/", "http://b"], ("http://a:1/", "http://b")),
        (("http://a:1",), ("http://a:1",)),
    ],
)
def test_connect_takes_a_list_or_a_text(value: object, urls: tuple[str, ...]) -> None:
    """`connect` is a list of urls or a single text, comma-separated; urls are shown as they were given."""
    assert load_options(connect=value).connect == urls


def test_connect_drops_duplicates() -> None:
    """Of urls that are canonically the same the first spelling stays, in its place."""
    given = ["http://B", "http://a:1/", "http://A:1", "http://b:80/"]
    assert load_options(connect=given).connect == ("http://B", "http://a:1/")


def test_connect_ignores_the_own_url() -> None:
    """The own url in `connect` is ignored, however it is spelled."""
    options = load_options(url="http://localhost:80/", connect="HTTP://LOCALHOST,http://a:1")
    assert options.others == ("http://a:1",)


@pytest.mark.parametrize("entry", ["", "nope", "http://", "ftp://a", "http://a:1,http://b:1", "http://a?b", 5, None])
def test_bad_connect_entries(entry: object) -> None:
    """Each entry must be a url with a host; the one that is not is counted out."""
    assert "connect, entry 2: expected a" in refusal(connect=["http://a:1", entry])


def test_connect_of_another_type() -> None:
    """`connect` that is neither list nor text is refused, saying so."""
    assert refusal(connect=5).startswith("connect: expected a list")


# Roles


@pytest.mark.parametrize(
    ("node", "registry", "provider", "kind", "feed"),
    [
        (True, True, False, "registry", True),
        (True, False, False, "node", False),
        (False, True, False, "registry", True),
        (False, True, True, "provider", False),
        (True, True, True, "provider", False),
    ],
)
def test_kind_and_feed(node: bool, registry: bool, provider: bool, kind: str, feed: bool) -> None:
    """The kind is the word in log lines, and a registry that is no provider takes a feed."""
    options = load_options(node=node, registry=registry, provider=provider)
    assert (options.kind, options.feed) == (kind, feed)


def test_provider_implies_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider is a registry, even where registry is set to false."""
    assert load_options(provider=True, registry=False, node=False).registry
    monkeypatch.setenv("KODO_REGISTRY", "false")
    assert load_options(provider=True).registry


def test_at_least_one_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without a role is refused, naming the three options and where they came from."""
    monkeypatch.setenv("KODO_REGISTRY", "false")
    text = refusal(node=False)
    assert text.startswith("node, registry (KODO_REGISTRY in the environment), provider: expected at least one of")


# loader


@pytest.mark.parametrize("loader", [None, print, "a.b:c", Loader(), ["a", {"name": "b"}]])
def test_loader_is_kept_as_given(loader: object) -> None:
    """A loader of a form that `load_flows` takes is kept as it is, and not imported or called."""
    assert load_options(loader=loader).loader is loader


@pytest.mark.parametrize("loader", [5, "", "flows", "flows.json", Path("a.txt"), {"name": "a"}])
def test_loaders_of_another_form(loader: object) -> None:
    """A loader of another form is refused with the forms that are taken."""
    assert refusal(loader=loader).startswith('loader: expected a callable, "module:function", or a path')


@pytest.mark.parametrize("loader", [print, Loader(), ["a"]])
def test_reload_needs_an_importable_loader(monkeypatch: pytest.MonkeyPatch, loader: object) -> None:
    """With reload, a loader that lives in this process alone is an error that names both options."""
    assert refusal(reload=True, loader=loader).startswith("reload, loader: expected a loader that reload can import")
    monkeypatch.setenv("KODO_RELOAD", "true")
    assert "reload (KODO_RELOAD in the environment), loader: " in refusal(loader=loader)


def test_reload_with_other_loaders(file: Path) -> None:
    """With reload, no loader, "module:function" and a file are all right."""
    file.write_text("flows: [a]\n")
    assert all(load_options(reload=True, loader=loader).reload for loader in (None, "a:b", file, str(file)))


# Refusals


def test_unknown_options_name_what_was_meant() -> None:
    """Every unknown kwarg is named, with the option that was meant, or all of them."""
    lines = refusal(conect="http://a", _env_file=".env", zzz=1).splitlines()
    assert lines[0] == "unknown option 'conect': did you mean 'connect'?"
    assert lines[2].startswith("unknown option 'zzz': expected one of url, organization, connect")


def test_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad value from the environment names its variable, also when a None kwarg let it through."""
    monkeypatch.setenv("KODO_URL", "localhost")
    monkeypatch.setenv("KODO_NODE", "perhaps")
    monkeypatch.setenv("KODO_CONNECT", "http://a,b")
    monkeypatch.setenv("KODO_BODY_LIMIT", "many")
    lines = refusal(connect=None, body_limit=0).splitlines()
    assert [line.partition(": expected ")[0] for line in lines] == [
        "url (KODO_URL in the environment)",
        "connect (KODO_CONNECT in the environment), entry 2",
        "node (KODO_NODE in the environment)",
        "body_limit",
    ]
    assert all("; give for example " in line for line in lines)


def test_variables_in_lower_case_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read without regard to case, and its errors still say where they come from."""
    monkeypatch.setenv("kodo_node", "perhaps")
    assert refusal().startswith("node (KODO_NODE in the environment): expected")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("node: perhaps\n", "node (in {file}): expected a valid boolean"),
        ("organization: 5\n", "organization (in {file}): expected a valid string"),
        ("conect: http://a\n", "unknown option 'conect' in {file}: did you mean 'connect'?"),
        ("loader: a:b\n", "loader in {file}: expected none"),
        ("node:\n", "node (in {file}): expected a valid boolean"),
    ],
)
def test_bad_options_of_a_file(file: Path, content: str, expected: str) -> None:
    """A bad or unknown option in a file is named together with the file."""
    file.write_text(content)
    assert expected.format(file=file) in refusal(loader=file)


def test_a_broken_file_is_the_loaders_error(file: Path) -> None:
    """A file that is missing, or no YAML, is a LoaderError that names it."""
    with pytest.raises(LoaderError, match=r"mesh\.yaml: cannot be read"):
        load_options(loader=file)
    file.write_text("a: [")
    with pytest.raises(LoaderError, match=r"mesh\.yaml, line 1"):
        load_options(loader=file)


@pytest.mark.parametrize("organization", ["a\0b", "\ud800", 5])
def test_organization_is_a_clean_text(organization: object) -> None:
    """An organization with NUL or a lone surrogate, or that is no text, is refused."""
    assert refusal(organization=organization).startswith("organization: ")


@pytest.mark.parametrize("name", ["body_limit", "peer_body_limit"])
@pytest.mark.parametrize("limit", [0, -1, "many", 1.5])
def test_limits_are_positive_numbers(name: str, limit: object) -> None:
    """A limit that is no positive whole number is refused."""
    assert refusal(**{name: limit}).startswith(f"{name}: expected ")


def test_a_page_of_another_registry_fits() -> None:
    """A limit below what other registries send at once, of which nothing would ever come in, is refused."""
    assert refusal(peer_body_limit=MIB - 1).startswith("peer_body_limit: expected ")
    assert load_options(peer_body_limit=MIB).peer_body_limit == MIB > PAGE_LIMIT


def test_cause_is_kept() -> None:
    """The error keeps what pydantic said as its cause."""
    with pytest.raises(OptionError) as caught:
        load_options(url="localhost")
    assert isinstance(caught.value.__cause__, ValidationError)


# The value


def test_options_are_frozen_and_travel() -> None:
    """Options cannot be changed, and can be sent to another process."""
    options = load_options(connect="http://a:1")
    with pytest.raises(ValidationError):
        options.url = "http://x:1"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("url", "with_it"),
    [
        ("http://localhost:0", "http://localhost:4000"),
        ("http://LocalHost:0/", "http://LocalHost:4000/"),
        ("https://[::1]:0/p", "https://[::1]:4000/p"),
    ],
)
def test_with_port(url: str, with_it: str) -> None:
    """The port in the own url is replaced and nothing else of it; the given options stay as they were."""
    before = load_options(url=url, organization="acme")
    after = with_port(before, 4000)
    assert (before.url, after.url, after.port, after.organization) == (url, with_it, 4000, "acme")
    assert after.cache_path.name.endswith("_4000.db")


def test_with_port_leaves_the_new_own_url_out_of_connect() -> None:
    """When the free port makes an entry of `connect` the own url, that entry is ignored too."""
    options = load_options(url="http://localhost:0", connect="http://localhost:4000/,http://a:1")
    assert options.others == ("http://localhost:4000/", "http://a:1")
    assert with_port(options, 4000).others == ("http://a:1",)


def test_import_is_light() -> None:
    """Importing the options imports none of the heavy libraries."""
    heavy: Any = ("pandas", "yaml", "watchfiles", "fastapi")
    code = f"import sys, kodo.options; assert not set({heavy!r}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
