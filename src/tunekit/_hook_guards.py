"""What stands between pluggy and a plugin's hooks: a plugin that fails is reported once and passed over."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

from tunekit._registry import PluginRecord
from tunekit.errors import TunekitError
from tunekit.plugins.protocols import Finding

__all__ = ["Guards"]

log = logging.getLogger("tunekit")


class Guards:
    """Wraps hook implementations so that their failures stay their own. One for a session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reported: set[tuple[str, str]] = set()

    def guarded(
        self, record: PluginRecord, hook: str, function: Callable[..., Any], opts: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """What pluggy is given in the place of an implementation.

        Args:
            record: the plugin.
            hook: name of the hook.
            function: what implements it.
            opts: the options of its mark.
        """
        wraps = opts.get("wrapper") or opts.get("hookwrapper")
        made = (self._around_wrapper if wraps else self._around)(record, hook, function)
        return _marked(made, {**opts, "specname": hook})

    def _around(self, record: PluginRecord, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The implementation, wrapped so that its failure stays its own. Steps are not guarded: their errors are the
        run's."""
        if hook == "tunekit_run_step":
            return _plain(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            try:
                answer = function(*arguments)
                return _findings(answer) if hook == "tunekit_check_plan" else answer
            except TunekitError:
                if hook == "tunekit_event":
                    self._report(record, hook)
                    return None
                if hook == "tunekit_check_plan":
                    return [self._failed(record, hook)]
                raise
            except (Exception, SystemExit):  # noqa: BLE001  (sys.exit in a plugin must not end the host)
                self._report(record, hook)
                return [self._failed(record, hook)] if hook == "tunekit_check_plan" else None

        return call

    def _around_wrapper(self, record: PluginRecord, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A wrapper that fails is as good as not there: what it wraps counts."""
        if hook == "tunekit_run_step":
            return function

        def findings(answers: Any) -> Any:
            return [_findings(answer) for answer in answers] if hook == "tunekit_check_plan" else answers

        @functools.wraps(function)
        def wrap(*arguments: Any) -> Generator[None, Any, Any]:
            wrapper = function(*arguments)
            try:
                next(wrapper)
            except (Exception, SystemExit):  # noqa: BLE001
                self._report(record, hook)
                return (yield)
            answer, inner = None, None
            try:
                try:
                    answer = yield
                except BaseException as error:  # noqa: BLE001  (handed to the wrapper, which raises it again)
                    inner = error
                    wrapper.throw(error)
                else:
                    wrapper.send(answer)
                raise RuntimeError("the wrapper yields twice")
            except StopIteration as stop:
                result = stop.value
            except (Exception, SystemExit):
                if inner is not None:
                    raise
                self._report(record, hook)
                return answer
            try:
                # The old kind of wrapper returns nothing; it changes the outcome that it was given.
                return findings(result) if isinstance(answer, list) else result
            except Exception:  # noqa: BLE001
                self._report(record, hook)
                return answer

        return wrap

    def _report(self, record: PluginRecord, hook: str) -> None:
        key = (f"{record.provider}:{record.name}", hook)
        with self._lock:
            if key in self._reported:
                return
            self._reported.add(key)
        log.exception("plugin %s failed in %s; it is passed over (reported once)", record.label, hook)

    def _failed(self, record: PluginRecord, hook: str) -> Finding:
        error = sys.exc_info()[1]
        return Finding(
            level="warning",
            step=None,
            code="plugin-failed",
            message=f"Plugin {record.label} failed in {hook}: {type(error).__name__}: {error}.",
            fix=f"update or remove {record.provider}, or set TUNEKIT_DISABLE_PLUGINS={record.provider}",
        )


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function around ``function``: pluggy releases differ in how they bind methods of instances."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def _marked(function: Callable[..., Any], opts: dict[str, Any]) -> Callable[..., Any]:
    if not inspect.isfunction(function):  # a bound method that wraps a hook: pluggy must see a generator function
        bound = function

        @functools.wraps(bound)
        def generator(*arguments: Any) -> Any:
            return (yield from bound(*arguments))

        function = generator
    function.__dict__["tunekit_impl"] = opts
    return function


def _findings(answer: Any) -> list[Finding]:
    found = list(answer or ())
    for item in found:
        if not isinstance(item, Finding):
            raise TypeError(f"returned {item!r}, which is no Finding")
    return found
