"""Feed an agent broken streams for a while, and compare scores of random lists with an oracle's.

    python -m fuzz.run [--seconds 30] [--lists 100000] [--seed N]

Prints the seed, executions per second and what became of the streams. A finding ends it: the
stream is printed in hex, or the seed of the lists, and the seed makes it again. Exit status 0
without findings, else 1.
"""

import argparse
import asyncio
import math
import sys
import time
from collections import Counter
from random import SystemRandom

from fuzz.mutations import Mutator
from fuzz.target import Target
from spoakit.spop import COMPILED
from tests.support.iprep_oracle import LISTS, check_lists


async def fuzz(
    seed: int, *, seconds: float = math.inf, most: float = math.inf
) -> tuple[int, Counter[str]]:
    """Run for a time, or so many executions; return their number, and each outcome's.

    Raises:
        Exception: the first finding, with a note of the stream.
    """
    target, mutator = await Target.start(), Mutator(seed)
    executions, outcomes = 0, Counter[str]()
    end = time.monotonic() + seconds
    try:
        while executions < most and time.monotonic() < end:
            reads = mutator.reads()
            try:
                acks, broken, code = await target.execute(reads)
            except Exception as error:
                cut = " ".join(read.hex() for read in reads)
                error.add_note(f"seed {seed}, execution {executions}, the reads in hex:\n{cut}")
                raise
            executions += 1
            outcomes["no failure" if code is None else f"status {int(code)}"] += 1
            outcomes["ACKs"] += len(acks)
            outcomes["unreadable payloads"] += broken
    finally:
        await target.aclose()
    return executions, outcomes


def compare(seed: int, lists: int) -> int:
    """Compare the scores of addresses in random lists; return the number of addresses.

    Raises:
        AssertionError: they differ.
    """
    return sum(check_lists(seed + number) for number in range(-(-lists // LISTS)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--lists", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32))
    options = parser.parse_args()
    form = "compiled" if COMPILED else "pure"
    print(f"seed {options.seed}, {options.seconds:g} s, {form} form", flush=True)
    try:
        executions, outcomes = asyncio.run(fuzz(options.seed, seconds=options.seconds))
        addresses = compare(options.seed, options.lists)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    print(f"{executions} executions, {executions / options.seconds:.0f}/s")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:10} {outcome}")
    print(f"{addresses:10} scores of {options.lists} random lists")
    return 0


if __name__ == "__main__":
    sys.exit(main())
