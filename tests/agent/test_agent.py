import functools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from spoakit import Action, Actions, Agent, DataType, Fetch, IPAddress, PerFrame
from spoakit.agent.handlers import HandlerKind, Trigger
from spoakit.exceptions import RegistrationError


@pytest.fixture
def agent() -> Agent:
    return Agent("ip-rep")


def nothing(src: IPAddress) -> None: ...
def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*values: Any) -> Any:
        return function(*values)

    return wrapper


async def later(src: IPAddress) -> None: ...
def generator(src: IPAddress) -> Iterator[None]:
    yield


async def async_generator(src: IPAddress) -> AsyncIterator[None]:
    yield


class Redis:
    pass


# --- names -----------------------------------------------------------------------------


def test_the_prefix_is_the_name_with_underscores_unless_it_is_given() -> None:
    assert Agent("ip-rep").var_prefix == "ip_rep"
    assert Agent("ip-rep", var_prefix="my.iprep").var_prefix == "my.iprep"


@pytest.mark.parametrize("name", ["", "a b", "é", "a/b"])
def test_a_name_that_haproxy_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="a name must consist of letters"):
        Agent(name)


@pytest.mark.parametrize(("name", "prefix"), [("a:b", None), ("a", ""), ("a", "b-c")])
def test_a_prefix_that_haproxy_does_not_take_is_refused(name: str, prefix: str | None) -> None:
    with pytest.raises(RegistrationError, match="var_prefix"):
        Agent(name, var_prefix=prefix)


@pytest.mark.parametrize("name", ["", "a b", "é", "a/b"])
def test_a_message_that_haproxy_could_not_declare_is_refused(agent: Agent, name: str) -> None:
    for register in (agent.message, agent.observe):
        with pytest.raises(RegistrationError, match="a name must consist of letters"):
            register(name)


def test_a_decorator_without_the_messages_name_is_told_what_it_lacks(agent: Agent) -> None:
    def handle() -> None: ...

    register: list[Any] = [agent.message, agent.observe]
    for decorate in register:
        with pytest.raises(RegistrationError, match=r'handle: .*: @agent\.message\("name"\)'):
            decorate(handle)


# --- handlers --------------------------------------------------------------------------


def test_a_handler_is_still_a_function(agent: Agent) -> None:
    score = agent.variable("sess.ip_score", DataType.UINT32)

    @agent.message("check-client-ip")
    def check(src: IPAddress, /) -> Action:
        return score.set(int(src) % 256)

    assert check(IPv4Address("192.0.2.42")) == score.set(42)


@pytest.mark.parametrize(
    ("function", "options", "kind"),
    [
        (nothing, {}, HandlerKind.INLINE),
        (nothing, {"threaded": True}, HandlerKind.THREADED),
        (nothing, {"threaded": True, "timeout": 0.1}, HandlerKind.THREADED),
        (later, {}, HandlerKind.ASYNC),
        (later, {"timeout": 0.1}, HandlerKind.ASYNC),
    ],
)
def test_the_kind_of_a_handler_follows_its_function(
    agent: Agent, function: Callable[..., Any], options: Any, kind: HandlerKind
) -> None:
    message: Any = agent.message
    message("check", **options)(function)
    (handler,) = agent.handlers
    assert (handler.kind, handler.timeout) == (kind, options.get("timeout"))
    assert handler.name == f"{__name__}.{function.__name__}"


@pytest.mark.parametrize("max_delay", [-1, math.inf, math.nan])
def test_calls_of_observers_wait_for_a_time_only(agent: Agent, max_delay: float) -> None:
    with pytest.raises(RegistrationError, match=r"'check': max_delay must be 0 to 86400 seconds"):
        agent.observe("check", max_delay=max_delay)


def test_an_observer_is_a_handler_of_its_own_kind(agent: Agent) -> None:
    agent.observe("check", event="on-http-response")(nothing)
    (handler,) = agent.handlers
    assert handler.kind is HandlerKind.OBSERVER
    assert handler.trigger == Trigger("on-http-response")


def test_what_is_said_about_sending_is_kept(agent: Agent) -> None:
    agent.message("a", event="on-client-session", condition="unless { src 192.0.2.0/24 }")(nothing)
    agent.message("b", group="checks")(nothing)
    assert [handler.trigger for handler in agent.handlers] == [
        Trigger("on-client-session", "unless { src 192.0.2.0/24 }"),
        Trigger(group="checks"),
    ]


def test_an_inline_handler_has_no_timeout(agent: Agent) -> None:
    register: Any = agent.message("check", timeout=0.1)
    with pytest.raises(RegistrationError, match=r"nothing: a def on the event loop cannot be"):
        register(nothing)


@pytest.mark.parametrize(
    "timeout", [0, -1, float("nan"), float("inf"), 10**400, 86401, "1s", True, []]
)
def test_a_timeout_is_a_time(agent: Agent, timeout: float) -> None:
    with pytest.raises(RegistrationError, match="timeout must be greater than 0 and at most 86400"):
        agent.message("check", timeout=timeout)


@pytest.mark.parametrize(
    ("function", "options", "why"),
    [
        (later, {"threaded": True}, "later: an async def cannot be threaded"),
        (generator, {}, "generator: a handler must return actions, not yield"),
        (async_generator, {}, "a handler must return actions, not yield"),
        (Redis, {}, "Redis.* is not a function"),
        (functools.partial(nothing), {}, "is not a function; write a def or async def"),
        (functools.partialmethod(nothing), {}, "is not a function; write a def or async def"),
        (classmethod(wrapped(nothing)), {}, "is not a function; write a def or async def"),
        (wrapped(later), {}, "later: a def wraps an async def, .* make the wrapper an async def"),
    ],
)
def test_what_is_no_handler_is_refused(
    agent: Agent, function: Callable[..., Any], options: Any, why: str
) -> None:
    message: Any = agent.message
    with pytest.raises(RegistrationError, match=why):
        message("check", **options)(function)


def test_a_def_in_a_thread_may_run_the_async_def_that_it_wraps(agent: Agent) -> None:
    agent.message("check", threaded=True)(wrapped(later))
    assert agent.handlers[0].kind is HandlerKind.THREADED


def test_a_static_method_is_a_handler(agent: Agent) -> None:
    agent.message("check")(staticmethod(nothing))
    assert agent.handlers[0].kind is HandlerKind.INLINE


def test_decorators_say_how_they_are_written(agent: Agent) -> None:
    message: Any = agent.message
    with pytest.raises(RegistrationError, match=r'@agent\.message\("name"\)'):
        message(nothing)
    resource: Any = agent.resource
    with pytest.raises(RegistrationError, match=r"write @agent\.resource without parentheses"):
        resource()


@pytest.mark.parametrize(
    "options",
    [
        {"event": []},
        {"group": 5},
        {"event": "on-client-session", "condition": 5},
        {"fallback": 5},
        {"fallback": [[]]},
    ],
)
def test_options_of_odd_types_are_registration_errors(agent: Agent, options: Any) -> None:
    with pytest.raises(RegistrationError, match="message 'check': "):
        agent.message("check", **options)


@pytest.mark.parametrize("name", [5, None, b"x", []])
def test_names_that_are_not_texts_are_registration_errors(agent: Agent, name: Any) -> None:
    for declare in (Agent, agent.message, agent.observe, lambda it: agent.variable(it, int)):
        with pytest.raises(RegistrationError):
            declare(name)


@pytest.mark.parametrize("function", [later, generator, wrapped(later), Redis])
def test_what_is_no_observer_is_refused(agent: Agent, function: Callable[..., Any]) -> None:
    with pytest.raises(RegistrationError):
        agent.observe("check")(function)
    assert agent.handlers == ()


def test_a_message_has_one_handler_and_any_number_of_observers(agent: Agent) -> None:
    agent.observe("check")(nothing)
    agent.message("check")(later)
    agent.observe("check")(nothing)
    with pytest.raises(
        RegistrationError, match=r"message 'check' already has a handler, .*\.later"
    ):
        agent.message("check")(nothing)
    assert agent.messages == {"check"}
    assert repr(agent) == "<Agent ip-rep: check>"


def test_handlers_of_one_message_agree_on_when_it_is_sent(agent: Agent) -> None:
    agent.message("check", event="on-client-session")(nothing)
    agent.observe("check")(nothing)
    agent.observe("check", event="on-client-session")(nothing)
    with pytest.raises(RegistrationError, match="another event"):
        agent.observe("check", event="on-http-response")(nothing)


# --- fallbacks -------------------------------------------------------------------------


def test_a_fallback_is_kept_as_a_tuple(agent: Agent) -> None:
    action = agent.variable("txn.ok", bool).set(False)
    fallbacks: list[Actions] = [None, action, [action], (action, action)]
    for index, fallback in enumerate(fallbacks):
        agent.message(f"m{index}", fallback=fallback)(nothing)
    assert [handler.fallback for handler in agent.handlers] == [
        (),
        (action,),
        (action,),
        (action, action),
    ]


@pytest.mark.parametrize("fallback", [False, {"txn.ok": False}, ["txn.ok"], nothing])
def test_a_fallback_of_anything_but_actions_is_refused(agent: Agent, fallback: Any) -> None:
    with pytest.raises(RegistrationError, match="must consist of actions"):
        agent.message("check", fallback=fallback)


def test_a_fallback_of_another_agents_variable_is_refused(agent: Agent) -> None:
    action = Agent("other").variable("txn.ok", bool).set(False)
    with pytest.raises(RegistrationError, match="agent 'ip-rep' does not declare"):
        agent.message("check", fallback=action)


# --- at start --------------------------------------------------------------------------


def test_a_resource_may_be_registered_after_the_handler(agent: Agent) -> None:
    @agent.message("check")
    def check(redis: Redis) -> None: ...

    @agent.resource
    async def redis() -> AsyncIterator[Redis]:
        yield Redis()

    (handler,) = agent.prepare()
    assert handler.function is check
    assert [resource.type for resource in agent.resources] == [Redis]


def test_a_parameter_of_no_resources_type_is_refused_at_the_start(agent: Agent) -> None:
    @agent.message("check")
    def check(value: float) -> None: ...

    with pytest.raises(
        RegistrationError, match=r"check: parameter 'value': .*'float'>; allowed are int, bool"
    ):
        agent.prepare()


def test_a_frames_state_is_no_resource(agent: Agent) -> None:
    @agent.message("check")
    def check(state: PerFrame[Redis]) -> None: ...

    assert len(agent.prepare()) == 1


def test_the_first_middleware_is_outermost_and_learns_the_messages_name() -> None:
    calls: list[str] = []

    def tracing(label: str) -> Callable[[Callable[..., Any], str], Callable[..., Any]]:
        def middleware(handler: Callable[..., Any], name: str) -> Callable[..., Any]:
            def traced(*args: Any) -> Any:
                calls.append(f"{label} {name}")
                return handler(*args)

            return traced

        return middleware

    agent = Agent("ip-rep", middleware=[tracing("outer"), tracing("inner")])
    agent.message("check")(nothing)
    agent.observe("see")(nothing)
    for handler in agent.prepare():
        handler.function(IPv4Address("192.0.2.1"))
    assert calls == ["outer check", "inner check", "outer see", "inner see"]
    assert agent.handlers[0].function is nothing


def test_middleware_that_returns_no_function_is_refused() -> None:
    def forgetful(handler: Callable[..., Any], name: str) -> Any:
        return None

    agent = Agent("ip-rep", middleware=[forgetful])
    agent.message("check")(nothing)
    with pytest.raises(
        RegistrationError,
        match=r"nothing: middleware .*forgetful.* must return a function, got None",
    ):
        agent.prepare()


def test_middleware_that_makes_a_def_async_is_refused() -> None:
    def wrong(handler: Callable[..., Any], name: str) -> Callable[..., Any]:
        async def wrapped(*args: Any) -> Any:
            return handler(*args)

        return wrapped

    agent = Agent("ip-rep", middleware=[wrong])
    agent.message("check")(nothing)
    with pytest.raises(RegistrationError, match="its middleware returned an async def"):
        agent.prepare()


def test_middleware_is_callable() -> None:
    middleware: Any = [5]
    with pytest.raises(RegistrationError, match="agent 'a': middleware must be callable, got 5"):
        Agent("a", middleware=middleware)


@pytest.mark.parametrize("arguments", [(5,), (None,), (b"src",)])
def test_a_fetch_is_text(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(RegistrationError, match="must be a sample expression"):
        Fetch(*arguments)
    name: Any = 5
    with pytest.raises(RegistrationError, match="must not contain spaces"):
        Fetch("src", name=name)


def test_a_method_of_a_type_in_c_is_named(agent: Agent) -> None:
    method: Any = str.upper
    with pytest.raises(RegistrationError, match=r"builtins\.str\.upper"):
        agent.message("check")(method)


def test_a_handler_has_at_most_255_parameters(agent: Agent) -> None:
    names: dict[str, Any] = {}
    arguments = ", ".join(f"a{index}: int = 0" for index in range(256))
    exec(f"def many({arguments}) -> None: ...", names)
    with pytest.raises(RegistrationError, match="at most 255 parameters, got 256"):
        agent.message("check")(names["many"])


# --- reloads ---------------------------------------------------------------------------


def test_functions_for_reloads_are_kept_in_their_order(agent: Agent) -> None:
    def first() -> None: ...

    def second(optional: int = 1) -> None: ...

    assert agent.on_reload(first) is first
    agent.on_reload(second)
    assert agent.reloads == (first, second)


async def waits() -> None: ...


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (waits, "on_reload: the function must be a def"),
        (lambda a: None, "on_reload: missing a required argument: 'a'"),
        (7, "on_reload: 7 is not a callable object"),
    ],
)
def test_what_cannot_be_called_at_a_reload_is_refused(
    agent: Agent, function: Any, error: str
) -> None:
    with pytest.raises(RegistrationError, match=error):
        agent.on_reload(function)
