"""Options: what a service is told when it starts (PROTOCOL.md, "Fixed: starting a service").

This room owns the names, types and defaults of the options, and the order in which their sources count:
a kwarg beats the environment (`KODO_<NAME>`), the environment beats the YAML file that `loader` names, the
file beats the default. Its rules:

- Options are plain values, frozen. Reading them touches nothing: no folder is made, no port tried, no loader
  imported, no `.env` looked for; the YAML file alone is read.
- `load_options` is the one door. What it lets through can be started; what it refuses is an `OptionError`
  that names every option at fault, where it came from, what was expected and what to give instead.
- The environment may hold other names that begin with `KODO_` (a cluster puts its own there): they are
  ignored, and so are empty values; of those that look like an option a service warns (`misspelt`). Unknown kwargs and
  unknown keys of a file are mistakes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from kodo.errors import OptionError, suggestion
from kodo.loader import FILE_SUFFIXES, Loader, Source, expectation, is_file, is_import, read_file
from kodo.models import Text, canonical

ENV_PREFIX = "KODO_"
MIB = 1024 * 1024
NONE_IS_ABSENT = frozenset({"organization", "connect", "loader", "cache", "log"})
"""The options for which None means "not given", so that the next source speaks."""


def probable_url(text: str) -> str | None:
    """The url that was probably meant by a host, a port, or a url with half of its beginning; None for other words."""
    if slip := re.fullmatch(r"(https?):/*(.+)", text):
        return f"{slip[1]}://{slip[2]}"
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?|localhost(/.*)?|\d+(\.\d+){3}|\[[\da-f:]+\].*", text):
        return f"http://{text}"
    if port := re.fullmatch(r":?(\d{2,5})", text):
        return f"http://localhost:{port[1]}"
    return None


def _checked_url(text: str) -> str:
    try:
        canonical(text)
    except ValueError as error:
        meant = None if "://" in text else probable_url(text)
        if meant is None or urlsplit(meant).port is None:  # which it is to listen on
            raise
        raise ValueError(f"{error}; did you mean {meant}?") from error
    if "?" in text or "#" in text:
        raise ValueError("expected a url that ends with its path: no ? and no #")
    return text


def _own_url(text: str) -> str:
    if urlsplit(_checked_url(text)).port is None:
        raise ValueError("expected a url with a host and a port, such as http://localhost:3366")
    return text


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _file_name(path: Path) -> Path:
    if not path.name or "\0" in str(path):
        raise ValueError("expected the path of a file")
    if path.suffix.lower() in {".py", *FILE_SUFFIXES}:
        raise ValueError(f"expected the path of a file that kodo may write, not {path.suffix}, where flows may stand")
    return path


def _loader(value: object) -> object:
    if value is None or callable(value) or isinstance(value, Loader | list | tuple):
        return value
    if is_file(value) or is_import(value):
        return value
    raise ValueError('expected a callable, "module:function", or a path that ends in .yaml or .yml')


OwnUrl = Annotated[Text, AfterValidator(_own_url)]
OtherUrl = Annotated[Text, AfterValidator(_checked_url)]
FileName = Annotated[Path, AfterValidator(_file_name)]
Limit = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0.05, le=10**9, allow_inf_nan=False)]


class Options(BaseSettings):
    """Every option of a service, checked and frozen; `load_options` makes it with errors for people.

    `registry` stands after `provider`, which implies it. Of several spellings in `connect` the first stays.
    Raises pydantic's `ValidationError` for bad values, and what `read_file` raises when `loader` is a file.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")
    from_elsewhere: ClassVar[bool] = True
    """Whether the environment and a file are read, too."""

    url: OwnUrl = Field(
        "http://localhost:3366",
        description="own address; host and port to listen on, port 0 takes a free one",
        examples=["http://localhost:3366"],
    )
    organization: Text | None = Field(None, description="who runs the service", examples=["acme"])
    connect: Annotated[tuple[OtherUrl, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="registries to register with (node) or to connect with (registry)",
        examples=["http://localhost:3367,http://localhost:3368"],
    )
    node: bool = Field(True, description="offer flows", examples=["true"])
    provider: bool = Field(False, description="be a registry that gives but does not take", examples=["false"])
    registry: bool = Field(True, description="broker nodes", examples=["true"])
    loader: Annotated[Source, NoDecode, PlainValidator(_loader)] = Field(
        None, description="gives the flows of a node", examples=["flows:load"]
    )
    cache: FileName | None = Field(
        None, description="the registry's durable state", examples=["data/localhost_3366.db"]
    )
    reset: bool = Field(False, description="start from scratch: ignore and replace the cache", examples=["false"])
    reload: bool = Field(False, description="restart when the code changes (development)", examples=["false"])
    log: FileName | None = Field(None, description="file for log lines, in place of stderr", examples=["kodo.log"])
    body_limit: Limit = Field(16 * MIB, description="largest body of /register, in bytes", examples=["16777216"])
    # The least is twice what another registry sends at once (`runtime.PAGE_LIMIT`).
    peer_body_limit: int = Field(
        64 * MIB, ge=MIB, description="largest body of /connect and /update/node, in bytes", examples=["67108864"]
    )
    lease: Seconds = Field(
        30, description="seconds that a node which beats may be silent before it is shown offline", examples=["30"]
    )
    retention: Seconds = Field(
        86_400, description="seconds that a node may be offline before it is dropped", examples=["86400"]
    )
    beacon: Seconds = Field(
        10, description="seconds between two signs of life to a registry that is connected", examples=["10"]
    )
    grace: Seconds = Field(
        1_209_600, description="seconds after which a registry that nobody hears of is given up", examples=["1209600"]
    )
    trace: bool = Field(
        False, description="note each protocol message, for GET /events?kind=messages", examples=["false"]
    )

    @field_validator("connect")
    @classmethod
    def _each_once(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        first: dict[str, str] = {}
        for url in urls:
            first.setdefault(canonical(url), url)
        return tuple(first.values())

    @field_validator("registry")
    @classmethod
    def _implied_by_provider(cls, registry: bool, info: ValidationInfo) -> bool:
        return registry or bool(info.data.get("provider"))

    @model_validator(mode="after")
    def _can_be_started(self) -> Options:
        if not (self.node or self.registry):
            raise _fault("at least one of the roles to be true", "node", "registry", "provider")
        if self.reload and not isinstance(self.loader, str | Path | None):
            raise _fault('a loader that reload can import again, "module:function" or a file', "reload", "loader")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, strongest first: kwargs, environment, the YAML file; no `.env`, no folder of secrets."""
        elsewhere = (env_settings, _FileSource(settings_cls)) if cls.from_elsewhere else ()
        return init_settings, *elsewhere

    @property
    def kind(self) -> str:
        """The word for the service in log lines: provider, registry or node."""
        if self.provider:
            return "provider"
        return "registry" if self.registry else "node"

    @property
    def others(self) -> tuple[str, ...]:
        """The urls in `connect` without the own one, which is ignored there."""
        return tuple(url for url in self.connect if canonical(url) != canonical(self.url))

    @property
    def feed(self) -> bool:
        """Whether the service wants the nodes of its peers: a registry that is no provider."""
        return self.registry and not self.provider

    @property
    def host(self) -> str:
        """The host to listen on, lower-case, without the brackets of an IPv6 address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port to listen on; 0 until `with_port` says which one was free."""
        return urlsplit(self.url).port or 0

    @property
    def cache_path(self) -> Path:
        """Where the durable state is: `cache`, or `data/<host>_<port>.db` if there is none."""
        return self.cache or Path("data") / f"{self.host}_{self.port}.db"


def load_options(**kwargs: object) -> Options:
    """The options from kwargs, environment, YAML file and defaults, each beating the next.

    None for `organization`, `connect`, `loader`, `cache` and `log` means "not given". Raises `OptionError` for
    unknown kwargs and file keys and for bad values, all of them in one text, a line each; `LoaderError` for a
    YAML file that cannot be read, is no YAML, or has flows of the wrong form.
    """
    _refuse_unknown(kwargs, where="")
    given = _present(kwargs)
    try:
        return Options(**given)
    except ValidationError as error:
        raise _refusal(error, _origins(given)) from error


def check_options(**kwargs: object) -> None:
    """Refuse kwargs that no service can be started with. Neither the environment nor a file is read.

    Raises `OptionError` as `load_options` does.
    """
    _refuse_unknown(kwargs, where="")
    try:
        _Kwargs(**_present(kwargs))
    except ValidationError as error:
        raise _refusal(error, {}) from error


def with_port(options: Options, port: int) -> Options:
    """The same options with another port in the own url."""
    parts = urlsplit(options.url)
    url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}"))
    return options.model_copy(update={"url": url})


def misspelt(environment: Iterable[str]) -> Iterator[str]:
    """What is probably meant by names in the environment that look like an option and are none.

    Names that are near to none of them belong to somebody else.
    """
    for name in environment:
        option = name.lower().removeprefix(ENV_PREFIX.lower())
        if len(option) == len(name) or option in Options.model_fields:
            continue
        from difflib import get_close_matches  # noqa: PLC0415, where something is wrong

        for meant in get_close_matches(option, Options.model_fields, n=1):
            hint = f"did you mean {ENV_PREFIX}{meant.upper()}?"
            yield f"{name} in the environment is no option, and is ignored: {hint}"


class _Kwargs(Options):
    """Options of kwargs alone."""

    from_elsewhere = False


class _FileSource(PydanticBaseSettingsSource):
    """The options of the YAML file that `loader` names, whichever stronger source named it."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return _file_options(self.current_state.get("loader"))


def _file_options(loader: object) -> dict[str, Any]:
    if not is_file(loader):
        return {}
    options, _ = read_file(loader)
    _refuse_unknown(options, where=f" in {loader}")
    if options.get("loader") is not None:
        raise OptionError(f"loader in {loader}: expected none, as the file is the loader; list its flows as 'flows'")
    return _present(options)


def _present(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None or name not in NONE_IS_ABSENT}


def _refuse_unknown(names: Iterable[str], *, where: str) -> None:
    known = list(Options.model_fields)
    otherwise = f"expected one of {', '.join(known)}"
    unknown = [name for name in names if name not in known]
    if unknown:
        lines = (f"unknown option {name!r}{where}: {suggestion(name, known, otherwise=otherwise)}" for name in unknown)
        raise OptionError("\n".join(lines))


def _refusal(error: ValidationError, origins: Mapping[str, str]) -> OptionError:
    return OptionError("\n".join(_line(fault, origins) for fault in error.errors()))


def _origins(given: Mapping[str, Any]) -> dict[str, str]:
    """How each option is called where it was set, for errors: the name alone is a kwarg or the default."""
    environment = {name.upper(): value for name, value in os.environ.items() if value}
    named = {name: f"{ENV_PREFIX}{name.upper()}" for name in Options.model_fields}
    loader = given.get("loader", environment.get(named["loader"]))
    in_file = {name: f"{name} (in {loader})" for name in _file_options(loader)}
    in_environment = {
        name: f"{name} ({variable} in the environment)" for name, variable in named.items() if variable in environment
    }
    return in_file | in_environment | {name: name for name in given}


def _line(fault: ErrorDetails, origins: Mapping[str, str]) -> str:
    names = fault["ctx"]["options"] if fault["type"] == "options" else (str(fault["loc"][0]),)
    called = ", ".join(origins.get(name, name) for name in names)
    entry = "".join(f", entry {part + 1}" for part in fault["loc"][1:] if isinstance(part, int))
    example = Options.model_fields[names[0]].examples or []
    said = expectation(fault)
    hint = "" if said.endswith("?") else f"; give for example {names[0]}={example[0]}"
    return f"{called}{entry}: {said}{hint}"


def _fault(expected: str, *options: str) -> PydanticCustomError:
    return PydanticCustomError("options", f"expected {expected}", {"options": options})
