"""``[platform]`` of the configuration: which driver starts instances, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.adapters.http.origin import parse_origin
from cloister.adapters.logs import EventLog
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MIB
from cloister.control.gateway.clusters import make_knative, make_kubernetes, read_knative, read_kubernetes
from cloister.control.gateway.section import Section, malformed
from cloister.platforms.knative.settings import KnativeSettings
from cloister.platforms.kubernetes.settings import KubernetesSettings
from cloister.platforms.local import LocalPlatform
from cloister.platforms.openwhisk.settings import NAME, OpenWhiskSettings
from cloister.platforms.port import Platform
from cloister.platforms.static.settings import MAX_ADDRESSES, StaticSettings

PLATFORMS: Final = ("local", "openwhisk", "static", "kubernetes", "knative")
ON_EXIT: Final = ("stop", "leave")


@dataclass(frozen=True, slots=True)
class PlatformSettings:
    """``[platform]``: how instances are started. ``command`` is for ``local``; the others have a table of their own.

    :param auth_file: where the key of OpenWhisk's namespace is read from when the driver is made.
    :param manifest: where the Service of ``knative`` is read from then.
    """

    kind: str
    command: tuple[str, ...]
    start_timeout_s: float
    stop_grace_s: float
    on_exit: str
    openwhisk: OpenWhiskSettings | None = None
    static: StaticSettings | None = None
    auth_file: str = ""
    kubernetes: KubernetesSettings | None = None
    knative: KnativeSettings | None = None
    manifest: str = ""


def read_platform(at: Section) -> PlatformSettings:
    """:raises InvalidInput: ``configuration-malformed``."""
    kind = at.choice("kind", PLATFORMS, default="local")
    command = at.texts("command")
    if kind == "local" and not command:
        raise malformed("platform.command", "is missing: the command line that starts one runtime")
    start_timeout_s = at.number("start_timeout_s", 60.0, 0.1, 3600)
    stop_grace_s = at.number("stop_grace_s", 20.0, 0, 3600)
    on_exit = at.choice("on_exit", ON_EXIT, default="stop")
    settings = PlatformSettings(kind, command, start_timeout_s, stop_grace_s, on_exit)
    tables = {name: at.section(name) for name in PLATFORMS[1:]}
    match kind:
        case "openwhisk":
            openwhisk, auth_file = _openwhisk(tables[kind], start_timeout_s, stop_grace_s)
            settings = replace(settings, openwhisk=openwhisk, auth_file=auth_file)
        case "kubernetes":
            settings = replace(settings, kubernetes=read_kubernetes(tables[kind], start_timeout_s, stop_grace_s))
        case "knative":
            knative, manifest = read_knative(tables[kind], start_timeout_s, stop_grace_s)
            settings = replace(settings, knative=knative, manifest=manifest)
        case "static":
            settings = replace(settings, static=_static(tables[kind]))
        case _:
            pass
    for table in tables.values():
        table.done()
    at.done()
    return settings


def _static(at: Section) -> StaticSettings:
    addresses = at.texts("addresses")
    if not addresses:
        raise malformed("platform.static.addresses", "is missing: where the runtimes are")
    if len(addresses) > MAX_ADDRESSES:
        raise malformed("platform.static.addresses", f"has more than {MAX_ADDRESSES} entries")
    for address in addresses:
        try:
            parse_origin(address)
        except InvalidInput as error:
            raise malformed("platform.static.addresses", error.message, hint=error.hint) from error
    return StaticSettings(
        addresses=tuple(dict.fromkeys(addresses)),
        poll_s=at.number("poll_s", 1.0, 0.05, 3600),
        failures=at.integer("failures", 3, 1, 1000),
        scaled=at.flag("scaled", default=False),
    )


def _openwhisk(at: Section, start_timeout_s: float, stop_grace_s: float) -> tuple[OpenWhiskSettings, str]:
    parameters = at.section("parameters")
    given = {name: parameters.text(name, default="") for name in parameters.names()}
    settings = OpenWhiskSettings(
        api=_needed(at, "api"),
        auth="",
        image=_needed(at, "image"),
        deployment=at.text("deployment", default="cloister"),
        namespace=at.text("namespace", default="_"),
        parameters=given,
        memory_mb=at.integer("memory_mb", 512, 1, 1 << 20),
        timeout_s=at.number("timeout_s", 60.0, 0.1, 3600),
        logs_mb=at.integer("logs_mb", 10, 0, 1 << 20),
        concurrency=at.integer("concurrency", 1, 1, 1024),
        payloads=at.text("payloads", default=""),
        carries=int(at.number("carries_mb", 1.0, 0.01, 1024) * MIB),
        ca=at.text("ca_file", default=""),
        start_timeout_s=start_timeout_s,
        stop_grace_s=stop_grace_s,
        poll_s=at.number("poll_s", 10.0, 0.01, 3600),
    )
    try:
        parse_origin(settings.api)
    except InvalidInput as error:
        raise malformed("platform.openwhisk.api", "is no address", hint="Write https://host.") from error
    for name in ("deployment", "namespace"):
        if NAME.fullmatch(getattr(settings, name)) is None or len(getattr(settings, name)) > 64:
            raise malformed(f"platform.openwhisk.{name}", "is no name of at most 64 letters, digits and ._-")
    return settings, _needed(at, "auth_file")


def _needed(at: Section, name: str) -> str:
    value = at.text(name, default="")
    if not value:
        raise malformed(f"platform.openwhisk.{name}", "is missing")
    return value


def make_platform(settings: PlatformSettings, state: Path, log: EventLog) -> Platform:
    """The driver, not opened yet.

    :param state: of this gateway alone.
    :raises InvalidInput: ``auth-file-unreadable``, ``tls-certificate``, ``payload-url-malformed``;
        ``knative-manifest``, ``kubernetes-missing``. :raises Unavailable: ``state-unavailable``.
    """
    if settings.openwhisk is not None:
        return _make_openwhisk(settings.openwhisk, settings.auth_file, state, log)
    if settings.static is not None:
        return _make_static(settings, settings.static, state, log)
    if settings.kubernetes is not None:
        _make_folder(state)
        return make_kubernetes(settings.kubernetes, log)
    if settings.knative is not None:
        _make_folder(state)
        return make_knative(settings.knative, settings.manifest, log)
    return LocalPlatform(
        state, settings.command, start_timeout_s=settings.start_timeout_s, stop_grace_s=settings.stop_grace_s
    )


def _make_static(settings: PlatformSettings, static: StaticSettings, state: Path, log: EventLog) -> Platform:
    from cloister.platforms.static.driver import StaticPlatform

    grace = settings.stop_grace_s
    return StaticPlatform(state, static, log, start_timeout_s=settings.start_timeout_s, stop_grace_s=grace)


def _make_openwhisk(settings: OpenWhiskSettings, auth_file: str, state: Path, log: EventLog) -> Platform:
    from cloister.platforms.openwhisk.driver import OpenWhiskPlatform

    _make_folder(state)
    try:
        auth = Path(auth_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise _unreadable(auth_file) from error
    if auth.count(":") != 1 or not auth.isprintable():
        raise _unreadable(auth_file)
    return OpenWhiskPlatform(replace(settings, auth=auth), log)


def _make_folder(state: Path) -> None:
    """Where nothing but the gateway's address is written: instances are recorded by the platform."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable("state-unavailable", f"cannot use {state}: {error.strerror}") from error


def _unreadable(file: str) -> CloisterError:
    return InvalidInput(
        "auth-file-unreadable",
        f"{file} does not hold an OpenWhisk key",
        hint="It is one line, uuid:key: the AUTH of ~/.wskprops, or what `wsk property get --auth` prints.",
    )
