# cython: wraparound=False
"""The sweeps that turn overlapping ranges into a table's ascending starts. Hot code.

Two sweeps. `flatten` takes the ranges of one source and finds where what it says changes: where
its ranges overlap, the innermost holds. `Merger` takes these changes of all sources and finds
where the combination changes.

Both go through columns, arrays with an item for each range or change, in the order of the
addresses. An address has two, of its upper and of its lower 64 bits; the upper ones' is empty for
IPv4. What a source says is a mark of 32 bits:

    mark     source << 24 | value + 1, or + 0 where the source says nothing

Plain Python that compiles to C (see ``spoakit._cython``).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from spoakit.apps.iprep.table._table_cy import VALUE_BITS, VALUE_MASK, TableError

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled

MAX_COMBINATIONS: int = 2**20

# Transitions between combinations that are remembered.
_MAX_TRANSITIONS: int = 2**18
_LOWER_HALF = cython.declare(cython.ulonglong, 2**64 - 1)
_MAX_IPV4 = cython.declare(cython.ulonglong, 2**32 - 1)
_VALUE_BITS = cython.declare(cython.uint, VALUE_BITS)
# What is sorted by at once: so many counters stay in the processor's nearest cache.
_DIGIT_BITS = cython.declare(cython.uint, 11)
_DIGITS = cython.declare(cython.uint, 2**11)


class Addresses(NamedTuple):
    """Columns of addresses.

    Attributes:
        upper: ``array("Q")`` of the upper 64 bits of each; empty for IPv4.
        lower: ``array("Q")`` of the lower 64 bits.
    """

    upper: array[int]
    lower: array[int]


class Steps:
    """Addresses, each with a number of 32 bits that holds from there on.

    Args:
        room: the most that there will be.
        wide: whether the addresses are of IPv6.

    Attributes:
        addresses: the columns of the addresses.
        numbers: ``array("I")`` of the numbers.
        count: how many there are, up to the room.
        wide: whether the addresses are of IPv6.
    """

    def __init__(self, room: int, wide: bool) -> None:
        self.addresses = Addresses(array("Q", [0]) * (room if wide else 0), array("Q", [0]) * room)
        self.numbers = array("I", [0]) * room
        self.count = 0
        self.wide = wide

    def trim(self) -> None:
        """Give back the room that is left."""
        for column in (*self.addresses, self.numbers):
            del column[self.count :]


def flatten(
    source: int, firsts: Addresses, lasts: Addresses, values: array[int], changes: Steps
) -> None:
    """Find where what one source says changes, ascending, each time at another address.

    Of its ranges that list an address that one holds which begins last; of those that begin
    together, the shortest; of equal ones, the last.

    Args:
        source: the source's number.
        firsts: the first address of each of its ranges.
        lasts: the last ones, none before the first.
        values: ``array("I")`` of their values.
        changes: gets the changes, each with its mark, two for each range at most.
    """
    order = cython.declare("const unsigned int[::1]", _order(firsts, lasts))
    first_upper = cython.declare("const unsigned long long[::1]", firsts.upper)
    first_lower = cython.declare("const unsigned long long[::1]", firsts.lower)
    last_upper = cython.declare("const unsigned long long[::1]", lasts.upper)
    last_lower = cython.declare("const unsigned long long[::1]", lasts.lower)
    said = cython.declare("const unsigned int[::1]", values)
    into_upper = cython.declare("unsigned long long[::1]", changes.addresses.upper)
    into_lower = cython.declare("unsigned long long[::1]", changes.addresses.lower)
    into_marks = cython.declare("unsigned int[::1]", changes.numbers)
    # The ranges that are open, the innermost last, and where that one ends.
    opened = cython.declare("unsigned int[::1]", array("I", [0]) * len(values))
    depth: cython.Py_ssize_t = 0
    end_upper: cython.ulonglong = 0
    end_lower: cython.ulonglong = 0
    nothing: cython.uint = source << VALUE_BITS
    wide: cython.bint = changes.wide
    begin: cython.Py_ssize_t = changes.count
    at: cython.Py_ssize_t = begin
    count: cython.Py_ssize_t = len(values)
    position: cython.Py_ssize_t
    each: cython.uint = 0
    for position in range(count + 1):
        # The highest address, behind which nothing changes.
        upper: cython.ulonglong = _LOWER_HALF if wide else 0
        lower: cython.ulonglong = _LOWER_HALF if wide else _MAX_IPV4
        if position < count:
            each = order[position]
            upper = first_upper[each] if wide else 0
            lower = first_lower[each]
        while depth > 0 and (end_upper < upper or (end_upper == upper and end_lower < lower)):
            closed_upper: cython.ulonglong = end_upper
            closed_lower: cython.ulonglong = end_lower
            # What lies around the innermost may have ended within it.
            while depth > 0 and (
                end_upper < closed_upper
                or (end_upper == closed_upper and end_lower <= closed_lower)
            ):
                depth -= 1
                if depth > 0:
                    end_upper = last_upper[opened[depth - 1]] if wide else 0
                    end_lower = last_lower[opened[depth - 1]]
            if wide:
                into_upper[at] = closed_upper + (closed_lower == _LOWER_HALF)
            into_lower[at] = (closed_lower + 1) & _LOWER_HALF
            into_marks[at] = nothing + said[opened[depth - 1]] + 1 if depth > 0 else nothing
            at += 1
        if position == count:
            break
        opened[depth] = each
        depth += 1
        end_upper = last_upper[each] if wide else 0
        end_lower = last_lower[each]
        # Of changes at one address the last one counts.
        if at > begin and into_lower[at - 1] == lower and (not wide or into_upper[at - 1] == upper):
            at -= 1
        if wide:
            into_upper[at] = upper
        into_lower[at] = lower
        into_marks[at] = nothing + said[each] + 1
        at += 1
    changes.count = at


def _order(ascending: Addresses, descending: Addresses | None = None) -> array[int]:
    """Return the order of addresses, as ``array("I")`` of their indices.

    Args:
        ascending: what they are sorted by.
        descending: what those are sorted by that are equal; where they are equal too, or there
            are none, they stay as they are.
    """
    bits = 64 if len(ascending.upper) else 32
    columns = [(ascending.lower, 0), (ascending.upper, 0)]
    if descending is not None:
        flip = 2**bits - 1
        columns = [(descending.lower, flip), (descending.upper, flip), *columns]
    if bits == 32:
        columns = columns[::2]
    if not cython.compiled:
        return _order_uncompiled(columns, bits)
    order = array("I", range(len(ascending.lower)))
    # The last column counts most, since what is equal in it stays as it is.
    for column, flip in columns:
        order = _sorted_by(column, flip, order)
    return order


def _order_uncompiled(columns: list[tuple[array[int], int]], bits: int) -> array[int]:
    """Do the same for Python, which is best at sorting whole integers."""
    keys: Iterable[int] = range(len(columns[0][0]))
    for number, (column, flip) in enumerate(columns):
        keys = _with_column(column, flip, keys, 32 + number * bits)
    return array("I", (key & 0xFFFFFFFF for key in sorted(keys)))


def _with_column(column: array[int], flip: int, keys: Iterable[int], shift: int) -> Iterator[int]:
    """Yield keys with a column's numbers in the bits from `shift` on."""
    return ((number ^ flip) << shift | key for number, key in zip(column, keys, strict=True))


@cython.cfunc
def _sorted_by(column: array[int], flip: cython.ulonglong, order: array[int]) -> array[int]:
    """Return indices in the order of what a column has at them; equal ones stay as they are.

    It is a radix sort: from the lowest bits to the highest, some at a time.

    Args:
        column: ``array("Q")``.
        flip: bits that are taken as their opposite, all of them for the highest first.
        order: ``array("I")`` of the indices, which is used up.
    """
    spare = array("I", [0]) * len(order)
    numbers = cython.declare("const unsigned long long[::1]", column)
    before = cython.declare("unsigned int[::1]")
    after = cython.declare("unsigned int[::1]")
    # How many have each digit; then, where the next one that has it goes.
    places = cython.declare("unsigned int[::1]", array("I", [0]) * _DIGITS)
    count: cython.Py_ssize_t = len(order)
    position: cython.Py_ssize_t
    digit: cython.ulonglong
    bits: cython.ulonglong = 0
    for position in range(count):
        bits |= numbers[position]
    shift: cython.uint = 0
    while shift < 64 and bits >> shift:
        before, after = order, spare
        for digit in range(_DIGITS):
            places[digit] = 0
        for position in range(count):
            places[((numbers[position] ^ flip) >> shift) & (_DIGITS - 1)] += 1
        place: cython.uint = 0
        for digit in range(_DIGITS):
            place += places[digit]
            places[digit] = place - places[digit]
        for position in range(count):
            digit = ((numbers[before[position]] ^ flip) >> shift) & (_DIGITS - 1)
            after[places[digit]] = before[position]
            places[digit] += 1
        order, spare = spare, order
        shift += _DIGIT_BITS
    return order


def packed(starts: array[int], numbers: array[int]) -> array[int]:
    """Return a table's IPv4 starts: of each the lower 16 bits, and those of its number.

    Args:
        starts: ``array("Q")`` of the addresses.
        numbers: ``array("I")`` of the numbers of what begins there.
    """
    packed = array("I", [0]) * len(starts)
    starts_ = cython.declare("const unsigned long long[::1]", starts)
    numbers_ = cython.declare("const unsigned int[::1]", numbers)
    packed_ = cython.declare("unsigned int[::1]", packed)
    position: cython.Py_ssize_t
    for position in range(len(starts_)):
        packed_[position] = (starts_[position] & 0xFFFF) << 16 | numbers_[position] & 0xFFFF
    return packed


@cython.final
@cython.cclass
class Merger:
    """Merge the changes of all sources, and number the combinations that come of it."""

    _combinations: list[tuple[int, ...]]
    _numbers: dict[tuple[int, ...], int]
    _transitions: dict[int, int]

    def __init__(self) -> None:
        self._combinations = [()]
        self._numbers = {(): 0}
        self._transitions = {}

    @property
    def combinations(self) -> list[tuple[int, ...]]:
        """The combinations so far, by number: each the marks of its sources, ascending."""
        return self._combinations

    def merge(self, changes: Steps) -> Steps:
        """Return where the combination changes, and the number of what begins there.

        The first change is at address 0.

        Args:
            changes: the changes of all sources, from `flatten`.

        Raises:
            TableError: there are over 2**20 combinations.
        """
        order = cython.declare("const unsigned int[::1]", _order(changes.addresses))
        upper = cython.declare("const unsigned long long[::1]", changes.addresses.upper)
        lower = cython.declare("const unsigned long long[::1]", changes.addresses.lower)
        marks = cython.declare("const unsigned int[::1]", changes.numbers)
        wide: cython.bint = changes.wide
        starts = Steps(len(order) + 1, changes.wide)
        into_upper = cython.declare("unsigned long long[::1]", starts.addresses.upper)
        into_lower = cython.declare("unsigned long long[::1]", starts.addresses.lower)
        into_numbers = cython.declare("unsigned int[::1]", starts.numbers)
        # The start that is being made, its number so far, and that of the one before it.
        at: cython.Py_ssize_t = 0
        number: cython.longlong = 0
        before: cython.longlong = -1
        position: cython.Py_ssize_t
        for position in range(len(order)):
            each: cython.uint = order[position]
            if lower[each] != into_lower[at] or (wide and upper[each] != into_upper[at]):
                # Where the number comes to what it was before, nothing starts.
                if number != before:
                    at += 1
                    before = number
                if wide:
                    into_upper[at] = upper[each]
                into_lower[at] = lower[each]
            number = self._changed(number, marks[each])
            into_numbers[at] = number
        starts.count = at + (number != before)
        return starts

    @cython.cfunc
    @cython.exceptval(-1)
    def _changed(self, number: cython.longlong, mark: cython.uint) -> cython.longlong:
        """Return the combination that comes of another when a source's mark changes."""
        transition: int = number << 32 | mark
        found: int | None = self._transitions.get(transition)
        if found is None:
            if len(self._transitions) == _MAX_TRANSITIONS:
                self._transitions.clear()
            found = self._transitions[transition] = self._number_of(
                _with_mark(self._combinations[number], mark)
            )
        return found

    def _number_of(self, combination: tuple[int, ...]) -> int:
        number = self._numbers.setdefault(combination, len(self._numbers))
        if number == len(self._combinations):
            if number == MAX_COMBINATIONS:
                raise TableError(
                    f"the sources list addresses in over {MAX_COMBINATIONS} combinations of values:"
                    " give them fewer values"
                )
            self._combinations.append(combination)
        return number


def _with_mark(combination: tuple[int, ...], mark: int) -> tuple[int, ...]:
    """Return a combination with a source's mark in place of the one it had."""
    others = [each for each in combination if each >> VALUE_BITS != mark >> VALUE_BITS]
    return tuple(sorted([*others, mark])) if mark & VALUE_MASK else tuple(others)
