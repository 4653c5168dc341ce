import re

import pytest

from spoakit import exceptions
from spoakit.exceptions import ProtocolError, SpoakitError, StatusCode

ERRORS = [
    each
    for each in vars(exceptions).values()
    if isinstance(each, type) and issubclass(each, SpoakitError)
]
PROTOCOL_ERRORS = [each for each in ERRORS if issubclass(each, ProtocolError)][1:]
DIRECT = [each for each in PROTOCOL_ERRORS if each.__base__ is ProtocolError]


def test_each_protocol_error_has_a_status_code_of_its_own() -> None:
    codes = sorted(error.status_code for error in DIRECT)
    assert codes == sorted(set(StatusCode) - {StatusCode.NORMAL, StatusCode.UNKNOWN})


def test_the_docstring_draws_the_whole_tree() -> None:
    tree = re.findall(r"\+-- (\w+) +(\S+)", exceptions.__doc__ or "")
    drawn = {name: number for name, number in tree}
    assert drawn.keys() == {error.__name__ for error in ERRORS} - {"SpoakitError"}
    for error in PROTOCOL_ERRORS:
        assert drawn[error.__name__] == str(int(error.status_code))


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(exceptions.RegistrationError, TypeError), (exceptions.ConfigurationError, ValueError)],
)
def test_wrong_use_is_also_pythons_own_error(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)
