"""The agent that record_streams.py is played against: `recorded_agent.py PORT`.

Its answer to the message ``arguments`` holds an action of every type; all others are ACKed.
"""

import sys
from ipaddress import IPv4Address, IPv6Address

from spoakit import Actions, Agent, DataType, run

recorded = Agent("recorded")
true = recorded.variable("proc.true", bool)
smallest = recorded.variable("sess.smallest", int)
largest = recorded.variable("txn.largest", DataType.UINT32)
ipv4 = recorded.variable("req.ipv4", IPv4Address)
ipv6 = recorded.variable("req.ipv6", IPv6Address)
text = recorded.variable("txn.str", str)
binary = recorded.variable("txn.bin", bytes)
gone = recorded.variable("txn.gone", str)


@recorded.message("arguments")
def arguments() -> Actions:
    return [
        true.set(True),
        smallest.set(-(1 << 63)),
        largest.set((1 << 32) - 1),
        ipv4.set(IPv4Address("192.0.2.1")),
        ipv6.set(IPv6Address("2001:db8::1")),
        text.set("héllo"),
        binary.set(b"\x00\xff"),
        gone.set(None),
    ]


if __name__ == "__main__":
    sys.exit(run(recorded, address="127.0.0.1", port=int(sys.argv[1])))
