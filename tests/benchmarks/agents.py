"""The reputation-style agent that the benchmarks measure: a Python handler for each frame."""

from spoakit import Action, Agent, DataType, IPAddress

agent = Agent("iprep")
ip_score = agent.variable("sess.ip_score", DataType.UINT32)


@agent.message("check-client-ip", event="on-client-session")
def check(src: IPAddress, /) -> Action:
    return ip_score.set(int(src) % 101)
