from ipaddress import IPv4Address, IPv6Address

import pytest

from spoakit.apps.iprep.agent import check_client_ip, ip_score
from spoakit.spop import DataType, Scope


@pytest.mark.parametrize("src", [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")])
def test_the_score_is_an_unsigned_integer_of_the_session(src: IPv4Address | IPv6Address) -> None:
    action = check_client_ip(src)
    assert action.scope is Scope.SESS
    assert action.name == "ip_score"
    assert action.data_type is DataType.UINT32
    assert ip_score.full_name == "sess.iprep.ip_score"


def test_the_scores_are_those_from_0_to_100() -> None:
    scores = {check_client_ip(IPv4Address("192.0.2.1")).value for _ in range(20_000)}
    assert scores == set(range(101))
