"""Values and their encodings in SPOP, as SPOE.txt 3.1 has them."""

from ipaddress import IPv4Address, IPv6Address

from spoakit.spop.constants import DataType

# SPOE.txt 3.1: where an encoding gains a byte, and its ends.
VARINTS = [
    (0, "00"),
    (239, "ef"),
    (240, "f000"),
    (241, "f100"),
    (2287, "ff7f"),
    (2288, "f08000"),
    (264431, "ffff7f"),
    (264432, "f0808000"),
    (33818863, "ffffff7f"),
    (33818864, "f080808000"),
    (2**32 - 1, "fff0fefe7e"),
    (2**63 - 1, "fff0fefefefefefefe06"),
    (2**63, "f0f1fefefefefefefe06"),
    (2**64 - 1, "fff0fefefefefefefe0e"),
]

VALUES = [
    (DataType.NULL, None, "00"),
    (DataType.BOOL, True, "11"),
    (DataType.BOOL, False, "01"),
    (DataType.INT32, 5, "0205"),
    (DataType.INT32, -5, "02fbf0fefefefefefefe0e"),
    (DataType.INT32, -(2**31), "02f0f1fefebefefefefe0e"),
    (DataType.UINT32, 2**32 - 1, "03fff0fefe7e"),
    (DataType.INT64, -1, "04fff0fefefefefefefe0e"),
    (DataType.INT64, -(2**63), "04f0f1fefefefefefefe06"),
    (DataType.UINT64, 2**64 - 1, "05fff0fefefefefefefe0e"),
    (DataType.IPV4, IPv4Address("192.0.2.1"), "06c0000201"),
    (DataType.IPV6, IPv6Address("2001:db8::1"), "0720010db8000000000000000000000001"),
    (DataType.STRING, "", "0800"),
    (DataType.STRING, "é", "0802c3a9"),
    (DataType.STRING, "caf\udce9", "0804636166e9"),
    (DataType.BINARY, b"\0\xff", "090200ff"),
]
