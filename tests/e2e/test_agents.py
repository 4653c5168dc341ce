"""Agents of all kinds, served by `spoakit run`, at work in a real HAProxy."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.haproxy_configuration import haproxy_cfg, show, spoe_cfg
from tests.support.programs import Serve, ask, connect, get
from tests.support.waiting import TIMEOUT

REQUEST = """
spoe-message request
    args {}
    event on-frontend-http-request
"""
ECHO = """
from spoakit import Action, Agent

tested = Agent("tested")
echo = tested.variable("txn.echo", str)

@tested.message("request")
def request(path: str) -> Action:
    return echo.set(path.upper())
"""
ECHO_CFG = spoe_cfg(REQUEST.format("path=path"), messages="request")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_agent_is_reached_over_ipv4_and_ipv6(
    serve: Serve, haproxy: StartHAProxy, address: str
) -> None:
    program = serve(ECHO, "-a", address)
    running = haproxy(
        haproxy_cfg(*show(x_echo="var(txn.tested.echo)")),
        files={"spoe.cfg": ECHO_CFG},
        variables={"AGENT": program.address},
    )
    assert get(running, "/over/ip")["x-echo"] == "/OVER/IP"


def test_an_agent_is_reached_over_a_unix_socket(
    serve: Serve, haproxy: StartHAProxy, tmp_path: Path
) -> None:
    serve(ECHO, "--unix", "agent.sock")
    running = haproxy(
        haproxy_cfg(*show(x_echo="var(txn.tested.echo)")),
        files={"spoe.cfg": ECHO_CFG},
        variables={"AGENT": f"unix@{tmp_path / 'agent.sock'}"},
    )
    assert get(running, "/over/unix")["x-echo"] == "/OVER/UNIX"


TWO = """
from spoakit import Action, Agent

first = Agent("first")
second = Agent("second", var_prefix="second")
seen = first.variable("txn.seen", str)
also_seen = second.variable("txn.seen", str)

@first.message("by-path")
def by_path(path: str) -> Action:
    return seen.set(f"first {path}")

@second.message("by-method")
def by_method(method: str) -> Action:
    return also_seen.set(f"second {method}")
"""


def test_two_agents_on_one_port_keep_to_their_own_variables(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(TWO, agents=("first", "second"))
    event = "    event on-frontend-http-request\n"
    running = haproxy(
        haproxy_cfg(
            *show(x_first="var(txn.first.seen)", x_second="var(txn.second.seen)"),
            agents=("first", "second"),
        ),
        files={
            "spoe.cfg": spoe_cfg(
                f"spoe-message by-path\n    args path\n{event}", messages="by-path", agent="first"
            )
            + spoe_cfg(
                f"spoe-message by-method\n    args method\n{event}",
                messages="by-method",
                agent="second",
            )
        },
        variables={"AGENT": program.address},
    )
    answer = get(running, "/here")
    assert (answer["x-first"], answer["x-second"]) == ("first /here", "second GET")


ARGUMENTS = """
from ipaddress import IPv4Address, IPv6Address
from spoakit import Actions, Agent, Headers, IPAddress, Message

tested = Agent("tested")
wire = tested.variable("txn.wire", str)
seen = tested.variable("txn.seen", str)

@tested.message("request")
def request(
    src: IPAddress, /, yes: bool, no: bool, number: int, ipv4: IPv4Address, ipv6: IPv6Address,
    text: str, raw: bytes, utf8: str, latin1: bytes, null: str | None, absent: int | None,
    headers: Headers, more: Headers, message: Message, default: str = "default",
) -> Actions:
    values = (
        src, yes, no, number, ipv4, ipv6, text, raw, utf8, latin1, null, absent,
        headers.getall("x-twice"), more.getall("x-twice"), default,
    )
    return [
        wire.set(" ".join(argument.type.name for argument in message.arguments)),
        seen.set(ascii(values)),
    ]
"""


def test_arguments_of_every_type_arrive_as_what_the_handler_asks_for(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(ARGUMENTS)
    arguments = (
        "src yes=bool(true) no=bool(false) number=int(-42) ipv4=ipv4(192.0.2.1) "
        "ipv6=ipv6(2001:db8::1) text=str(hello) raw=bin(00ff80) utf8=req.hdr(x-utf8) "
        "latin1=req.hdr(x-latin1) null=var(txn.never_set) headers=req.hdrs_bin more=req.hdrs"
    )
    running = haproxy(
        haproxy_cfg(*show(x_wire="var(txn.tested.wire)", x_seen="var(txn.tested.seen)")),
        files={"spoe.cfg": spoe_cfg(REQUEST.format(arguments), messages="request")},
        variables={"AGENT": program.address},
    )
    with closing(connect(running)) as client:
        client.putrequest("GET", "/")
        for name, value in (
            ("x-utf8", "é".encode()),
            ("x-latin1", b"\xe9"),
            ("x-twice", b"one"),
            ("X-Twice", b"two"),
        ):
            client.putheader(name, value)
        client.endheaders()
        with client.getresponse() as answer:
            assert answer.headers["x-wire"] == (
                "IPV4 BOOL BOOL INT64 IPV4 IPV6 STRING BINARY STRING STRING NULL BINARY STRING"
            )
            assert answer.headers["x-seen"] == (
                "(IPv4Address('127.0.0.1'), True, False, -42, IPv4Address('192.0.2.1'), "
                r"IPv6Address('2001:db8::1'), 'hello', b'\x00\xff\x80', '\xe9', b'\xe9', "
                "None, None, ['one', 'two'], ['one', 'two'], 'default')"
            )


VARIABLES = """
from ipaddress import IPv4Address, IPv6Address
from spoakit import Action, Actions, Agent, DataType, IPAddress

tested = Agent("tested")
yes = tested.variable("txn.yes", bool)
no = tested.variable("txn.no", bool)
int32 = tested.variable("txn.int32", DataType.INT32)
uint32 = tested.variable("txn.uint32", DataType.UINT32)
int64 = tested.variable("txn.int64", int)
uint64 = tested.variable("txn.uint64", DataType.UINT64)
ipv4 = tested.variable("txn.ipv4", IPv4Address)
ipv6 = tested.variable("txn.ipv6", IPv6Address)
either = tested.variable("txn.either", IPAddress)
text = tested.variable("txn.text", str)
raw = tested.variable("txn.raw", bytes)
gone = tested.variable("txn.gone", str)

@tested.message("request")
def request() -> Actions:
    return (
        yes.set(True), no.set(False), int32.set(-(2**31)), uint32.set(2**32 - 1),
        int64.set(-(2**63)), uint64.set(2**63 - 1), ipv4.set(IPv4Address("192.0.2.1")),
        ipv6.set(IPv6Address("2001:db8::1")), either.set(IPv6Address("2001:db8::2")),
        text.set("text"), raw.set(bytes((0, 255, 128))), gone.set("here"), gone.set(None),
    )
"""


def test_variables_of_every_type_have_their_values_in_haproxy(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(VARIABLES)
    expected = {
        "yes": "1",
        "no": "0",
        "int32": str(-(2**31)),
        "uint32": str(2**32 - 1),
        "int64": str(-(2**63)),
        "uint64": str(2**63 - 1),
        "ipv4": "192.0.2.1",
        "ipv6": "2001:db8::1",
        "either": "2001:db8::2",
        "text": "text",
        "raw": "00FF80",
        "gone": "",
        # By type, and not only by what they look like:
        "sum": str(2**32),
        "masked": "192.0.2.0",
    }
    expressions = {name: f"var(txn.tested.{name})" for name in expected}
    expressions["raw"] += ",hex"
    expressions["sum"] = "var(txn.tested.uint32),add(1)"
    expressions["masked"] = "var(txn.tested.ipv4),ipmask(24)"
    running = haproxy(
        haproxy_cfg(*show(**{f"x_{name}": value for name, value in expressions.items()})),
        files={"spoe.cfg": spoe_cfg(REQUEST.format(""), messages="request")},
        variables={"AGENT": program.address},
    )
    answer = get(running)
    assert {name: answer[f"x-{name}"] for name in expected} == expected


SCOPES = """
from spoakit import Actions, Agent

tested = Agent("tested")
proc = tested.variable("proc.value", str)
sess = tested.variable("sess.value", str)
txn = tested.variable("txn.value", str)
req = tested.variable("req.value", str)
res = tested.variable("res.value", str)

@tested.message("request")
def request(path: str) -> Actions:
    if path == "/set":
        return proc.set("proc"), sess.set("sess"), txn.set("txn"), req.set("req")

@tested.message("response")
def response(status: int) -> Actions:
    return res.set(f"res {status}")
"""
SCOPES_CFG = """
spoe-message request
    args path=path
    event on-frontend-http-request
spoe-message response
    args status=status
    event on-http-response
"""


def test_a_variable_lives_as_long_as_its_scope(serve: Serve, haproxy: StartHAProxy) -> None:
    program = serve(SCOPES)
    scopes = ("proc", "sess", "txn", "req", "res")
    rules = show(**{f"x_{scope}": f"var({scope}.tested.value)" for scope in scopes})
    running = haproxy(
        haproxy_cfg(
            "http-request set-var(txn.req_in_request) var(req.tested.value)",
            *show(x_req_in_request="var(txn.req_in_request)"),
            *rules,
        ),
        files={"spoe.cfg": spoe_cfg(SCOPES_CFG, messages="request response")},
        variables={"AGENT": program.address},
    )

    def shown(answer: Mapping[str, str]) -> list[str]:
        return [answer[f"x-{scope}"] for scope in scopes]

    with closing(connect(running)) as client:
        assert shown(ask(client, "/")) == ["", "", "", "", "res 200"]
        answer = ask(client, "/set")
        assert answer["x-req-in-request"] == "req"
        assert shown(answer) == ["proc", "sess", "txn", "", "res 200"]
        assert shown(ask(client, "/")) == ["proc", "sess", "", "", "res 200"]
    assert shown(get(running)) == ["proc", "", "", "", "res 200"]


SEVERAL = """
from spoakit import Action, Agent, PerFrame

tested = Agent("tested")
one = tested.variable("txn.one", str)
two = tested.variable("txn.two", str)
ruled = tested.variable("txn.ruled", str)

class Notes(list[str]):
    pass

@tested.message("first")
def first(path: str, notes: PerFrame[Notes]) -> Action:
    notes.append(f"saw {path}")
    return one.set("set by first")

@tested.message("second")
def second(one: str | None, notes: PerFrame[Notes]) -> Action:
    return two.set(f"{one}, {notes}")

@tested.message("by-rule")
def by_rule(one: str | None, notes: PerFrame[Notes]) -> Action:
    return ruled.set(f"{one}, {notes}")
"""
SEVERAL_CFG = """
spoe-message first
    args path=path
    event on-frontend-http-request
spoe-message second
    args one=var(txn.tested.one)
    event on-frontend-http-request
spoe-message by-rule
    args one=var(txn.tested.one)
spoe-group group
    messages by-rule
"""


def test_messages_of_an_event_share_a_frame_and_see_no_variables_of_it(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(SEVERAL)
    running = haproxy(
        haproxy_cfg(
            "http-request send-spoe-group tested group",
            *show(x_two="var(txn.tested.two)", x_ruled="var(txn.tested.ruled)"),
        ),
        files={"spoe.cfg": spoe_cfg(SEVERAL_CFG, messages="first second", groups="group")},
        variables={"AGENT": program.address},
    )
    answer = get(running, "/path")
    # HAProxy evaluates all arguments of a NOTIFY before it sends it; a rule sends its own.
    assert answer["x-two"] == "None, ['saw /path']"
    assert answer["x-ruled"] == "set by first, []"


TOGETHER = """
import asyncio
from collections.abc import AsyncIterator
from spoakit import Action, Agent, Context

tested = Agent("tested")
peer = tested.variable("txn.peer", str)

@tested.resource
async def barrier() -> AsyncIterator[asyncio.Barrier]:
    yield asyncio.Barrier(8)

@tested.message("request", timeout=5)
async def request(path: str, barrier: asyncio.Barrier, context: Context) -> Action:
    if path == "/together":
        await barrier.wait()
    return peer.set(context.peer)
"""


def test_frames_of_one_connection_are_handled_at_the_same_time(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(TOGETHER)
    running = haproxy(
        haproxy_cfg(*show(x_peer="var(txn.tested.peer)")),
        files={"spoe.cfg": spoe_cfg(REQUEST.format("path=path"), messages="request")},
        variables={"AGENT": program.address},
    )
    assert get(running, "/alone")["x-peer"]  # so that there is a connection to share
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: get(running, "/together")["x-peer"], range(8)))
    # None of them is answered before the last of them has come.
    assert all(answers)
    assert len(set(answers)) < 8


LATE = """
import asyncio
import time
from spoakit import Action, Agent

tested = Agent("tested")
allowed = tested.variable("txn.allowed", str)

@tested.message("late", timeout=0.05, fallback=allowed.set("late"))
async def late() -> Action:
    await asyncio.sleep(30)
    return allowed.set("never")

@tested.message("blocking", threaded=True, timeout=0.05, fallback=allowed.set("blocking"))
def blocking() -> Action:
    time.sleep(30)
    return allowed.set("never")

@tested.message("failing", fallback=allowed.set("failing"))
def failing() -> Action:
    raise LookupError("no such thing")

@tested.message("mismatching", fallback=allowed.set("mismatching"))
def mismatching(path: int) -> Action:
    return allowed.set("never")
"""
LATE_CFG = "".join(
    f"""
spoe-message {name}
    args path=path
    event on-frontend-http-request if {{ path /{name} }}
"""
    for name in ("late", "blocking", "failing", "mismatching")
)


def test_the_fallback_is_answered_where_a_handler_cannot(
    serve: Serve, haproxy: StartHAProxy
) -> None:
    program = serve(LATE)
    running = haproxy(
        haproxy_cfg(*show(x_allowed="var(txn.tested.allowed)", x_error="var(txn.tested.error)")),
        files={"spoe.cfg": spoe_cfg(LATE_CFG, messages="late blocking failing mismatching")},
        variables={"AGENT": program.address},
    )
    for name in ("late", "blocking", "failing", "mismatching"):
        before = monotonic()
        answer = get(running, f"/{name}")
        assert (answer["x-allowed"], answer["x-error"]) == (name, "")
        assert monotonic() - before < TIMEOUT
    program.wait_for("LookupError: no such thing")
    program.wait_for("argument 'path' must be INT32 or UINT32 or INT64 or UINT64, got STRING")
