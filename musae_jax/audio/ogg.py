"""Ogg files that are the same every time: encoders draw the serial number of a stream at random (RFC 3533)."""

import struct

_CAPTURE, _HEADER = b"OggS", 27  # of a page: pattern, version, flags, position 8, serial 4, number 4, CRC 4, segments 1


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return tuple(table)


_TABLE = _crc_table()


def _crc(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value


def with_serial(data: bytes, serial: int = 0) -> bytes:
    """A whole Ogg file with every page's serial number set to `serial` and its checksum computed again."""
    out, at = bytearray(data), 0
    while at < len(out):
        if out[at : at + 4] != _CAPTURE:
            raise ValueError(f"no Ogg page begins at byte {at}")
        segments = out[at + _HEADER - 1]
        end = at + _HEADER + segments + sum(out[at + _HEADER : at + _HEADER + segments])
        struct.pack_into("<I", out, at + 14, serial)
        struct.pack_into("<I", out, at + 22, 0)  # the checksum is of the page with this field 0
        struct.pack_into("<I", out, at + 22, _crc(bytes(out[at:end])))
        at = end
    return bytes(out)
