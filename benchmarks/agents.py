"""The agents that the benchmarks measure: a Python handler of each kind for each frame."""

import asyncio

from spoakit import Action, Agent, DataType, IPAddress, Variable


def make() -> tuple[Agent, Variable[int]]:
    """Return an agent that answers as the C example agent does, without its handler."""
    agent = Agent("iprep")
    return agent, agent.variable("sess.ip_score", DataType.UINT32)


agent, ip_score = make()


@agent.message("check-client-ip", event="on-client-session")
def check(src: IPAddress, /) -> Action:
    return ip_score.set(int(src) % 101)


never_waits, never_score = make()


@never_waits.message("check-client-ip")
async def check_at_once(src: IPAddress, /) -> Action:
    return never_score.set(int(src) % 101)


waits_once, once_score = make()


@waits_once.message("check-client-ip")
async def check_next_turn(src: IPAddress, /) -> Action:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[int] = loop.create_future()
    loop.call_soon(done.set_result, int(src) % 101)
    return once_score.set(await done)


threaded, threaded_score = make()


@threaded.message("check-client-ip", threaded=True)
def check_in_a_thread(src: IPAddress, /) -> Action:
    return threaded_score.set(int(src) % 101)


acknowledging = Agent("acknowledging")


@acknowledging.message("mirror")
def acknowledge() -> None:
    """Do nothing with what a mirror would copy."""
